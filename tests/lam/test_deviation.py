"""The deviation of an ensemble whose models are known exactly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.lam.ensemble import Ensemble
from hydroflow.lam.model import Evaluation


def _model(forces: np.ndarray, energy: np.ndarray) -> SimpleNamespace:
    """Gives these forces (N, 3) and energies (n,) whatever it is asked."""
    return SimpleNamespace(type_map=["H"], evaluate=lambda arrays: Evaluation(energy, forces, np.zeros((len(energy), 3, 3))))


@pytest.fixture
def pair() -> StructureArrays:
    """Two cells of two distant atoms."""
    apart = np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])
    return StructureArrays.from_lists([np.ones(2, int)] * 2, [apart] * 2, [np.eye(3) * 4] * 2)


def test_largest_mean_and_relative_deviation(pair: StructureArrays) -> None:
    mean = np.array([[0, 0, 0], [0, 0, 0], [9, 0, 0], [0, 0, 0]], float)
    off = np.array([[0, 0.3, 0], [0, 0, 0.1], [0, 0.8, 0], [0, 0, 0.2]])
    found = Ensemble([_model(mean + off, np.array([1.0, 2.0])), _model(mean - off, np.array([3.0, 2.0]))]).deviation(pair)
    np.testing.assert_allclose(found.max_force_ev_a, [0.3, 0.8])
    np.testing.assert_allclose(found.mean_force_ev_a, [0.2, 0.5])
    # 0.8 on a force of 9 eV/Å counts less than 0.2 on none: |⟨F⟩| + 1 eV/Å
    np.testing.assert_allclose(found.relative_force, [0.3, 0.2])
    np.testing.assert_allclose(found.enthalpy_ev_atom, [0.5, 0.0])
    assert not found.unphysical.any()


def test_models_that_agree_have_none(pair: StructureArrays) -> None:
    same = _model(np.ones((4, 3)), np.ones(2))
    found = Ensemble([same, same, same]).deviation(pair)
    assert not found.max_force_ev_a.any() and not found.relative_force.any() and not found.enthalpy_ev_atom.any()
