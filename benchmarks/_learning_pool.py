"""Makes the pool of labelled frames of benchmarks/learning.py: ``python -m benchmarks._learning_pool FOLDER``.

It is what an exploration yields before any choice: random crystals (``bootstrap``), frames drawn evenly from all trajectories
(``pool``), and from those of other crystals (``test``), all labelled by pw.x with the protocol ``fast``. FOLDER keeps what is
labelled, so that a stopped run goes on, and gets ``pool.parquet`` at the end; some twenty minutes on two cores.
``data/learning_pool.parquet`` is a copy; ``python -m benchmarks.learning --pool FOLDER/pool.parquet`` measures with another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.dft_labels import label
from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Labels, Relaxation, parse
from hydroflow.dft.batch import label_specs, labelled_frames
from hydroflow.dft.jobs import Label
from hydroflow.dft.settings import label_settings
from hydroflow.errors import EngineFailure
from hydroflow.lam import LamModel, relax
from hydroflow.lam.ensemble import unphysical_structures
from hydroflow.learning.requests import draw_requests
from hydroflow.structures import generate

MODEL = Path(__file__).parent / "data" / "mg_ca_h.pt"
CAMPAIGN = """
name = "learning-pool"
[space]
elements = ["Mg", "Ca"]
m = [1, 1]
n = [1, 1]
hydrogen_ratio = [2, 4]
formula_units = [1, 1]
max_atoms = 10
binary_hydrogen = [1, 6]
"""
CRYSTALS = 36
POOL = (45, 240)
TEST = (90, 240)
"""Structures relaxed and frames labelled."""


def crystals(campaign: Campaign, count: int, seed: int) -> StructureArrays:
    """Random crystals, a third at each pressure of exploration."""
    parts = []
    for i, pressure in enumerate(campaign.pressure.explore_gpa):
        requests = draw_requests(campaign.space, count // 3, np.random.default_rng([seed, i]))
        part = generate(campaign, requests, pressure, 10 * seed + i)
        part.columns = {"pressure_gpa": np.full(len(part), pressure),
                        "id": np.array([f"{seed}-{i}-{k}" for k in range(len(part))], object)}
        parts.append(part)
    return StructureArrays.concatenate(parts)


def explored(campaign: Campaign, structures: int, frames: int, seed: int) -> StructureArrays:
    """Frames drawn evenly from all physical frames of the relaxation of random crystals by the stored model."""
    model = LamModel.load(MODEL, device="cpu")
    starts = crystals(campaign, structures, seed)
    found = relax(model, starts, starts.columns["pressure_gpa"], Relaxation(max_steps=120), record="all").frames
    assert found is not None
    found = found[~unphysical_structures(found)]
    found.columns = {k: found.columns[k] for k in ("pressure_gpa", "id", "step")}
    return found[np.sort(np.random.default_rng(seed).choice(len(found), frames, replace=False))]


def labelled(frames: StructureArrays, folder: Path, source: str) -> StructureArrays:
    """The frames that pw.x could label, with their labels; columns ``id`` and ``step`` follow."""
    objects: dict[str, bytes] = {}

    def put_file(path: Path) -> str:
        digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        objects[digest] = path.read_bytes()
        return digest

    settings = label_settings(Labels(protocol="fast"), ["H", "Mg", "Ca"])
    specs = label_specs(SimpleNamespace(objects=SimpleNamespace(put_file=put_file)), frames, settings)
    once = {s.key: s for s in specs}  # a relaxation that stands still yields the same frame twice
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        by_key = dict(zip(once, pool.map(partial(_one, folder=folder, objects=objects), once.values()), strict=True))
    results = [by_key[s.key] for s in specs]
    jobs = [SimpleNamespace(key=s.key, inputs=s.inputs, result=r, state="done" if r else "failed")
            for s, r in zip(specs, results, strict=True)]
    out = labelled_frames(None, jobs, source)
    kept = np.array([bool(r) and not r.get("review") for r in results])
    out.columns |= {k: v[kept] for k, v in frames.columns.items()}
    del out.columns["job"]
    print(f"{source}: {len(out)} of {len(frames)} frames labelled", flush=True)
    return out


def _one(spec: Any, folder: Path, objects: dict[str, bytes]) -> dict[str, Any] | None:
    """One label, or what was kept of it; None where pw.x failed."""
    answer = folder / f"{spec.key}.json"
    if not answer.exists():
        work = folder / spec.key
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for name, digest in spec.files.items():
            (work / name).write_bytes(objects[digest])
        try:
            result = label(Label(), spec, work)
        except EngineFailure as failure:
            print(f"{spec.label}: {failure}", file=sys.stderr, flush=True)
            result = None
        answer.write_text(json.dumps(result))
        shutil.rmtree(work)
    return json.loads(answer.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    campaign = parse(CAMPAIGN)
    first = crystals(campaign, CRYSTALS, 1)
    first.columns["step"] = np.zeros(len(first), np.int64)
    sets = {"bootstrap": first, "test": explored(campaign, *TEST, 2), "pool": explored(campaign, *POOL, 3)}
    frames = StructureArrays.concatenate(labelled(some, folder, name) for name, some in sets.items())
    frames.fractional = frames.fractional % 1.0
    (folder / "pool.parquet").write_bytes(frames.to_parquet())


if __name__ == "__main__":
    main()
