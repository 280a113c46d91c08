"""What the iterations of both stages are made of: labelling, training, reading jobs, and the record of an iteration."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dft.batch import held_for_review, label_specs, labelled_frames
from hydroflow.dft.review import review_batch
from hydroflow.dft.settings import campaign_settings
from hydroflow.dispatch.job import Resources
from hydroflow.errors import HydroflowError
from hydroflow.lam.datasets import load_dataset
from hydroflow.lam.train import register_models, train_specs
from hydroflow.learning.context import Context
from hydroflow.learning.explore import seed_of
from hydroflow.store.documents import Iteration, Job, now


class LearningFailed(HydroflowError):
    """The loop cannot go on: too few labels or models came back."""


@dataclass(frozen=True)
class Labelled:
    """What labelling structures brought.

    Attributes
    ----------
    frames : labelled frames, in the order of the structures that have one
    quarantined : failure code → how many
    held : key of each label held for review → why
    ok, on_hold : (n,) bool, which structures have a label, and whose label is held for review
    """

    frames: StructureArrays
    quarantined: dict[str, int]
    held: dict[str, str]
    ok: np.ndarray
    on_hold: np.ndarray


def label(ctx: Context, structures: StructureArrays, source: str, dataset: str | None = None) -> Labelled:
    """DFT labels of structures.

    A label outside the robust range of the `dataset` it is to join (and of its own batch) is held for review: it stays in the
    ledger and is listed with the iteration, but does not train.
    """
    if not len(structures):
        return Labelled(structures, {}, {}, np.zeros(0, bool), np.zeros(0, bool))
    campaign = ctx.campaign
    settings = campaign_settings(campaign)
    resources = Resources(cores=campaign.labels.cores, wall_time_s=campaign.labels.wall_time_s)
    jobs = ctx.run(label_specs(ctx.store, structures, settings, resources=resources, label=source), f"{source}: DFT labels")
    held = {key: "; ".join(reasons) for key, reasons in held_for_review(jobs).items()}
    ok = np.array([j.state == "done" and j.key not in held for j in jobs], bool)
    frames = labelled_frames(ctx.store, jobs, source)
    codes = Counter((j.failure or {}).get("code", j.state) for j in jobs if j.state != "done")
    known = StructureArrays.concatenate(load_dataset(ctx.store, dataset).values()) if dataset else None
    review = review_batch(frames, known)
    ok[np.flatnonzero(ok)[review.held]] = False
    held |= {str(frames.columns["job"][i]): reason for i, reason in review.reasons.items()}
    if held:
        codes["held for review"] = len(held)
    on_hold = np.array([j.key in held for j in jobs], bool)
    return Labelled(frames[~review.held], dict(codes), held, ok, on_hold)


def train(
    ctx: Context,
    dataset: str,
    start: tuple[str, ...] | None,
    stage: str,
    index: int,
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Train the ensemble on a dataset, from the previous models where there are some.

    Returns
    -------
    models
        Digests.
    errors
        Their mean errors on the held-out frames and, under ``before``, those of the models they started from on the same
        frames; without ``before`` where they started from random weights.
    """
    seed = seed_of(ctx.campaign, stage, index, "train")
    specs = train_specs(ctx.campaign, dataset, list(start) if start else None, seed)
    jobs = done(ctx.run(specs, f"{stage}/{index}: train {len(specs)} models"), "training")
    if len(jobs) < 2:
        raise LearningFailed(
            f"{len(jobs)} of {len(specs)} models of {stage}/{index} were trained; an ensemble needs two: "
            "see `hydroflow jobs list --kind lam.train`"
        )
    models = register_models(ctx.store, ctx.campaign.name, jobs)
    errors: dict[str, Any] = _means([m.metrics for m in models])
    if before := _means([j.result.get("before") or {} for j in jobs]):
        errors["before"] = before
    return tuple(m.digest for m in models), errors


def _means(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the ensemble of each error that the models have."""
    out = {}
    for key in ("energy_mev_atom", "force_mev_a", "virial_mev_atom"):
        values = [m[key] for m in metrics if m.get(key) is not None]
        if values:
            out[key] = float(np.mean(values))
    return out


def done(jobs: list[Job], what: str) -> list[Job]:
    """The finished ones; :class:`LearningFailed` with the first reason when there is none."""
    finished = [j for j in jobs if j.state == "done"]
    if not finished:
        first = next((j for j in jobs if j.failure), None)
        reason = first.failure["message"] if first else "cancelled"
        raise LearningFailed(
            f"every {what} job failed: {reason} (see `hydroflow jobs show {jobs[0].key if jobs else ''}`)"
        )
    return finished


def output(ctx: Context, job: Job, name: str) -> StructureArrays:
    return StructureArrays.from_parquet(ctx.store.objects.get(job.outputs[name]))


def record(ctx: Context, stage: str, index: int, **values: Any) -> None:
    """Write the iteration's record; written again with the same values when the loop is run again."""
    Iteration.objects(campaign=ctx.campaign.name, stage=stage, index=index).modify(
        upsert=True, set_on_insert__started=now(), set__finished=now(), **{f"set__{k}": v for k, v in values.items()}
    )
