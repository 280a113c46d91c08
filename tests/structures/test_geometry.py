"""Periodic distances and cell reduction against brute force, on arbitrary (also very skewed) cells."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hydroflow.structures.statistics import shortest_distances
from hydroflow.structures.symmetric import reduce_cell, too_close
from tests.structures.crystals import cah6, lah10

number = st.floats(-4, 4, allow_nan=False)
cells = st.lists(number, min_size=9, max_size=9).map(lambda x: np.array(x).reshape(3, 3))
points = st.lists(st.floats(-2, 2), min_size=3, max_size=3).map(np.array)
IMAGES = np.array(list(product(range(-12, 13), repeat=3)), float)


def inverse_heights(cell: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.linalg.inv(cell), axis=0)


@settings(max_examples=150, deadline=None)
@given(cells, points, st.floats(0.3, 2.5))
def test_too_close_sees_every_image(cell, difference, limit):
    assume(abs(np.linalg.det(cell)) > 2 and (limit * inverse_heights(cell)).max() < 9)
    shortest = np.linalg.norm((difference + IMAGES) @ cell, axis=1).min()
    assume(abs(shortest - limit) > 1e-6)
    assert too_close(*difference, cell, inverse_heights(cell), limit) == (shortest < limit)


@settings(max_examples=150, deadline=None)
@given(cells)
def test_reduced_cells_are_the_same_lattice_and_short(cell):
    assume(abs(np.linalg.det(cell)) > 0.5)
    reduced, transform = cell.copy(), np.empty((3, 3))
    reduce_cell(reduced, transform)
    assert np.allclose(transform @ cell, reduced, atol=1e-8)
    assert np.allclose(transform, np.rint(transform)) and round(abs(np.linalg.det(transform))) == 1
    assert np.linalg.det(reduced) > 0
    vectors = IMAGES[np.abs(IMAGES).max(1) <= 3] @ reduced
    lengths = np.sort(np.linalg.norm(vectors, axis=1))[1:]
    assert np.linalg.norm(reduced, axis=1).min() <= lengths[0] * (1 + 1e-6)


def test_shortest_distances_of_known_hydrides():
    symbols, one = shortest_distances(cah6())
    assert symbols == ["H", "Ca"]
    a = 3.4565
    assert np.allclose(one[0], [[a / 8**0.5, a * 5**0.5 / 4], [a * 5**0.5 / 4, a * 3**0.5 / 2]])
    _, two = shortest_distances(lah10(), reach_a=3.5)
    ours = lah10().atoms(0).get_all_distances(mic=True)
    np.fill_diagonal(ours, np.inf)
    assert two[0, 0, 0] == ours[1:, 1:].min() and np.isclose(two[0, 0, 1], ours[0, 1:].min())
