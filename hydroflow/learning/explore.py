"""Exploration: relax random structures with the ensemble's first model and measure the force deviation of all models
along every frame of every trajectory. One job covers the structures at one pressure, block by block.

What the deviation means is measured first, on the labelled frames that the models were not trained on
(:mod:`hydroflow.lam.calibration`); on request the trust window is placed by it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Relaxation
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.python_engine import PythonEngine
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.lam.calibration import LEAST_FRAMES, Calibration, calibrate
from hydroflow.lam.ensemble import CLASSES, Deviation, Ensemble
from hydroflow.lam.relax import relax
from hydroflow.lam.train import METHOD, dataset_files, read_splits
from hydroflow.learning.requests import draw_requests
from hydroflow.structures import Failure, Request, generate

KEPT_FRAMES = 2000
"""Most frames a job brings back for selection: candidates, and where they are fewer the least unreliable frames."""
BLOCK_STRUCTURES = 500
"""Structures relaxed and judged between two checkpoints: bounds memory (all their frames) and the work that a kill can cost."""
CALIBRATION_FRAMES = 1000
"""Most held-out frames that the deviation is compared with true errors on."""


def explore_specs(
    campaign: Campaign,
    models: list[str],
    dataset: str,
    stage: str,
    iteration: int,
    pressures_gpa: list[float],
    structures: int,
    engine: str,
) -> list[JobSpec]:
    """One exploration job per pressure; the seed depends on campaign, stage, iteration and pressure, so that every
    iteration explores afresh and the same iteration asked twice is the same job.

    Parameters
    ----------
    models
        Object digests of the ensemble's checkpoints; the first relaxes, all are compared.
    dataset
        Digest of the dataset they were trained on; its held-out frames calibrate the deviation.
    engine
        Engine stamp of the models, e.g. ``deepmd-kit 3.2.0``.
    """
    specs = []
    labelled = dataset_files(dataset)
    stage1 = campaign.learning.stage1
    per_pressure = np.full(len(pressures_gpa), structures // len(pressures_gpa))
    per_pressure[: structures % len(pressures_gpa)] += 1
    for pressure, count in zip(pressures_gpa, per_pressure, strict=True):
        if not count:
            continue
        seed = seed_of(campaign, stage, iteration, pressure)
        requests = draw_requests(campaign.space, int(count), np.random.default_rng(seed))
        specs.append(
            JobSpec(
                kind="learning.explore",
                inputs={
                    "requests": [[r.composition, r.count] for r in requests],
                    "pressure_gpa": pressure,
                    "seed": seed,
                    "space": campaign.space.model_dump(mode="json"),
                    "generator": campaign.generator.model_dump(mode="json"),
                    "relaxation": campaign.relaxation.model_dump(mode="json"),
                    "trust": [stage1.trust_low_ev_a, stage1.trust_high_ev_a],
                    **({"trust_error_ev_a": stage1.trust_error_ev_a} if stage1.trust == "calibrated" else {}),
                    "method": METHOD,
                },
                engine=engine,
                files={f"model_{i}.pt": digest for i, digest in enumerate(models)} | labelled,
                resources=Resources(
                    cores=campaign.model.cores, gpus=campaign.model.gpus, wall_time_s=campaign.model.wall_time_s
                ),
                label=f"{stage}/{iteration} explore {count} structures at {pressure:g} GPa",
                priority=10,
            )
        )
    return specs


def seed_of(campaign: Campaign, *parts: Any) -> int:
    """A 32-bit seed from the campaign's seed and a path of names, stable over runs and machines."""
    return zlib.crc32("/".join(map(str, (campaign.seed, *parts))).encode())


