"""Every generator of hydroflow keeps the public contract; what is particular to swarm and prototypes."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.structures import Request, generate
from hydroflow.structures.generate import Generator
from hydroflow.structures.prototype_library import PrototypeGenerator, _supercells, library
from hydroflow.structures.random import RandomGenerator
from hydroflow.structures.statistics import shortest_distances
from hydroflow.structures.swarm import SwarmGenerator, SwarmSettings
from hydroflow.structures.symmetry import spacegroups
from hydroflow.structures.variation import heredity, permutation, rattle, sorted_cell, strain, towards
from hydroflow.testing.generator_kit import GeneratorContract

CAMPAIGN = Campaign(name="test", space={"elements": ["Ca", "Y"]})
CELL = {"Ca": 2, "Y": 2, "H": 24}


class TestRandom(GeneratorContract):
    distance_factor = 1.0

    def make(self) -> Generator:
        return RandomGenerator()


class TestSwarm(GeneratorContract):
    def make(self) -> Generator:
        return SwarmGenerator()


class TestPrototypes(GeneratorContract):
    def make(self) -> Generator:
        return PrototypeGenerator()


def test_all_generators_are_registered():
    names = {e.name: e.load() for e in entry_points(group="hydroflow.generators")}
    assert {"random", "swarm", "prototypes", "calypso"} <= set(names)
    assert all(names[n].name == n for n in ("random", "swarm", "prototypes", "calypso"))


class Spoiled(RandomGenerator):
    """The random generator with one fault."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def generate(self, *arguments, **options):
        made = super().generate(*arguments, **options)
        return self.spoil(made) or made


def _lose_one(made):
    made.structures = made.structures[1:]


def _same_ids(made):
    made.structures.columns["id"][:] = "x"


def _another_element(made):
    made.structures.numbers[made.structures.numbers == 39] = 57


def _one_on_another(made):
    made.structures.fractional[1] = made.structures.fractional[0]


def _tenfold_volume(made):
    made.structures.cells *= 10 ** (1 / 3)


def _new_every_time(made):
    made.structures.fractional += np.random.default_rng().random(3)


@pytest.mark.parametrize(("spoil", "check"), [
    (_lose_one, "test_every_structure_is_accounted_for"), (_same_ids, "test_columns"),
    (_another_element, "test_compositions_are_exact"), (_one_on_another, "test_geometry_is_sane"),
    (_tenfold_volume, "test_geometry_is_sane"), (_new_every_time, "test_the_same_seed_gives_the_same_structures"),
])
def test_the_contract_catches_faulty_generators(spoil, check):
    class Contract(GeneratorContract):
        def make(self):
            return Spoiled(spoil)

    with pytest.raises(AssertionError):
        getattr(Contract(), check)()


def test_the_contract_catches_a_generator_that_begins_again():
    class Forgetful(RandomGenerator):
        def generate(self, campaign, requests, *arguments):
            return super().generate(campaign, [Request(r.composition, r.count) for r in requests], *arguments)

    class Contract(GeneratorContract):
        def make(self):
            return Forgetful()

    with pytest.raises(AssertionError):
        Contract().test_a_later_request_goes_on()


# ---- swarm -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def relaxed() -> StructureArrays:
    """A generation with enthalpies, as a relaxation would hand it back."""
    made = generate(CAMPAIGN, [Request(CELL, 20)], 200.0, seed=1)
    made.columns["enthalpy_ev"] = np.linspace(-10.0, 0.0, len(made))
    return made


def test_the_swarm_goes_on_from_relaxed_structures(relaxed):
    made = SwarmGenerator().generate(CAMPAIGN, [Request(CELL, 40, first=20)], 200.0, 1, relaxed).structures
    assert len(made) == 40
    fresh = made.columns["requested_spacegroup"] > 0
    assert 5 < fresh.sum() < 30
    symbols, shortest = shortest_distances(made[~fresh])
    assert symbols == ["H", "Ca", "Y"]
    assert shortest[:, 0, 0].min() > 0.85 * 0.8 - 1e-9
    assert not set(made.digests()) & set(relaxed.digests())


def test_without_fresh_ones_all_are_children_of_parents(relaxed):
    swarm = SwarmGenerator(SwarmSettings(fresh=0.0, tries=50))
    made = swarm.generate(CAMPAIGN, [Request(CELL, 30)], 200.0, 1, relaxed).structures
    assert (made.columns["requested_spacegroup"] == 0).sum() >= 25


def test_other_cells_of_the_same_formula_are_not_parents(relaxed):
    made = SwarmGenerator().generate(CAMPAIGN, [Request({"Ca": 1, "Y": 1, "H": 12}, 10)], 200.0, 1, relaxed).structures
    assert (made.columns["requested_spacegroup"] > 0).all()


