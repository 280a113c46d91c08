"""The screening funnel: which of the structures that a search relaxed are worth electron–phonon coupling.

Filters are declared in :mod:`hydroflow.screening.filters`, the paper's five in :mod:`hydroflow.screening.measure`; here those
of the campaign are run in their order, each only on what the earlier ones let pass, and every verdict is stored with its value,
threshold and settings. Everything is a function of the structures, the campaign and the job ledger: run again, it finds its
jobs done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.dispatch.ledger import Ledger
from hydroflow.screening import records
from hydroflow.screening.entries import composition_matrix
from hydroflow.screening.filters import Filter, Measured, filters_of
from hydroflow.screening.measure import Screening
from hydroflow.screening.storage import minima
from hydroflow.store import Store
from hydroflow.store.documents import Candidate

Progress = Callable[[str, int, int], None]

HULL_DRAWN_EV = 0.5
"""The hull's picture holds the lowest phase of each composition within this of the hull, eV/atom."""
HULL_DRAWN = 4_000


@dataclass(frozen=True)
class Step:
    """One step of the funnel.

    Attributes
    ----------
    name
        ``searched`` or the filter's name.
    count
        Structures left after it.
    threshold
        Of the filter; None for ``searched``.
    entered, rejected
        How many came in and were rejected by value.
    undetermined
        Rejected because the value could not be computed (a failed job); the reason is in the verdict.
    waiting
        Not measured and not rejected: beyond ``funnel.max_candidates_dft``.
    """

    name: str
    count: int
    threshold: float | None = None
    entered: int = 0
    rejected: int = 0
    undetermined: int = 0
    waiting: int = 0


@dataclass
class FunnelCounts:
    """What the funnel did: its steps, the hull by the model for the report, and the ids that passed, best first."""

    steps: list[Step] = field(default_factory=list)
    hull: dict[str, Any] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def screen(
    campaign: Campaign, store: Store, ledger: Ledger, structures: StructureArrays, model_digest: str,
    on_progress: Progress | None = None, searched: int | None = None,
) -> FunnelCounts:
    """Run the funnel and record every candidate.

    Parameters
    ----------
    structures
        Relaxed structures with columns ``id, energy_ev, enthalpy_ev`` (and, where known, ``spacegroup, prototype, shard,
        row``). Ternaries A–B–H are candidates; elements, H and binaries only make the hull.
    model_digest
        Checkpoint that relaxed them: the level of theory of the first hull.
    on_progress
        Called with (what, done, total).
    searched
        How many ternary structures were searched, where `structures` is only the part near the hull.

    Raises
    ------
    DataError
        NaN enthalpies, mixed pressures or models, a chemical system without its elements; ids are named.
    """
    work = Screening(campaign, store, ledger, structures, model_digest, on_progress or (lambda what, done, total: None))
    rows = work.candidates
    counts = FunnelCounts([Step("searched", len(rows) if searched is None else searched)])
    counts.hull = hull_picture(work)
    verdicts: dict[int, list[dict[str, Any]]] = {}
    known = near_hull(work)
    earlier = work.stored_verdicts  # read before anything is written
    _record_searched(work, known)
    for f in filters_of(campaign.funnel):
        threshold = f.threshold(campaign.funnel)
        work.progress(f"filter {f.name}", 0, len(rows))
        measured = f.measure(work, rows, threshold)
        passes = f.passes(measured.values, threshold) & ~measured.waiting
        for k, i in enumerate(rows):
            verdicts.setdefault(int(i), []).append(_verdict(f, measured, k, threshold, bool(passes[k])))
        records.upsert(store, campaign.name, _fields(work, f, measured, rows, passes, verdicts, known, earlier))
        rejected = ~passes & ~measured.waiting
        undetermined = int((rejected & np.isnan(measured.values)).sum())
        counts.steps.append(Step(f.name, int(passes.sum()), threshold, len(rows), int(rejected.sum()) - undetermined,
                                 undetermined, int(measured.waiting.sum())))
        rows = rows[passes]
        work.progress(f"filter {f.name}", counts.steps[-1].entered, counts.steps[-1].entered)
    order = rows[np.lexsort((work.ids[rows], work.ehull_ev[rows]))]
    counts.passed = [str(i) for i in work.ids[order]]
    _record_passed(store, campaign.name, counts.passed)
    return counts


