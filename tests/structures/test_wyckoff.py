"""The Wyckoff tables against known numbers, against brute force, and derived anew."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hydroflow.structures.random import hosts
from hydroflow.structures.wyckoff import combinations, tables


def test_all_1731_positions_are_there_with_their_multiplicities():
    t = tables()
    assert len(t.multiplicity) == 1731
    # International Tables, multiplicities per primitive cell
    known = {
        47: [1] * 8 + [2] * 12 + [4] * 6 + [8],
        221: [1, 1, 3, 3, 6, 6, 8, 12, 12, 12, 24, 24, 24, 48],
        225: [1, 1, 2, 6, 6, 8, 12, 12, 12, 24, 24, 48],
        229: [1, 3, 4, 6, 6, 8, 12, 12, 24, 24, 24, 48],
        194: [2, 2, 2, 2, 6, 4, 4, 6, 12, 12, 12, 24],
    }
    for number, expected in known.items():
        own = slice(t.position_start[number], t.position_start[number + 1])
        assert sorted(t.multiplicity[own]) == sorted(expected)


@pytest.mark.parametrize("number", [2, 14, 62, 139, 166, 194, 227])
def test_shipped_tables_equal_a_fresh_derivation(number):
    from hydroflow.structures.wyckoff_derivation import operations_of, positions

    t = tables()
    own = range(t.position_start[number], t.position_start[number + 1])
    fresh = positions(*operations_of(number))
    assert len(fresh) == len(own)
    for p, position in zip(own, fresh, strict=True):
        assert t.freedom[p] == position.freedom
        assert t.multiplicity[p] == len(position.operations)
        assert np.allclose(t.base[p], [float(x) for x in position.base])


def test_operations_keep_the_lattice_of_their_crystal_system():
    from hydroflow.structures.symmetric import determinant, random_lattice

    t = tables()
    cell, state = np.empty((3, 3)), np.array([7], np.uint64)
    for g in range(1, 231):
        random_lattice(t, g, 30.0, state, cell)
        assert abs(determinant(cell)) == pytest.approx(30.0)
        metric = cell @ cell.T
        for r in t.rotations[t.operation_start[g]:t.operation_start[g + 1]]:
            assert np.allclose(r.T @ metric @ r, metric), g


def _brute_force(number: int, counts: tuple[int, ...]) -> int:
    """Count combinations by trying every number of orbits of every position and species."""
    t = tables()
    own = range(t.position_start[number], t.position_start[number + 1])
    mult = [int(t.multiplicity[p]) for p in own]
    fixed = [t.freedom[p] == 0 for p in own]
    per_species = []
    for n in counts:
        choices = [()]
        for m in mult:
            choices = [(*c, k) for c in choices for k in range(n // m + 1) if sum(
                x * y for x, y in zip((*c, k), mult, strict=False)) <= n]
        per_species.append([c for c in choices if sum(x * y for x, y in zip(c, mult, strict=True)) == n])
    return sum(all(sum(k) <= 1 for k, f in zip(zip(*combo, strict=True), fixed, strict=True) if f)
               for combo in product(*per_species))


@pytest.mark.parametrize(("number", "counts"), [
    (2, (1, 1, 2)), (10, (1, 1, 3)), (47, (1, 2)), (99, (1, 1, 4)), (166, (1, 1, 6)), (221, (1, 1, 12)), (225, (1, 2, 8)),
    (227, (2, 4, 12)), (230, (8, 12)),
])
def test_combinations_are_counted_exactly(number, counts):
    assert combinations(number, counts) == _brute_force(number, counts)


def test_groups_are_drawn_exactly_when_a_combination_exists():
    for counts in [(1, 1, 12), (2, 1, 9), (1, 13), (3, 3, 37), (1,)]:
        assert hosts(counts, 1, 230) == tuple(g for g in range(1, 231) if combinations(g, counts))
