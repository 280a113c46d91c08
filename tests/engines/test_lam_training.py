"""Training as a job: killed and resumed, diverged, started from another model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Relaxation
from hydroflow.dispatch.engine import engine_for
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.lam import LamModel, relax
from hydroflow.lam.backend import import_deepmd
from hydroflow.lam.formats import write_training_systems
from hydroflow.lam.inputs import descriptor_config, energy_fitting_config, energy_loss_config, learning_rate_config
from hydroflow.lam.train import Train, checkpoints, read_learning_curve
from tests.lam.labelled import frames as labelled
from tests.lam.trained import MODEL, STORED, inputs, job_folder, trained

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]

HEADS = ("metals", "hydrides")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a network this small only loses by threads


def _wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.2)


def test_killed_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "job", labelled())
    engine = engine_for("lam.train")
    spec = JobSpec("lam.train", inputs(200), "deepmd-kit")
    engine.prepare(spec, {}, folder)
    command = engine.command(spec, {}, {"python": sys.executable})
    first = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, start_new_session=True)
    _wait_for(lambda: len(checkpoints(folder)) >= 1, 240)
    os.kill(first.pid, signal.SIGKILL)  # the worker alone: its trainer must not live on
    first.wait()
    _wait_for(lambda: not [p for p in Path("/proc").glob("[0-9]*/cwd") if _links_to(p, folder)], 30)
    reached = int(checkpoints(folder)[-1].stem.rsplit("-", 1)[1])
    (folder / "model.ckpt-199.pt").write_bytes(b"cut off while it was written")

    subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    (folder / "exit_code").write_text("0")
    collected = engine.collect(spec, folder)
    assert collected.result["resumed"] == 1
    assert set(collected.keep) == {"model.pt", "lcurve.out", "input.json"}
    steps = read_learning_curve(folder / "lcurve.out")["step"]
    assert steps[0] <= 1 and steps[-1] > reached, "the curve covers both parts"
    assert np.isfinite(collected.result["metrics"]["energy_mev_atom"])


def _links_to(link: Path, folder: Path) -> bool:
    try:
        return link.resolve(strict=True) == folder.resolve()
    except OSError:
        return False


def test_a_checkpoint_is_removed_when_it_is_damaged_not_when_it_cannot_be_read(tmp_path: Path,
                                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "model.ckpt-10.pt", tmp_path / "model.ckpt-20.pt"
    whole.write_bytes(STORED.read_bytes())
    for size in (0, 10, 5000, 100_000):
        cut.write_bytes(STORED.read_bytes()[:size])
        assert checkpoints(tmp_path) == [whole] and not cut.exists()

    def stale(*given, **named):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        checkpoints(tmp_path)
    assert whole.exists(), "a passing fault of the disk cost a checkpoint"


def test_a_diverging_training_is_restarted_once_and_then_fails_with_the_reason(tmp_path: Path) -> None:
    frames = labelled()[:40]
    frames.atom_columns["forces_ev_a"] = frames.atom_columns["forces_ev_a"].copy()
    frames.atom_columns["forces_ev_a"][:] = 1e200  # what no check of a dataset lets through
    folder = job_folder(tmp_path / "job", frames)
    with pytest.raises(EngineFailure, match="not finite") as failure:
        Train().compute(inputs(60), {}, folder)
    assert failure.value.code is FailureCode.training_diverged
    assert '"rate_scale": 0.33' in (folder / "state.json").read_text()


class TestStart:
    def test_a_warm_start_begins_where_the_parent_ended(self, tmp_path: Path) -> None:
        folder = job_folder(tmp_path / "job", labelled())
        (folder / "start.pt").write_bytes((trained()[0] / "model.pt").read_bytes())
        result = Train().compute(inputs(50, start="warm"), {}, folder)
        assert result["start"] == "warm"
        cold = trained()[1]["learning_curve"]["rmse_trn"][0]
        assert np.median(result["learning_curve"]["rmse_trn"]) < 0.6 * cold

    def test_another_type_map_is_refused(self, tmp_path: Path) -> None:
        folder = job_folder(tmp_path / "job", labelled())
        (folder / "start.pt").write_bytes((trained()[0] / "model.pt").read_bytes())
        wanted = inputs(50, start="warm")
        wanted["model"]["type_map"] = ["H", "Ca", "Mg", "Y"]
        with pytest.raises(EngineFailure, match="type map") as failure:
            Train().compute(wanted, {}, folder)
        assert failure.value.code is FailureCode.bad_input


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two energy models on one descriptor, a few real steps each."""
    folder = tmp_path_factory.mktemp("multitask")
    frames = labelled()
    systems = [write_training_systems(frames[part], folder / name, MODEL.type_map, 8)
               for name, part in (("metals", frames.counts < 9), ("hydrides", frames.counts >= 9))]
    shared = {"type_map": "type_map", "descriptor": "descriptor"}
    heads = {name: {**shared, "fitting_net": energy_fitting_config(MODEL, seed)} for seed, name in enumerate(HEADS)}
    config = {
        "model": {"shared_dict": {"type_map": MODEL.type_map, "descriptor": descriptor_config(MODEL, 1)},
                  "model_dict": heads},
        "learning_rate": learning_rate_config(MODEL, 20), "loss_dict": {name: energy_loss_config() for name in HEADS},
        "training": {"model_prob": dict.fromkeys(HEADS, 0.5), "numb_steps": 20, "seed": 1, "save_ckpt": "model.ckpt",
                     "data_dict": {name: {"training_data": {"systems": some, "batch_size": "auto:32"}}
                                   for name, some in zip(HEADS, systems, strict=True)}},
    }
    (folder / "input.json").write_text(json.dumps(config))
    subprocess.run([sys.executable, "-m", "hydroflow.lam.backend", "--pt", "train", "input.json", "--skip-neighbor-stat"],
                   cwd=folder, check=True, capture_output=True)
    return folder / "model.ckpt-20.pt"


