"""When stage 1 ends, on what, and what its record says."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hydroflow.campaign import parse
from hydroflow.cli.learning import learning
from hydroflow.lam.datasets import build_dataset
from hydroflow.learning import loop
from hydroflow.learning.loop import Learned, record, stage1_iteration
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store
from hydroflow.store.documents import Iteration
from hydroflow.store.runs import open_run
from tests.lam.labelled import frames as labelled

pytestmark = pytest.mark.service
CAMPAIGN = parse('name = "mgca"\n[space]\nelements = ["Mg", "Ca"]\n[learning.stage1]\nstructures = 30\ngoal_accurate = 0.9\n')
CALIBRATION = {"frames": 20, "scale": 1.7, "rank_correlation": 0.6, "bins": []}


class _Labelling(Exception):
    """The loop went on to ask for labels."""


def _context(store: Store, accurate: int) -> SimpleNamespace:
    """A context whose explorations find `accurate` of 100 physical frames accurate, a third at each pressure."""
    context = SimpleNamespace(campaign=CAMPAIGN, store=store, asked=[])
    candidates = labelled()[:20]
    candidates.columns["id"] = np.array([f"t{i}" for i in range(20)], object)
    candidates.columns["max_deviation_ev_a"] = np.linspace(0.2, 0.8, 20)
    digest = store.objects.put(candidates.to_parquet())

    def run(specs: list[Any], what: str) -> list[SimpleNamespace]:
        if specs[0].kind != "learning.explore":
            raise _Labelling(len(specs))
        context.asked.append(specs)
        shares = [accurate // 3, accurate // 3, accurate - 2 * (accurate // 3)]
        return [SimpleNamespace(key=s.key, state="done", failure=None, outputs={"frames.parquet": digest}, result={
            "structures": 10, "frames": 40, "trust": [0.15, 0.9], "calibration": CALIBRATION,
            "classes": {"accurate": a, "candidate": n - a, "unreliable": 0, "unphysical": 7},
        }) for s, a, n in zip(specs, shares, (33, 33, 34), strict=True)]

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


def test_errors_before_and_after_are_recorded_and_shown(store: Store, learned: Learned, settings: ServiceSettings,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOME", settings.home), ("MONGODB_URI", settings.mongodb_uri), ("DATABASE", settings.database)):
        monkeypatch.setenv(f"HYDROFLOW_{name}", str(value))
    results = [{"before": {"energy_mev_atom": 80.0 + i, "force_mev_a": 500.0, "frames": 9}} for i in (0, 2)]
    jobs = [SimpleNamespace(state="done", result=r) for r in results]
    models = [SimpleNamespace(digest=d, metrics={"energy_mev_atom": 40.0, "force_mev_a": 300.0}) for d in learned.models]
    monkeypatch.setattr(loop, "register_models", lambda *_: models)
    context = SimpleNamespace(campaign=CAMPAIGN, store=store, run=lambda specs, what: jobs)
    _, errors = loop.train(context, learned.dataset, learned.models, "stage1", 0)
    assert errors == {"energy_mev_atom": 40.0, "force_mev_a": 300.0, "before": {"energy_mev_atom": 81.0, "force_mev_a": 500.0}}

    open_run(CAMPAIGN)
    explored = {"structures": 30, "accurate": 50, "candidate": 50, "trust": [0.15, 0.9], "calibration": CALIBRATION}
    record(context, "stage1", 0, explored=explored, selected=5, labelled=5, errors=errors, goal={}, reached=False)
    shown = CliRunner().invoke(learning, ["show", "mgca"], catch_exceptions=False).output
    assert "81 → 40" in shown and "500 → 300" in shown
    assert "stage1/0: trust window 0.15–0.9 eV/Å; true force errors are 1.7 times the deviation" in shown
    listed = json.loads(CliRunner().invoke(learning, ["show", "mgca", "--json"], catch_exceptions=False).output)
    assert listed[0]["errors"]["before"]["energy_mev_atom"] == 81.0 and listed[0]["explored"]["calibration"]["frames"] == 20
