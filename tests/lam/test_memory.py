"""A training that runs out of memory goes on with half the batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.lam import train
from hydroflow.lam.train import Train, halved
from tests.lam.labelled import frames as labelled
from tests.lam.trained import inputs, job_folder


def test_half_the_batch_each_time_until_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(command: list[str], folder: Path) -> None:
        raise EngineFailure(FailureCode.out_of_memory, "dp train ended with code 1: CUDA out of memory")

    monkeypatch.setattr(train, "_deepmd", full)
    folder = job_folder(tmp_path / "job", labelled()[:20])
    spec, adjustments, used = JobSpec("lam.train", inputs(10), "deepmd-kit"), {}, []
    for attempt in range(1, 10):
        with pytest.raises(EngineFailure) as failure:
            Train().compute(spec.inputs, adjustments, folder)
        used.append(json.loads((folder / "input.json").read_text())["training"]["training_data"]["batch_size"])
        recovery = Train().recover(spec, failure.value, attempt)
        if recovery is None:
            break
        assert recovery.keep_folder, "the checkpoints are gone on from"
        adjustments = adjustments | recovery.adjustments
    assert used == ["auto:32", "auto:16", "auto:8", "auto:4", "auto:2", "auto:1"]


@pytest.mark.parametrize(("size", "half"), [
    ("auto:128", "auto:64"), ("auto", "auto:16"), ("max:40", "max:20"), ("auto:1", None), ("filter:64", None)])
def test_half_of_a_batch_size(size: str, half: str | None) -> None:
    """`filter` leaves out structures that do not fit: half of it would train on other data."""
    assert halved(size) == half
