"""What an exploration draws and which frames are labelled."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import parse
from hydroflow.learning.assess import accurate_share, mostly_unphysical
from hydroflow.learning.requests import draw_requests
from hydroflow.learning.select import select_diverse, select_relaxed, select_uncertain

CAMPAIGN = parse(
    'name = "x"\n[space]\nelements = ["Ca", "Y"]\nm = [1, 2]\nn = [1, 2]\nhydrogen_ratio = [3, 4]\n'
    "formula_units = [1, 2]\nmax_atoms = 20\nbinary_hydrogen = [1, 3]\n"
)


def frames(rng: np.random.Generator, trajectories: int, steps: int) -> StructureArrays:
    """Trajectories of two compositions, each a slow drift from a random start."""
    numbers, fractional, cells, ids = [], [], [], []
    for t in range(trajectories):
        z = np.array([20, 1, 1] if t % 2 else [39, 1, 1, 1])
        start, drift = rng.random((len(z), 3)), rng.normal(0, 0.002, (len(z), 3))
        for s in range(steps):
            numbers.append(z)
            fractional.append(start + s * drift)
            cells.append(np.eye(3) * 3.2)
            ids.append(f"t{t}")
    out = StructureArrays.from_lists(numbers, fractional, cells, {"id": np.array(ids, object)})
    out.columns["max_deviation_ev_a"] = rng.random(len(out))
    return out


def test_draw_stays_in_the_space_and_repeats_with_the_seed() -> None:
    first = draw_requests(CAMPAIGN.space, 200, np.random.default_rng(4))
    again = draw_requests(CAMPAIGN.space, 200, np.random.default_rng(4))
    assert [(r.composition, r.count) for r in first] == [(r.composition, r.count) for r in again]
    assert 190 <= sum(r.count for r in first) <= 200
    kinds = Counter(len(r.composition) for r in first)
    assert set(kinds) == {1, 2, 3}, "elements, binaries and ternaries are all explored"
    assert all(sum(r.composition.values()) <= 20 for r in first)


def test_diverse_selection_spreads_over_compositions_and_trajectories() -> None:
    batch = frames(np.random.default_rng(0), 10, 30)
    chosen = select_diverse(batch, 20, 3, np.random.default_rng(1))
    assert len(chosen) == len(set(chosen.tolist())) == 20
    per_trajectory = Counter(batch.columns["id"][chosen])
    assert max(per_trajectory.values()) <= 3
    assert len(per_trajectory) >= 8
    assert Counter(np.array(batch.formulas())[chosen]) == {"CaH2": 10, "YH3": 10}


def test_diverse_selection_is_bounded_by_the_quota_per_trajectory() -> None:
    batch = frames(np.random.default_rng(0), 2, 30)
    assert len(select_diverse(batch, 50, 3, np.random.default_rng(1))) == 6
    assert len(select_diverse(batch[:0], 5, 3, np.random.default_rng(1))) == 0


def test_identical_frames_are_labelled_once() -> None:
    one = frames(np.random.default_rng(0), 1, 1)
    batch = StructureArrays.concatenate([one] * 5)
    batch.columns["id"] = np.array([f"t{i}" for i in range(5)], object)
    assert len(select_diverse(batch, 5, 3, np.random.default_rng(1))) == 1


def test_frames_beyond_the_trust_window_fill_up_what_is_missing() -> None:
    batch = frames(np.random.default_rng(0), 10, 30)
    enough = select_uncertain(batch, 2.0, 20, 3, np.random.default_rng(1))
    assert len(enough[1]) == 0
    assert enough[0].tolist() == select_diverse(batch, 20, 3, np.random.default_rng(1)).tolist()

    within, beyond = select_uncertain(batch, 0.02, 20, 3, np.random.default_rng(1))
    deviation, trajectory = batch.columns["max_deviation_ev_a"], batch.columns["id"]
    assert 0 < len(within) < 20 and (deviation[within] <= 0.02).all() and (deviation[beyond] > 0.02).all()
    assert not set(trajectory[within]) & set(trajectory[beyond])
    assert max(Counter(trajectory[beyond]).values()) <= 3

    nothing, least = select_uncertain(batch, 0.0, 6, 3, np.random.default_rng(1))
    assert len(nothing) == 0 and len(least) == 6
    assert deviation[least].max() < np.quantile(deviation, 0.1), "the least unreliable ones"


def test_relaxed_selection_assesses_near_hull_and_random_but_not_uncertain() -> None:
    batch = frames(np.random.default_rng(0), 40, 1)
    batch.columns["enthalpy_deviation_ev"] = np.arange(40) / 40.0
    hull = np.linspace(0, 1, 40)
    assessed, extra = select_relaxed(batch, hull, 12, np.random.default_rng(2))
    assert {0, 1, 2, 3} <= set(assessed.tolist())
    assert len(assessed) == 8
    assert not set(assessed.tolist()) & set(extra.tolist())
    remaining = np.setdiff1d(np.arange(40), assessed)
    assert sorted(extra.tolist()) == remaining[-4:].tolist(), "the most uncertain of the rest"
    everything = np.concatenate(select_relaxed(batch[:5], hull[:5], 30, np.random.default_rng(2)))
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]


def test_mostly_broken_frames_are_said() -> None:
    assert mostly_unphysical({"accurate": 40, "candidate": 0, "unreliable": 0, "unphysical": 60}) == [
        "60% of the frames are unphysical"]
    assert not mostly_unphysical({"accurate": 50, "candidate": 0, "unreliable": 0, "unphysical": 50})


def test_broken_frames_do_not_count_against_accuracy() -> None:
    assert accurate_share({"accurate": 9, "candidate": 1, "unreliable": 0, "unphysical": 90}) == 0.9
    assert accurate_share({"accurate": 0, "candidate": 0, "unreliable": 0, "unphysical": 3}) == 0.0
