"""Training jobs and what the commands show of datasets and models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError

from hydroflow.campaign import Campaign, Model
from hydroflow.cli.lam import datasets, models
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import DataError, HydroflowError
from hydroflow.lam.datasets import build_dataset
from hydroflow.lam.formats import element_order, export_frames
from hydroflow.lam.train import read_learning_curve, register_models, train_specs
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store
from hydroflow.store.documents import Job
from tests.lam.labelled import frames as labelled
from tests.lam.trained import STORED

pytestmark = pytest.mark.service
CAMPAIGN = Campaign.model_validate({"name": "mgca", "space": {"elements": ["Mg", "Ca"]}, "model": {
    "size": "tiny", "ensemble": 3, "steps": 100, "warm_steps": 40}})


@pytest.fixture(autouse=True)
def environment(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDROFLOW_HOME", str(settings.home))
    monkeypatch.setenv("HYDROFLOW_MONGODB_URI", str(settings.mongodb_uri))
    monkeypatch.setenv("HYDROFLOW_DATABASE", settings.database)


class TestSpecs:
    def test_members_differ_by_their_seed_and_the_same_question_has_the_same_key(self, store: Store) -> None:
        dataset = build_dataset(store, "mgca", labelled())
        specs = train_specs(CAMPAIGN, dataset, None, 5)
        assert len({s.key for s in specs}) == 3
        assert [s.key for s in specs] == [s.key for s in train_specs(CAMPAIGN, dataset, None, 5)]
        assert {s.key for s in specs}.isdisjoint(s.key for s in train_specs(CAMPAIGN, dataset, None, 6))
        assert all(store.objects.exists(d) for s in specs for d in s.files.values())

    def test_a_warm_start_takes_each_member_from_its_own_parent(self, store: Store) -> None:
        dataset = build_dataset(store, "mgca", labelled())
        parents = [store.objects.put(f"model {i}".encode()) for i in range(2)]
        specs = train_specs(CAMPAIGN, dataset, parents, 5)
        assert [s.files["start.pt"] for s in specs] == [parents[0], parents[1], parents[0]]
        assert {s.inputs["steps"] for s in specs} == {40} and {s.inputs["start"] for s in specs} == {"warm"}

    def test_a_pretrained_start_goes_into_the_store_and_its_branch_into_the_question(self, store: Store, tmp_path: Path) -> None:
        params = {"model_dict": {"metals": {}, "hydrides": {}}}
        torch.save({"model": {"_extra_state": {"model_params": params}}}, tmp_path / "m.pt")

        def specs(**start: object) -> list[JobSpec]:
            model = CAMPAIGN.model.model_copy(update=start)
            return train_specs(CAMPAIGN.model_copy(update={"model": model}), dataset, None, 5, store)

        dataset = build_dataset(store, "mgca", labelled())
        found = specs(pretrained=tmp_path / "m.pt", pretrained_branch="hydrides")
        assert {s.inputs["branch"] for s in found} == {"hydrides"} and {s.inputs["start"] for s in found} == {"pretrained"}
        assert {store.objects.get(s.files["start.pt"]) for s in found} == {(tmp_path / "m.pt").read_bytes()}
        with pytest.raises(DataError, match=r"metals, hydrides; name one of them .*pretrained_branch"):
            specs(pretrained=tmp_path / "m.pt")
        assert "branch" not in specs(pretrained=STORED)[0].inputs
        with pytest.raises(ValidationError, match="set pretrained too"):
            Model(pretrained_branch="hydrides")

    def test_a_dataset_that_is_not_there_is_named(self, store: Store) -> None:
        with pytest.raises(DataError, match="hydroflow datasets list"):
            train_specs(CAMPAIGN, "sha256:" + "0" * 64, None, 5)


def _trained(store: Store, dataset: str) -> Job:
    digest = store.objects.put(b"weights")
    return Job(key="k" * 32, kind="lam.train", engine="deepmd-kit 3.2.0", state="done", files={"dataset.json": dataset}, result={
        "seed": 4, "type_map": ["H", "Ca"], "input": {"model": {"descriptor": {"type": "dpa1"}}, "training": {"numb_steps": 9}},
        "metrics": {"frames": 3, "energy_mev_atom": 37.5, "force_mev_a": 171.0, "virial_mev_atom": 45.7,
                    "per_element": {"H": 180.0},
                    "splits": {"test": {"frames": 3, "energy_mev_atom": 37.5, "force_mev_a": 171.0, "virial_mev_atom": 45.7}}},
        "learning_curve": {"step": [1, 2], "rmse_trn": [3.0, 1.0]}}, outputs={"model.pt": digest}).save()


def test_a_model_is_registered_once_and_shown(store: Store) -> None:
    dataset = build_dataset(store, "mgca", labelled())
    job = _trained(store, dataset)
    first, again = register_models(store, "mgca", [job])[0], register_models(store, "mgca", [job])[0]
    assert first.digest == again.digest and first.dataset == dataset and first.metrics["force_mev_a"] == 171.0
    listed = json.loads(CliRunner().invoke(models, ["list", "--json"], catch_exceptions=False).output)
    assert [m["digest"] for m in listed] == [first.digest] and listed[0]["energy_mev_atom"] == 37.5
    shown = CliRunner().invoke(models, ["show", first.digest[7:15]], catch_exceptions=False).output
    assert "171" in shown and dataset in shown and "dpa1" in shown


@pytest.mark.parametrize(("begun", "parents"), [("warm", 1), ("scratch (the data have elements …)", 0)])
def test_a_parent_is_what_training_started_from(store: Store, begun: str, parents: int) -> None:
    job = _trained(store, build_dataset(store, "mgca", labelled()))
    job.files["start.pt"], job.result["start"] = store.objects.put(b"parent"), begun
    assert len(register_models(store, "mgca", [job])[0].parents) == parents


def test_frames_go_in_and_out_by_command(store: Store, tmp_path: Path) -> None:
    frames = labelled()[:30]
    export_frames(frames, tmp_path / "in.xyz", "extxyz", element_order(frames))
    run = CliRunner()
    done = run.invoke(datasets, ["import", str(tmp_path / "in.xyz"), "--format", "extxyz", "--campaign", "mgca",
                                 "--pressure-gpa", "200"], catch_exceptions=False)
    assert "30 frames read, 30 of them new" in done.output and "energy (eV/atom) -" in done.output
    listed = json.loads(run.invoke(datasets, ["list", "--json", "--campaign", "mgca"], catch_exceptions=False).output)
    assert listed[0]["frames"] == 30 and sum(listed[0][s] for s in ("train", "validation", "test")) == 30
    shown = json.loads(run.invoke(datasets, ["show", listed[0]["digest"], "--json"], catch_exceptions=False).output)
    assert sum(shown["counts"]["composition"].values()) == 30
    words = run.invoke(datasets, ["show", listed[0]["digest"]], catch_exceptions=False).output
    assert "by pressure: 200-250 GPa 30" in words
    out = run.invoke(datasets, ["export", listed[0]["digest"][7:17], str(tmp_path / "out"), "--format", "deepmd/npy/mixed"],
                     catch_exceptions=False)
    assert "30 frames written" in out.output and list((tmp_path / "out").rglob("real_atom_types.npy"))
    missing = run.invoke(datasets, ["show", "ffff"])
    assert isinstance(missing.exception, HydroflowError) and "no datasets begin with ffff" in str(missing.exception)


def test_a_curve_with_a_cut_off_row_is_read(tmp_path: Path) -> None:
    header = "# step  rmse_val  rmse_trn  lr\n"
    rows = "".join(f"{i} {1 / (i + 1):.3e} {2 / (i + 1):.3e} 1e-3\n" for i in range(200))
    (tmp_path / "lcurve.out").write_text(header + rows + "200 1.0e")
    curve = read_learning_curve(tmp_path / "lcurve.out")
    assert len(curve["step"]) == 60 and curve["step"][-1] == 199 and np.isfinite(curve["rmse_trn"]).all()
