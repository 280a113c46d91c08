"""Geometry checks, k meshes and the review of batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydroflow.arrays import StructureArrays
from hydroflow.dft import crystal
from hydroflow.dft.compare import deviation
from hydroflow.dft.review import review_batch
from hydroflow.errors import DataError, EngineFailure


def data(numbers, fractional, cell=((4, 0, 0), (0, 4, 0), (0, 0, 4))):
    return crystal.from_arrays(np.array(numbers), np.array(cell, float), np.array(fractional, float))


@pytest.mark.parametrize(("structure", "code"), [
    (data([1, 1], [[0, 0, 0], [0.1, 0, 0]]), "atoms_too_close"),
    (data([1, 1], [[0.02, 0, 0], [0.98, 0, 0]]), "atoms_too_close"),  # through the cell boundary
    (data([57, 1], [[0, 0, 0], [0.25, 0, 0]]), "atoms_too_close"),  # La–H 1.0 Å
    (data([1], [[0, 0, 0]], np.diag([0.4, 9, 9])), "atoms_too_close"),  # its own image
    (data([1, 1], [[0, 0, 0], [0.5, 0.5, 0.5]], np.zeros((3, 3))), "bad_input"),
    (data([1, 1], [[0, 0, 0], [0.5, np.nan, 0.5]]), "bad_input"),
    (data([], np.zeros((0, 3))), "bad_input"),
])
def test_structures_that_no_engine_is_started_on(structure, code):
    with pytest.raises(EngineFailure) as raised:
        crystal.check_geometry(structure)
    assert raised.value.code.value == code


@pytest.mark.parametrize(("numbers", "distance"), [([1, 1], 0.74), ([57, 1], 1.33), ([57, 57], 1.85), ([4, 1], 1.2)])
def test_distances_of_compressed_hydrides_pass(numbers, distance):
    crystal.check_geometry(data(numbers, [[0, 0, 0], [distance / 4, 0, 0]]))


@settings(deadline=None)
@given(st.lists(st.floats(1.5, 12), min_size=3, max_size=3), st.floats(0.1, 1.5), st.permutations([0, 1, 2]))
def test_k_meshes_keep_their_spacing_and_follow_the_axes(lengths, spacing, order):
    mesh = np.array(crystal.k_mesh(np.diag(lengths), spacing))
    reciprocal = 2 * np.pi / np.array(lengths)
    assert np.all(reciprocal / mesh <= spacing * 1.001)
    assert np.all((mesh == 1) | (reciprocal / np.maximum(mesh - 1, 1) > spacing * 0.999))
    assert crystal.k_mesh(np.diag(np.array(lengths)[list(order)]), spacing) == tuple(mesh[list(order)])


def test_k_meshes_do_not_fall_apart_by_rounding():
    a = 2 * np.pi / (3 * 0.7)  # exactly three points
    assert crystal.k_mesh(np.diag([a, a * (1 + 1e-9), a * (1 - 1e-9)]), 0.7) == (3, 3, 3)


def test_sphere_overlap():
    atoms = crystal.to_atoms(data([20, 1], [[0, 0, 0], [0.4, 0, 0]]))
    assert crystal.sphere_overlap(atoms, {"Ca": 1.3, "H": 0.7}) == pytest.approx(1 - 1.6 / 2.0)
    assert crystal.sphere_overlap(atoms, {"Ca": 0.9, "H": 0.6}) == 0
    assert crystal.sphere_overlap(atoms, {}) == 0


def frames(n: int, seed: int = 0) -> StructureArrays:
    """Frames whose energies are linear in composition but for 20 meV/atom."""
    rng = np.random.default_rng(seed)
    numbers = [np.array([20] + [1] * int(k)) for k in rng.integers(2, 9, n)]
    out = StructureArrays.from_lists(numbers, [rng.random((len(z), 3)) for z in numbers], [np.eye(3) * 3.5] * n)
    hydrogens = out.count_of(1)
    out.columns = {"energy_ev": -1000.0 - 13.0 * hydrogens + 0.02 * rng.normal(size=n) * out.counts,
                   "pressure_gpa": 200 + 30 * rng.normal(size=n)}
    out.atom_columns = {"forces_ev_a": rng.normal(size=(len(out.numbers), 3))}
    return out


def test_outliers_are_held_with_their_reason_and_nothing_else():
    dataset, fresh = frames(200), frames(30, seed=1)
    assert not review_batch(fresh, dataset).held.any()
    fresh.columns["energy_ev"][3] += 40.0
    fresh.columns["pressure_gpa"][7] = 1500.0
    fresh.atom_columns["forces_ev_a"][fresh.offsets[9]] = [150, 0, 0]
    found = review_batch(fresh, dataset)
    assert np.flatnonzero(found.held).tolist() == [3, 7, 9]
    assert "energy" in found.reasons[3] and "1500" in found.reasons[7] and "force" in found.reasons[9]


def test_a_first_batch_is_reviewed_against_itself_and_a_tiny_one_not_at_all():
    batch = frames(60)
    batch.columns["pressure_gpa"][5] = -900.0
    assert np.flatnonzero(review_batch(batch).held).tolist() == [5]
    assert not review_batch(batch[:8]).held.any()


def test_deviation_finds_the_shift_that_pseudopotentials_bring():
    a, b = frames(40), frames(40)
    b.columns["energy_ev"] = a.columns["energy_ev"] + 0.5 * a.count_of(1) + 3.0 * a.count_of(20)
    b.columns["pressure_gpa"] = a.columns["pressure_gpa"] + 1.5
    b.atom_columns["forces_ev_a"] = a.atom_columns["forces_ev_a"] + 0.01
    found = deviation(a, b)
    assert found.shifts_ev == pytest.approx({"H": 0.5, "Ca": 3.0})
    assert found.relative_energy_mev == pytest.approx(0, abs=1e-6)
    assert found.pressure_gpa == pytest.approx(1.5) and found.force_ev_a == pytest.approx(0.01)
    with pytest.raises(DataError, match="not of the same structures"):
        deviation(a, frames(39))
