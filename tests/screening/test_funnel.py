"""The funnel over real structures, with the answers of phonon and DFT jobs recorded in the ledger."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.errors import CampaignError, DataError
from hydroflow.screening.atomic_hydrogen import atomic_fraction
from hydroflow.screening.entries import entries_of
from hydroflow.screening.funnel import FunnelCounts, screen
from hydroflow.screening.hull import energy_above_hull, hull_distances
from hydroflow.screening.what_if import recount
from hydroflow.search.collect import collect_search
from hydroflow.store import Store
from hydroflow.store.documents import Candidate, Job
from hydroflow.structures.symmetry import spacegroups
from tests.screening.recorded import RecordedLedger
from tests.screening.searched import campaign, finished_shards, searched

pytestmark = pytest.mark.service
MODEL = "sha256:" + "a" * 64
LOOSE = 'ehull_lam_ev = 0.15\nmin_spacegroup = 15\nmin_atomic_h = 0.3\nehull_dft_ev = 0.12'


def number(text: str) -> float:
    """0 to 1, from any text."""
    return zlib.crc32(text.encode()) / 2**32


class Answers:
    """Phonons: a quarter of the structures is unstable, by their volume. DFT: the made-up enthalpy of the composition
    with a little noise; some relaxations fail."""

    def __init__(self, store: Store, structures: StructureArrays, failing: set[str] = frozenset()) -> None:
        self.store, self.structures, self.failing = store, structures, failing
        self.untreatable: set[str] = set()
        self.per_atom: dict[str, float] = {}
        h = structures.columns["enthalpy_ev"] / structures.counts
        for f, value in zip(structures.formulas(), h, strict=True):
            self.per_atom[f] = min(value, self.per_atom.get(f, np.inf))

    def __call__(self, job: Job) -> dict[str, Any] | str:
        if job.kind == "lam.phonons":
            arrays = StructureArrays.from_parquet(self.store.objects.get(job.files["structures.parquet"]))
            lowest = [-6.0 if number(f"{v:.6f}") < 0.25 else -0.5 for v in arrays.volumes]
            untreatable = {i: "phonopy cannot treat the cell: too flat" for i, f in enumerate(arrays.formulas())
                           if f in self.untreatable}
            return {"min_frequency_thz": [None if i in untreatable else v for i, v in enumerate(lowest)],
                    "reasons": {str(i): words for i, words in untreatable.items()}}
        assert job.kind == "dft.relax", job.kind
        structure = job.inputs["structure"]
        arrays = StructureArrays.from_lists([np.array(structure["numbers"])], [np.array(structure["fractional"])],
                                            [np.array(structure["cell"])])
        name = arrays.formulas()[0]
        if name in self.failing:
            return f"no convergence for {name}"
        h = (self.per_atom[name] + 0.05 * number(job.key)) * len(arrays.numbers)
        return {"structure": structure, "energy_ev": h - 1.0, "enthalpy_ev": h, "settings": "recorded", "pressure_gpa": 200.0}


@pytest.fixture(scope="module")
def structures() -> StructureArrays:
    return searched(campaign())


def run(store: Store, structures: StructureArrays, funnel: str = LOOSE, failing: set[str] = frozenset(),
        ) -> tuple[FunnelCounts, RecordedLedger]:
    ledger = RecordedLedger(store, Answers(store, structures, failing) if len(structures) else str)
    return screen(campaign(funnel=funnel), store, ledger, structures, MODEL), ledger


def test_counts_and_verdicts_agree_with_the_filters_applied_by_hand(store: Store, structures: StructureArrays) -> None:
    counts, ledger = run(store, structures)
    ternary = np.array([len(s.split("-")) == 3 for s in structures.chemical_systems()])
    ehull = energy_above_hull(entries_of(structures, ("Ca", "Y", "H"), MODEL))[0]
    left = [ternary]
    left.append(left[-1] & (ehull <= 0.15))
    left.append(left[-1] & (spacegroups(structures)[0] > 15))
    left.append(left[-1] & (atomic_fraction(structures, 0.9) > 0.3))
    assert [s.count for s in counts.steps[:4]] == [int(m.sum()) for m in left]
    assert [s.name for s in counts.steps] == ["searched", "ehull_lam", "spacegroup", "atomic_hydrogen", "phonons", "ehull_dft"]
    assert counts.steps[5].count == len(counts.passed) > 0, "nothing reaches the end: the test shows nothing"
    for before, after in zip(counts.steps, counts.steps[1:], strict=False):
        assert after.entered == before.count
        assert after.count + after.rejected + after.undetermined + after.waiting == after.entered
    # every document says where it stands, with value, threshold and settings, and nothing after the rejection
    for c in Candidate.objects(campaign="screened"):
        names = [v.filter for v in c.verdicts]
        assert names == campaign().funnel.filters[:len(names)]
        assert all(v.passed for v in c.verdicts[:-1]) and all(v.settings and v.threshold is not None for v in c.verdicts)
        last = c.verdicts[-1]
        if c.stage == "passed":
            assert last.filter == "ehull_dft" and last.passed and c.rejected_by is None and c.structure_dft
        else:
            assert c.stage == c.rejected_by == last.filter and not last.passed and last.reason
    by_reason = Candidate.objects(campaign="screened").item_frequencies("rejected_by")
    assert by_reason["phonons"] == counts.steps[4].rejected + counts.steps[4].undetermined
    assert Candidate.objects(campaign="screened", stage="passed").count() == len(counts.passed)
    assert ledger.asked["lam.phonons"] >= 1


def test_again_it_asks_nothing_new_and_writes_the_same(store: Store, structures: StructureArrays) -> None:
    first, _ = run(store, structures)
    before = {c.structure_id: c.to_mongo() for c in Candidate.objects()}
    again, ledger = run(store, structures)
    assert again.to_dict() == first.to_dict()
    assert not ledger.asked
    after = {c.structure_id: c.to_mongo() for c in Candidate.objects()}
    for one in (*before.values(), *after.values()):
        one.pop("updated")
    assert before == after


def test_another_threshold_reuses_phonons_and_epc_results_stay(store: Store, structures: StructureArrays) -> None:
    first, _ = run(store, structures)
    done = Candidate.objects.get(structure_id=first.passed[0])
    done.update(epc_status="done", tc_k=123.0, stage="epc")
    tighter, _ = run(store, structures, LOOSE.replace("min_spacegroup = 15", "min_spacegroup = 2"))
    assert tighter.steps[4].entered > first.steps[4].entered
    phonons = [Job.objects.get(key=k) for c in Candidate.objects(campaign="screened") for k in c.jobs]
    computed = sum(j.inputs["structures"] for j in {j.key: j for j in phonons}.values())
    assert computed == tighter.steps[4].entered, "a phonon was computed twice or not at all"
    kept = Candidate.objects.get(structure_id=first.passed[0])
    assert (kept.tc_k, kept.stage, kept.epc_status) == (123.0, "epc", "done")


def test_a_structure_without_phonons_keeps_the_words_of_the_job(store: Store, structures: StructureArrays) -> None:
    first, _ = run(store, structures)
    formula = Candidate.objects.get(structure_id=first.passed[0]).formula
    Candidate.drop_collection()
    Job.drop_collection()
    answers = Answers(store, structures)
    answers.untreatable = {formula}
    counts = screen(campaign(funnel=LOOSE), store, RecordedLedger(store, answers), structures, MODEL)
    lost = Candidate.objects(rejected_by="phonons", formula=formula)
    assert counts.steps[4].undetermined == lost.count() > 0
    for one in lost:
        assert one.verdicts[-1].value is None
        assert "too flat" in one.verdicts[-1].reason and one.jobs[-1] in one.verdicts[-1].reason


def test_dft_limit_puts_off_the_worst_without_rejecting(store: Store, structures: StructureArrays) -> None:
    counts, _ = run(store, structures, LOOSE + "\nmax_candidates_dft = 3")
    last = counts.steps[-1]
    assert last.waiting == last.entered - 3 and last.count <= 3
    waiting = list(Candidate.objects(stage="waiting"))
    assert len(waiting) == last.waiting and all(c.rejected_by is None for c in waiting)
    assert "max_candidates_dft = 3" in waiting[0].verdicts[-1].reason
    judged = [c.ehull_lam_ev for c in Candidate.objects() if c.verdicts[-1].filter == "ehull_dft" and c.stage != "waiting"]
    assert max(judged) <= min(c.ehull_lam_ev for c in waiting)


def test_dft_hull_is_of_dft_enthalpies_of_the_competing_phases(store: Store, structures: StructureArrays) -> None:
    counts, _ = run(store, structures)
    jobs = list(Job.objects(kind="dft.relax"))
    relaxed = StructureArrays.from_lists(*zip(*[
        (np.array(j.inputs["structure"]["numbers"]), np.array(j.inputs["structure"]["fractional"]),
         np.array(j.inputs["structure"]["cell"])) for j in jobs], strict=True))
    systems = set(relaxed.chemical_systems())
    assert {"Ca", "H", "Y", "Ca-H", "H-Y", "Ca-H-Y"} == systems
    distance = hull_distances(relaxed, np.array([j.result["enthalpy_ev"] for j in jobs]) / relaxed.counts)
    ternary = np.array([s == "Ca-H-Y" for s in relaxed.chemical_systems()])
    for c in Candidate.objects(ehull_dft_ev__ne=None):
        assert np.abs(distance[ternary] - c.ehull_dft_ev).min() < 1e-9
    assert counts.steps[-1].undetermined == 0


def test_a_failed_relaxation_and_a_failed_element_are_said(store: Store, structures: StructureArrays) -> None:
    counts, _ = run(store, structures, failing={"Y"})
    assert counts.steps[-1].count == 0 and counts.steps[-1].undetermined == counts.steps[-1].entered > 0
    reasons = {c.verdicts[-1].reason for c in Candidate.objects(rejected_by="ehull_dft")}
    assert reasons == {"the DFT hull of Ca-H-Y has no Y: none of its phases could be relaxed"}
    yttrium = [j for j in Job.objects(kind="dft.relax") if set(j.inputs["structure"]["numbers"]) == {39}]
    assert 1 < len(yttrium) <= 3, "other phases of the element must be tried"


def test_what_if_recounts_from_stored_values(store: Store, structures: StructureArrays) -> None:
    first, _ = run(store, structures)
    settings = campaign(funnel=LOOSE)
    same = recount(store, settings)
    assert [c.count for c in same] == [s.count for s in first.steps[1:]]
    assert not any(c.unknown for c in same)
    tighter = recount(store, settings, {"ehull_lam": 0.05, "phonons": -10})
    fresh, _ = run(store, structures, LOOSE.replace("0.15", "0.05") + "\nmin_frequency_thz = -10")
    assert [c.count for c in tighter][:4] == [s.count for s in fresh.steps[1:5]]
    with pytest.raises(DataError, match="keep_ehull_ev"):
        recount(store, settings, {"ehull_lam": 0.5})
    with pytest.raises(CampaignError, match="no filter 'tc'"):
        recount(store, settings, {"tc": 1})


def test_a_looser_what_if_measures_symmetry_and_counts_what_is_to_compute(store: Store, structures: StructureArrays) -> None:
    """Those that an earlier filter had kept from symmetry and atomic hydrogen are read from their shards and measured."""
    rested = collect_search(store, finished_shards(store, campaign(), structures, MODEL)).structures
    strict = LOOSE.replace("0.15", "0.05").replace("min_spacegroup = 15", "min_spacegroup = 75")
    first, _ = run(store, rested, strict)
    stored = [c.to_mongo() for c in Candidate.objects()]
    wider = recount(store, campaign(funnel=strict), {"ehull_lam": 0.15, "spacegroup": 15})
    assert [c.to_mongo() for c in Candidate.objects()] == stored, "a what if must not write"
    fresh, _ = run(store, rested, LOOSE)
    assert [c.count for c in wider[:3]] == [s.count for s in fresh.steps[1:4]]
    assert wider[2].count > first.steps[3].count
    phonons = wider[3]
    assert phonons.unknown == wider[2].count - first.steps[3].count, "phonons that nobody computed"
    assert phonons.count == first.steps[4].count and phonons.failed == 0


def test_a_campaign_with_other_thresholds_computes_no_phonons_twice(store: Store, structures: StructureArrays) -> None:
    """Thresholds are part of a campaign, so that changed ones come under another name; its shards are the same."""
    rested = collect_search(store, finished_shards(store, campaign(), structures, MODEL)).structures
    first, _ = run(store, rested)
    looser = campaign(funnel=LOOSE.replace("min_spacegroup = 15", "min_spacegroup = 2")).model_copy(update={"name": "looser"})
    ledger = RecordedLedger(store, Answers(store, rested))
    second = screen(looser, store, ledger, rested, MODEL)
    asked = [j.inputs["structures"] for j in Job.objects(kind="lam.phonons", campaigns="looser")]
    new = second.steps[4].entered - first.steps[4].entered
    assert sum(asked) == new > 0
    lowest = {c.structure_id: c.min_frequency_thz for c in Candidate.objects(campaign="screened", min_frequency_thz__ne=None)}
    again = {c.structure_id: c.min_frequency_thz for c in Candidate.objects(campaign="looser", structure_id__in=list(lowest))}
    assert again == lowest
    other_model = RecordedLedger(store, Answers(store, rested))
    third = screen(looser.model_copy(update={"name": "newer"}), store, other_model, rested, "sha256:" + "b" * 64)
    asked = [j.inputs["structures"] for j in Job.objects(kind="lam.phonons", campaigns="newer")]
    assert sum(asked) == third.steps[4].entered, "phonons of another model are no answer"


def test_hull_picture_is_what_the_report_draws(store: Store, structures: StructureArrays) -> None:
    counts, _ = run(store, structures)
    entries = counts.hull["entries"]
    assert {e["formula"] for e in entries if e["on_hull"]} >= {"Ca", "Y", "H"}
    assert all(sum(e["x"].values()) == pytest.approx(1) and e["ehull_ev"] >= 0 for e in entries)
    assert len({e["formula"] for e in entries}) == len(entries)


def test_structures_that_cannot_be_screened_are_named(store: Store, structures: StructureArrays) -> None:
    nan = structures[:]
    nan.columns["enthalpy_ev"] = nan.columns["enthalpy_ev"].copy()
    nan.columns["enthalpy_ev"][5] = np.nan
    with pytest.raises(DataError, match=str(structures.columns["id"][5])):
        run(store, nan)
    other = structures[:]
    other.columns["pressure_gpa"] = np.where(np.arange(len(other)) == 7, 150.0, 200.0)
    with pytest.raises(DataError, match=f"{structures.columns['id'][7]}.*200 GPa"):
        run(store, other)
    with pytest.raises(DataError, match="no structure to screen"):
        run(store, StructureArrays.empty())
    without = structures[np.array([s != "Y" for s in structures.chemical_systems()])]
    with pytest.raises(DataError, match="no Y for the hull of Ca-H-Y"):
        run(store, without)
