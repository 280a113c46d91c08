"""Identity of structures: twins are recognised, near-twins are kept apart."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.structures import Request, generate
from hydroflow.structures.environments import difference, surroundings
from hydroflow.structures.fingerprints import Tolerances, deduplicate, distance, fingerprints
from tests.structures.crystals import cah6, one_hydrogen_moved, supercell, twins, two_metals_swapped


@pytest.fixture(scope="module")
def originals() -> StructureArrays:
    campaign = Campaign(name="test", space={"elements": ["Ca", "Y"]})
    return generate(campaign, [Request({"Ca": 2, "Y": 2, "H": 32}, 200)], 200.0, seed=1)


def merged(originals: StructureArrays, others: StructureArrays) -> int:
    """How many of `others`, each as low in enthalpy as its original, are taken for it."""
    levels = 0.05 * np.arange(len(originals))
    both = StructureArrays.concatenate([originals, others])
    keep = deduplicate(both, np.concatenate([levels, levels + 0.002]))
    assert keep[:len(originals)].all()
    return int((~keep[len(originals):]).sum())


def test_twins_are_recognised(originals):
    assert merged(originals, twins(originals, np.random.default_rng(2))) >= 0.99 * len(originals)


def test_a_moved_hydrogen_makes_another_structure(originals):
    assert merged(originals, one_hydrogen_moved(originals, np.random.default_rng(3))) == 0


def test_swapped_metals_make_another_structure(originals):
    assert merged(originals, two_metals_swapped(originals, np.random.default_rng(4))) == 0


def test_unrelated_structures_are_far_apart(originals):
    prints = fingerprints(originals)
    i, j = np.triu_indices(len(prints), 1)
    assert distance(prints[i], prints[j]).min() > 2 * Tolerances().fingerprint


def test_a_supercell_is_the_same_crystal():
    one, two = cah6(), supercell(cah6())
    assert float(distance(fingerprints(one)[0], fingerprints(two)[0])) < 1e-5
    assert difference(surroundings(one, 0), surroundings(two, 0)) < 1e-6
    assert deduplicate(StructureArrays.concatenate([one, two]), np.array([0.001, 0.0])).tolist() == [False, True]


def test_the_lowest_enthalpy_is_kept(originals):
    five = StructureArrays.concatenate([twins(originals[:1], np.random.default_rng(k)) for k in range(5)])
    enthalpies = np.array([0.004, 0.002, 0.0, 0.001, 0.003])
    assert deduplicate(five, enthalpies).tolist() == [False, False, True, False, False]


def test_far_enthalpies_other_groups_and_other_formulas_are_not_compared(originals):
    two = StructureArrays.concatenate([originals[:1], originals[:1]])
    assert deduplicate(two, np.array([0.0, 0.0])).sum() == 1
    assert deduplicate(two, np.array([0.0, 0.5])).all()
    assert deduplicate(two, np.array([0.0, np.nan])).all()
    two.columns["spacegroup"] = np.array([2, 225])
    assert deduplicate(two, np.array([0.0, 0.0])).all()
    other = two[1]
    other.numbers[other.numbers == 20] = 12
    del two.columns["spacegroup"]
    assert deduplicate(StructureArrays.concatenate([two[0], other]), np.zeros(2)).all()


def test_more_species_than_usual_get_room(originals):
    crowded = originals[:2]
    crowded.numbers[:3] = [3, 11, 12]  # three of the four metals
    assert fingerprints(crowded).shape[1] == 15
    assert np.isfinite(fingerprints(crowded)).all()
