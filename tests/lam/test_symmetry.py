"""A space group that is asked for survives a relaxation; without the wish a noisy model loses it."""

from __future__ import annotations

import numpy as np
import pytest
import spglib

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Relaxation, parse
from hydroflow.lam import LamModel, relax
from hydroflow.lam.symmetry import symmetrised
from hydroflow.structures import Request, generate
from tests.lam.trained import STORED

CAMPAIGN = parse('name = "x"\n[space]\nelements = ["Mg", "Ca"]\n[generator]\nspace_groups = [75, 230]\n')
PRESSURE = 200.0


class _Noisy:
    """A kernel whose forces and virials are off at random, as those of any model are by its precision, only more so."""

    def __init__(self, kernel, size: float) -> None:
        self.kernel, self.size, self.cutoff_a = kernel, size, kernel.cutoff_a
        self.rng = np.random.default_rng(0)

    def __call__(self, *edges):
        energy, forces, virial = self.kernel(*edges)
        return (energy, forces + self.rng.normal(0, self.size, forces.shape),
                virial + self.rng.normal(0, self.size, virial.shape))


@pytest.fixture(scope="module")
def starts() -> StructureArrays:
    found = generate(CAMPAIGN, [Request({"Mg": 1, "Ca": 1, "H": 6}, 4), Request({"Ca": 2, "H": 12}, 4)], PRESSURE, seed=3)
    assert len(found) >= 6
    return found


def _operations(arrays: StructureArrays, symprec_a: float = 1e-3) -> np.ndarray:
    """(n,) order of each structure's space group in its cell."""
    return np.array([len(spglib.get_symmetry((a.cells[0], a.fractional, a.numbers), symprec=symprec_a)["rotations"])
                     for a in arrays])


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_the_group_is_kept_where_it_is_asked_for(starts: StructureArrays, optimizer: str) -> None:
    model = LamModel.load(STORED, device="cpu")
    noisy = LamModel(_Noisy(model.kernel, 0.05), model.type_map)
    settings = {"optimizer": optimizer, "max_steps": 60}
    # fewer slots than structures: a group belongs to its structure, not to the slot
    kept = relax(noisy, starts, PRESSURE, Relaxation(keep_symmetry=True, **settings), slots=3).relaxed
    free = relax(noisy, starts, PRESSURE, Relaxation(**settings)).relaxed
    sound = np.isfinite(kept.columns["energy_ev"]) & np.isfinite(free.columns["energy_ev"])
    assert sound.sum() >= 4
    assert (_operations(kept[sound]) >= _operations(starts[sound])).all()
    assert (_operations(free[sound]) < _operations(starts[sound])).any()


def test_it_changes_no_path_of_a_symmetric_model(starts: StructureArrays) -> None:
    model = LamModel.load(STORED, device="cpu")
    kept, free = (relax(model, starts, PRESSURE, Relaxation(max_steps=8, keep_symmetry=k)).relaxed for k in (True, False))
    np.testing.assert_allclose(kept.columns["enthalpy_ev"], free.columns["enthalpy_ev"], atol=2e-3)
    np.testing.assert_allclose(kept.cells, free.cells, atol=2e-3)


def test_a_start_within_the_tolerance_is_idealised(starts: StructureArrays) -> None:
    rng = np.random.default_rng(1)
    for one in starts:
        fractional = one.fractional + rng.normal(0, 1e-3, one.fractional.shape) @ np.linalg.inv(one.cells[0])
        cell = one.cells[0] @ (np.eye(3) + rng.normal(0, 3e-4, (3, 3)))
        ideal, lattice, group = symmetrised(fractional, cell, one.numbers, symprec_a=0.02)
        found = StructureArrays.from_lists([one.numbers], [ideal], [lattice])
        assert len(group.rotations) == _operations(found, 1e-5)[0] >= _operations(one)[0]
        assert np.abs((ideal - fractional) @ cell).max() < 0.01 and np.abs(lattice - cell).max() < 0.01
        # each operation is orthogonal and takes the crystal onto itself
        np.testing.assert_allclose(group.rotations @ group.rotations.transpose(0, 2, 1), np.eye(3)[None].repeat(
            len(group.rotations), 0), atol=1e-9)


@pytest.mark.parametrize("broken", [np.nan, 0.0])
def test_a_broken_cell_has_the_trivial_group(broken: float) -> None:
    fractional, cell, group = symmetrised(np.zeros((2, 3)), np.full((3, 3), broken), np.array([1, 1]))
    assert len(group.rotations) == 1 and fractional.shape == (2, 3) and cell.shape == (3, 3)


def test_jobs_named_before_there_was_the_key_keep_their_names() -> None:
    assert "keep_symmetry" not in Relaxation().model_dump(mode="json")
    assert Relaxation.model_validate(Relaxation(keep_symmetry=True).model_dump(mode="json")).keep_symmetry
