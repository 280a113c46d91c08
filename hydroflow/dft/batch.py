"""From structures to DFT jobs and back: specs of a batch, labelled frames, relaxed structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dft import crystal
from hydroflow.dft.settings import LabelSettings
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.errors import DataError


class _Store(Protocol):
    """The part of :class:`hydroflow.store` that is needed here."""

    objects: Any


def label_specs(
    store: _Store, structures: StructureArrays, settings: LabelSettings, *, resources: Resources | None = None,
    label: str = "label", priority: int = 0,
) -> list[JobSpec]:
    """One single-point job per structure, in the structures' order.

    Larger jobs get the higher priority within the batch, so that no long one is left running alone at its end.

    Raises
    ------
    SettingsError
        an element without pseudopotential in `settings`: nothing is submitted.
    """
    kind = "vasp.label" if settings.code == "vasp" else "dft.label"
    return _specs(store, structures, settings, kind, {}, resources, label, priority)


def relax_specs(
    store: _Store, structures: StructureArrays, settings: LabelSettings, pressure_gpa: float, *,
    resources: Resources | None = None, label: str = "relax", priority: int = 0,
) -> list[JobSpec]:
    """One variable-cell relaxation per structure at `pressure_gpa`."""
    kind = "vasp.relax" if settings.code == "vasp" else "dft.relax"
    extra = {"pressure_gpa": float(pressure_gpa)}
    return _specs(store, structures, settings, kind, extra, resources, label, priority)


def dos_specs(
    store: _Store, structures: StructureArrays, settings: LabelSettings, *, resources: Resources | None = None,
    label: str = "dos", priority: int = 0,
) -> list[JobSpec]:
    """One projected density of states per structure; Quantum ESPRESSO only."""
    if settings.code != "qe":
        raise DataError("densities of states with projections are computed by Quantum ESPRESSO; set labels.engine = 'qe'")
    return _specs(store, structures, settings, "dft.dos", {}, resources, label, priority)


def _specs(store: _Store, structures: StructureArrays, settings: LabelSettings, kind: str, extra: dict[str, Any],
           resources: Resources | None, label: str, priority: int) -> list[JobSpec]:
    if not len(structures):
        return []
    everything = sorted({s for c in structures.compositions() for s in c})
    digests = stored_pseudos(store, settings.for_elements(everything))
    # the part of the protocol that other kinds of job use is no part of this one's question
    others = {"relax", "dos"} - {kind.split(".")[1]}
    settings = replace(settings, values={k: v for k, v in settings.values.items() if k not in others})
    sizes = structures.counts * structures.volumes
    # 0…99 by size, so that a caller's priorities a hundred apart stay in their order
    rank = np.sort(sizes).searchsorted(sizes) * 99 // max(1, len(sizes) - 1)
    formulas = structures.formulas()
    per_system: dict[tuple[str, ...], dict[str, Any]] = {}
    specs = []
    for i in range(len(structures)):
        structure = crystal.to_json(structures, i)
        symbols = tuple(crystal.symbols_of(structure))
        if symbols not in per_system:
            per_system[symbols] = settings.for_elements(symbols).to_json()
        specs.append(JobSpec(
            kind, {"structure": structure, "settings": per_system[symbols], **extra}, settings.engine,
            files={settings.pseudos[e].file: digests[e] for e in symbols}, resources=resources or Resources(),
            label=f"{label} {formulas[i]} {structures.counts[i]}", priority=priority + int(rank[i])))
    return specs


def stored_pseudos(store: _Store, settings: LabelSettings) -> dict[str, str]:
    """Element → digest of its pseudopotential in the object store."""
    if settings.code == "vasp":
        from hydroflow.dft.vasp_potcar import stored_potcar

        return {e: store.objects.put(stored_potcar(Path(settings.folder), p)) for e, p in settings.pseudos.items()}
    return {e: store.objects.put_file(settings.file_of(e)) for e in settings.pseudos}


def labelled_frames(store: _Store | None, jobs: Sequence[Any], source: str = "") -> StructureArrays:
    """Labelled frames of the finished jobs among `jobs`, in their order.

    Jobs that are not ``done``, and done ones that a check holds for review, are left out (see :func:`held_for_review`).

    Parameters
    ----------
    store
        Not used for labels whose numbers are in the ledger; kept so that callers need not know.
    jobs
        Job documents (``key``, ``state``, ``inputs``, ``result``).
    source
        Value of the ``source`` column, e.g. ``stage1/2``.

    Returns
    -------
    StructureArrays
        columns ``energy_ev`` (n,), ``virial_ev`` (n, 3, 3), ``pressure_gpa``, ``label_settings``, ``source``, ``job``; atom
        column ``forces_ev_a`` (N, 3).
    """
    good = [job for job in jobs if _usable(job)]
    if not good:
        return StructureArrays.empty()
    results = [job.result for job in good]
    frames = _structures([job.inputs["structure"] for job in good])
    frames.columns = {
        "energy_ev": np.array([r["energy_ev"] for r in results], float),
        "virial_ev": np.array([r["virial_ev"] for r in results], float).reshape(-1, 3, 3),
        "pressure_gpa": np.array([r["pressure_gpa"] for r in results], float),
        "label_settings": np.array([r["settings"] for r in results], object),
        "source": np.array([source] * len(good), object),
        "job": np.array([str(job.key) for job in good], object),
    }
    frames.atom_columns = {"forces_ev_a": np.concatenate([np.array(r["forces_ev_a"], float).reshape(-1, 3) for r in results])}
    return frames


def relaxed_structures(store: _Store | None, jobs: Sequence[Any]) -> StructureArrays:
    """DFT-relaxed structures of the finished relaxations among `jobs`, in their order.

    Returns
    -------
    StructureArrays
        columns ``energy_ev``, ``enthalpy_ev`` (per cell, at the target pressure), ``pressure_gpa`` (the target),
        ``label_settings``, ``job``.
    """
    good = [job for job in jobs if _usable(job)]
    if not good:
        return StructureArrays.empty()
    results = [job.result for job in good]
    out = _structures([r["structure"] for r in results])
    out.columns = {name: np.array([r[name] for r in results], float) for name in ("energy_ev", "enthalpy_ev", "pressure_gpa")}
    out.columns["label_settings"] = np.array([r["settings"] for r in results], object)
    out.columns["job"] = np.array([str(job.key) for job in good], object)
    return out


def held_for_review(jobs: Sequence[Any]) -> dict[str, list[str]]:
    """Key of each finished job that a check holds back → the reasons."""
    return {str(job.key): list(job.result["review"]) for job in jobs if job.state == "done" and job.result.get("review")}


def _usable(job: Any) -> bool:
    return job.state == "done" and not job.result.get("review")


def _structures(items: Sequence[Any]) -> StructureArrays:
    return StructureArrays.from_lists(
        [np.array(s["numbers"]) for s in items], [np.array(s["fractional"], float).reshape(-1, 3) for s in items],
        [np.array(s["cell"], float) for s in items])
