"""A tiny real model, trained once per test session by deepmd-kit on real labels."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Model
from hydroflow.lam.datasets import assign_splits
from hydroflow.lam.train import Train
from tests.lam.labelled import frames as labelled

STORED = Path(__file__).parents[2] / "benchmarks" / "data" / "mg_ca_h.pt"
"""A tiny DPA-1 of the same kind, trained before: for tests that need a real model but not its training."""
MODEL = Model(size="tiny", cutoff_a=4.0, batch_size="auto:32", start_lr=2e-2, stop_lr=1e-4, type_map=["H", "Mg", "Ca", "Y"])


def inputs(steps: int, seed: int = 1, start: str = "scratch", model: Model = MODEL) -> dict[str, Any]:
    """Inputs of a training job."""
    settings = model.model_dump(mode="json", include={
        "descriptor", "size", "cutoff_a", "type_map", "batch_size", "start_lr", "stop_lr"})
    return {"model": settings, "seed": seed, "steps": steps, "scratch_steps": steps, "start": start}


def job_folder(folder: Path, frames: StructureArrays) -> Path:
    """A folder with a dataset in it, as the ledger makes it for a training job."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = assign_splits(dict(Counter(frames.formulas())), {})
    (folder / "part-000.parquet").write_bytes(frames.to_parquet())
    (folder / "dataset.json").write_text(json.dumps({"format": "hydroflow dataset/1", "parts": ["-"], "splits": splits}))
    return folder


@functools.cache
def _home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="hydroflow-model-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


@functools.cache
def trained(seed: int = 1, steps: int = 600) -> tuple[Path, dict[str, Any]]:
    """Folder of a finished training job and its result."""
    folder = job_folder(_home() / f"{seed}-{steps}", labelled())
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # a network this small only loses by threads
    try:
        return folder, Train().compute(inputs(steps, seed), {}, folder)
    finally:
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