class TestBranch:
    """A start from one model of a multi-task checkpoint, as the published pretrained models are."""

    def test_training_goes_on_from_the_branch(self, pretrained: Path, tmp_path: Path) -> None:
        folder = job_folder(tmp_path / "job", labelled())
        (folder / "start.pt").write_bytes(pretrained.read_bytes())
        frozen = MODEL.model_copy(update={"start_lr": 1e-9, "stop_lr": 1e-10})
        result = Train().compute(inputs(2, start="pretrained", model=frozen) | {"branch": "hydrides"}, {}, folder)
        assert result["start"] == "pretrained"
        one = labelled()[:5]
        forces = LamModel.load(folder / "model.pt", device="cpu").evaluate(one).forces_ev_a
        off = {name: np.abs(LamModel.load(pretrained, head=name, device="cpu").evaluate(one).forces_ev_a - forces).max()
               for name in HEADS}
        assert off["hydrides"] < 1e-3 < 0.05 < off["metals"]
        # nothing was learnt at this rate: the errors before are those after, but for the atomic energies that are set anew
        assert result["before"]["force_mev_a"] == pytest.approx(result["metrics"]["force_mev_a"], rel=1e-3)
        assert result["before"]["frames"] == result["metrics"]["frames"] > 0

    @pytest.mark.parametrize("branch", [None, "oxides"])
    def test_a_branch_that_is_not_there_is_named_with_those_that_are(self, pretrained: Path, branch: str | None,
                                                                    tmp_path: Path) -> None:
        folder = job_folder(tmp_path / "job", labelled())
        (folder / "start.pt").write_bytes(pretrained.read_bytes())
        with pytest.raises(EngineFailure, match="metals, hydrides") as failure:
            Train().compute(inputs(2, start="pretrained") | {"branch": branch}, {}, folder)
        assert failure.value.code is FailureCode.bad_input


@pytest.mark.parametrize("descriptor", ["dpa2", "dpa3"])
def test_the_larger_descriptors_train_evaluate_and_relax(descriptor: str, tmp_path: Path) -> None:
    import_deepmd()
    from deepmd.infer import DeepPot

    model = MODEL.model_copy(update={"descriptor": descriptor, "start_lr": 1e-3, "batch_size": "auto:16"})
    folder = job_folder(tmp_path / "job", labelled()[:60])
    result = Train().compute(inputs(60, model=model), {}, folder)
    loss = result["learning_curve"]["rmse_trn"]
    assert np.mean(loss[-10:]) < 0.8 * np.mean(loss[:3])
    lam = LamModel.load(folder / "model.pt", device="cpu")
    frames = labelled()[:40:9]
    mine, reference = lam.evaluate(frames), DeepPot(str(folder / "model.pt"))
    for i, one in enumerate(frames):
        e, f, v = reference.eval(one.positions.reshape(1, -1), one.cells.reshape(1, 9), lam.types(one.numbers))
        assert mine.energy_ev[i] == pytest.approx(float(e[0, 0]), abs=5e-4)
        np.testing.assert_allclose(mine.forces_ev_a[frames.offsets[i]:frames.offsets[i + 1]], f[0], atol=5e-3)
        np.testing.assert_allclose(mine.virial_ev[i], v[0].reshape(3, 3), atol=1e-2)
    one = labelled()[3]
    step = np.zeros_like(one.fractional)
    step[1, 0] = 1e-3
    up, down = (lam.evaluate(StructureArrays(one.offsets, one.numbers, one.fractional + s * step, one.cells)).energy_ev[0]
                for s in (1, -1))
    along = lam.evaluate(one).forces_ev_a[1] @ one.cells[0][0]
    assert (down - up) / 2e-3 == pytest.approx(along, abs=0.05 * max(1.0, abs(along)))
    relaxed = relax(lam, labelled()[:4], 200.0, Relaxation(max_steps=3)).relaxed
    assert np.isfinite(relaxed.columns["enthalpy_ev"]).all()
