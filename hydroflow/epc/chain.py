"""EPC of many crystals: which jobs each needs, and running them as their predecessors finish."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from hydroflow.epc.cost import work
from hydroflow.epc.inputs import pseudo_name, species
from hydroflow.epc.jobs import ELPH, SAVE
from hydroflow.epc.protocols import Crystal, Meshes, Protocol, limits, meshes, primitive, protocol
from hydroflow.epc.verdict import METHOD
from hydroflow.errors import HydroflowError, SettingsError
from hydroflow.store import Store
from hydroflow.store.documents import Job

EpcResult = dict[str, Any]
"""status (``done`` or ``failed``), failure {code, message, step}, jobs (keys), core_hours, and what
:func:`hydroflow.epc.verdict.summarise` found: lambda, omega_log_k, tc_k, broadenings, plateau, checks, usable, …; of a chain that
failed because a mode was imaginary, lowest_thz at that q"""

_ONE_CORE = Resources()
_ENDED = ("done", "failed", "quarantined", "cancelled")


Q_FIRST = 1000
"""Added to the priority of q jobs, above that of every ground state."""


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


def q_specs(
    scf: Job, grid: Meshes, settings: Protocol, engine_version: str, resources: Resources = _ONE_CORE, label: str = "",
) -> list[JobSpec]:
    """One job per irreducible q of a finished ``epc.scf`` job; the q with most representations first, and before any ground
    state, of which the largest crystal's comes first: so a long chain does not run alone at the end of its batch."""
    representations = scf.result["representations"]
    specs = []
    for i, q in enumerate(scf.result["q_points"], start=1):
        specs.append(JobSpec("epc.q", {
            "q": i, "q_cartesian": list(q), "q_mesh": list(grid.q), "coarse": list(grid.coarse), "tr2_ph": settings.tr2_ph,
            "alpha_mix": settings.alpha_mix, "sigma_first_ry": settings.sigma_first_ry, "sigma_count": settings.sigma_count,
            **({"dense": list(grid.dense)} if settings.tetrahedra and any(q) else {}),
        }, engine_version, {SAVE: scf.outputs[SAVE]}, resources, f"{label} q {i}/{len(representations)}".strip(),
            priority=Q_FIRST + int(representations[i - 1])))
    return specs


def collect_spec(
    crystal: Crystal, grid: Meshes, settings: Protocol, scf: Job, qs: Sequence[Job], mu_stars: Sequence[float],
    engine_version: str, hydrogen_dos_share: float | None = None, label: str = "", pressure_gpa: float | None = None,
) -> JobSpec:
    """The collection of finished q jobs, in the order of q. The limits and the method of the verdict are part of its name."""
    files = {"x.dyn0": scf.outputs["x.dyn0"], "coarse.out": scf.outputs["coarse.out"]}
    for i, job in enumerate(qs, start=1):
        files |= {f"x.dyn{i}": job.outputs["dyn"], f"couplings{i}": job.outputs["couplings"],
                  f"elph{i}.tar.gz": job.outputs[ELPH]}
        if "tetrahedra" in job.outputs:
            files[f"tetrahedra{i}"] = job.outputs["tetrahedra"]
    loosened = {str(i): job.adjustments["tr2_ph"] for i, job in enumerate(qs, start=1) if "tr2_ph" in (job.adjustments or {})}
    return JobSpec("epc.collect", {
        "crystal": crystal.to_inputs(), "protocol": settings.settings(), "q_mesh": list(grid.q), "coarse": list(grid.coarse),
        "n_q": len(qs),
        "mu_stars": [float(m) for m in mu_stars], "hydrogen_dos_share": hydrogen_dos_share, "pressure_gpa": pressure_gpa,
        "limits": limits(), "method": METHOD, **({"loosened": loosened} if loosened else {}),
    }, engine_version, files, Resources(1, 0, 3600), label)


@dataclass
class _Chain:
    """One crystal on its way through the steps."""

    label: str
    crystal: Crystal | None = None
    grid: Meshes | None = None
    hydrogen_dos_share: float | None = None
    pressure_gpa: float | None = None
    scf: str | None = None
    qs: list[str] = field(default_factory=list)
    collect: str | None = None
    failure: dict[str, Any] | None = None
    lowest_thz: float | None = None

    @property
    def keys(self) -> list[str]:
        return [k for k in (self.scf, *self.qs, self.collect) if k]