class Explore(PythonEngine):
    """Engine of ``learning.explore`` jobs. Structures go in blocks, each written when it is done, so that a killed job goes on
    where it was."""

    kind = "learning.explore"
    output_names = ("frames.parquet", "relaxed.parquet")

    def compute(self, inputs: Mapping[str, Any], adjustments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        started = time.time()
        pressure = float(inputs["pressure_gpa"])
        campaign = Campaign.model_validate(
            {
                "name": "exploration",
                "space": inputs["space"],
                "generator": inputs["generator"],
                "pressure": {"campaign_gpa": pressure},
            }
        )
        requests = [Request(composition, count) for composition, count in inputs["requests"]]
        impossible: list[Failure] = []
        structures = generate(campaign, requests, pressure, inputs["seed"], on_failure=impossible.append)
        if not len(structures):
            raise EngineFailure(
                FailureCode.unphysical_result, "no structure could be generated for any composition drawn"
            )
        generated = time.time()

        ensemble = Ensemble.load(sorted(folder.glob("model_*.pt")))
        wanted = inputs.get("trust_error_ev_a")
        calibration = calibrated(ensemble, folder, wanted or inputs["trust"][0])
        low, high = (calibration.trust_low_ev_a, calibration.trust_high_ev_a) if wanted and calibration else inputs["trust"]
        relaxation = Relaxation.model_validate(inputs["relaxation"])
        kept, relaxed, judged = [], [], []
        for n, first in enumerate(range(0, len(structures), BLOCK_STRUCTURES)):
            block = folder / f"block-{n:05d}"
            done = block / "deviation.npz"
            if not done.exists():
                block.mkdir(exist_ok=True)
                rng = np.random.default_rng([inputs["seed"], n] if n else inputs["seed"])
                _explore(ensemble, structures[first:first + BLOCK_STRUCTURES], pressure, relaxation, (low, high), rng, block)
            kept.append(StructureArrays.from_parquet((block / "frames.parquet").read_bytes()))
            relaxed.append(StructureArrays.from_parquet((block / "relaxed.parquet").read_bytes()))
            with np.load(done) as found:
                judged.append({k: found[k] for k in found.files})
        seconds = {k: float(sum(b.pop(f"seconds_{k}") for b in judged)) for k in ("relax", "deviation")}
        deviation = Deviation(**{k: np.concatenate([b[k] for b in judged]) for k in judged[0]})
        labels = deviation.classify(low, high)

        frames = StructureArrays.concatenate(kept)
        if len(frames):
            largest = frames.columns["max_deviation_ev_a"]
            rows = _worth(np.where(largest > high, "unreliable", "candidate"), largest, np.random.default_rng(inputs["seed"]))
            frames = frames[rows]
        (folder / "frames.parquet").write_bytes(frames.to_parquet())
        final = StructureArrays.concatenate(relaxed)
        (folder / "relaxed.parquet").write_bytes(final.to_parquet())
        physical = labels != "unphysical"
        status, n_status = np.unique(final.columns["status"].astype(str), return_counts=True)
        return {
            "structures": len(structures),
            "not_generated": [str(f) for f in impossible[:20]],
            "frames": len(labels),
            "classes": {c: int((labels == c).sum()) for c in CLASSES},
            "trust": [low, high],
            "calibration": calibration.measured() if calibration else None,
            "relaxed": {str(s): int(n) for s, n in zip(status, n_status, strict=True)},
            "deviation_percentiles": {
                name: {str(p): float(np.percentile(values[physical], p)) for p in (5, 25, 50, 75, 95)}
                for name, values in (
                    ("max_force_ev_a", deviation.max_force_ev_a),
                    ("mean_force_ev_a", deviation.mean_force_ev_a),
                    ("relative_force", deviation.relative_force),
                    ("enthalpy_ev_atom", deviation.enthalpy_ev_atom),
                    ("pressure_gpa", deviation.pressure_gpa),
                )
                if physical.any()
            },
            "seconds": {"generate": generated - started, **seconds},
        }


def _explore(ensemble: Ensemble, structures: StructureArrays, pressure_gpa: float, relaxation: Relaxation,
             trust: tuple[float, float], rng: np.random.Generator, folder: Path) -> None:
    """Relax a block and judge its frames; ``deviation.npz`` comes last, so that a block with one is whole."""
    started = time.time()
    result = relax(ensemble.models[0], structures, pressure_gpa, relaxation, record="all")
    frames, relaxed_at = result.frames, time.time()
    assert frames is not None
    deviation = ensemble.deviation(frames)
    frames.columns["max_deviation_ev_a"] = deviation.max_force_ev_a
    rows = _worth(deviation.classify(*trust), deviation.max_force_ev_a, rng)
    (folder / "frames.parquet").write_bytes(frames[rows].to_parquet())
    final = result.relaxed
    final.columns["enthalpy_deviation_ev"] = ensemble.deviation(final).enthalpy_ev_atom
    (folder / "relaxed.parquet").write_bytes(final.to_parquet())
    with (folder / "deviation.part").open("wb") as file:
        np.savez(file, seconds_relax=relaxed_at - started, seconds_deviation=time.time() - relaxed_at,
                 **{f.name: getattr(deviation, f.name) for f in fields(deviation)})
    (folder / "deviation.part").replace(folder / "deviation.npz")


def _worth(labels: np.ndarray, max_deviation_ev_a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of the frames that are kept for selection: at most :data:`KEPT_FRAMES` candidates at random, and where they are
    fewer the least unreliable frames."""
    chosen = np.flatnonzero(labels == "candidate")
    if len(chosen) > KEPT_FRAMES:
        chosen = np.sort(rng.choice(chosen, KEPT_FRAMES, replace=False))
    unreliable = np.flatnonzero(labels == "unreliable")
    least = unreliable[np.argsort(max_deviation_ev_a[unreliable], kind="stable")]
    return np.sort(np.concatenate([chosen, least[: KEPT_FRAMES - len(chosen)]]))


def calibrated(ensemble: Ensemble, folder: Path, wanted_error_ev_a: float) -> Calibration | None:
    """Deviation against true error on held-out frames of the dataset in a job's folder; None where they are too few."""
    if not (folder / "dataset.json").exists():
        return None
    splits = read_splits(folder)
    held_out = StructureArrays.concatenate([splits["validation"], splits["test"]])
    if len(held_out) < LEAST_FRAMES:
        return None
    if len(held_out) > CALIBRATION_FRAMES:
        # The same for every pressure of an iteration: one window holds for all.
        held_out = held_out[np.sort(np.random.default_rng(0).choice(len(held_out), CALIBRATION_FRAMES, replace=False))]
    return calibrate(ensemble, held_out, wanted_error_ev_a)
