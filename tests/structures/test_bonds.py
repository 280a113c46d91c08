"""The bond characterisation matrix: against known bond order parameters, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.structures import Request, bonds, generate
from hydroflow.structures.bonds import bond_matrices
from hydroflow.structures.fingerprints import distance
from hydroflow.structures.swarm import SwarmSettings
from tests.structures.crystals import cah6, lah10, one_hydrogen_moved, supercell, twins, two_metals_swapped

CAMPAIGN = Campaign(name="test", space={"elements": ["Ca", "Y"]})


@pytest.mark.parametrize(("cell", "four", "six"), [
    (np.eye(3), 0.76376, 0.35355),  # simple cubic, 6 neighbours
    (np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]), 0.19094, 0.57452),  # fcc, 12
    (np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]), 0.50918, 0.62854),  # bcc, 8
], ids=["sc", "fcc", "bcc"])
def test_bond_order_of_nearest_neighbours_is_that_of_steinhardt(cell, four, six, monkeypatch):
    """Steinhardt, Nelson & Ronchetti 1983, Q4 and Q6; a steep weight leaves the nearest neighbours only."""
    monkeypatch.setattr(bonds, "DECAY", 200.0)
    one = StructureArrays.from_lists([np.array([20])], [np.zeros((1, 3))], [3.0 * cell])
    matrix = bond_matrices(one)[0]
    assert matrix.shape == (1, 5)
    assert matrix[0, 0] == pytest.approx(0.0, abs=1e-9)
    assert matrix[0, 1:3] == pytest.approx([four, six], abs=1e-4)


def test_it_does_not_depend_on_cell_origin_orientation_or_size():
    transform = np.array([[1, 1, 0], [0, 1, 0], [0, -2, 1]])
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    for one in (cah6(), lah10()):
        moved = (one.fractional + np.array([0.3, 0.1, 0.7])) @ np.linalg.inv(transform)
        other = StructureArrays.from_lists([one.numbers], [moved], [transform @ one.cells[0] @ rotation])
        assert np.allclose(bond_matrices(one), bond_matrices(other))
        assert np.allclose(bond_matrices(one), bond_matrices(supercell(one)))


def test_a_cell_of_one_element_less_has_empty_rows_and_no_bonds_of_it():
    both = bond_matrices(StructureArrays.concatenate([lah10(), cah6()]))
    assert both.shape == (2, 3, 5)
    assert np.isfinite(both).all() and (both >= 0).all() and (both <= 1).all()


def test_twins_are_nearer_than_what_the_swarm_takes_for_similar_and_different_structures_are_not():
    made = generate(CAMPAIGN, [Request({"Ca": 2, "Y": 2, "H": 12}, 100)], 200.0, seed=1)
    rng = np.random.default_rng(2)
    own = bond_matrices(made)
    assert (distance(own, bond_matrices(twins(made, rng))) < SwarmSettings().similarity).all()
    i, j = np.triu_indices(len(made), 1)
    assert (distance(own[i], own[j]) > SwarmSettings().similarity).all()
    for change in (two_metals_swapped, one_hydrogen_moved):
        assert (distance(own, bond_matrices(change(made, rng))) > 1e-3).all()
