"""The random symmetric generator: its guarantees over more than ten thousand structures, and its failures."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import TYPE_MAP, Campaign
from hydroflow.errors import CampaignError, DataError, GenerationFailed
from hydroflow.structures import Request, compositions, generate
from hydroflow.structures.statistics import shortest_distances
from hydroflow.structures.volumes import VOLUME_SPREAD, atomic_volumes, minimum_distances
from hydroflow.structures.wyckoff import tables

PRESSURE = 200.0


def campaign(**generator) -> Campaign:
    return Campaign(name="test", space={"elements": TYPE_MAP[1:]}, generator=generator)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """170 ternaries drawn from the paper's whole space, elements and binaries, 61 structures of each."""
    space = compositions(campaign().space)
    rng = np.random.default_rng(1)
    picked = np.concatenate([rng.integers(0, space.ternaries, 160), rng.integers(space.ternaries, len(space), 10)])
    return [Request(space[int(i)].as_dict(), 61) for i in picked]


@pytest.fixture(scope="module")
def structures(requests) -> StructureArrays:
    return generate(campaign(), requests, PRESSURE, seed=5)


def test_more_than_ten_thousand_are_made_of_all_that_were_asked_for(structures, requests):
    assert len(structures) == sum(r.count for r in requests) > 10_000
    assert len(set(structures.columns["id"])) == len(structures)


def test_composition_is_exact(structures, requests):
    for found, index in zip(structures.compositions(), structures.columns["composition_index"], strict=True):
        assert found == dict(requests[index].composition)


def test_every_distance_with_all_images_is_above_its_minimum(structures):
    symbols, shortest = shortest_distances(structures)
    least = minimum_distances(symbols, atomic_volumes(campaign(), symbols, PRESSURE))
    assert (shortest >= least - 1e-9).all()
    # the limits are tight enough to matter: somewhere they are almost reached
    assert shortest[:, 0, 0].min() < least[0, 0] + 0.01


def test_volumes_are_the_estimate_within_the_spread(structures):
    estimate = atomic_volumes(campaign(), TYPE_MAP, PRESSURE)
    target = np.array([sum(estimate[s] * n for s, n in c.items()) for c in structures.compositions()])
    ratio = structures.volumes / target
    assert ratio.min() > 1 - VOLUME_SPREAD - 1e-9 and ratio.max() < 1 + VOLUME_SPREAD + 1e-9
    assert ratio.std() > VOLUME_SPREAD / 4


def test_cells_are_right_handed_and_reduced(structures):
    assert (np.linalg.det(structures.cells) > 0).all()
    metric = structures.cells @ structures.cells.transpose(0, 2, 1)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (2 * abs(metric[:, i, j]) <= np.minimum(metric[:, i, i], metric[:, j, j]) * (1 + 1e-6)).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:spglib")
def test_the_requested_space_group_or_a_supergroup_is_found(structures):
    """spglib sees at least the requested operations; with exactly as many, it is the requested group."""
    import spglib

    t = tables()
    order = np.diff(t.operation_start)
    rng = np.random.default_rng(3)
    same = 0
    picked = rng.choice(len(structures), 800, replace=False)
    for i in picked:
        one = structures[int(i)]
        cell = (one.cells[0], one.fractional, one.numbers)
        found = spglib.get_symmetry_dataset(cell, symprec=1e-4)
        requested = int(one.columns["requested_spacegroup"][0])
        assert len(found.rotations) % order[requested] == 0, (found.number, requested)
        if len(found.rotations) == order[requested]:
            assert found.number == requested
        same += found.number == requested
    assert same > 0.93 * len(picked)


def test_all_crystal_systems_and_most_groups_are_visited(structures):
    groups = structures.columns["requested_spacegroup"]
    assert len(np.unique(groups)) > 185
    assert groups.min() >= 2
    for low, high in ((2, 2), (3, 15), (16, 74), (75, 142), (143, 167), (168, 194), (195, 230)):
        assert ((groups >= low) & (groups <= high)).any()


def test_a_seed_gives_the_same_structures_however_they_are_batched(requests):
    some = requests[:6]
    together = generate(campaign(), some, PRESSURE, seed=9)
    apart = StructureArrays.concatenate([generate(campaign(), [r], PRESSURE, seed=9) for r in some])
    assert together.digests() == apart.digests()
    assert list(together.columns["id"]) == list(apart.columns["id"])
    other = generate(campaign(), some, PRESSURE, seed=10)
    assert not set(other.digests()) & set(together.digests())


