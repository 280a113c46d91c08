"""Hull distance by DFT: candidates and the phases they compete with, all relaxed at one level of theory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dispatch.job import Resources
from hydroflow.screening.entries import composition_matrix
from hydroflow.screening.hull import distances, hulls_of
from hydroflow.screening.records import structure_blob
from hydroflow.screening.storage import minima
from hydroflow.store.documents import Job
from hydroflow.structures.symmetry import primitive

if TYPE_CHECKING:
    from hydroflow.screening.measure import Screening

COMPETING_EV = 0.03
"""Binaries within this of the model's hull are relaxed by DFT too: they may be on the DFT hull."""
POLYMORPHS = 3
"""So many phases of an element are tried, lowest first, when the DFT relaxation of one fails."""


@dataclass
class DftDistances:
    """Distances above the DFT hull, (k,) eV/atom, NaN where there is none and `reasons` says why."""

    ehull_ev: np.ndarray
    settings: str
    reasons: dict[int, str] = field(default_factory=dict)
    fields: dict[int, dict[str, Any]] = field(default_factory=dict)


def competing_phases(work: Screening, rows: np.ndarray) -> np.ndarray:
    """Rows of the phases that decide the DFT hull of the candidates `rows`.

    Per chemical system: everything on the model's hull (elements, binaries, ternaries), and the lowest phase of each
    binary composition within :data:`COMPETING_EV` of it.
    """
    structures, ids = work.structures, work.ids.astype(str)
    row_of = {name: i for i, name in enumerate(ids)}
    systems = {frozenset(s.split("-")) for s in structures[rows].chemical_systems()}
    chosen: set[int] = set()
    for system in systems:
        chosen |= {row_of[str(name)] for name in work.hulls[system].ids}
    lowest = minima(structures)
    near = lowest[work.ehull_ev[lowest] <= COMPETING_EV]
    for i, elements in zip(near, structures[near].chemical_systems(), strict=True):
        members = set(elements.split("-"))
        if len(members) == 2 and any(members <= s for s in systems):
            chosen.add(int(i))
    return np.array(sorted(chosen - {int(r) for r in rows}), np.int64)


def dft_distances(work: Screening, rows: np.ndarray) -> DftDistances:
    """Relax the candidates `rows` and their competitors by DFT and measure the candidates against the DFT hull."""
    from hydroflow.dft.settings import campaign_settings

    campaign = work.campaign
    if not len(rows):
        return DftDistances(np.zeros(0), "")
    settings = campaign_settings(campaign)
    wanted = np.concatenate([rows, competing_phases(work, rows)])
    jobs = dict(zip(wanted.tolist(), _relax(work, wanted, settings), strict=True))
    _replace_failed_elements(work, jobs, settings)
    relaxed, at = _relaxed(work, jobs)
    hulls = hulls_of(relaxed, work.pressure_gpa, settings.text)
    ehull = distances(relaxed, hulls)
    out = DftDistances(np.full(len(rows), np.nan), settings.text)
    for k, row in enumerate(rows.tolist()):
        job = jobs[row]
        out.fields[k] = {"label_settings": settings.text, "structure_dft": None, "enthalpy_dft_ev": None}
        if row not in at:
            out.reasons[k] = f"not relaxed by DFT, {_why_not(job)} (job {job.key})"
            continue
        j = at[row]
        out.fields[k] |= {
            "structure_dft": structure_blob(relaxed, j),
            "enthalpy_dft_ev": float(relaxed.columns["enthalpy_ev"][j] / relaxed.counts[j])}
        if np.isfinite(ehull[j]):
            out.ehull_ev[k] = max(float(ehull[j]), 0.0)
        else:
            out.reasons[k] = _no_hull(relaxed, relaxed[j].chemical_systems()[0])
    return out


def _relax(work: Screening, rows: np.ndarray, settings: Any) -> list[Job]:
    """Relaxation jobs of symmetrised primitive cells: the smallest that DFT can be asked, with all their symmetry."""
    from hydroflow.dft.jobs import relax_specs

    labels = work.campaign.labels
    cells = primitive(work.structures[rows], work.campaign.funnel.symprec_a)
    specs = relax_specs(work.store, cells, settings, work.pressure_gpa, label="screen",
                        resources=Resources(cores=labels.cores, wall_time_s=labels.wall_time_s))
    return work.run(specs, "DFT relaxations")


def _relaxed(work: Screening, jobs: dict[int, Job]) -> tuple[StructureArrays, dict[int, int]]:
    """DFT-relaxed structures with ``id`` and ``enthalpy_ev``, and where each row's structure is among them."""
    from hydroflow.dft.jobs import relaxed_structures

    relaxed = relaxed_structures(work.store, list({job.key: job for job in jobs.values()}.values()))
    if not len(relaxed):
        return relaxed, {}
    position = {key: j for j, key in enumerate(relaxed.columns["job"])}
    at = {row: position[job.key] for row, job in jobs.items() if job.key in position}
    relaxed.columns["id"] = np.array(relaxed.columns["job"], dtype=object)
    for row, j in at.items():
        relaxed.columns["id"][j] = work.ids[row]
    return relaxed, at


def _why_not(job: Job) -> str:
    if job.state == "done":
        return "held for review: " + "; ".join(job.result.get("review") or ["unknown reason"])
    said = job.failure or {}
    return f"{said.get('code', job.state)}: {said.get('message', 'no message')}"


def _replace_failed_elements(work: Screening, jobs: dict[int, Job], settings: Any) -> None:
    """Where no phase of an element could be relaxed, try its next ones: without it a system has no hull."""
    structures = work.structures
    for element in sorted({s for row in jobs for s in structures[row].compositions()[0]}):
        pure = np.flatnonzero(composition_matrix(structures, [element])[:, 0] == structures.counts)
        pure = pure[np.argsort(structures.columns["enthalpy_ev"][pure] / structures.counts[pure], kind="stable")]
        for row in pure[:POLYMORPHS].tolist():
            if any(jobs[i].state == "done" and not jobs[i].result.get("review") for i in pure.tolist() if i in jobs):
                break
            if row not in jobs:
                jobs[row] = _relax(work, np.array([row]), settings)[0]


def _no_hull(relaxed: StructureArrays, system: str) -> str:
    there = {s for s in relaxed.chemical_systems() if "-" not in s}
    missing = [e for e in system.split("-") if e not in there]
    return f"the DFT hull of {system} has no {', '.join(missing)}: none of its phases could be relaxed"
