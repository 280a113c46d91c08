"""The share of atomic hydrogen against a neighbour list of another library."""

from __future__ import annotations

import numpy as np
import pytest
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.screening.atomic_hydrogen import atomic_fraction


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), atoms=st.integers(1, 25), skew=st.floats(0, 0.6), edge=st.floats(0.5, 6))
def test_equals_ase_neighbours(seed: int, atoms: int, skew: float, edge: float) -> None:
    """Skewed cells, cells smaller than the distance, coordinates outside [0, 1)."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * edge + rng.uniform(-skew, skew, (3, 3)) * edge
    if abs(np.linalg.det(cell)) < 0.05 * edge**3:
        return
    one = StructureArrays.from_lists([rng.choice([1, 1, 20], atoms)], [rng.uniform(-2, 3, (atoms, 3))], [cell])
    hydrogen = one.atoms()[one.numbers == 1]
    found = atomic_fraction(one, 0.9)[0]
    if not len(hydrogen):
        assert np.isnan(found)
        return
    bonded = np.unique(neighbor_list("i", hydrogen, 0.9))
    assert found == pytest.approx(1 - len(bonded) / len(hydrogen))


def test_a_molecule_across_the_boundary_is_molecular() -> None:
    pair = StructureArrays.from_lists([np.array([1, 1, 1, 20])] * 2, [
        np.array([[0.02, 0.5, 0.5], [0.95, 0.5, 0.5], [0.5, 0, 0], [0.5, 0.5, 0.0]]),
        np.array([[0.02, 0.5, 0.5], [0.60, 0.5, 0.5], [0.5, 0, 0], [0.5, 0.5, 0.0]])], [np.eye(3) * 10] * 2)
    assert atomic_fraction(pair, 0.9) == pytest.approx([1 / 3, 1.0])


def test_broken_structures_are_named() -> None:
    broken = StructureArrays.from_lists([np.array([1])] * 3, [np.zeros((1, 3)), np.full((1, 3), np.nan), np.zeros((1, 3))],
                                        [np.eye(3), np.eye(3), np.zeros((3, 3))], {"id": np.array(["a", "b", "c"])})
    with pytest.raises(DataError, match="structures b, c"):
        atomic_fraction(broken)
