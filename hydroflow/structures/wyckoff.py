"""Wyckoff positions of all space groups as flat tables, and which compositions a space group can host.

The tables (1 731 positions, primitive basis of the standard setting) are derived by
:mod:`hydroflow.structures.wyckoff_derivation` and shipped as ``wyckoff.npz``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb, prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAX_ATOMS = 511
"""Largest number of atoms of one species per cell that the tables reach."""


class WyckoffTables(NamedTuple):
    """Flat arrays over G = 231 groups (index = space-group number, 0 unused), P positions, M operations.

    Positions of group g are ``position_start[g]:position_start[g + 1]``, fixed ones first, each by multiplicity.

    Attributes
    ----------
    rotations, translations : (M, 3, 3), (M, 3)
        x' = R x + t on fractional coordinates of the primitive basis; operations of group g start at
        ``operation_start[g]``, identity first.
    base, directions : (P, 3), (P, 3, 3)
        Points of a position: base + directions[:, :freedom] · u.
    freedom, multiplicity : (P,)
        Free coordinates; atoms per primitive cell.
    orbit : flat indices into the operations; position p's orbit is ``orbit[orbit_start[p]:orbit_start[p + 1]]``.
    primitive : (G, 3, 3)
        Primitive lattice rows = primitive · conventional rows.
    class_start : (G + 1,), class_first, class_multiplicity, class_size : (C,)
        Fixed positions of one multiplicity: the first one, their multiplicity, how many.
    free_start : (G,)
        First position with freedom.
    reachable : (G, MAX_ATOMS + 1) bool
        Whether so many atoms of one species fit on free positions alone.
    """

    rotations: np.ndarray
    translations: np.ndarray
    operation_start: np.ndarray
    base: np.ndarray
    directions: np.ndarray
    freedom: np.ndarray
    multiplicity: np.ndarray
    position_start: np.ndarray
    orbit: np.ndarray
    orbit_start: np.ndarray
    primitive: np.ndarray
    class_start: np.ndarray
    class_first: np.ndarray
    class_multiplicity: np.ndarray
    class_size: np.ndarray
    free_start: np.ndarray
    reachable: np.ndarray


@lru_cache(maxsize=1)
def tables() -> WyckoffTables:
    """The shipped tables, read once."""
    from hydroflow.structures.wyckoff_derivation import DENOMINATOR

    with np.load(Path(__file__).with_name("wyckoff.npz")) as data:
        raw = {k: data[k] for k in data.files}
    multiplicity = np.diff(raw["orbit_start"]).astype(np.int64)
    freedom = raw["freedom"].astype(np.int64)
    start = raw["position_start"].astype(np.int64)
    class_start, first, mult, size = [0, 0], [], [], []
    free_start = np.zeros(231, np.int64)
    reachable = np.zeros((231, MAX_ATOMS + 1), np.bool_)
    for g in range(1, 231):
        own = range(start[g], start[g + 1])
        fixed = [p for p in own if freedom[p] == 0]
        free_start[g] = start[g] + len(fixed)
        for m in sorted({int(multiplicity[p]) for p in fixed}):
            members = [p for p in fixed if multiplicity[p] == m]
            first.append(members[0])
            mult.append(m)
            size.append(len(members))
        class_start.append(len(first))
        # Sums of free multiplicities, as the set bits of an integer.
        bits, limit = 1, (1 << (MAX_ATOMS + 1)) - 1
        for m in {int(multiplicity[p]) for p in own if freedom[p]}:
            step = m
            while step <= MAX_ATOMS:
                bits |= (bits << step) & limit
                step *= 2
        reachable[g] = [(bits >> n) & 1 for n in range(MAX_ATOMS + 1)]
    return WyckoffTables(
        raw["rotations"].astype(np.float64), raw["translations"] / DENOMINATOR, raw["operation_start"].astype(np.int64),
        raw["base"] / DENOMINATOR, raw["directions"].astype(np.float64), freedom, multiplicity, start,
        raw["orbit"].astype(np.int64), raw["orbit_start"].astype(np.int64), raw["primitive"].astype(np.float64),
        np.array(class_start), np.array(first), np.array(mult), np.array(size), free_start, reachable,
    )


def combinations(number: int, counts: Sequence[int]) -> int:
    """Exactly how many Wyckoff combinations put `counts` atoms of each species on positions of a space group.

    Parameters
    ----------
    number
        Space-group number.
    counts
        Atoms per species in the primitive cell.

    Returns
    -------
    int
        Fixed positions are used at most once over all species, free ones as often as wanted; 0 when impossible.
    """
    t = tables()
    most = max(counts, default=0)
    # Coefficients of the product of 1/(1 − z^m) over the free positions: ways to seat n atoms of one species.
    free = [1] + [0] * most
    for p in range(t.free_start[number], t.position_start[number + 1]):
        m = int(t.multiplicity[p])
        for n in range(m, most + 1):
            free[n] += free[n - m]
    # Ways to hand the fixed positions out, by how many atoms each species gets from them.
    ways = {(0,) * len(counts): 1}
    for c in range(t.class_start[number], t.class_start[number + 1]):
        m = int(t.class_multiplicity[c])
        # (atoms seated per species, positions of this class left) → ways
        open_ways = {(taken, int(t.class_size[c])): n for taken, n in ways.items()}
        for k in range(len(counts)):
            grown: dict[tuple[tuple[int, ...], int], int] = {}
            for (taken, left), n in open_ways.items():
                for take in range(min(left, (counts[k] - taken[k]) // m) + 1):
                    key = (*taken[:k], taken[k] + take * m, *taken[k + 1:]), left - take
                    grown[key] = grown.get(key, 0) + n * comb(left, take)
            open_ways = grown
        ways = {}
        for (taken, _), n in open_ways.items():
            ways[taken] = ways.get(taken, 0) + n
    return sum(n * prod(free[wanted - seated] for seated, wanted in zip(taken, counts, strict=True))
               for taken, n in ways.items())
