"""Data efficiency: labels that the loop's selection needs to reach a test error, against random selection of the same frames.

The frames are real, every one labelled by pw.x (``data/README.md``). Both ways begin with the same few random crystals and the
same ensemble trained on them; the other crystals and the frames of an exploration are the pool. *Active* asks as stage 1 does:
force deviation of the ensemble on every frame of the pool, candidates inside the trust window,
:func:`hydroflow.learning.select.select_diverse` among them, train, again. *Random* draws from the same pool. Every point is
trained alike: from scratch, the same number of steps on all labels so far. The test frames come from later
explorations, of other crystals.

``labels_ratio`` is how many labels random selection needs for the error in the forces that active selection ends with, per
label of the active one, bootstrap included: from means over the seeds, log-log interpolated between the sizes of the random
sets. Where even the largest random set does not reach that error, it is a lower bound (``labels_ratio_is_lower_bound``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Model
from hydroflow.lam import LamModel
from hydroflow.lam.ensemble import Ensemble
from hydroflow.lam.formats import write_training_systems
from hydroflow.lam.inputs import training_input
from hydroflow.lam.metrics import errors
from hydroflow.learning.loop import PER_TRAJECTORY
from hydroflow.learning.select import select_diverse

POOL = Path(__file__).parent / "data" / "learning_pool.parquet"
MODEL = Model(size="small", cutoff_a=4.5, batch_size="auto:32", start_lr=1e-2, stop_lr=1e-4)
"""The tiny one learns nothing about forces from a second hundred of labels, however long it trains (docs/lam.md)."""
TRUST = (0.25, 8.0)
"""Trust window of force deviations, eV/Å: that of the quickstart."""
MEMBERS = 2
KEYS = ("force_mev_a", "energy_mev_atom", "virial_mev_atom")


@dataclass(frozen=True)
class Extent:
    """How much is measured: seeds, labels of the bootstrap, labels after each active round and of each random set, steps of
    every training."""

    seeds: int
    bootstrap: int
    active: tuple[int, ...]
    random: tuple[int, ...]
    steps: int


FULL = Extent(2, 24, (56, 88), (56, 88, 128, 184), 2000)
QUICK = Extent(1, 24, (56,), (56, 112), 100)


def train(frames: StructureArrays, seed: int, steps: int, folder: Path) -> Path:
    """One real training by deepmd-kit in this process, in `folder`; returns the checkpoint."""
    from hydroflow.lam.backend import import_deepmd

    deepmd = import_deepmd("deepmd.pt.entrypoints.main")
    folder.mkdir()
    systems = write_training_systems(frames, folder / "data", MODEL.type_map, 8)
    config = training_input(MODEL, [str(Path(s).resolve()) for s in systems], [], steps, seed)
    (folder / "input.json").write_text(json.dumps(config))
    before = Path.cwd()
    os.chdir(folder)  # deepmd-kit writes its files where it stands
    try:
        deepmd.train(input_file="input.json", init_model=None, restart=None, finetune=None, init_frz_model=None,
                     model_branch="", skip_neighbor_stat=True)
    finally:
        os.chdir(before)
    return folder / f"model.ckpt-{steps}.pt"


class Lab:
    """Trains ensembles, each member in a process of its own."""

    def __init__(self, workers: Executor, folder: Path) -> None:
        folder.mkdir()
        self.workers, self.folder, self.trained = workers, folder, 0

    def ensemble(self, frames: StructureArrays, seed: int, steps: int) -> list[Path]:
        """Checkpoints of the members after training on `frames`."""
        self.trained += 1
        jobs = [self.workers.submit(train, frames, 1000 * seed + i + 1, steps, self.folder / f"{self.trained}-{i}")
                for i in range(MEMBERS)]
        return [job.result() for job in jobs]


def test_errors(models: Sequence[Path], frames: StructureArrays) -> dict[str, float]:
    """Errors on `frames`, mean over the members."""
    found = [errors(LamModel.load(m, device="cpu"), frames) for m in models]
    return {k: float(np.mean([f[k] for f in found])) for k in KEYS}


def ask(models: Sequence[Path], pool: StructureArrays, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of the frames that stage 1 would have labelled."""
    deviation = Ensemble.load(models, device="cpu").deviation(pool)
    candidates = np.flatnonzero(deviation.classify(*TRUST) == "candidate")
    frames = pool[candidates]
    frames.columns["max_deviation_ev_a"] = deviation.max_force_ev_a[candidates]
    return candidates[select_diverse(frames, count, PER_TRAJECTORY, rng)]


