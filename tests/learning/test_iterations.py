"""When the stages end, on what, and what their records say."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Learning, parse
from hydroflow.cli.learning import learning
from hydroflow.errors import CampaignError
from hydroflow.lam.datasets import build_dataset, read_manifest
from hydroflow.learning import loop, steps
from hydroflow.learning.loop import Learned, stage1_iteration
from hydroflow.learning.steps import Labelled, record
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store
from hydroflow.store.documents import Iteration
from hydroflow.store.runs import open_run
from hydroflow.units import GPA_A3_EV
from tests.lam.labelled import frames as labelled

pytestmark = pytest.mark.service
CAMPAIGN = parse('name = "mgca"\n[space]\nelements = ["Mg", "Ca"]\n[learning.stage1]\nstructures = 30\ngoal_accurate = 0.9\n')
CALIBRATION = {"frames": 20, "scale": 1.7, "rank_correlation": 0.6, "bins": []}


class _Labelling(Exception):
    """The loop went on to ask for labels."""


def _context(store: Store, accurate: int, failed: int | None = None, unphysical: int = 7, deviation: float = 0.2,
             ) -> SimpleNamespace:
    """A context whose explorations find `accurate` of 100 physical frames accurate, a third at each pressure; the one numbered
    `failed` fails."""
    context = SimpleNamespace(campaign=CAMPAIGN, store=store, asked=[])
    candidates = labelled()[:20]
    candidates.columns["id"] = np.array([f"t{i}" for i in range(20)], object)
    candidates.columns["max_deviation_ev_a"] = np.linspace(deviation, deviation + 0.6, 20)
    digest = store.objects.put(candidates.to_parquet())

    def run(specs: list[Any], what: str) -> list[SimpleNamespace]:
        if specs[0].kind != "learning.explore":
            raise _Labelling(len(specs))
        context.asked.append(specs)
        shares = [accurate // 3, accurate // 3, accurate - 2 * (accurate // 3)]
        outputs = {"frames.parquet": digest}
        jobs = [SimpleNamespace(key=s.key, inputs=s.inputs, state="done", failure=None, outputs=outputs, result={
            "structures": 10, "frames": 40, "trust": [0.15, 0.9], "calibration": CALIBRATION,
            "classes": {"accurate": a, "candidate": n - a, "unreliable": 0, "unphysical": unphysical},
        }) for s, a, n in zip(specs, shares, (33, 33, 34), strict=True)]
        if failed is not None:
            jobs[failed].state, jobs[failed].failure, jobs[failed].result = "quarantined", {"message": "no disk"}, None
        return jobs

    context.run = run
    return context


@pytest.fixture
def learned(store: Store) -> Learned:
    return Learned(build_dataset(store, "mgca", labelled()), tuple(store.objects.put(f"model {i}".encode()) for i in range(2)))


def test_it_ends_when_a_fresh_exploration_is_accurate_and_says_so(store: Store, learned: Learned) -> None:
    context = _context(store, 93)
    after = stage1_iteration(context, learned, 2)
    assert after.reached and after.models == learned.models and len(context.asked) == 1, "nothing is labelled or trained"
    found = Iteration.objects.get(campaign="mgca", stage="stage1", index=2)
    assert found.reached and found.labelled == 0
    assert found.goal == {"name": "share of accurate frames", "value": 0.93, "target": 0.9}
    assert found.explored["unphysical"] == 21 and found.explored["trust"] == [0.15, 0.9]
    assert found.explored["calibration"]["scale"] == 1.7


def test_every_exploration_is_a_fresh_one(store: Store, learned: Learned) -> None:
    context = _context(store, 100)
    for index in (0, 1, 0):
        stage1_iteration(context, learned, index)
    first, second, again = ([s.key for s in specs] for specs in context.asked)
    assert first == again and not set(first) & set(second)
    seeds = [{s.inputs["seed"] for s in specs} for specs in context.asked]
    assert len(seeds[0] | seeds[1]) == 6, "no pressure and no iteration sees the structures of another"


def test_below_the_goal_it_labels(store: Store, learned: Learned) -> None:
    context = _context(store, 89)
    with pytest.raises(_Labelling):
        stage1_iteration(context, learned, 0)


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[StructureArrays]:
    """Training that takes no time, and every structure given to it to be labelled."""
    asked: list[StructureArrays] = []

    def label(ctx: Any, structures: StructureArrays, source: str, dataset: str | None = None) -> Labelled:
        asked.append(structures)
        none = np.zeros(len(structures), bool)
        return Labelled(structures[none], {"scf_not_converged": len(structures)}, {}, none, none)

    monkeypatch.setattr(loop, "label", label)
    monkeypatch.setattr(loop, "train", lambda *_: (("new",), {"energy_mev_atom": 1.0}))
    return asked


def test_a_pressure_without_an_answer_is_no_success(store: Store, learned: Learned, taught: list[StructureArrays]) -> None:
    after = stage1_iteration(_context(store, 100, failed=1), learned, 0)
    found = Iteration.objects.get(campaign="mgca", stage="stage1", index=0)
    assert not after.reached and not found.reached and found.goal["value"] == 1.0
    assert found.goal["doubts"] == ["no answer at 200 GPa: no disk"]


def test_mostly_broken_frames_are_no_success(store: Store, learned: Learned, taught: list[StructureArrays]) -> None:
    after = stage1_iteration(_context(store, 100, unphysical=34), learned, 0)
    found = Iteration.objects.get(campaign="mgca", stage="stage1", index=0)
    assert not after.reached and found.goal["doubts"] == ["50% of the frames are unphysical"]
    assert stage1_iteration(_context(store, 100, unphysical=33), learned, 1).reached


def test_a_model_unreliable_everywhere_still_gets_labels(store: Store, learned: Learned, taught: list[StructureArrays]) -> None:
    stage1_iteration(_context(store, 0, deviation=2.0), learned, 0)
    found = Iteration.objects.get(campaign="mgca", stage="stage1", index=0)
    assert len(taught[0]) == found.selected == found.explored["labelled_beyond_trust"] == 20
    assert found.labelled == 0 and found.quarantined == {"scf_not_converged": 20}


class TestStage2:
    """Relaxed structures whose enthalpy the model gets wrong by 20 meV/atom; the goal is 40."""

    N = 30

    @pytest.fixture
    def learned(self, store: Store) -> Learned:
        return Learned(build_dataset(store, "mgca", labelled()[:90]), ("a", "b"), reached=True)  # stage 1 met its goal

    @pytest.fixture
    def iterate(self, store: Store, learned: Learned, monkeypatch: pytest.MonkeyPatch) -> Any:
        truth = labelled()[90:90 + self.N]
        relaxed = labelled()[90:90 + self.N]
        relaxed.atom_columns, n = {}, relaxed.counts
        relaxed.columns = {
            "enthalpy_ev": truth.columns["energy_ev"] + 200 * GPA_A3_EV * truth.volumes + 0.02 * n,
            "converged": np.ones(self.N, bool), "pressure_gpa": np.full(self.N, 200.0),
            "enthalpy_deviation_ev": np.linspace(0.1, 0.2, self.N), "row": np.arange(self.N)}
        digest = store.objects.put(relaxed.to_parquet())
        monkeypatch.setattr(loop, "train", lambda *_: (("new",), {"energy_mev_atom": 1.0}))

        def run(bad: float, held: int = 0) -> tuple[Learned, Iteration]:
            """An iteration in which the first share of the labels asked for fails, and the next few are held."""
            def label(ctx: Any, structures: StructureArrays, source: str, dataset: str | None = None) -> Labelled:
                k = round(bad * len(structures))
                ok, on_hold = np.ones(len(structures), bool), np.zeros(len(structures), bool)
                on_hold[k:k + held] = True
                ok[:k + held] = False
                return Labelled(truth[structures.columns["row"][ok]] if ok.any() else StructureArrays.empty(), {},
                                {f"job{i}": "pressure 900 GPa" for i in range(held)}, ok, on_hold)

            monkeypatch.setattr(loop, "label", label)
            job = SimpleNamespace(key="k", state="done", failure=None, outputs={"relaxed.parquet": digest},
                                  result={"structures": self.N})
            context = SimpleNamespace(campaign=CAMPAIGN, store=store, run=lambda specs, what: [job])
            return loop.stage2_iteration(context, learned, 0), Iteration.objects.get(campaign="mgca", stage="stage2", index=0)

        return run

    def test_the_enthalpy_error_against_dft_decides(self, iterate: Any, learned: Learned) -> None:
        after, found = iterate(bad=0.0, held=2)
        assert after.reached and found.reached and after.models == ("new",) and after.dataset != learned.dataset
        assert found.goal["value"] == pytest.approx(20.0) and found.errors["enthalpy_mev_atom"] == pytest.approx(20.0)
        assert found.goal["assessed"] == found.goal["of"] - 2 and found.goal["held"] == 2

    def test_an_error_above_the_goal_is_not_reached(self, iterate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        stage2 = CAMPAIGN.learning.stage2.model_copy(update={"goal_enthalpy_mev": 15.0})
        campaign = CAMPAIGN.model_copy(update={"learning": CAMPAIGN.learning.model_copy(update={"stage2": stage2})})
        monkeypatch.setitem(globals(), "CAMPAIGN", campaign)
        after, found = iterate(bad=0.0)
        assert not after.reached and "doubts" not in found.goal

    def test_few_labels_are_no_success(self, iterate: Any) -> None:
        after, found = iterate(bad=0.6)
        assert found.goal["value"] == pytest.approx(20.0) and not after.reached and not found.reached
        assert "have a label" in found.goal["doubts"][0] and after.models == ("new",), "what was paid for is learnt"

    def test_no_label_at_all_is_recorded(self, iterate: Any, learned: Learned) -> None:
        after, found = iterate(bad=1.0)
        assert after == replace(learned, reached=False) and not found.reached and found.labelled == 0
        assert found.goal["value"] is None and found.goal["assessed"] == 0


class TestDataset:
    """A campaign that starts from labelled frames."""

    @pytest.fixture
    def start(self, store: Store, taught: list[StructureArrays], monkeypatch: pytest.MonkeyPatch) -> Any:
        settings = str(labelled().columns["label_settings"][0])
        monkeypatch.setattr(loop, "campaign_settings", lambda campaign: SimpleNamespace(text=settings))

        def run(**keys: Any) -> Learned:
            campaign = CAMPAIGN.model_copy(update={"learning": Learning(**keys)})
            return loop.bootstrap(SimpleNamespace(campaign=campaign, store=store))

        return run

    def test_without_labels_the_first_ensemble_is_trained_on_it(self, store: Store, start: Any,
                                                                taught: list[StructureArrays]) -> None:
        dataset = build_dataset(store, "mine", labelled())
        assert start(dataset=dataset[7:19], bootstrap_labels=0) == Learned(dataset, ("new",))
        assert len(taught[0]) == 0 and Iteration.objects.get(campaign="mgca", stage="bootstrap").dataset == dataset

    def test_labels_of_the_campaign_join_it(self, store: Store, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        more, yes = labelled()[100:106], np.ones(6, bool)
        monkeypatch.setattr(loop, "label", lambda *_: Labelled(more, {}, {}, yes, ~yes))
        dataset = build_dataset(store, "mine", labelled()[:100])
        manifest = read_manifest(store.objects, start(dataset=dataset, bootstrap_labels=6).dataset)
        assert manifest["parent"] == dataset and manifest["frames"] == 106

    def test_another_level_of_theory_is_refused_before_anything_is_computed(self, store: Store, start: Any,
                                                                            taught: list[StructureArrays]) -> None:
        frames = labelled()
        frames.columns["label_settings"] = np.array(["VASP PBE 850 eV"] * len(frames))
        with pytest.raises(CampaignError, match=r"VASP PBE 850 eV.*never mixed"):
            start(dataset=build_dataset(store, "mine", frames))
        with pytest.raises(CampaignError, match="no datasets begin with it"):
            start(dataset="0123456789")
        assert not taught

    def test_elements_that_nothing_would_be_trained_on_are_named(self, store: Store, start: Any) -> None:
        frames = labelled()
        dataset = build_dataset(store, "mine", frames[np.flatnonzero(frames.count_of(20) == 0)])
        with pytest.raises(CampaignError, match="no frame with Ca"):
            start(dataset=dataset, bootstrap_labels=0)

    def test_nothing_to_train_on_is_refused(self) -> None:
        with pytest.raises(CampaignError, match="bootstrap_labels = 0 leaves nothing"):
            parse('name = "x"\n[space]\nelements = ["Mg", "Ca"]\n[learning]\nbootstrap_labels = 0\n')


def test_errors_before_and_after_are_recorded_and_shown(store: Store, learned: Learned, settings: ServiceSettings,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOME", settings.home), ("MONGODB_URI", settings.mongodb_uri), ("DATABASE", settings.database)):
        monkeypatch.setenv(f"HYDROFLOW_{name}", str(value))
    results = [{"before": {"energy_mev_atom": 80.0 + i, "force_mev_a": 500.0, "frames": 9}} for i in (0, 2)]
    jobs = [SimpleNamespace(state="done", result=r) for r in results]
    models = [SimpleNamespace(digest=d, metrics={"energy_mev_atom": 40.0, "force_mev_a": 300.0}) for d in learned.models]
    monkeypatch.setattr(steps, "register_models", lambda *_: models)
    context = SimpleNamespace(campaign=CAMPAIGN, store=store, run=lambda specs, what: jobs)
    _, errors = steps.train(context, learned.dataset, learned.models, "stage1", 0)
    assert errors == {"energy_mev_atom": 40.0, "force_mev_a": 300.0, "before": {"energy_mev_atom": 81.0, "force_mev_a": 500.0}}

    open_run(CAMPAIGN)
    explored = {"structures": 30, "accurate": 50, "candidate": 50, "trust": [0.15, 0.9], "calibration": CALIBRATION}
    record(context, "stage1", 0, explored=explored, selected=5, labelled=5, errors=errors, goal={}, reached=False)
    shown = CliRunner().invoke(learning, ["show", "mgca"], catch_exceptions=False).output
    assert "81 → 40" in shown and "500 → 300" in shown
    assert "stage1/0: trust window 0.15–0.9 eV/Å; true force errors are 1.7 times the deviation" in shown
    stage2 = {"name": "H", "value": 12.0, "target": 40.0, "assessed": 5, "of": 12, "held": 3, "doubts": ["only 5 of 12"]}
    record(context, "stage2", 0, explored={"structures": 30, "converged": 20}, selected=12, labelled=5,
           errors={"enthalpy_mev_atom": 12.0}, goal=stage2, reached=False)
    shown = CliRunner().invoke(learning, ["show", "mgca"], catch_exceptions=False).output
    assert "12 (5/12)" in shown and "stage2/0: the goal cannot be judged reached: only 5 of 12" in shown
    assert "H leaves out 3 of 12 structures, whose labels are held for review" in shown
    listed = json.loads(CliRunner().invoke(learning, ["show", "mgca", "--json"], catch_exceptions=False).output)
    assert listed[0]["errors"]["before"]["energy_mev_atom"] == 81.0 and listed[0]["explored"]["calibration"]["frames"] == 20