def near_hull(work: Screening) -> np.ndarray:
    """(n,) bool: the candidates that become documents: within ``search.keep_ehull_ev`` of the hull (and never less than
    the first filter lets pass), and the lowest of each composition."""
    keep = max(work.campaign.search.keep_ehull_ev, work.campaign.funnel.ehull_lam_ev)
    out = np.zeros(len(work.structures), bool)
    out[work.candidates] = work.ehull_ev[work.candidates] <= keep
    lowest = work.candidates[minima(work.structures[work.candidates])] if len(work.candidates) else work.candidates
    out[lowest] = True
    return out


def hull_picture(work: Screening) -> dict[str, Any]:
    """The hull by the model, small and JSON-able: ``entries`` with formula, atomic fractions ``x``, enthalpy and distance."""
    ehull = work.ehull_ev
    rows = minima(work.structures) if len(work.structures) else np.zeros(0, int)
    rows = rows[ehull[rows] <= HULL_DRAWN_EV]
    rows = np.sort(rows[np.argsort(ehull[rows], kind="stable")][:HULL_DRAWN])
    drawn = work.structures[rows]
    per_atom = drawn.columns["enthalpy_ev"] / drawn.counts if len(drawn) else []
    entries = [
        {"formula": formula, "x": {s: n / size for s, n in composition.items()}, "enthalpy_ev_atom": float(h),
         "ehull_ev": float(max(ehull[i], 0.0)), "on_hull": bool(ehull[i] < 1e-9), "id": str(work.ids[i])}
        for formula, composition, size, h, i in zip(
            drawn.formulas(), drawn.compositions(), drawn.counts.tolist(), per_atom, rows, strict=True)]
    return {"pressure_gpa": work.pressure_gpa, "level": work.model_digest, "entries": entries}


# ---- records --------------------------------------------------------------------------------------------------------
def _record_searched(work: Screening, known: np.ndarray) -> None:
    """Documents of the near-hull candidates as the search found them."""
    records.drop_stale(work.store, work.campaign.name, work.model_digest)
    system = np.array(work.structures.chemical_systems(), dtype=object)
    for name in sorted(set(system[known])):
        rows = np.flatnonzero(known & (system == name))
        hull = work.hulls[frozenset(name.split("-"))]
        matrix = composition_matrix(work.structures[rows], hull.elements)
        records.upsert(work.store, work.campaign.name, records.describe(
            work.campaign.name, work.structures, rows, work.model_digest, work.pressure_gpa, work.ehull_ev[rows],
            hull.error_ev(matrix, work.model_error_ev), records.decompositions(hull, matrix)))


def _verdict(f: Filter, measured: Measured, k: int, threshold: float, passed: bool) -> dict[str, Any]:
    value = float(measured.values[k])
    reason = measured.reasons.get(k, "")
    if not passed and not reason:
        reason = f.words(value, threshold)
    return {"filter": f.name, "passed": passed, "threshold": threshold, "settings": measured.settings, "reason": reason,
            **({} if np.isnan(value) else {"value": value})}


def _fields(
    work: Screening, f: Filter, measured: Measured, rows: np.ndarray, passes: np.ndarray,
    verdicts: Mapping[int, list[dict[str, Any]]], known: np.ndarray, earlier: Mapping[str, list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Updates of the documents that this filter judged. Verdicts of an earlier screening on later filters stay behind the
    new ones: what was paid for is known when the thresholds move."""
    names = work.campaign.funnel.filters
    later = set(names[names.index(f.name) + 1:])
    out = []
    for k, i in enumerate(rows):
        if not known[i]:
            continue
        waiting = bool(measured.waiting[k])
        value = measured.values[k]
        stage = "searched" if passes[k] else "waiting" if waiting else f.name
        name = str(work.ids[i])
        item: dict[str, Any] = {
            "structure_id": name, "stage": stage,
            "verdicts": verdicts[int(i)] + [v for v in earlier.get(name, []) if v["filter"] in later],
            "rejected_by": None if passes[k] or waiting else f.name, **measured.fields.get(k, {})}
        if f.field == "spacegroup":
            item |= records.spacegroup_fields(int(value) if value > 0 else None)
        else:
            item[f.document_field] = None if np.isnan(value) else float(value)
        out.append(item)
    return out


def _record_passed(store: Store, campaign: str, ids: list[str]) -> None:
    """Those that passed stand at ``passed``; those that had EPC before stay at ``epc``."""
    collection = store.database[Candidate._get_collection_name()]
    for start in range(0, len(ids), records.CHUNK):
        match = {"campaign": campaign, "structure_id": {"$in": ids[start:start + records.CHUNK]}}
        collection.update_many({**match, "epc_status": None}, {"$set": {"stage": "passed"}})
        collection.update_many({**match, "epc_status": {"$ne": None}}, {"$set": {"stage": "epc"}})
