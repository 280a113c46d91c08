"""Which candidates get EPC first and next, and what that will cost."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from hydroflow.epc.cost import CostModel, fit, work
from hydroflow.epc.protocols import meshes, primitive, protocol
from hydroflow.tc.acquire import next_batch, ranking
from hydroflow.tc.queue import first_batch, scores


def test_symmetry_size_and_hydrogen_each_count():
    assert np.all(np.diff(scores([225, 191, 139, 87, 2], [10] * 5, [0.5] * 5)) < 0)
    assert np.all(np.diff(scores([225] * 3, [8, 12, 30], [0.5] * 3)) < 0)
    assert np.all(np.diff(scores([225] * 3, [10] * 3, [0.9, 0.5, 0.1])) < 0)


def test_unknown_hydrogen_share_neither_helps_nor_hurts():
    first, second, third = scores([225] * 3, [10] * 3, [0.8, None, 0.2])
    assert first > second > third


def test_first_batch_is_the_best_and_stable():
    assert first_batch([2, 225, 225, 139], [10, 20, 10, 10], [0.5] * 4, 2) == [2, 3]
    assert first_batch([225, 225], [10, 10], [0.5, 0.5], 2) == [0, 1]
    assert first_batch([], [], [], 3) == []


def test_a_budget_passes_over_what_is_too_dear():
    chosen = first_batch([225, 225, 225], [8, 9, 10], [0.9, 0.8, 0.7], 3, core_hours=[5, 100, 4], left_core_hours=10)
    assert chosen == [0, 2]
    assert next_batch([0.0, 0.1, 0.2], [300, 200, 100], 2, core_hours=[11, 6, 4], left_core_hours=10) == [1, 2]


def test_ranking_wants_stable_and_high_tc():
    # the second is best in both; the fourth has the highest Tc but is far above the hull; an unknown hull is last
    order = ranking([0.04, 0.00, 0.02, 0.05, None], [100, 300, 200, 250, 290])
    assert order[0] == 1 and order[-1] in (0, 4)
    assert next_batch([0.04, 0.00, 0.02], [100, 300, 200], 2) == [1, 2]
    assert next_batch([], [], 5) == []


def test_ties_go_to_the_higher_tc():
    assert ranking([0.0, 0.1], [100, 200]).tolist() == [1, 0]


def test_work_grows_with_the_cell_and_shrinks_with_symmetry():
    def units(atoms, electrons):
        crystal = primitive(atoms.numbers, atoms.cell.array, atoms.get_scaled_positions())
        return work(crystal, meshes(crystal, protocol("screening")), 50.0, electrons)

    assert units(bulk("NaCl", "rocksalt", a=4.2), 16) > units(bulk("Al", a=4.2), 3)
    low = bulk("NaCl", "rocksalt", a=4.2)
    low.positions[1] += [0.2, 0.1, 0.05]
    assert units(low, 16) > 5 * units(bulk("NaCl", "rocksalt", a=4.2), 16)


def test_cost_model_is_fitted_to_timings():
    assert fit([], []) == CostModel()
    few = fit([1e6, 2e6], [0.01, 0.02])
    assert few.exponent == 1.0 and few.core_hours(4e6) == pytest.approx(0.04)
    w = np.geomspace(1e5, 1e8, 12)
    many = fit(w, 3e-8 * w**1.2)
    assert many.exponent == pytest.approx(1.2) and many.core_hours(1e9) == pytest.approx(3e-8 * 1e9**1.2)
    assert many.relative_error < 1e-9
