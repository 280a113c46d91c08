"""EPC of many crystals: which jobs each needs, and running them as their predecessors finish."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from hydroflow.epc.cost import work
from hydroflow.epc.ground_state import k_sampling
from hydroflow.epc.inputs import pseudo_name, species
from hydroflow.epc.linear_response import ELPH, IRREPS
from hydroflow.epc.protocols import Crystal, Meshes, Protocol, dos_meshes, limits, meshes, primitive, protocol
from hydroflow.epc.scripts import SAVE
from hydroflow.epc.verdict import METHOD, judge_k_sampling
from hydroflow.errors import FailureCode, HydroflowError, SettingsError
from hydroflow.store import Store
from hydroflow.store.documents import Job
from hydroflow.store.objects import ObjectStore

EpcResult = dict[str, Any]
"""status (``done`` or ``failed``), failure {code, message, step}, jobs (keys), core_hours, and what
:func:`hydroflow.epc.verdict.summarise` found: lambda, omega_log_k, tc_k, broadenings, plateau, checks, usable, …; of a chain that
failed because a mode was imaginary, lowest_thz at that q"""

_ONE_CORE = Resources()
_ENDED = ("done", "failed", "quarantined", "cancelled")


MODES_PER_JOB = 36
"""Of linear response, where nobody asks for another number: cells of up to 12 atoms have one job per q."""

Q_FIRST = 1000
"""Added to the priority of q jobs, above that of every ground state."""

COLLECT_FIRST = 2 * Q_FIRST
"""Priority of a collection, above that of every q job: it takes minutes, and a chain that is done is told before others go on."""


def scf_spec(
    crystal: Crystal, grid: Meshes, settings: Protocol, pseudos: Mapping[str, str], cutoffs: Mapping[str, float],
    engine_version: str, resources: Resources = _ONE_CORE, label: str = "",
) -> JobSpec:
    """The ground states of one crystal.

    Parameters
    ----------
    pseudos
        Element symbol → object digest of its UPF file.
    cutoffs
        ``ecutwfc_ry`` and ``ecutrho_ry``.

    Raises
    ------
    SettingsError
        when an element has no pseudopotential.
    """
    kinds = species(crystal)
    missing = [s for s in kinds if s not in pseudos]
    if missing:
        raise SettingsError(f"no pseudopotential for {', '.join(missing)}; install a family that has it (hydroflow pseudos)")
    return JobSpec("epc.scf", {
        "crystal": crystal.to_inputs(), "ecutwfc_ry": float(cutoffs["ecutwfc_ry"]), "ecutrho_ry": float(cutoffs["ecutrho_ry"]),
        "degauss_ry": settings.degauss_ry, "conv_thr_ry": settings.conv_thr_ry,
        "q_mesh": list(grid.q), "coarse": list(grid.coarse), "dense": list(grid.dense),
        **({"tetrahedra": True} if settings.tetrahedra else {}),
    }, engine_version, {pseudo_name(s): pseudos[s] for s in kinds}, resources, label, priority=len(crystal.numbers))


def q_spec(
    scf: Job, q: int, grid: Meshes, settings: Protocol, engine_version: str, resources: Resources = _ONE_CORE, label: str = "",
    irreps: Sequence[Job] = (),
) -> JobSpec:
    """The job of irreducible q number `q` (1-based) of a finished ``epc.scf`` job, after its finished `irreps` jobs where it has
    some.

    The q with most representations comes first, and before any ground state, of which the largest crystal's comes first: so a
    long chain does not run alone at the end of its batch.
    """
    point, representations = scf.result["q_points"][q - 1], scf.result["representations"]
    parts = {f"irreps{i}.tar.gz": job.outputs[IRREPS] for i, job in enumerate(irreps, start=1)}
    reached = max([settings.tr2_ph, *(_converged_to(job) for job in irreps)])
    return JobSpec("epc.q", {
        "q": q, "q_cartesian": list(point), "q_mesh": list(grid.q), "coarse": list(grid.coarse), "tr2_ph": reached,
        "alpha_mix": settings.alpha_mix, "sigma_first_ry": settings.sigma_first_ry, "sigma_count": settings.sigma_count,
        **({"dense": list(grid.dense)} if settings.tetrahedra and any(point) else {}),
    }, engine_version, {SAVE: scf.outputs[SAVE], **parts}, resources, f"{label} q {q}/{len(representations)}".strip(),
        priority=Q_FIRST + int(representations[q - 1]))


def irreps_specs(
    scf: Job, q: int, modes: int, modes_per_job: int, grid: Meshes, settings: Protocol, engine_version: str,
    resources: Resources = _ONE_CORE, label: str = "",
) -> list[JobSpec]:
    """The jobs that share out the linear response of one q by its representations; none where one job can carry all its
    `modes`."""
    points, representations = scf.result["representations"], scf.result["representations"][q - 1]
    parts = min(math.ceil(modes / modes_per_job), representations)
    if parts < 2:
        return []
    ends = [round(representations * i / parts) for i in range(parts + 1)]
    return [JobSpec("epc.irreps", {
        "q": q, "q_mesh": list(grid.q), "coarse": list(grid.coarse), "representations": [before + 1, last],
        "tr2_ph": settings.tr2_ph, "alpha_mix": settings.alpha_mix,
    }, engine_version, {SAVE: scf.outputs[SAVE]}, resources,
        f"{label} q {q}/{len(points)} representations {before + 1}-{last}".strip(), priority=Q_FIRST + representations)
        for before, last in pairwise(ends)]


def dos_spec(
    crystal: Crystal, scf: Job, settings: Protocol, engine_version: str, resources: Resources = _ONE_CORE, label: str = "",
) -> JobSpec:
    """N(E_F) by tetrahedra of a finished ``epc.scf`` job; after the q of its crystal, before other ground states."""
    fine, rough = dos_meshes(crystal, settings)
    return JobSpec("epc.dos", {
        **{key: scf.inputs[key] for key in ("crystal", "ecutwfc_ry", "ecutrho_ry")}, "dos": list(fine), "dos_rough": list(rough),
    }, engine_version, {**scf.files, SAVE: scf.outputs[SAVE]}, resources, f"{label} dos".strip(), priority=Q_FIRST)


def collect_spec(
    crystal: Crystal, grid: Meshes, settings: Protocol, scf: Job, dos: Job, qs: Sequence[Job], mu_stars: Sequence[float],
    engine_version: str, phonon_dos: Sequence[float], hydrogen_dos_share: float | None = None, label: str = "",
    pressure_gpa: float | None = None, *, wall_time_s: int,
) -> JobSpec:
    """The collection of finished q jobs, in the order of q; `dos` is an ``epc.dos`` job that has ended, `phonon_dos` that of
    :func:`hydroflow.epc.ground_state.k_sampling`. The limits and the method of the verdict are part of its name."""
    files = {"x.dyn0": scf.outputs["x.dyn0"], "coarse.out": scf.outputs["coarse.out"]}
    for i, job in enumerate(qs, start=1):
        files |= {f"x.dyn{i}": job.outputs["dyn"], f"couplings{i}": job.outputs["couplings"],
                  f"elph{i}.tar.gz": job.outputs[ELPH]}
        if "tetrahedra" in job.outputs:
            files[f"tetrahedra{i}"] = job.outputs["tetrahedra"]
    fermi_dos = {"failed": (dos.failure or {}).get("message", dos.state)}
    if dos.state == "done":
        fermi_dos = {k: dos.result[k] for k in ("mesh", "rough_mesh", "offsets_ev", "dos", "rough_dos")}
    loosened = {str(i): _converged_to(job) for i, job in enumerate(qs, start=1) if _converged_to(job) > settings.tr2_ph}
    return JobSpec("epc.collect", {
        "crystal": crystal.to_inputs(), "protocol": settings.settings(), "q_mesh": list(grid.q), "coarse": list(grid.coarse),
        "n_q": len(qs),
        "mu_stars": [float(m) for m in mu_stars], "hydrogen_dos_share": hydrogen_dos_share, "pressure_gpa": pressure_gpa,
        "limits": limits(), "method": METHOD, "phonon_dos": list(phonon_dos), "fermi_dos": fermi_dos,
        **({"loosened": loosened} if loosened else {}),
    }, engine_version, files, Resources(1, 0, wall_time_s), label, priority=COLLECT_FIRST)


def _converged_to(job: Job) -> float:
    """tr2_ph of a finished job of linear response: its input, or what a correction made of it."""
    return float((job.adjustments or {}).get("tr2_ph", job.inputs["tr2_ph"]))


@dataclass
class _Chain:
    """One crystal on its way through the steps."""

    label: str
    crystal: Crystal | None = None
    grid: Meshes | None = None
    hydrogen_dos_share: float | None = None
    pressure_gpa: float | None = None
    scf: str | None = None
    irreps: list[list[str]] = field(default_factory=list)  # per q, empty where its q job does the linear response itself
    qs: list[str | None] = field(default_factory=list)
    dos: str | None = None
    collect: str | None = None
    failure: dict[str, Any] | None = None
    lowest_thz: float | None = None

    @property
    def keys(self) -> list[str]:
        return [k for k in (self.scf, *chain.from_iterable(self.irreps), *self.qs, self.dos, self.collect) if k]


def run_chain(
    ledger: Ledger, store: Store, structures: StructureArrays, pseudos: Mapping[str, str], cutoffs: Sequence[Mapping[str, float]],
    engine_version: str, protocol_name: str | Protocol, mu_star: Sequence[float], campaign_name: str, cores: int = 1,
    on_progress: Callable[[dict[str, int]], None] | None = None, *, wall_time_s: int = 86_400,
    modes_per_job: int = MODES_PER_JOB, stop_coarse_k: bool = False, poll_s: float = 1.0,
) -> list[EpcResult]:
    """EPC of all structures, each step as soon as its crystal is ready for it.

    A crystal's failure never holds up the others; nothing that had finished is computed again, however often this is called.

    Parameters
    ----------
    structures
        Relaxed crystals; columns ``id`` (label), ``hydrogen_dos_share`` and ``pressure_gpa`` (that they were relaxed at) are used
        where they are there.
    pseudos
        Element symbol → object digest of its UPF file.
    cutoffs
        ``ecutwfc_ry`` and ``ecutrho_ry`` of each structure.
    mu_star
        Values of μ*, the first one first.
    on_progress
        Called with numbers of crystals and jobs: ``crystals, done, failed, jobs, jobs_done``, whenever they change.
    modes_per_job
        A q with more modes than this shares its linear response out among several jobs, by representations.
    stop_coarse_k
        End a chain after its ground state, as failed, where that shows that the check ``k_sampling`` will fail: its λ would not
        be usable. Not with protocol ``plumbing``, whose λ never is.

    Returns
    -------
    list of EpcResult
        In the order of `structures`.

    Raises
    ------
    RunCancelled
        as :meth:`Ledger.wait` does.
    """
    settings = protocol(protocol_name)
    lost = [s for s, digest in pseudos.items() if not store.objects.exists(digest)]
    if lost:
        raise SettingsError(f"the pseudopotential of {', '.join(lost)} is not in the object store; install the family again "
                            "(hydroflow pseudos)")
    run = _Run(ledger, store.objects, settings, engine_version, Resources(cores, 0, wall_time_s), mu_star, campaign_name,
               modes_per_job, stop_coarse_k)
    chains = [_start(structures, i, settings) for i in range(len(structures))]
    wanted = {}
    for i, c in enumerate(chains):
        if c.crystal is not None and c.grid is not None:
            try:
                wanted[i] = scf_spec(
                    c.crystal, c.grid, settings, pseudos, cutoffs[i], engine_version, run.resources, f"{c.label} scf")
            except HydroflowError as error:
                c.failure = _failure("scf", "bad_input", str(error))
    for i, key in zip(wanted, ledger.submit(wanted.values(), campaign_name), strict=True):
        chains[i].scf = key

    shown: dict[str, int] | None = None
    documents: dict[str, Job] = {}
    while True:
        documents = _documents(ledger, chains, documents)
        for c in chains:
            _advance(c, documents, run)
        counts = _counts(chains, documents)
        if on_progress is not None and counts != shown:
            on_progress(counts)
            shown = counts
        open_chains = [c for c in chains if c.failure is None and not _finished(c, documents)]
        if not open_chains:
            break
        ledger.check_cancelled(f"{len(open_chains)} of {len(chains)} EPC chains")
        time.sleep(poll_s)
    documents = _documents(ledger, chains, {})
    ledger.on_batch(list(documents.values()))
    return [_result(c, documents, settings, float(own["ecutwfc_ry"])) for c, own in zip(chains, cutoffs, strict=True)]


def _start(structures: StructureArrays, i: int, settings: Protocol) -> _Chain:
    rows = slice(structures.offsets[i], structures.offsets[i + 1])
    identity = structures.columns.get("id")
    own = _Chain(str(identity[i]) if identity is not None else structures[i].formulas()[0],
                 hydrogen_dos_share=_known(structures, "hydrogen_dos_share", i),
                 pressure_gpa=_known(structures, "pressure_gpa", i))
    try:
        own.crystal = primitive(structures.numbers[rows], structures.cells[i], structures.fractional[rows])
        own.grid = meshes(own.crystal, settings)
    except HydroflowError as error:
        own.failure = _failure("structure", "bad_input", str(error))
    return own


def _known(structures: StructureArrays, column: str, i: int) -> float | None:
    values = structures.columns.get(column)
    return None if values is None or np.isnan(values[i]) else float(values[i])


def _documents(ledger: Ledger, chains: Sequence[_Chain], before: Mapping[str, Job]) -> dict[str, Job]:
    """The jobs of all chains; those that were done `before` are not read again, a campaign has thousands."""
    keys = dict.fromkeys(k for c in chains for k in c.keys)
    done = {k: before[k] for k in keys if _done(k, before)}
    rest = [k for k in keys if k not in done]
    return done | ({job.key: job for job in ledger.jobs(rest)} if rest else {})


@dataclass(frozen=True)
class _Run:
    """What all chains of one call share."""

    ledger: Ledger
    objects: ObjectStore
    settings: Protocol
    engine_version: str
    resources: Resources
    mu_star: Sequence[float]
    campaign: str
    modes_per_job: int
    stop_coarse_k: bool


def _advance(c: _Chain, documents: Mapping[str, Job], run: _Run) -> None:
    """Submit the next step of one crystal when the one before has ended."""
    if c.failure is not None or c.crystal is None or c.grid is None:
        return
    if _gave_up(c, documents, run):
        return
    scf = documents.get(c.scf) if c.scf else None
    if scf is None or scf.state != "done":
        return
    if not c.qs:
        if run.stop_coarse_k and run.settings.name != "plumbing":
            passed, *_, text = judge_k_sampling(
                k_sampling(scf, run.objects), run.settings.degauss_ry, limits()["phonon_dos"])
            if not passed:
                c.failure = _failure("scf", FailureCode.coarse_k_mesh.value, text)
                return
        _begin_linear_response(c, scf, run)
        return
    for i, parts in enumerate(c.irreps):
        if c.qs[i] is None and all(_done(k, documents) for k in parts):
            spec = q_spec(scf, i + 1, c.grid, run.settings, run.engine_version, run.resources, c.label,
                          [documents[k] for k in parts])
            c.qs[i] = run.ledger.submit([spec], run.campaign)[0]
    dos = documents.get(c.dos) if c.dos else None
    if c.collect is None and dos is not None and dos.state in _ENDED and all(k is not None and _done(k, documents) for k in c.qs):
        spec = collect_spec(c.crystal, c.grid, run.settings, scf, dos, [documents[k] for k in c.qs if k], run.mu_star,
                            run.engine_version, k_sampling(scf, run.objects), c.hydrogen_dos_share, f"{c.label} collect",
                            c.pressure_gpa, wall_time_s=run.resources.wall_time_s)
        c.collect = run.ledger.submit([spec], run.campaign)[0]


def _done(key: str, documents: Mapping[str, Job]) -> bool:
    return key in documents and documents[key].state == "done"


def _gave_up(c: _Chain, documents: Mapping[str, Job], run: _Run) -> bool:
    """Whether a job of this crystal ended without an answer; the rest of it would be computed for nothing and is cancelled."""
    of_q = [(f"q {n} of {len(c.qs)}", k) for n, keys in enumerate(zip(c.irreps, c.qs, strict=True), start=1)
            for k in (*keys[0], keys[1])]
    for where, key in [("scf", c.scf), *of_q, ("collect", c.collect)]:
        job = documents.get(key) if key else None
        if job is not None and job.state in _ENDED and job.state != "done":
            told = job.failure or {}
            c.lowest_thz = told.get("details", {}).get("lowest_thz")
            c.failure = _failure(where, told.get("code", "unknown"), told.get("message", job.state))
            run.ledger.cancel([k for k in c.keys if k in documents and documents[k].state not in _ENDED], run.campaign,
                              f"{where} of this crystal failed", keep=False)
            return True
    return False


def _begin_linear_response(c: _Chain, scf: Job, run: _Run) -> None:
    """Submit the q jobs, or what goes before them, and N(E_F) by tetrahedra. A q that is in the ledger whole stays whole, unless
    it was cancelled or was given up because it ran out of time again and again and gets no more of it now. Where one of the
    jobs has failed for good before, the others, which were cancelled for it, are not begun again."""
    assert c.crystal is not None and c.grid is not None
    how = (c.grid, run.settings, run.engine_version, run.resources, c.label)
    whole = [q_spec(scf, q, *how) for q in range(1, len(scf.result["q_points"]) + 1)]
    known = {job.key: job for job in Job.objects(key__in=[w.key for w in whole]).only("key", "state", "failure", "restart_from")}
    again = run.ledger.puts_back(list(known), run.resources)
    shared = []
    for q, w in enumerate(whole, start=1):
        parts = irreps_specs(scf, q, 3 * len(c.crystal.numbers), run.modes_per_job, *how)
        shared.append([] if _stays_whole(known.get(w.key), parts, w.key in again) else parts)
    wanted = [*chain.from_iterable(shared), *(w for w, parts in zip(whole, shared, strict=True) if not parts)]
    there = {job.key: job.state for job in Job.objects(key__in=[w.key for w in wanted]).only("key", "state")}
    for key in run.ledger.puts_back(list(there), run.resources):
        del there[key]
    if {"failed", "quarantined"} & set(there.values()):
        wanted = [w for w in wanted if there.get(w.key) in ("failed", "quarantined", "done")]
    else:
        wanted.append(dos_spec(c.crystal, scf, run.settings, run.engine_version, run.resources, c.label))
        c.dos = wanted[-1].key
    run.ledger.submit(wanted, run.campaign)
    keys = {w.key for w in wanted}
    c.irreps = [[spec.key for spec in parts if spec.key in keys] for parts in shared]
    c.qs = [w.key if not parts and w.key in keys else None for w, parts in zip(whole, shared, strict=True)]


def _stays_whole(job: Job | None, parts: Sequence[JobSpec], gets_more: bool) -> bool:
    """Whether the job of a whole q, as the ledger has it, is wanted rather than these parts of it; `gets_more` where it ran out
    of its wall time and is given more."""
    if job is None or job.state == "cancelled":
        return False
    if job.state in ("failed", "quarantined") and (job.failure or {}).get("code") == "walltime":
        under_way = Job.objects(key__in=[p.key for p in parts], state__nin=["failed", "quarantined", "cancelled"])
        return gets_more and bool(job.restart_from) and not under_way.count()
    return True


def _finished(c: _Chain, documents: Mapping[str, Job]) -> bool:
    return c.collect is not None and c.collect in documents and documents[c.collect].state == "done"


def _counts(chains: Sequence[_Chain], documents: Mapping[str, Job]) -> dict[str, int]:
    states = Counter(job.state for job in documents.values())
    return {"crystals": len(chains), "done": sum(_finished(c, documents) for c in chains),
            "failed": sum(c.failure is not None for c in chains),
            "jobs": sum(len(c.keys) for c in chains), "jobs_done": states["done"]}


def _failure(step: str, code: str, message: str) -> dict[str, str]:
    return {"step": step, "code": code, "message": message}


def _result(c: _Chain, documents: Mapping[str, Job], settings: Protocol, ecutwfc_ry: float) -> EpcResult:
    own = [documents[k] for k in c.keys if k in documents]
    done = c.failure is None and _finished(c, documents)
    out: EpcResult = {
        "status": "done" if done else "failed", "failure": c.failure, "protocol": settings.name, "usable": False,
        "jobs": c.keys, "core_hours": round(sum(_core_hours(j) for j in own), 5),
        "cpu_hours": round(sum((j.result or {}).get("cpu_s", 0.0) for j in own) / 3600, 5)}
    if c.crystal is None or c.grid is None:
        return out
    out |= {"q_mesh": list(c.grid.q), "k_mesh": list(c.grid.coarse), "k_mesh_dense": list(c.grid.dense),
            "atoms_primitive": len(c.crystal.numbers)}
    if c.qs:
        out |= {"n_q": len(c.qs), "q_done": sum(k is not None and _done(k, documents) for k in c.qs)}
    if c.lowest_thz is not None:
        out["lowest_thz"] = c.lowest_thz
    if done:
        out |= documents[c.collect].result  # type: ignore[index]
        out["spectra"] = documents[c.collect].outputs.get("spectra.json")  # type: ignore[index]
        scf = documents[c.scf].result  # type: ignore[index]
        out |= {"pressure_gpa": scf.get("pressure_gpa"), "symmetries": scf.get("symmetries"),
                "work": work(c.crystal, c.grid, ecutwfc_ry, scf["electrons"]) if scf.get("electrons") else None}
    return out


def _core_hours(job: Job) -> float:
    cost = job.cost or {}
    return float(cost.get("core_hours") or 0.0)
