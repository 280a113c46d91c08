"""Meshes of the named protocols, and the crystal that is computed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase.build import bulk
from ase.spacegroup import crystal as build

from hydroflow.epc.protocols import Crystal, dos_meshes, limits, meshes, names, primitive, protocol, reciprocal_lengths
from hydroflow.errors import DataError, SettingsError


def of(atoms) -> Crystal:
    return primitive(atoms.numbers, atoms.cell.array, atoms.get_scaled_positions())


def h3s(a: float = 2.984):
    return build(["S", "H"], [(0, 0, 0), (0, 0.5, 0.5)], spacegroup=229, cellpar=[a] * 3 + [90] * 3)


def test_the_three_protocols_are_there():
    assert names() == ["plumbing", "screening", "publication"]
    with pytest.raises(SettingsError, match="plumbing, screening, publication"):
        protocol("fast")
    assert set(limits()) >= {"imaginary_thz", "plateau_spread", "lambda_max"}


def test_conventional_cell_becomes_primitive_and_symmetric():
    atoms = h3s()
    atoms.positions += np.random.default_rng(0).normal(scale=2e-4, size=atoms.positions.shape)
    found = of(atoms)
    assert sorted(found.numbers) == [1, 1, 1, 16]
    # relaxed positions are off by 2e-4 Å; ph.x needs the exact ones
    assert of(h3s()).to_inputs()["fractional"] == found.to_inputs()["fractional"]


def test_overlapping_atoms_are_refused():
    with pytest.raises(DataError, match="overlap"):
        primitive(np.array([1, 1]), np.eye(3) * 3, np.zeros((2, 3)))


def test_plumbing_is_gamma_only_but_for_one_atom():
    assert meshes(of(h3s()), protocol("plumbing")).q == (1, 1, 1)
    # at Γ a monatomic crystal has acoustic modes only
    assert meshes(of(bulk("Al", cubic=True)), protocol("plumbing")).q == (2, 2, 2)


@pytest.mark.parametrize("name", ["plumbing", "screening", "publication"])
@pytest.mark.parametrize("atoms", [
    h3s(), bulk("Al"), bulk("Mg"), build(["Ca", "H"], [(0, 0, 0), (0, 0.5, 0.25)], spacegroup=139, cellpar=[3, 3, 6, 90, 90, 90]),
    build(["La", "H"], [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=166, cellpar=[3.2, 3.2, 9.1, 90, 90, 120])])
def test_meshes_are_commensurate_and_keep_the_symmetry(name, atoms):
    crystal = of(atoms)
    grid = meshes(crystal, protocol(name))
    assert all(k % q == 0 and d % k == 0 for q, k, d in zip(grid.q, grid.coarse, grid.dense, strict=True))
    # the q mesh as a set must be mapped onto itself by every rotation, or ph.x refuses it
    import spglib

    n = np.array(grid.q)
    points = {tuple(p) for p in np.argwhere(np.ones(n))}
    for rotation in spglib.get_symmetry((crystal.cell, crystal.fractional, crystal.numbers), 1e-4)["rotations"]:
        for p in points:
            image = np.array(p) / n @ rotation * n
            assert np.allclose(image, np.round(image), atol=1e-6)


def test_the_mesh_of_the_density_of_states_has_a_rougher_one_beside_it():
    fine, rough = dos_meshes(of(h3s()), protocol("screening"))
    assert fine == (30, 30, 30) and rough == (20, 20, 20)
    # no coarser than asked for along any axis, the same along those that symmetry mixes
    layered = of(build(["La", "H"], [(0, 0, 0), (1 / 3, 2 / 3, 0.5)], spacegroup=191, cellpar=[3.2, 3.2, 9.1, 90, 90, 120]))
    fine, rough = dos_meshes(layered, protocol("screening"))
    assert fine[0] == fine[1] > 2 * fine[2] and [3 * n for n in rough] == [2 * n for n in fine]
    assert all(length / n <= 0.1 for length, n in zip(reciprocal_lengths(layered), fine, strict=True))


def test_larger_cells_get_fewer_points():
    small, large = (meshes(of(h3s(a)), protocol("screening")) for a in (2.984, 6.0))
    assert np.prod(large.coarse) < np.prod(small.coarse) and np.prod(large.q) <= np.prod(small.q)


def test_screening_of_h3s_has_the_known_density():
    # SCIENCE asks for k of about 8³ and q of 3³ for a cell of 3 Å
    grid = meshes(of(h3s()), protocol("screening"))
    assert grid.q == (3, 3, 3) and grid.coarse == (9, 9, 9) and grid.dense == (18, 18, 18)


def test_crystal_survives_json():
    crystal = of(h3s())
    again = Crystal.from_inputs(crystal.to_inputs())
    assert again.numbers == crystal.numbers
    assert np.allclose(again.cell, crystal.cell) and np.allclose(again.fractional, crystal.fractional)


def test_the_description_is_not_part_of_a_key():
    one = protocol("screening")
    assert dataclasses.replace(one, description="other words").settings() == one.settings()
