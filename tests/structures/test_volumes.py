"""Atomic volumes under pressure and minimum distances."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import TYPE_MAP, Campaign
from hydroflow.errors import CampaignError, DataError
from hydroflow.structures import Composition
from hydroflow.structures.volumes import (
    atomic_volume,
    atomic_volumes,
    fit_volumes,
    known_elements,
    minimum_distances,
)
from hydroflow.units import GPA_A3_EV

KNOWN = [
    # formula, GPa, Å³ per formula unit of the PBE-relaxed structure
    ("CaH6", 170, 3.4565**3 / 2), ("YH6", 166, 3.5750**3 / 2), ("LaH10", 250, 4.8441**3 / 4), ("ThH10", 100.6, 5.289**3 / 4),
    ("LuH10", 175, 4.7857**3 / 4), ("CeH9", 100, 3.7022**2 * 5.9915 * 3**0.5 / 4), ("LaYH12", 180, 3.612**3),
    ("SH3", 200, 2.984**3 / 2), ("LaBeH8", 200, 5.017**3 / 4), ("CaYH12", 200, 3.464**3),
]


@pytest.mark.parametrize(("name", "pressure", "volume"), KNOWN)
def test_volumes_of_known_hydrides(name, pressure, volume):
    counts = Composition.from_id(name).as_dict()
    assert sum(n * atomic_volume(s, pressure) for s, n in counts.items()) == pytest.approx(volume, rel=0.11)


def test_every_element_of_the_type_map_is_there_and_falls_with_pressure():
    assert set(TYPE_MAP) <= set(known_elements())
    for symbol in known_elements():
        values = [atomic_volume(symbol, p) for p in (0, 10, 50, 75, 100, 200, 250, 300, 500, 1000)]
        assert all(a > b > 0 for a, b in pairwise(values)), symbol


def test_an_unknown_element_says_how_to_give_its_volume():
    with pytest.raises(DataError, match="atomic_volumes_a3"):
        atomic_volume("Og", 200)


def test_the_campaigns_own_volumes_hold_at_its_pressure_and_scale_beyond():
    campaign = Campaign(name="x", space={"elements": ["La", "Og"]}, model={"type_map": ["H", "La", "Og"]},
                        generator={"atomic_volumes_a3": {"La": 12.0, "Og": 30.0}})
    assert atomic_volumes(campaign, ["La", "Og"], 200.0) == {"La": pytest.approx(12.0), "Og": 30.0}
    assert atomic_volumes(campaign, ["La"], 150.0)["La"] > 12.5


def test_minimum_distances_near_the_published_ones():
    volumes = {s: atomic_volume(s, 200) for s in ("La", "H")}
    least = minimum_distances(["La", "H"], volumes)
    assert least[0, 0] == pytest.approx(1.85, abs=0.1)
    assert least[0, 1] == least[1, 0] == pytest.approx(1.33, abs=0.05)
    assert least[1, 1] == 0.8


def test_overrides_of_minimum_distances():
    volumes = {"La": 13.0, "H": 1.8}
    least = minimum_distances(["H", "La"], volumes, {"H-La": 1.5})
    assert least[0, 1] == least[1, 0] == 1.5
    for wrong in ("LaH", "La-H-H", "-H"):
        with pytest.raises(CampaignError, match="La-H"):
            minimum_distances(["H", "La"], volumes, {wrong: 1.0})


def _frames(volumes: dict[str, float], pressure: float) -> StructureArrays:
    """Cells whose volumes are exactly additive, labelled with that pressure."""
    cells, numbers = [], []
    for ca, y, h in [(1, 1, 12), (2, 1, 9), (1, 2, 24), (1, 0, 6), (0, 1, 9), (4, 4, 30)]:
        numbers.append(np.repeat([20, 39, 1], [ca, y, h]))
        cells.append(np.eye(3) * (ca * volumes["Ca"] + y * volumes["Y"] + h * volumes["H"]) ** (1 / 3))
    frames = StructureArrays.from_lists(numbers, [np.zeros((len(z), 3)) for z in numbers], cells)
    frames.columns["virial_ev"] = np.eye(3) * (pressure * GPA_A3_EV * frames.volumes)[:, None, None]
    return frames


def test_volumes_are_fitted_from_labelled_frames():
    true = {"Ca": 8.0, "Y": 13.0, "H": 1.9}
    fitted = fit_volumes(_frames(true, 200.0), 200.0)
    assert fitted == {s: pytest.approx(v, rel=0.06) for s, v in true.items()}
    # frames at another pressure are brought to the wanted one
    shifted = fit_volumes(_frames(true, 170.0), 200.0)
    assert all(shifted[s] < fitted[s] for s in true)


def test_frames_far_from_the_pressure_are_refused():
    with pytest.raises(DataError, match="none of 6 frames"):
        fit_volumes(_frames({"Ca": 8.0, "Y": 13.0, "H": 1.9}, 20.0), 200.0)
