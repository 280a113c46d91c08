"""What gets electron–phonon coupling: every crystal once."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.screening.listing import why
from hydroflow.store.documents import Candidate
from hydroflow.tc.rounds import distinct

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
