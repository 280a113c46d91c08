"""An exploration with two real models: what it says of its uncertainty, and where the trust window comes from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hydroflow.campaign import parse
from hydroflow.learning.explore import Explore
from tests.lam.labelled import frames as labelled
from tests.lam.trained import STORED, job_folder

CAMPAIGN = parse('name = "x"\n[space]\nelements = ["Mg", "Ca"]\n')


@pytest.fixture(scope="module")
def ensemble() -> tuple[bytes, bytes]:
    """A trained model, and the same with its weights shaken: checkpoints whose forces differ."""
    other = torch.load(STORED, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, values in other["model"].items():
        if name.endswith((".matrix", ".bias")) and isinstance(values, torch.Tensor) and "out_bias" not in name:
            values += 0.03 * values.abs().mean() * torch.randn(values.shape, generator=generator, dtype=values.dtype)
    sink = io.BytesIO()
    torch.save(other, sink)
    return STORED.read_bytes(), sink.getvalue()


def _explore(folder: Path, ensemble: tuple[bytes, bytes], held_out: int | None = None, **inputs: Any) -> dict[str, Any]:
    frames = labelled() if held_out is None else labelled()[:held_out]
    job_folder(folder, frames)
    for i, model in enumerate(ensemble):
        (folder / f"model_{i}.pt").write_bytes(model)
    asked = {"requests": [[{"Mg": 1, "Ca": 1, "H": 6}, 4]], "pressure_gpa": 200.0, "seed": 1,
             "space": CAMPAIGN.space.model_dump(mode="json"), "generator": CAMPAIGN.generator.model_dump(mode="json"),
             "relaxation": {"max_steps": 30}, "trust": [0.05, 3.0]}
    (folder / "asked.json").write_text(json.dumps(asked | inputs))
    return Explore().compute(asked | inputs, {}, folder)


def test_the_window_is_fixed_unless_it_is_asked_for(ensemble: tuple[bytes, bytes], tmp_path: Path) -> None:
    result = _explore(tmp_path / "fixed", ensemble)
    assert result["trust"] == [0.05, 3.0]
    assert result["calibration"]["frames"] >= 8 and result["calibration"]["scale"] > 0
    assert "trust_low_ev_a" not in result["calibration"], "a window that is not used is not shown"


def test_a_wish_for_smaller_errors_makes_the_window_narrower(ensemble: tuple[bytes, bytes], tmp_path: Path) -> None:
    fine, coarse = (_explore(tmp_path / str(wish), ensemble, trust_error_ev_a=wish) for wish in (0.05, 50.0))
    assert fine["trust"][0] < coarse["trust"][0] and fine["trust"] != [0.05, 3.0]
    assert fine["classes"]["accurate"] < coarse["classes"]["accurate"]
    assert np.isfinite(fine["trust"]).all() and fine["trust"][0] < fine["trust"][1]


def test_too_few_held_out_frames_leave_the_fixed_window(ensemble: tuple[bytes, bytes], tmp_path: Path) -> None:
    result = _explore(tmp_path / "few", ensemble, held_out=10, trust_error_ev_a=0.3)
    assert result["calibration"] is None and result["trust"] == [0.05, 3.0]


def test_an_exploration_goes_on_after_its_last_whole_block(ensemble: tuple[bytes, bytes], tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _explore(tmp_path / "whole", ensemble)
    monkeypatch.setattr("hydroflow.learning.explore.BLOCK_STRUCTURES", 2)
    blocked = _explore(tmp_path / "blocked", ensemble)
    told = ("structures", "frames", "classes", "relaxed")
    assert {k: blocked[k] for k in told} == {k: whole[k] for k in told} and whole["structures"] == 4

    frames, relaxed = ((tmp_path / "blocked" / f"{name}.parquet").read_bytes() for name in ("frames", "relaxed"))
    first, second = (tmp_path / "blocked" / f"block-0000{i}" / "deviation.npz" for i in (0, 1))
    second.unlink()
    written = first.stat().st_mtime_ns
    again = Explore().compute(json.loads((tmp_path / "blocked" / "asked.json").read_text()), {}, tmp_path / "blocked")
    assert first.stat().st_mtime_ns == written and second.exists(), "the whole block was computed again"
    assert {k: again[k] for k in told} == {k: blocked[k] for k in told}
    assert (tmp_path / "blocked" / "frames.parquet").read_bytes() == frames
    assert (tmp_path / "blocked" / "relaxed.parquet").read_bytes() == relaxed
