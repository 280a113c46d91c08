"""Filters as plug-ins: the contract, and one of an outside package in a real funnel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Funnel
from hydroflow.errors import CampaignError
from hydroflow.learning.preflight import check_names
from hydroflow.screening import listing
from hydroflow.screening.filters import Filter, by_name, thresholds
from hydroflow.screening.funnel import screen
from hydroflow.screening.measure import spacegroup
from hydroflow.screening.what_if import recount
from hydroflow.store import Store
from hydroflow.store.documents import Candidate
from hydroflow.testing.filter_kit import FilterContract
from tests.screening.recorded import RecordedLedger
from tests.screening.searched import campaign, searched
from tests.screening.test_funnel import Answers

OUTSIDE = '''
from hydroflow.screening.filters import Filter, Measured, at_most

def volume(structures, campaign):
    return structures.volumes / structures.counts

DENSE = Filter("dense", at_most, lambda v, t: f"{v:.1f} cubic angstroms per atom, at most {t:g} wanted",
               lambda work, rows, threshold: Measured(volume(work.structures[rows], work.campaign), "cell volume"),
               structural=volume)
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of somebody else, installed as pip would."""
    (tmp_path / "denseflow.py").write_text(OUTSIDE)
    info = tmp_path / "denseflow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: denseflow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hydroflow.filters]\ndense = denseflow:DENSE\nwrong = denseflow:volume\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    by_name.cache_clear()
    yield
    by_name.cache_clear()


class TestSpacegroup(FilterContract):
    def make(self) -> Filter:
        return by_name("spacegroup")


class TestAtomicHydrogen(FilterContract):
    def make(self) -> Filter:
        return by_name("atomic_hydrogen")


def test_a_space_group_that_a_smaller_tolerance_loses_is_remarked_upon() -> None:
    """Perovskites whose central atom is off its site along [001]: by nothing, by less than the tolerance, by more."""
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    moved = [np.where(np.arange(5)[:, None] == 1, sites + np.array([0, 0, off / 4.0]), sites) for off in (0.0, 0.02, 0.3)]
    arrays = StructureArrays.from_lists([np.array([20, 39, 1, 1, 1])] * 3, moved, [4.0 * np.eye(3)] * 3)
    found = spacegroup(SimpleNamespace(campaign=campaign(), structures=arrays), np.arange(3), 100)  # type: ignore[arg-type]
    assert found.values.tolist() == [221, 221, 99]
    assert found.reasons == {1: "only 99 at 0.01 Å"}
    assert "symprec 0.05 Å, checked at 0.01 Å" in found.settings


@pytest.mark.service
def test_an_outside_filter_screens_is_stored_and_recounted(store: Store, outside: None) -> None:
    loose = "ehull_lam_ev = 0.15\nmin_spacegroup = 15\nmin_atomic_h = 0.3\nehull_dft_ev = 0.12"
    order = 'filters = ["ehull_lam", "atomic_hydrogen", "dense", "spacegroup", "phonons", "ehull_dft"]'
    settings = campaign(funnel=f"{loose}\n{order}\n[funnel.thresholds]\ndense = 3.2")
    check_names(settings)
    structures = searched(settings)
    counts = screen(settings, store, RecordedLedger(store, Answers(store, structures)), structures, "sha256:" + "a" * 64)
    assert [s.name for s in counts.steps[1:]] == settings.funnel.filters
    dense = counts.steps[3]
    assert 0 < dense.count < dense.entered
    rejected = listing.find(settings.name, rejected_by="dense")
    assert rejected.count() > 0
    for candidate in rejected:
        assert candidate.measured["dense"] == pytest.approx(candidate.volume_a3 / candidate.natoms, rel=1e-5)
        assert "cubic angstroms per atom, at most 3.2 wanted" in listing.why(candidate)
    narrow = listing.narrowly_rejected(listing.find(settings.name), "dense", settings.funnel, 0.05)
    assert {c.structure_id for c in narrow} == {c.structure_id for c in rejected if c.measured["dense"] <= 1.05 * 3.2}
    assert [c.count for c in recount(store, settings)] == [s.count for s in counts.steps[1:]]
    tighter = recount(store, settings, {"dense": 2.9})
    assert 0 < tighter[2].count < dense.count and not any(c.unknown for c in tighter)
    assert Candidate.objects(stage="passed").count() == counts.steps[-1].count


def test_filters_that_cannot_be_are_refused(outside: None) -> None:
    with pytest.raises(CampaignError, match=r"no filter 'gap' is installed \(there are: .*dense"):
        check_names(_with(filters=["ehull_lam", "gap", "ehull_dft"]))
    with pytest.raises(CampaignError, match="must be a Filter"):
        check_names(_with(filters=["ehull_lam", "wrong", "ehull_dft"]))
    with pytest.raises(CampaignError, match=r"set dense = … in \[funnel.thresholds\]"):
        thresholds(Funnel(filters=["ehull_lam", "dense", "ehull_dft"]))
    for filters, words in ((["spacegroup", "ehull_lam", "ehull_dft"], "begin with ehull_lam"),
                           (["ehull_lam", "phonons"], "hold ehull_dft"), (["ehull_lam", "ehull_dft", "ehull_dft"], "twice")):
        with pytest.raises(ValueError, match=words):
            Funnel(filters=filters)
    with pytest.raises(ValueError, match="dense is not among filters"):
        Funnel(thresholds={"dense": 1.0})


def _with(**funnel: object) -> Campaign:
    return Campaign.model_validate({"name": "x", "space": {"elements": ["Ca", "Y"]}, "funnel": funnel})
