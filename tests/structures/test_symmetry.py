"""Space groups, prototypes and standard cells."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.structures import Request, generate
from hydroflow.structures.symmetry import primitive, prototype_labels, spacegroups, standardised
from tests.structures.crystals import cah6, lah10, supercell, twins

CAMPAIGN = Campaign(name="test", space={"elements": ["Ca", "Y"]})


def test_known_hydrides():
    numbers, symbols = spacegroups(StructureArrays.concatenate([cah6(), lah10()]))
    assert numbers.tolist() == [229, 225]
    assert symbols == ["Im-3m", "Fm-3m"]


def test_prototype_labels_of_known_hydrides():
    assert prototype_labels(cah6()) == ["AB6_cI14_229_a_d"]
    # La on a or b is a choice of origin
    assert prototype_labels(lah10()) == ["AB10_cF44_225_a_cf"]


def test_one_prototype_has_one_label_whatever_the_elements_cell_and_size():
    rng = np.random.default_rng(1)
    copies = [lah10(), lah10(90, 5.289), twins(lah10(), rng, 0.002), supercell(lah10())]
    assert len(set(prototype_labels(StructureArrays.concatenate(copies)))) == 1


def test_labels_survive_a_change_of_cell_and_a_little_scatter():
    made = generate(CAMPAIGN, [Request({"Ca": 1, "Y": 1, "H": 12}, 300)], 200.0, seed=1)
    first = prototype_labels(made, 0.05)
    second = prototype_labels(twins(made, np.random.default_rng(2), 0.002), 0.05)
    assert np.mean([a == b for a, b in zip(first, second, strict=True)]) > 0.95
    assert len(set(first)) > 100


def test_standard_and_primitive_cells():
    assert primitive(cah6()).counts.tolist() == [7]
    one = standardised(lah10())
    assert one.counts.tolist() == [44]
    assert np.allclose(one.cells[0], 4.8441 * np.eye(3))
    assert primitive(supercell(lah10())).counts.tolist() == [11]


def test_columns_follow_into_standard_cells():
    one = cah6()
    one.columns["id"] = np.array(["x"], dtype=object)
    assert primitive(one).columns["id"].tolist() == ["x"]


def test_overlapping_atoms_have_no_space_group():
    broken = StructureArrays.from_lists([np.array([1, 1])], [np.zeros((2, 3))], [np.eye(3) * 3])
    assert spacegroups(broken)[0].tolist() == [0]
    assert prototype_labels(broken) == [""]


@pytest.mark.parametrize("symprec", [0.01, 0.05])
def test_generated_structures_have_the_requested_group_or_a_higher_one(symprec):
    made = generate(CAMPAIGN, [Request({"Ca": 2, "Y": 1, "H": 18}, 300)], 200.0, seed=3)
    found = spacegroups(made, symprec)[0]
    assert (found == made.columns["requested_spacegroup"]).mean() > 0.9
    assert (found > 0).all()