@pytest.mark.parametrize("operator", [
    lambda a, b, rng: rattle(a, rng), lambda a, b, rng: strain(a, rng), lambda a, b, rng: permutation(a, rng),
    lambda a, b, rng: heredity(a, b, rng), lambda a, b, rng: towards(a, b, rng),
], ids=["rattle", "strain", "permutation", "heredity", "towards"])
def test_operators_keep_the_atoms_and_the_volume(operator, relaxed):
    rng = np.random.default_rng(1)
    for k in range(10):
        a, b = sorted_cell(relaxed, k), sorted_cell(relaxed, k + 1)
        child = operator(a, b, rng)
        assert child.numbers.tolist() == a.numbers.tolist()
        low, high = sorted((a.volume, b.volume))
        assert 0.95 * low <= child.volume <= 1.05 * high
        assert not np.allclose(child.fractional, a.fractional) or not np.allclose(child.cell, a.cell)


def test_a_step_towards_itself_stays():
    one = generate(CAMPAIGN, [Request(CELL, 1)], 200.0, seed=1)
    a = sorted_cell(one, 0)
    moved = towards(a, a, np.random.default_rng(0))
    assert np.allclose((moved.fractional - a.fractional + 0.5) % 1.0, 0.5, atol=1e-6)


def test_sorting_a_cell_keeps_the_crystal(relaxed):
    from hydroflow.structures.fingerprints import distance, fingerprints

    for k in range(5):
        c = sorted_cell(relaxed, k)
        again = StructureArrays.from_lists([c.numbers], [c.fractional], [c.cell])
        assert float(distance(fingerprints(again)[0], fingerprints(relaxed[k])[0])) < 1e-4


def test_swarm_and_random_beside_each_other_do_not_repeat_each_other():
    mixed = Campaign(name="test", space={"elements": ["Ca", "Y"]}, generator={"mix": {"swarm": 0.5, "random": 0.5}})
    made = generate(mixed, [Request(CELL, 40)], 200.0, seed=1)
    assert set(made.columns["generator"]) == {"swarm", "random"}
    assert len(set(made.digests())) == 40


# ---- prototypes --------------------------------------------------------------------------------------------------------
def test_the_library_is_what_it_says():
    names = {p.name for p in library()}
    assert {"CaH6", "CeH9", "LaH10", "LaBeH8", "LaYH12", "Li2MgH16"} <= names
    numbers = {"A": 57, "B": 39, "H": 1}
    for p in library():
        one = StructureArrays.from_lists([np.array([numbers[r] for r in p.roles])], [p.fractional], [p.cell])
        assert spacegroups(one, 1e-3)[0].tolist() == [p.space_group], p.name
        assert p.source
        symbols, shortest = shortest_distances(one)
        assert shortest[0, symbols.index("H"), symbols.index("H")] > 1.0, p.name


def test_every_superlattice_is_tried_once():
    """As many as there are subgroups of index n in Z³ (OEIS A001001), and no two the same lattice."""
    for cells, number in ((1, 1), (2, 7), (3, 13), (4, 35), (6, 91), (8, 155)):
        found = list(_supercells(cells))
        assert len(found) == number and all(round(np.linalg.det(m)) == cells for m in found)
        for i, one in enumerate(found):
            for other in found[:i]:
                change = one @ np.linalg.inv(other)
                assert not np.allclose(change, np.rint(change))


@pytest.mark.parametrize(("cell", "symbol"), [
    ({"Ca": 1, "H": 6}, "Im-3m"), ({"La": 1, "H": 10}, "Fm-3m"), ({"La": 1, "Be": 1, "H": 8}, "Fm-3m"),
    ({"Ca": 1, "Y": 1, "H": 12}, "Pm-3m"), ({"Y": 1, "Th": 1, "H": 18}, "P-6m2"), ({"Li": 4, "Mg": 2, "H": 32}, "Fd-3m"),
    ({"Ca": 3, "Y": 1, "H": 24}, "Fm-3m"),
])
def test_known_hydrides_come_out_of_their_prototypes(cell, symbol):
    campaign = Campaign(name="test", space={"elements": ["Ca", "Y", "La", "Be", "Th", "Li", "Mg"]},
                        generator={"mix": {"prototypes": 1}})
    made = generate(campaign, [Request(cell, 20)], 200.0, seed=1, on_failure=lambda f: None)
    assert symbol in spacegroups(made, 0.01)[1]


def test_gaps_of_the_prototypes_are_filled_by_the_main_generator():
    mixed = Campaign(name="test", space={"elements": ["Ca", "Y"]}, generator={"mix": {"prototypes": 0.4, "random": 0.6}})
    made = generate(mixed, [Request({"Ca": 1, "Y": 1, "H": 12}, 20), Request({"Ca": 1, "Y": 2, "H": 11}, 20)], 200.0, seed=1)
    assert np.bincount(made.columns["composition_index"]).tolist() == [20, 20]
    assert 1 <= (made.columns["generator"] == "prototypes").sum() <= 4
    assert len(set(made.columns["id"])) == 40
