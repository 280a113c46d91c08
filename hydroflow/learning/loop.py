"""Two-stage concurrent learning of the Large Atomic Model [Wang et al. 2025].

Bootstrap: random structures are labelled and the first ensemble is trained. Stage 1: relax random structures at several
pressures, measure the force deviation of the ensemble along all trajectories, label the uncertain frames, train again,
until the share of accurate frames on a fresh exploration reaches its goal. Stage 2: label relaxed structures and compare
their enthalpy with DFT, until the error on fresh ones reaches its goal.

Every function is a deterministic function of the campaign and the ledger: run again after a crash, it asks for the same
jobs, finds the finished ones done, and goes on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dft.batch import held_for_review, label_specs, labelled_frames
from hydroflow.dft.review import review_batch
from hydroflow.dft.settings import campaign_settings
from hydroflow.dispatch.job import Resources
from hydroflow.errors import HydroflowError
from hydroflow.lam.datasets import build_dataset, load_dataset
from hydroflow.lam.train import ENGINE, register_models, train_specs
from hydroflow.learning.context import Context
from hydroflow.learning.explore import CLASSES, explore_specs, seed_of
from hydroflow.learning.requests import draw_requests
from hydroflow.learning.select import select_diverse, select_relaxed
from hydroflow.screening.hull import hull_distances
from hydroflow.store.documents import Iteration, Job, now
from hydroflow.structures import generate
from hydroflow.units import GPA_A3_EV

PER_TRAJECTORY = 3
"""Most frames labelled out of one trajectory: neighbours along a relaxation teach nearly the same."""


class LearningFailed(HydroflowError):
    """The loop cannot go on: too few labels or models came back."""


@dataclass(frozen=True)
class Learned:
    """What the loop has: the dataset and the ensemble trained on it (object digests)."""

    dataset: str
    models: tuple[str, ...]
    reached: bool = False


def bootstrap(ctx: Context) -> Learned:
    """Label a first batch of random structures over the exploration pressures and train the first ensemble."""
    campaign = ctx.campaign
    pressures = campaign.pressure.explore_gpa
    parts = []
    for i, pressure in enumerate(pressures):
        seed = seed_of(campaign, "bootstrap", pressure)
        n = campaign.learning.bootstrap_labels
        n = n // len(pressures) + (i < n % len(pressures))
        requests = draw_requests(campaign.space, n, np.random.default_rng(seed))
        parts.append(generate(campaign, requests, pressure, seed, on_failure=lambda failure: None))
    structures = StructureArrays.concatenate(parts)
    frames, quarantined, held, _ = label(ctx, structures, "bootstrap/0")
    if len(frames) < max(4, len(structures) // 5):
        raise LearningFailed(
            f"only {len(frames)} of {len(structures)} bootstrap labels are usable ({quarantined}); see `hydroflow jobs list "
            "--state quarantined` and check labels.protocol and the pseudopotentials"
        )
    dataset = build_dataset(ctx.store, campaign.name, frames, None)
    models, errors = train(ctx, dataset, None, "bootstrap", 0)
    record(
        ctx,
        "bootstrap",
        0,
        explored={"structures": len(structures)},
        selected=len(structures),
        labelled=len(frames),
        quarantined=quarantined,
        held=held,
        dataset=dataset,
        models=list(models),
        errors=errors,
        reached=True,
    )
    return Learned(dataset, models)


def stage1_iteration(ctx: Context, learned: Learned, index: int) -> Learned:
    """One turn of stage 1: explore → assess → select → label → train. `reached` when the fresh exploration met the goal."""
    campaign, stage1 = ctx.campaign, ctx.campaign.learning.stage1
    jobs = ctx.run(
        explore_specs(
            campaign,
            list(learned.models),
            learned.dataset,
            "stage1",
            index,
            campaign.pressure.explore_gpa,
            stage1.structures,
            ENGINE,
        ),
        f"stage 1, iteration {index}: explore",
    )
    results = [j.result for j in done(jobs, "exploration")]
    classes = {c: sum(r["classes"][c] for r in results) for c in CLASSES}
    share = accurate_share(classes)
    explored = {
        "structures": sum(r["structures"] for r in results),
        "frames": sum(r["frames"] for r in results),
        **classes,
        **uncertainty(results),
    }
    goal = {"name": "share of accurate frames", "value": share, "target": stage1.goal_accurate}
    if share >= stage1.goal_accurate:
        record(
            ctx,
            "stage1",
            index,
            explored=explored,
            goal=goal,
            selected=0,
            labelled=0,
            dataset=learned.dataset,
            models=list(learned.models),
            reached=True,
        )
        return replace(learned, reached=True)

    frames = StructureArrays.concatenate(output(ctx, j, "frames.parquet") for j in done(jobs, "exploration"))
    rng = np.random.default_rng(seed_of(campaign, "stage1", index, "select"))
    chosen = frames[select_diverse(frames, stage1.labels, PER_TRAJECTORY, rng)]
    return _learn_from(ctx, learned, "stage1", index, chosen, explored, goal)


def stage2_iteration(ctx: Context, learned: Learned, index: int) -> Learned:
    """One turn of stage 2: relax, label relaxed structures, compare enthalpies. `reached` when the mean |H_LAM − H_DFT|
    of near-hull and random relaxed structures is within the goal."""
    campaign, stage2 = ctx.campaign, ctx.campaign.learning.stage2
    pressure = campaign.pressure.campaign_gpa
    jobs = ctx.run(
        explore_specs(
            campaign, list(learned.models), learned.dataset, "stage2", index, [pressure], stage2.structures, ENGINE
        ),
        f"stage 2, iteration {index}: relax",
    )
    relaxed = StructureArrays.concatenate(output(ctx, j, "relaxed.parquet") for j in done(jobs, "relaxation"))
    relaxed = relaxed[relaxed.columns["converged"].astype(bool)]
    explored: dict[str, Any] = {
        "structures": sum(j.result["structures"] for j in jobs if j.result),
        "converged": len(relaxed),
        **uncertainty([j.result for j in jobs if j.result]),
    }
    if not len(relaxed):
        record(
            ctx,
            "stage2",
            index,
            explored=explored,
            selected=0,
            labelled=0,
            dataset=learned.dataset,
            models=list(learned.models),
            reached=False,
        )
        return learned
    rng = np.random.default_rng(seed_of(campaign, "stage2", index, "select"))
    distance = hull_distances(relaxed, relaxed.columns["enthalpy_ev"] / relaxed.counts)
    assessed, extra = select_relaxed(relaxed, distance, stage2.labels, rng)
    chosen = relaxed[np.concatenate([assessed, extra])]
    frames, quarantined, held, ok = label(ctx, chosen, f"stage2/{index}", learned.dataset)
    dft = frames.columns["energy_ev"] + pressure * GPA_A3_EV * frames.volumes
    error = np.abs(chosen[ok].columns["enthalpy_ev"] - dft) / frames.counts * 1000
    is_assessed = np.arange(len(chosen))[ok] < len(assessed)
    fresh = {
        "enthalpy_mev_atom": float(error[is_assessed].mean()) if is_assessed.any() else None,
        "enthalpy_median_mev_atom": float(np.median(error[is_assessed])) if is_assessed.any() else None,
        "enthalpy_all_mev_atom": float(error.mean()) if len(error) else None,
    }
    goal = {
        "name": "mean |H_LAM - H_DFT|, meV/atom",
        "value": fresh["enthalpy_mev_atom"],
        "target": stage2.goal_enthalpy_mev,
    }
    reached = fresh["enthalpy_mev_atom"] is not None and fresh["enthalpy_mev_atom"] <= stage2.goal_enthalpy_mev
    # The new labels are trained on even when the goal is met: they are paid for, and the search gains from them.
    dataset = build_dataset(ctx.store, campaign.name, frames, learned.dataset)
    models, errors = train(ctx, dataset, learned.models, "stage2", index)
    record(
        ctx,
        "stage2",
        index,
        explored=explored,
        goal=goal,
        selected=len(chosen),
        labelled=len(frames),
        quarantined=quarantined,
        held=held,
        dataset=dataset,
        models=list(models),
        errors={**errors, **fresh},
        reached=reached,
    )
    return Learned(dataset, models, reached)


def _learn_from(
    ctx: Context,
    learned: Learned,
    stage: str,
    index: int,
    chosen: StructureArrays,
    explored: dict[str, Any],
    goal: dict[str, Any],
) -> Learned:
    frames, quarantined, held, _ = label(ctx, chosen, f"{stage}/{index}", learned.dataset)
    if not len(frames):
        record(
            ctx,
            stage,
            index,
            explored=explored,
            goal=goal,
            selected=len(chosen),
            labelled=0,
            quarantined=quarantined,
            held=held,
            dataset=learned.dataset,
            models=list(learned.models),
            reached=False,
        )
        return learned
    dataset = build_dataset(ctx.store, ctx.campaign.name, frames, learned.dataset)
    models, errors = train(ctx, dataset, learned.models, stage, index)
    record(
        ctx,
        stage,
        index,
        explored=explored,
        goal=goal,
        selected=len(chosen),
        labelled=len(frames),
        quarantined=quarantined,
        held=held,
        dataset=dataset,
        models=list(models),
        errors=errors,
        reached=False,
    )
    return Learned(dataset, models)


def label(
    ctx: Context, structures: StructureArrays, source: str, dataset: str | None = None
) -> tuple[StructureArrays, dict[str, int], dict[str, str], np.ndarray]:
    """DFT labels of structures.

    A label outside the robust range of the `dataset` it is to join (and of its own batch) is held for review: it stays in the
    ledger and is listed with the iteration, but does not train.

    Returns
    -------
    frames : labelled frames, in the order of the structures that have one
    quarantined : failure code → how many
    held : key of each label held for review → why
    ok : (n,) bool, which structures have a label
    """
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
    return frames[~review.held], dict(codes), held, ok


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


def uncertainty(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The trust window of an exploration and what deviations meant on held-out frames; the same in all its jobs."""
    first = next((r for r in results if r.get("trust")), {})
    return {k: first[k] for k in ("trust", "calibration") if first.get(k)}


def accurate_share(classes: dict[str, int]) -> float:
    """Share of accurate frames among the physical ones; broken structures say nothing about accuracy."""
    physical = sum(classes[c] for c in CLASSES if c != "unphysical")
    return classes["accurate"] / physical if physical else 0.0


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
