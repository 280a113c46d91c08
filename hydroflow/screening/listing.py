"""Asking the database for candidates: the questions people have, each answered from an index.

``find(campaign, system="Ca-H-Y", max_ehull_lam_ev=0.05)`` is a mongoengine query set of
:class:`hydroflow.store.documents.Candidate`; refine it, count it or iterate it as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mongoengine import QuerySet

from hydroflow.campaign import Funnel
from hydroflow.errors import DataError
from hydroflow.screening.filters import by_name
from hydroflow.store.documents import Candidate

SORT_FIELDS = {
    "tc": "tc_k", "tc-predicted": "tc_predicted_k", "ehull": "ehull_lam_ev", "ehull-dft": "ehull_dft_ev",
    "formula": "formula", "spacegroup": "spacegroup", "lambda": "lambda_", "frequency": "min_frequency_thz",
    "atoms": "natoms",
}
"""Sort key of the command line → document field."""
_LARGEST_FIRST = ("tc", "tc-predicted", "lambda", "spacegroup")
BULKY = ("structure", "structure_dft", "epc")
FIELDS = (
    "id", "formula", "system", "natoms", "pressure_gpa", "spacegroup", "spacegroup_symbol", "prototype", "ehull_lam_ev",
    "ehull_lam_error_ev", "ehull_dft_ev", "atomic_h_fraction", "min_frequency_thz", "hydrogen_dos_share", "lambda",
    "omega_log_k", "tc_k", "tc_mcmillan_k", "tc_predicted_k", "tc_predicted_error_k", "usable", "epc_status", "stage",
    "rejected_by", "reason", "model", "label_settings",
)
"""Keys of :func:`row`, which are the columns of CSV and JSON."""


def find(
    campaign: str, *, system: str | None = None, formula: str | None = None, elements: Sequence[str] = (),
    stage: str | None = None, rejected_by: str | None = None, epc_status: str | None = None,
    min_tc_k: float | None = None, max_ehull_lam_ev: float | None = None, max_ehull_dft_ev: float | None = None,
    min_spacegroup: int | None = None, prototype: str | None = None,
) -> QuerySet:
    """Candidates of a campaign that meet all conditions given.

    Parameters
    ----------
    system
        Chemical system, e.g. ``Ca-H-Y`` (order does not matter).
    elements
        Each of them must be contained.
    stage
        ``searched``, ``waiting``, the name of the rejecting filter, ``passed`` or ``epc``.
    """
    conditions: dict[str, Any] = {"campaign": campaign}
    if system:
        conditions["system"] = "-".join(sorted(system.split("-")))
    if formula:
        conditions["formula"] = formula
    pair = sorted(set(elements) - {"H"})
    if len(pair) == 2 and not system:
        # candidates are A–B–H: both elements name the system, and one index lookup finds it
        conditions["system"] = "-".join(sorted((*pair, "H")))
    elif elements:
        conditions["elements__all"] = list(elements)
    if stage:
        conditions["stage"] = stage
    if rejected_by:
        conditions |= {"rejected_by": by_name(rejected_by).name, "stage": rejected_by}
    if epc_status:
        conditions["epc_status"] = epc_status
    if min_tc_k is not None:
        conditions["tc_k__gte"] = min_tc_k
    if max_ehull_lam_ev is not None:
        conditions["ehull_lam_ev__lte"] = max_ehull_lam_ev
    if max_ehull_dft_ev is not None:
        conditions["ehull_dft_ev__lte"] = max_ehull_dft_ev
    if min_spacegroup is not None:
        conditions["spacegroup__gte"] = min_spacegroup
    if prototype:
        conditions["prototype"] = prototype
    return Candidate.objects(**conditions).exclude(*BULKY)


def narrowly_rejected(found: QuerySet, filter_name: str, funnel: Funnel, within: float = 0.1) -> QuerySet:
    """Those of `found` that a filter rejected although their value misses its threshold by no more than the share `within`.

    Raises
    ------
    DataError
        an unknown filter, or a threshold of zero, of which there is no share.
    """
    f = by_name(filter_name)
    threshold = f.threshold(funnel)
    margin = within * abs(threshold)
    if not margin:
        raise DataError(f"the threshold of {f.name} is 0, of which there is no share; ask for values instead")
    return found.filter(stage=f.name, rejected_by=f.name,
                        __raw__={f.document_field: {"$gte": threshold - margin, "$lte": threshold + margin}})


def sorted_by(found: QuerySet, key: str, reverse: bool = False) -> QuerySet:
    """Sorted by a key of :data:`SORT_FIELDS`; Tc, λ and space group the largest first. Candidates without the value are
    left out: they have no place in the order."""
    if key not in SORT_FIELDS:
        raise DataError(f"cannot sort by {key!r} (allowed: {', '.join(SORT_FIELDS)})")
    field = SORT_FIELDS[key]
    sign = "-" if (key in _LARGEST_FIRST) != reverse else ""
    return found.filter(**{f"{field}__ne": None}).order_by(sign + field)


def furthest(found: QuerySet, limit: int) -> list[Candidate]:
    """Those that got furthest: with a Tc, with a predicted Tc, passed, then the others by hull distance."""
    seen: dict[str, Candidate] = {}
    for part in (sorted_by(found, "tc"), found.filter(epc_status__ne=None), sorted_by(found, "tc-predicted"),
                 found.filter(stage="passed").order_by("ehull_lam_ev"), found.order_by("ehull_lam_ev")):
        if len(seen) < limit:
            for candidate in part.limit(limit):
                seen.setdefault(candidate.structure_id, candidate)
    return list(seen.values())[:limit]


def why(candidate: Candidate) -> str:
    """Where it stands and why, in one line."""
    failed = next((v for v in candidate.verdicts if not v.passed), None)
    if failed is not None:
        return failed.reason or f"{failed.value:g} against {failed.threshold:g}"
    if candidate.duplicate_of:
        return f"the same crystal as {candidate.duplicate_of} after relaxation by DFT"
    if candidate.epc_status == "done":
        return "Tc computed" if candidate.usable else "EPC done, Tc does not count"
    return {"queued": "waiting for EPC", "failed": "EPC failed"}.get(candidate.epc_status or "", "passed every filter"
                                                                     if candidate.stage in ("passed", "epc") else "")


def row(candidate: Candidate) -> dict[str, Any]:
    """One candidate as a flat JSON-able mapping with the keys :data:`FIELDS`."""
    special = {"id": candidate.structure_id, "lambda": candidate.lambda_, "reason": why(candidate)}
    return {key: special[key] if key in special else getattr(candidate, key) for key in FIELDS}