def curves(lab: Lab, sets: dict[str, StructureArrays], extent: Extent, seed: int) -> dict[str, dict[int, dict[str, float]]]:
    """Test errors by number of labels, of both ways, from one bootstrap."""
    rng = np.random.default_rng(seed)

    def tell(way: str, labels: int, found: dict[str, float]) -> dict[str, float]:
        print(f"seed {seed}, {way}, {labels} labels: " + ", ".join(f"{k} {v:.0f}" for k, v in found.items()),
              file=sys.stderr, flush=True)
        return found

    shuffled, test = sets["bootstrap"][rng.permutation(len(sets["bootstrap"]))], sets["test"]
    first = shuffled[:extent.bootstrap]
    pool = StructureArrays.concatenate([shuffled[extent.bootstrap:], sets["pool"]])
    models = lab.ensemble(first, seed, extent.steps)
    start = tell("bootstrap", len(first), test_errors(models, test))
    out: dict[str, dict[int, dict[str, float]]] = {"active": {len(first): start}, "random": {len(first): start}}

    chosen = np.zeros(0, np.int64)
    for labels in extent.active:
        rest = np.setdiff1d(np.arange(len(pool)), chosen)
        asked = rest[ask(models, pool[rest], labels - len(first) - len(chosen), rng)]
        if not len(asked):
            break  # every frame is accurate, or its trajectory has given all it may
        chosen = np.concatenate([chosen, asked])
        models = lab.ensemble(StructureArrays.concatenate([first, pool[chosen]]), seed, extent.steps)
        out["active"][len(first) + len(chosen)] = tell("active", len(first) + len(chosen), test_errors(models, test))

    order = rng.permutation(len(pool))
    for labels in extent.random:
        drawn = pool[order[:labels - len(first)]]
        models = lab.ensemble(StructureArrays.concatenate([first, drawn]), seed, extent.steps)
        out["random"][len(first) + len(drawn)] = tell("random", len(first) + len(drawn), test_errors(models, test))
    return out


def labels_needed(labels: np.ndarray, error: np.ndarray, target: float) -> tuple[float, bool]:
    """Labels at which a curve first meets `target`, log-log interpolated; and whether it does not (then its last)."""
    for i in range(len(labels)):
        if error[i] <= target:
            if i == 0:
                return float(labels[0]), False
            share = np.log(error[i - 1] / target) / np.log(error[i - 1] / error[i])
            return float(np.exp(np.log(labels[i - 1]) + share * np.log(labels[i] / labels[i - 1]))), False
    return float(labels[-1]), True


def mean_curve(runs: Sequence[dict[int, dict[str, float]]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and error, means over the seeds, point by point; points that every seed has."""
    shared = min(len(r) for r in runs)
    labels = np.array([sorted(r)[:shared] for r in runs], float)
    error = np.array([[r[int(n)][key] for n in row] for r, row in zip(runs, labels, strict=True)])
    return labels.mean(axis=0), error.mean(axis=0)


def measure(quick: bool, frames: Path) -> dict[str, Any]:
    extent = QUICK if quick else FULL
    everything = StructureArrays.from_parquet(frames.read_bytes())
    sets = {s: everything[everything.columns["source"] == s] for s in ("bootstrap", "pool", "test")}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(MEMBERS, get_context("spawn")) as workers:
        runs = [curves(Lab(workers, Path(folder) / str(s)), sets, extent, s) for s in range(extent.seeds)]
    found = figures(runs, extent, {k: len(v) for k, v in sets.items()})
    return found | ({"note": "trainings too short to judge the selection; run without --quick"} if quick else {})


def figures(runs: list[dict[str, dict[int, dict[str, float]]]], extent: Extent, sizes: dict[str, int]) -> dict[str, Any]:
    out: dict[str, Any] = {"frames": sizes, "seeds": extent.seeds, "members": MEMBERS, "steps": extent.steps}
    for way in ("active", "random"):
        labels = mean_curve([r[way] for r in runs], KEYS[0])[0]
        out[way] = {f"{n:.0f}": {k: round(float(mean_curve([r[way] for r in runs], k)[1][i]), 1) for k in KEYS}
                    for i, n in enumerate(labels)}
    for key in KEYS:
        active, error = mean_curve([r["active"] for r in runs], key)
        needed, beyond = labels_needed(*mean_curve([r["random"] for r in runs], key), error[-1])
        name = "labels_ratio" if key == KEYS[0] else f"labels_ratio_{key.split('_')[0]}"
        out[name] = round(needed / active[-1], 2)
        if beyond:
            out[f"{name}_is_lower_bound"] = True
    each = []
    for run in runs:
        active, error = mean_curve([run["active"]], KEYS[0])
        each.append(round(float(labels_needed(*mean_curve([run["random"]], KEYS[0]), error[-1])[0] / active[-1]), 2))
    return out | {"labels_ratio_of_each_seed": each}


def show(found: dict[str, Any]) -> None:
    print(f"{'labels':>8}{'force meV/Å':>14}{'energy meV/atom':>18}{'virial meV/atom':>18}")
    for way in ("active", "random"):
        print(way)
        for labels, values in found[way].items():
            print(f"{labels:>8}" + "".join(f"{values[k]:>{w}}" for k, w in zip(KEYS, (14, 18, 18), strict=True)))
    for name, value in found.items():
        if name not in ("active", "random"):
            print(f"{name:<34}{value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 50 s: one seed, one round, short trainings")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--pool", type=Path, default=POOL, help="labelled frames of benchmarks._learning_pool")
    args = parser.parse_args()
    found = measure(args.quick, args.pool)
    if args.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
