"""What EPC of each candidate would cost, from its crystal and the chains on record, and what a campaign has left for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ase.data import chemical_symbols

from hydroflow.arrays import StructureArrays
from hydroflow.epc.cost import CostModel, fit, timings, work
from hydroflow.epc.protocols import meshes, primitive, protocol
from hydroflow.errors import DataError
from hydroflow.store.documents import Candidate


def cost_model() -> CostModel:
    """Fitted to every finished chain on record, of whatever campaign; the default one before the first."""
    done = Candidate.objects(epc_status="done").only("epc").as_pymongo()
    return fit(*timings([c.get("epc", {}) for c in done]))


def estimates(
    structures: StructureArrays, valences: Mapping[str, float], ecutwfc_ry: float, protocol_name: str, model: CostModel,
) -> list[float]:
    """Core-hours of the chain of each structure; (n,).

    A structure on which the chain cannot start is estimated at nothing: it fails before its first job.

    Parameters
    ----------
    valences
        Element symbol → valence electrons of its pseudopotential.
    """
    settings = protocol(protocol_name)
    out = []
    for i in range(len(structures)):
        rows = slice(structures.offsets[i], structures.offsets[i + 1])
        try:
            crystal = primitive(structures.numbers[rows], structures.cells[i], structures.fractional[rows])
        except DataError:
            out.append(0.0)
            continue
        electrons = sum(valences[chemical_symbols[z]] for z in crystal.numbers)
        out.append(model.core_hours(work(crystal, meshes(crystal, settings), ecutwfc_ry, electrons)))
    return out


def affordable(order: Iterable[int], count: int, core_hours: Sequence[float] | None, left: float | None) -> list[int]:
    """The first `count` of `order` that fit into what is left, together.

    Candidates that would exceed it are passed over for cheaper ones behind them.

    Parameters
    ----------
    core_hours
        Estimated cost of each candidate, by index; None: costs do not matter.
    left
        Core-hours to spend; None: no limit.
    """
    chosen: list[int] = []
    for i in order:
        if len(chosen) == count:
            break
        if left is not None and core_hours is not None:
            if core_hours[i] > left:
                continue
            left -= core_hours[i]
        chosen.append(int(i))
    return chosen


def left(budget_core_hours: float | None, begun: Sequence[Candidate]) -> float | None:
    """Core-hours of the budget that are neither spent nor promised to candidates on their way; None without a budget."""
    if budget_core_hours is None:
        return None
    return budget_core_hours - sum(
        (c.cost_core_hours if c.epc_status in ("done", "failed") else c.epc_estimate_core_hours) or 0.0 for c in begun)
