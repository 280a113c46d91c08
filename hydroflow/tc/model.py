"""The Tc model: multi-task fine-tuned from the Large Atomic Model, cross-validated, with its ranking of the rest.

One job trains every fold and the final model, because starting deepmd-kit costs more than a small fold. Only usable values of
Tc enter; values of protocol ``plumbing`` may for a model that proves machinery, which then carries the scope ``plumbing``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.python_engine import PythonEngine
from hydroflow.errors import DataError, EngineFailure, FailureCode
from hydroflow.store.objects import ObjectStore

LEAST_VALUES = 3
"""Fewer values of Tc leave a fold with a single one, which has no scale."""
SCOPES = ("campaign", "plumbing")
PAD = 8
SEED = 1


def tc_spec(
    campaign: Campaign, objects: ObjectStore, lam_model: str, dataset: str, known: StructureArrays, rest: StructureArrays,
    engine_version: str, scope: str = "campaign",
) -> JobSpec:
    """The job that trains and applies the Tc model.

    Parameters
    ----------
    lam_model
        Digest of the Large Atomic Model's checkpoint.
    dataset
        Digest of the manifest of labelled frames it was trained on (its training split is used for energies).
    known
        Structures with the columns ``id`` and ``tc_k``.
    rest
        Structures to predict, column ``id``; may be empty.
    engine_version
        ``deepmd-kit X.Y.Z``.
    scope
        ``plumbing`` when values of that protocol are among `known`.

    Raises
    ------
    DataError
        when there are too few values, or they do not differ.
    """
    values = np.asarray(known.columns["tc_k"], float)
    if len(values) < LEAST_VALUES:
        raise DataError(f"{len(values)} usable Tc values are too few for a Tc model (at least {LEAST_VALUES}); compute more EPC "
                        "(epc.initial)")
    if not np.isfinite(values).all() or (values < 0).any():
        raise DataError("a Tc value is negative or not finite")
    if np.ptp(values) < 1e-3:
        raise DataError(f"all {len(values)} Tc values are {values[0]:.3g} K: nothing to learn")
    if scope not in SCOPES:
        raise DataError(f"unknown scope {scope!r}; known: {', '.join(SCOPES)}")
    parts = json.loads(objects.get(dataset))["parts"]
    files = {"lam.pt": lam_model, "dataset.json": dataset, "known.parquet": objects.put(_bare(known, values).to_parquet())}
    files |= {f"frames{i}.parquet": digest for i, digest in enumerate(parts)}
    if len(rest):
        files["rest.parquet"] = objects.put(_bare(rest).to_parquet())
    return JobSpec("tc.train", {
        "folds": min(campaign.tc.folds, len(values)), "steps": campaign.tc.steps, "energy_share": campaign.tc.energy_share,
        "batch_size": campaign.model.batch_size, "seed": SEED, "parts": len(parts), "scope": scope,
    }, engine_version, files, Resources(campaign.model.cores, campaign.model.gpus, campaign.model.wall_time_s),
        f"Tc model of {len(values)} values", priority=5)


def _bare(structures: StructureArrays, values: np.ndarray | None = None) -> StructureArrays:
    """Only what the job needs, so that other columns do not change its key."""
    columns = {"id": np.array([str(i) for i in structures.columns["id"]], dtype=object)}
    if values is not None:
        columns["tc_k"] = values
    return StructureArrays(structures.offsets, structures.numbers, structures.fractional, structures.cells, columns)


def fold_of(n: int, folds: int, seed: int) -> np.ndarray:
    """Fold of each of n structures, sizes as equal as can be; (n,)."""
    return np.random.default_rng(seed).permutation(n) % folds


class TrainTc(PythonEngine):
    """Kind ``tc.train``; result: cv, baseline, predictions, scope; keeps the model."""

    kind = "tc.train"
    output_names = ("model.pt", "predictions.parquet")

    def compute(self, inputs: Mapping[str, Any], adjustments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        from hydroflow.lam.datasets import parse_manifest, split_frames
        from hydroflow.lam.formats import write_training_systems
        from hydroflow.lam.model import read_checkpoint
        from hydroflow.tc.data import predict, write_property_systems
        from hydroflow.tc.finetune import multitask_input, train

        _, lam = read_checkpoint(folder / "lam.pt")
        type_map = lam["type_map"]
        known = StructureArrays.from_parquet((folder / "known.parquet").read_bytes())
        values = known.columns["tc_k"]
        rest = (StructureArrays.from_parquet((folder / "rest.parquet").read_bytes())
                if (folder / "rest.parquet").exists() else StructureArrays.empty())
        frames = StructureArrays.concatenate(
            StructureArrays.from_parquet((folder / f"frames{i}.parquet").read_bytes()) for i in range(inputs["parts"]))
        manifest = parse_manifest((folder / "dataset.json").read_bytes())
        energy_frames = split_frames(manifest, frames)["train"]
        energy = write_training_systems(energy_frames, folder / "energy", type_map, PAD)
        folds = fold_of(len(known), inputs["folds"], inputs["seed"])
        rate = 1e-3 * adjustments.get("rate_scale", 1.0)

        held_out, on_rest = np.full(len(known), np.nan), []
        for k in [*range(inputs["folds"]), None]:
            name = "final" if k is None else f"fold{k}"
            chosen = np.ones(len(known), bool) if k is None else folds != k
            answer = folder / f"{name}.npz"
            if not answer.exists():
                systems = write_property_systems(known[chosen], values[chosen], folder / f"tc_{name}", type_map, PAD)
                config = multitask_input(
                    lam, [str(Path(s).resolve()) for s in energy], [str(Path(s).resolve()) for s in systems],
                    steps=inputs["steps"], energy_share=inputs["energy_share"], seed=inputs["seed"], start_lr=rate,
                    stop_lr=rate / 100, batch_size=inputs["batch_size"])
                shutil.rmtree(folder / name, ignore_errors=True)
                checkpoint = train(config, (folder / "lam.pt").resolve(), folder / name)
                if k is None:
                    shutil.copyfile(checkpoint, folder / "model.pt")
                part = folder / f"{name}.part.npz"
                np.savez(part, known=predict(checkpoint, known), rest=predict(checkpoint, rest) if len(rest) else np.zeros(0))
                part.replace(answer)
            with np.load(answer) as data:
                if k is None:
                    final_rest = data["rest"]
                else:
                    held_out[folds == k] = data["known"][folds == k]
                    on_rest.append(data["rest"])
        if not np.isfinite(held_out).all() or not np.isfinite(final_rest).all():
            raise EngineFailure(FailureCode.training_diverged, "a predicted Tc is not finite")
        return _summary(inputs, known, values, folds, held_out, rest, final_rest, np.array(on_rest), folder)

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Any:
        from hydroflow.dispatch.engine import Recovery

        if failure.code is FailureCode.training_diverged and attempt <= 2:
            scale = 0.3**attempt
            return Recovery(f"learning rates scaled by {scale:.2g}", {"rate_scale": scale})
        return super().recover(job, failure, attempt)


def _summary(
    inputs: Mapping[str, Any], known: StructureArrays, values: np.ndarray, folds: np.ndarray, held_out: np.ndarray,
    rest: StructureArrays, on_rest_final: np.ndarray, on_rest: np.ndarray, folder: Path,
) -> dict[str, Any]:
    error = np.abs(held_out - values)
    per_fold = np.array([error[folds == k].mean() for k in range(inputs["folds"])])
    baseline = np.array([np.abs(values[folds == k] - values[folds != k].mean()).mean() for k in range(inputs["folds"])])
    # how far the folds' models disagree, on top of how far they are off where the truth is known
    spread = on_rest.std(axis=0) if len(rest) else np.zeros(0)
    uncertainty = np.hypot(spread, per_fold.mean())
    identities = [str(i) for i in rest.columns["id"]] if len(rest) else []
    table = StructureArrays(rest.offsets, rest.numbers, rest.fractional, rest.cells)
    if len(rest):
        table.columns = {"id": np.array(identities, dtype=object), "tc_predicted_k": on_rest_final, "tc_error_k": uncertainty}
    (folder / "predictions.parquet").write_bytes(table.to_parquet())
    return {
        "scope": inputs["scope"], "values": len(values), "folds": inputs["folds"],
        "cv": {"mae_k": float(per_fold.mean()), "std_k": float(per_fold.std()),
               "parity": [[float(t), float(p)] for t, p in zip(values, held_out, strict=True)],
               "ids": [str(i) for i in known.columns["id"]]},
        "baseline": {"mae_k": float(baseline.mean()), "std_k": float(baseline.std()), "what": "the mean of the other folds"},
        # the ledger takes small results only; the whole list is in predictions.parquet
        "predictions": [{"id": i, "tc_k": round(float(t), 3), "error_k": round(float(e), 3)}
                        for i, t, e in list(zip(identities, on_rest_final, uncertainty, strict=True))[:500]],
    }
