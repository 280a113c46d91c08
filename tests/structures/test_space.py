"""The chemical space: exact counts, stable ids, addressing by index."""

from __future__ import annotations

import pytest

from hydroflow.campaign import TYPE_MAP, Space
from hydroflow.errors import DataError
from hydroflow.structures import Composition, compositions, count, formula_units

PAPER = Space(elements=TYPE_MAP[1:])


def test_the_papers_numbers():
    space = compositions(PAPER)
    assert len(space.pairs) == 378
    assert len(space.triples) == 576
    assert space.ternaries == 217_728
    assert space.distinct_formulas() == 178_794
    assert count(PAPER) == 217_728 + 1 + 28 + 28 * 10


def test_enumeration_keeps_the_rules():
    small = Space(elements=["Y", "Ca", "Li"], m=(1, 2), n=(1, 2), max_metal_atoms=3)
    space = compositions(small)
    found = list(space)
    assert len(found) == len(space) == len({c.id for c in found})
    for c in found[:space.ternaries]:
        m, n, x = c.counts
        assert m + n <= 3 and 3 * (m + n) <= x <= 10 * (m + n)
        assert c.symbols[2] == "H" and c.symbols[0] < c.symbols[1]
    kinds = [c.kind for c in found[space.ternaries:]]
    assert kinds == ["element"] * 4 + ["binary"] * 30


def test_order_and_ids_do_not_depend_on_how_the_campaign_lists_elements():
    a = compositions(Space(elements=["Y", "Ca", "La"]))
    b = compositions(Space(elements=["La", "Y", "Ca"]))
    assert [c.id for c in a] == [c.id for c in b]


def test_every_index_is_the_same_composition_as_enumerated():
    space = compositions(PAPER)
    assert [c.id for c in space[5000:5010]] == [space[i].id for i in range(5000, 5010)]
    assert space[-1] == space[len(space) - 1]
    with pytest.raises(IndexError):
        space[len(space)]


def test_limits_that_differ_for_m_and_n_let_either_element_be_the_rarer_one():
    space = compositions(Space(elements=["Ca", "Y"], m=(1, 1), n=(2, 2), references=False))
    assert {c.counts[:2] for c in space} == {(1, 2), (2, 1)}


def test_references_can_be_left_out_and_cells_too_large_are_not_listed():
    assert count(Space(elements=["Ca", "Y"], references=False)) == 576
    assert max(c.atoms for c in compositions(Space(elements=["Ca", "Y"], max_atoms=20))) <= 20


def test_composition_ids_round_trip():
    c = Composition.from_id("Ca1Y1H12")
    assert (c.id, c.formula, c.kind, c.atoms) == ("Ca1Y1H12", "CaYH12", "ternary", 14)
    assert Composition.from_id("YCaH12") == c
    assert Composition.from_id("Ca2Y2H24").formula == "CaYH12"
    assert Composition.from_id("Ca2Y2H24").divisor == 2
    assert c.cell(2) == {"Ca": 2, "Y": 2, "H": 24}
    for wrong in ("", "ca1", "Xx2H3", "CaH0", "Ca-H"):
        with pytest.raises(DataError):
            Composition.from_id(wrong)


def test_formula_units_stay_within_the_largest_cell():
    space = Space(elements=["Ca", "Y"], formula_units=(1, 4), max_atoms=30)
    assert formula_units(space, Composition.from_id("CaYH12")) == [1, 2]
    assert formula_units(space, Composition.from_id("Ca4Y4H80")) == []
    # hull references get small multiples whatever the campaign says about ternaries
    assert formula_units(Space(elements=["Ca", "Y"], formula_units=(1, 1)), Composition.from_id("H")) == [1, 2, 3, 4]
