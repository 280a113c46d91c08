"""The Tc model trained by real deepmd-kit from a real checkpoint, as its job runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Model, Space, Tc
from hydroflow.errors import EngineFailure
from hydroflow.lam.formats import write_training_systems
from hydroflow.lam.inputs import training_input
from hydroflow.store.objects import DirectoryObjects
from hydroflow.tc.data import predict
from hydroflow.tc.model import TrainTc, tc_spec

pytestmark = pytest.mark.engine
MODEL = Model(size="tiny", cutoff_a=4.5, batch_size="auto:64")


def hydrides(n: int, seed: int) -> StructureArrays:
    rng = np.random.default_rng(seed)
    numbers = [np.array([20, 4] + [1] * int(rng.integers(3, 9))) for _ in range(n)]
    edges = [(11 + 4 + 2.2 * len(z)) ** (1 / 3) for z in numbers]
    out = StructureArrays.from_lists(
        numbers, [rng.random((len(z), 3)) for z in numbers],
        [np.eye(3) @ (a * (np.eye(3) + 0.05 * rng.normal(size=(3, 3)))) for a in edges])
    out.columns["id"] = np.array([f"s{seed}-{i}" for i in range(n)], dtype=object)
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[DirectoryObjects, str, str]:
    """An object store with a Large Atomic Model of a few steps and its dataset."""
    folder = tmp_path_factory.mktemp("lam")
    objects = DirectoryObjects(folder / "objects")
    rng = np.random.default_rng(0)
    frames = hydrides(16, 1)
    n = len(frames)
    frames.columns = {
        "energy_ev": -10.0 * frames.counts + rng.normal(size=n), "pressure_gpa": np.full(n, 200.0),
        "virial_ev": frames.volumes[:, None, None] * 1.25 * np.eye(3), "label_settings": np.array(["x"] * n),
        "source": np.array(["bootstrap"] * n)}
    frames.atom_columns["forces_ev_a"] = rng.normal(size=(len(frames.numbers), 3))
    systems = write_training_systems(frames, folder / "data", MODEL.type_map, 8)
    (folder / "input.json").write_text(json.dumps(training_input(MODEL, systems, [], 10, 1)))
    subprocess.run([sys.executable, "-m", "hydroflow.lam.backend", "--pt", "train", "input.json", "--skip-neighbor-stat"],
                   cwd=folder, check=True, capture_output=True)
    lam = objects.put_file(next(iter(folder.glob("model.ckpt-*.pt"))))
    manifest = {"format": "hydroflow dataset/1", "parent": None, "label_settings": "x",
                "parts": [objects.put(frames.to_parquet())], "splits": dict.fromkeys(frames.formulas(), "train"), "frames": n}
    return objects, lam, objects.put(json.dumps(manifest).encode())


@pytest.fixture
def job(trained, tmp_path):
    objects, lam, dataset = trained
    campaign = Campaign(name="t", space=Space(elements=["Ca", "Be"]), tc=Tc(folds=3, steps=30), model=MODEL)
    known, rest = hydrides(9, 5), hydrides(4, 6)
    known.columns["tc_k"] = 20.0 * known.count_of(1)  # something a model can learn from the composition
    spec = tc_spec(campaign, objects, lam, dataset, known, rest, "deepmd-kit 3.2.0", "plumbing")
    for name, digest in spec.files.items():
        objects.fetch(digest, tmp_path / name)
    TrainTc().prepare(spec, {}, tmp_path)
    return spec, tmp_path, known, rest


def start(folder: Path) -> subprocess.Popen:
    command = TrainTc().command(None, {}, {"python": sys.executable})  # type: ignore[arg-type]
    return subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, stdout=open(folder / "stdout.txt", "w"),
                            stderr=open(folder / "stderr.txt", "w"))


def test_train_kill_and_go_on(job):
    """Killed after the first fold, the job goes on with the second; the result has everything a reader needs."""
    spec, folder, known, rest = job
    process = start(folder)
    while not (folder / "fold0.npz").exists():
        assert process.poll() is None, (folder / "stderr.txt").read_text()[-2000:]
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()
    (folder / "exit_code").write_text("137")
    with pytest.raises(EngineFailure) as raised:
        TrainTc().collect(spec, folder)
    assert raised.value.code.value == "killed" and TrainTc().recover(spec, raised.value, 1).keep_folder
    first = (folder / "fold0.npz").stat().st_mtime_ns

    assert start(folder).wait(300) == 0
    (folder / "exit_code").write_text("0")
    found = TrainTc().collect(spec, folder)
    assert (folder / "fold0.npz").stat().st_mtime_ns == first, "a finished fold was trained again"

    result = found.result
    assert result["scope"] == "plumbing" and result["values"] == 9 and result["folds"] == 3
    truth, held_out = np.array(result["cv"]["parity"]).T
    assert truth.tolist() == known.columns["tc_k"].tolist()
    assert result["cv"]["mae_k"] == pytest.approx(np.abs(truth - held_out).mean())
    assert result["cv"]["mae_k"] < result["baseline"]["mae_k"], "worse than predicting the mean"
    assert [p["id"] for p in result["predictions"]] == list(rest.columns["id"])
    assert all(p["error_k"] >= result["cv"]["mae_k"] - 1e-3 for p in result["predictions"])

    table = StructureArrays.from_parquet(found.keep["predictions.parquet"].read_bytes())
    again = predict(found.keep["model.pt"], rest)
    assert again == pytest.approx(table.columns["tc_predicted_k"], rel=1e-4)
    # one structure at a time, without padding
    alone = [predict(found.keep["model.pt"], rest[i])[0] for i in range(len(rest))]
    assert alone == pytest.approx(again, rel=1e-3)
