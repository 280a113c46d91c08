"""The optimizers' path, step by step, against ASE on an analytic potential, longer than what L-BFGS remembers."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Relaxation
from hydroflow.lam import LamModel, relax
from hydroflow.lam.optimizers import MEMORY
from hydroflow.units import GPA_A3_EV

PRESSURE, STEPS = 200.0, 150


class _Pairs:
    """Repulsion of pairs, exp(−r) times a smooth cutoff, in double precision."""

    cutoff_a = 4.0

    def __call__(self, offsets, types, pointers, neighbour, vector):
        r = np.linalg.norm(vector, axis=1)
        x = 1 - (r / self.cutoff_a) ** 2
        decay = 40 * np.exp(-r / 0.8)
        energy, slope = decay * x**3, -decay * x**3 / 0.8 - decay * 6 * x**2 * r / self.cutoff_a**2
        centre = np.repeat(np.arange(len(types)), np.diff(pointers))
        pull = (slope / r)[:, None] * vector
        forces, virial = np.zeros((len(types), 3)), np.zeros((len(offsets) - 1, 3, 3))
        np.add.at(forces, centre, pull)
        structure = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        np.add.at(virial, structure[centre], -pull[:, :, None] * vector[:, None, :] / 2)
        return np.bincount(structure[centre], energy / 2, len(offsets) - 1), forces, virial


class _Sequential(Calculator):
    implemented_properties = ("energy", "forces", "stress")
    model = LamModel(_Pairs(), ["H"])

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        found = self.model.evaluate(StructureArrays.from_atoms([atoms]))
        stress = -found.virial_ev[0] / atoms.get_volume()
        self.results = {"energy": found.energy_ev[0], "forces": found.forces_ev_a,
                        "stress": stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]}


@pytest.fixture
def start() -> StructureArrays:
    """A loose, skewed cell of many atoms: L-BFGS needs far more than a hundred steps."""
    rng = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3) / 3
    cell = np.eye(3) * 6.0 + rng.normal(0, 0.5, (3, 3))
    return StructureArrays.from_lists([np.ones(27, int)], [grid + rng.normal(0, 0.03, (27, 3))], [cell])


def test_it_is_that_of_ase_beyond_its_memory(start: StructureArrays) -> None:
    atoms = start.atoms(0)
    atoms.calc = _Sequential()
    energies: list[float] = []
    optimizer = LBFGS(FrechetCellFilter(atoms, scalar_pressure=PRESSURE * GPA_A3_EV), logfile=None)
    optimizer.attach(lambda: energies.append(atoms.get_potential_energy()))
    optimizer.run(fmax=1e-12, steps=STEPS)
    frames = relax(_Sequential.model, start, PRESSURE, Relaxation(max_steps=STEPS, fmax_ev_a=1e-12), record="all").frames
    assert len(energies) > MEMORY + 20, "a path longer than the memory"
    np.testing.assert_allclose(frames.columns["energy_ev"][:len(energies)], energies, atol=1e-6)
