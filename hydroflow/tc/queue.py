"""Which candidates get EPC first, before there is a Tc model: as the paper, high symmetry, few atoms, and hydrogen at the Fermi
level; within a budget where one is given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import spglib

from hydroflow.tc.budget import affordable


@lru_cache(maxsize=1)
def _point_group_orders() -> np.ndarray:
    """(231,) order of the point group of each space group; index 0 is unused."""
    orders = {
        "1": 1, "-1": 2, "2": 2, "m": 2, "2/m": 4, "222": 4, "mm2": 4, "mmm": 8, "4": 4, "-4": 4, "4/m": 8, "422": 8,
        "4mm": 8, "-42m": 8, "4/mmm": 16, "3": 3, "-3": 6, "32": 6, "3m": 6, "-3m": 12, "6": 6, "-6": 6, "6/m": 12,
        "622": 12, "6mm": 12, "-6m2": 12, "6/mmm": 24, "23": 12, "m-3": 24, "432": 24, "-43m": 24, "m-3m": 48}
    out = np.ones(231)
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        name = kind.pointgroup_international if hasattr(kind, "pointgroup_international") else kind["pointgroup_international"]
        number = kind.number if hasattr(kind, "number") else kind["number"]
        # spglib writes -42m also as -4m2 and -6m2 as -62m
        out[number] = orders.get(name, {"-4m2": 8, "-62m": 12}.get(name, 1))
    return out


def scores(spacegroups: Sequence[int], atoms: Sequence[int], hydrogen_dos_share: Sequence[float | None]) -> np.ndarray:
    """How much each candidate is preferred; (n,), higher is earlier.

    The sum of three terms between 0 and 1, each what makes a calculation cheap or a high Tc likely: the order of the point
    group (ln, over ln 48), the number of atoms (smallest over own), and the hydrogen share of N(E_F). An unknown share counts
    as the median of the known ones.
    """
    order = np.log(_point_group_orders()[np.asarray(spacegroups, int)]) / np.log(48)
    n = np.asarray(atoms, float)
    share = np.array([np.nan if s is None else float(s) for s in hydrogen_dos_share])
    typical = np.nanmedian(share) if np.isfinite(share).any() else 0.5
    return order + n.min() / n + np.where(np.isfinite(share), share, typical) if len(n) else np.zeros(0)


def first_batch(
    spacegroups: Sequence[int], atoms: Sequence[int], hydrogen_dos_share: Sequence[float | None], count: int,
    core_hours: Sequence[float] | None = None, left_core_hours: float | None = None,
) -> list[int]:
    """Indices of the candidates to compute, most preferred first.

    Parameters
    ----------
    count
        At most so many.
    core_hours
        Estimated cost of each (:mod:`hydroflow.tc.budget`).
    left_core_hours
        Candidates that would exceed what is left of the budget are passed over for cheaper ones behind them.
    """
    # a stable sort, so that equal candidates keep the order they came in
    order = np.argsort(-scores(spacegroups, atoms, hydrogen_dos_share), kind="stable")
    return affordable(order, count, core_hours, left_core_hours)