def test_a_search_goes_on_where_it_stopped():
    cell = {"Ca": 1, "Y": 1, "H": 12}
    whole = generate(campaign(), [Request(cell, 30)], PRESSURE, seed=2)
    rest = generate(campaign(), [Request(cell, 10, first=20)], PRESSURE, seed=2)
    assert rest.digests() == whole[20:].digests()


def test_the_same_composition_twice_gives_different_structures():
    cell = {"Ca": 1, "H": 6}
    made = generate(campaign(), [Request(cell, 5), Request(cell, 5)], PRESSURE, seed=2)
    assert len(set(made.digests())) == len(set(made.columns["id"])) == 10


def test_chosen_space_groups_only():
    made = generate(campaign(space_groups=(195, 230)), [Request({"La": 1, "H": 10}, 50)], PRESSURE, seed=1)
    assert made.columns["requested_spacegroup"].min() >= 195


def test_weights_of_space_groups():
    from hydroflow.structures.random import RandomGenerator

    made = RandomGenerator({225: 3.0, 139: 1.0}).generate(campaign(), [Request({"La": 1, "H": 10}, 400)], PRESSURE, 1)
    cubic = (made.structures.columns["requested_spacegroup"] == 225).mean()
    assert set(made.structures.columns["requested_spacegroup"]) == {139, 225}
    assert 0.6 < cubic < 0.9


def test_own_volumes_and_distances_are_used():
    own = campaign(atomic_volumes_a3={"La": 20.0, "H": 4.0}, minimum_distances_a={"H-H": 1.2, "H-La": 1.9})
    made = generate(own, [Request({"La": 1, "H": 6}, 50)], PRESSURE, seed=1)
    symbols, shortest = shortest_distances(made)
    assert symbols == ["H", "La"]
    assert shortest[:, 0, 0].min() >= 1.2 and shortest[:, 0, 1].min() >= 1.9
    assert abs(made.volumes.mean() / 44.0 - 1) < 0.05


def test_an_impossible_composition_names_itself_and_spares_the_others():
    cubic = campaign(space_groups=(229, 229))
    # Im-3m has positions of 1, 3, 4, 6 … atoms per primitive cell: no place for two La
    wanted = [Request({"La": 1, "H": 6}, 4), Request({"La": 2, "Y": 1, "H": 12}, 4), Request({"Ca": 1, "H": 6}, 4)]
    with pytest.raises(GenerationFailed, match="La2Y1H12"):
        generate(cubic, wanted, PRESSURE, seed=1)
    failures = []
    made = generate(cubic, wanted, PRESSURE, seed=1, on_failure=failures.append)
    assert np.bincount(made.columns["composition_index"], minlength=3).tolist() == [4, 0, 4]
    assert [(f.request, f.composition, f.missing) for f in failures] == [(1, "La2Y1H12", 4)]
    assert "229 to 229" in failures[0].reason


def test_distances_that_cannot_be_met_end_quickly_with_the_reason():
    start = time.perf_counter()
    with pytest.raises(GenerationFailed, match=r"H-H 2\.00.*Å³") as caught:
        generate(campaign(minimum_distances_a={"H-H": 2.0}), [Request({"La": 2, "H": 20}, 1_000_000)], PRESSURE, seed=1)
    assert "La2H20" in str(caught.value)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("cell", [{"Xx": 1, "H": 3}, {"La": 0}, {"La": -1, "H": 3}, {"H": 10_000}])
def test_unusable_cells_are_typed_errors(cell):
    with pytest.raises(DataError):
        generate(campaign(), [Request(cell, 1)], PRESSURE, seed=1)


def test_unknown_generators_are_named():
    with pytest.raises(CampaignError, match="astrology"):
        generate(campaign(mix={"astrology": 1.0}), [Request({"La": 1, "H": 10}, 1)], PRESSURE, seed=1)
    with pytest.raises(CampaignError, match="zero"):
        generate(campaign(mix={"random": 0.0}), [Request({"La": 1, "H": 10}, 1)], PRESSURE, seed=1)


def test_nothing_asked_for_gives_nothing():
    assert len(generate(campaign(), [], PRESSURE, seed=1)) == 0
    assert len(generate(campaign(), [Request({"La": 1, "H": 10}, 0)], PRESSURE, seed=1)) == 0