def run_chain(
    ledger: Ledger, store: Store, structures: StructureArrays, pseudos: Mapping[str, str], cutoffs: Sequence[Mapping[str, float]],
    engine_version: str, protocol_name: str | Protocol, mu_star: Sequence[float], campaign_name: str, cores: int = 1,
    on_progress: Callable[[dict[str, int]], None] | None = None, *, wall_time_s: int = 86_400, poll_s: float = 1.0,
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
    resources = Resources(cores, 0, wall_time_s)
    chains = [_start(structures, i, settings) for i in range(len(structures))]
    wanted = {}
    for i, c in enumerate(chains):
        if c.crystal is not None and c.grid is not None:
            try:
                wanted[i] = scf_spec(
                    c.crystal, c.grid, settings, pseudos, cutoffs[i], engine_version, resources, f"{c.label} scf")
            except HydroflowError as error:
                c.failure = _failure("scf", "bad_input", str(error))
    for i, key in zip(wanted, ledger.submit(wanted.values(), campaign_name), strict=True):
        chains[i].scf = key

    shown: dict[str, int] | None = None
    while True:
        documents = _documents(ledger, chains)
        for c in chains:
            _advance(c, documents, ledger, settings, engine_version, resources, mu_star, campaign_name)
        counts = _counts(chains, documents)
        if on_progress is not None and counts != shown:
            on_progress(counts)
            shown = counts
        open_chains = [c for c in chains if c.failure is None and not _finished(c, documents)]
        if not open_chains:
            break
        ledger.check_cancelled(f"{len(open_chains)} of {len(chains)} EPC chains")
        time.sleep(poll_s)
    documents = _documents(ledger, chains)
    ledger.on_batch(list(documents.values()))
    return [_result(c, documents, settings, float(own["ecutwfc_ry"])) for c, own in zip(chains, cutoffs, strict=True)]


def _start(structures: StructureArrays, i: int, settings: Protocol) -> _Chain:
    rows = slice(structures.offsets[i], structures.offsets[i + 1])
    identity = structures.columns.get("id")
    chain = _Chain(str(identity[i]) if identity is not None else structures[i].formulas()[0],
                   hydrogen_dos_share=_known(structures, "hydrogen_dos_share", i),
                   pressure_gpa=_known(structures, "pressure_gpa", i))
    try:
        chain.crystal = primitive(structures.numbers[rows], structures.cells[i], structures.fractional[rows])
        chain.grid = meshes(chain.crystal, settings)
    except HydroflowError as error:
        chain.failure = _failure("structure", "bad_input", str(error))
    return chain


def _known(structures: StructureArrays, column: str, i: int) -> float | None:
    values = structures.columns.get(column)
    return None if values is None or np.isnan(values[i]) else float(values[i])


def _documents(ledger: Ledger, chains: Sequence[_Chain]) -> dict[str, Job]:
    keys = list(dict.fromkeys(k for c in chains for k in c.keys))
    return {job.key: job for job in ledger.jobs(keys)} if keys else {}


def _advance(
    c: _Chain, documents: Mapping[str, Job], ledger: Ledger, settings: Protocol, engine_version: str, resources: Resources,
    mu_star: Sequence[float], campaign: str,
) -> None:
    """Submit the next step of one crystal when the one before has ended."""
    if c.failure is not None or c.crystal is None or c.grid is None:
        return
    for step, keys in (("scf", [c.scf]), ("q", c.qs), ("collect", [c.collect])):
        for n, key in enumerate(keys, start=1):
            job = documents.get(key) if key else None
            if job is not None and job.state in _ENDED and job.state != "done":
                told = job.failure or {}
                where = f"q {n} of {len(c.qs)}" if step == "q" else step
                c.lowest_thz = told.get("details", {}).get("lowest_thz")
                c.failure = _failure(where, told.get("code", "unknown"), told.get("message", job.state))
                # the rest of this crystal would be computed for nothing
                ledger.cancel([k for k in c.keys if k in documents and documents[k].state not in _ENDED], campaign,
                              f"{where} of this crystal failed")
                return
    scf = documents.get(c.scf) if c.scf else None
    if scf is None or scf.state != "done":
        return
    if not c.qs:
        c.qs = ledger.submit(q_specs(scf, c.grid, settings, engine_version, resources, c.label), campaign)
        return
    qs = [documents[k] for k in c.qs if k in documents and documents[k].state == "done"]
    if c.collect is None and len(qs) == len(c.qs):
        spec = collect_spec(c.crystal, c.grid, settings, scf, qs, mu_star, engine_version, c.hydrogen_dos_share,
                            f"{c.label} collect", c.pressure_gpa)
        c.collect = ledger.submit([spec], campaign)[0]


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
        out |= {"n_q": len(c.qs), "q_done": sum(documents[k].state == "done" for k in c.qs if k in documents)}
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
