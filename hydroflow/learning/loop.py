"""Two-stage concurrent learning of the Large Atomic Model [Wang et al. 2025].

Bootstrap: random structures are labelled and the first ensemble is trained. Stage 1: relax random structures at several
pressures, measure the force deviation of the ensemble along all trajectories, label the uncertain frames, train again,
until the share of accurate frames on a fresh exploration reaches its goal. Stage 2: label relaxed structures and compare
their enthalpy with DFT, until the error on fresh ones reaches its goal.

Every function is a deterministic function of the campaign and the ledger: run again after a crash, it asks for the same
jobs, finds the finished ones done, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.dft.settings import campaign_settings
from hydroflow.errors import CampaignError
from hydroflow.lam.datasets import build_dataset
from hydroflow.lam.ensemble import CLASSES
from hydroflow.lam.train import ENGINE
from hydroflow.learning.assess import accurate_share, mostly_unphysical, unanswered, uncertainty
from hydroflow.learning.context import Context
from hydroflow.learning.explore import explore_specs, seed_of
from hydroflow.learning.requests import draw_requests
from hydroflow.learning.select import select_relaxed, select_uncertain
from hydroflow.learning.steps import Labelled, LearningFailed, done, label, output, record, train
from hydroflow.screening.hull import hull_distances
from hydroflow.store.documents import Dataset
from hydroflow.structures import generate
from hydroflow.units import GPA_A3_EV

PER_TRAJECTORY = 3
"""Most frames labelled out of one trajectory: neighbours along a relaxation teach nearly the same."""


@dataclass(frozen=True)
class Learned:
    """What the loop has: the dataset and the ensemble trained on it (object digests)."""

    dataset: str
    models: tuple[str, ...]
    reached: bool = False


def bootstrap(ctx: Context) -> Learned:
    """Label a first batch of random structures over the exploration pressures and train the first ensemble, on top of the
    campaign's dataset where it names one."""
    campaign = ctx.campaign
    parent = starting_dataset(campaign)
    structures = _random_structures(campaign)
    found = label(ctx, structures, "bootstrap/0", parent)
    frames = found.frames
    if len(frames) < max(0 if parent else 4, len(structures) // 5):
        raise LearningFailed(
            f"only {len(frames)} of {len(structures)} bootstrap labels are usable ({found.quarantined}); see `hydroflow jobs "
            "list --state quarantined` and check labels.protocol and the pseudopotentials"
        )
    dataset = parent
    if dataset is None or len(frames):
        dataset = build_dataset(ctx.store, campaign.name, frames, parent)
    models, errors = train(ctx, dataset, None, "bootstrap", 0)
    record(
        ctx,
        "bootstrap",
        0,
        explored={"structures": len(structures)},
        selected=len(structures),
        labelled=len(frames),
        quarantined=found.quarantined,
        held=found.held,
        dataset=dataset,
        models=list(models),
        errors=errors,
        reached=True,
    )
    return Learned(dataset, models)


def starting_dataset(campaign: Campaign) -> str | None:
    """Digest of the dataset that a campaign starts from; None where it names none.

    Raises
    ------
    CampaignError
        when it is not in the records, its label settings are not those that the campaign labels with, or it lacks an element
        and nothing is to be labelled beside it.
    """
    if campaign.learning.dataset is None:
        return None
    prefix = f"sha256:{campaign.learning.dataset.removeprefix('sha256:')}"
    found = list(Dataset.objects(digest__startswith=prefix).limit(2))
    if len(found) != 1:
        raise CampaignError(
            f"learning.dataset = {campaign.learning.dataset!r}: {'several' if found else 'no'} datasets begin with it; "
            "`hydroflow datasets list` names them"
        )
    settings = campaign_settings(campaign).text
    if found[0].label_settings != settings:
        raise CampaignError(
            f"learning.dataset was labelled with '{found[0].label_settings}', this campaign labels with '{settings}'; levels of "
            "theory are never mixed: change [labels], or import the dataset under these words if they are what it was made with"
        )
    lacking = {"H", *campaign.space.elements} - set(found[0].counts["element"])
    if lacking and not campaign.learning.bootstrap_labels:
        raise CampaignError(f"learning.dataset has no frame with {', '.join(sorted(lacking))}: set learning.bootstrap_labels")
    return str(found[0].digest)


def _random_structures(campaign: Campaign) -> StructureArrays:
    """The structures of the bootstrap, over the exploration pressures."""
    pressures = campaign.pressure.explore_gpa
    parts = []
    for i, pressure in enumerate(pressures):
        seed = seed_of(campaign, "bootstrap", pressure)
        n = campaign.learning.bootstrap_labels
        n = n // len(pressures) + (i < n % len(pressures))
        if n:
            requests = draw_requests(campaign.space, n, np.random.default_rng(seed))
            parts.append(generate(campaign, requests, pressure, seed, on_failure=lambda failure: None))
    return StructureArrays.concatenate(parts)


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
    explorations = done(jobs, "exploration")
    results = [j.result for j in explorations]
    classes = {c: sum(r["classes"][c] for r in results) for c in CLASSES}
    explored = {
        "structures": sum(r["structures"] for r in results),
        "frames": sum(r["frames"] for r in results),
        **classes,
        **uncertainty(results),
    }
    share = accurate_share(classes)
    goal: dict[str, Any] = {"name": "share of accurate frames", "value": share, "target": stage1.goal_accurate}
    # A share of what is left when a pressure has no answer, or most frames are broken, is no success.
    if doubts := [*unanswered(jobs), *mostly_unphysical(classes)]:
        goal["doubts"] = doubts
    if share >= stage1.goal_accurate and not doubts:
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

    frames = StructureArrays.concatenate(output(ctx, j, "frames.parquet") for j in explorations)
    rng = np.random.default_rng(seed_of(campaign, "stage1", index, "select"))
    chosen = frames
    if len(frames):
        within, beyond = select_uncertain(frames, explored["trust"][1], stage1.labels, PER_TRAJECTORY, rng)
        chosen = frames[np.concatenate([within, beyond])]
        explored["labelled_beyond_trust"] = len(beyond)
    found = label(ctx, chosen, f"stage1/{index}", learned.dataset)
    return _learn_from(ctx, learned, "stage1", index, chosen, explored, goal, found)


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
        return replace(learned, reached=False)  # that of stage 1 does not end stage 2
    rng = np.random.default_rng(seed_of(campaign, "stage2", index, "select"))
    distance = hull_distances(relaxed, relaxed.columns["enthalpy_ev"] / relaxed.counts)
    assessed, extra = select_relaxed(relaxed, distance, stage2.labels, rng)
    chosen = relaxed[np.concatenate([assessed, extra])]
    found = label(ctx, chosen, f"stage2/{index}", learned.dataset)
    frames = found.frames
    is_assessed = np.arange(len(chosen)) < len(assessed)
    n_assessed = int((is_assessed & found.ok).sum())
    goal: dict[str, Any] = {
        "name": "mean |H_LAM - H_DFT|, meV/atom",
        "value": None,
        "target": stage2.goal_enthalpy_mev,
        # An error of the few that could be labelled, or without those held for review, is lower than the truth.
        "assessed": n_assessed,
        "of": len(assessed),
        "held": int((is_assessed & found.on_hold).sum()),
    }
    if not len(frames):
        return _learn_from(ctx, learned, "stage2", index, chosen, explored, goal, found)
    dft = frames.columns["energy_ev"] + pressure * GPA_A3_EV * frames.volumes
    error = np.abs(chosen[found.ok].columns["enthalpy_ev"] - dft) / frames.counts * 1000
    judged = error[is_assessed[found.ok]]
    goal["value"] = float(judged.mean()) if n_assessed else None
    fresh = {
        "enthalpy_mev_atom": goal["value"],
        "enthalpy_median_mev_atom": float(np.median(judged)) if n_assessed else None,
        "enthalpy_all_mev_atom": float(error.mean()),
    }
    if 2 * n_assessed < len(assessed):
        goal["doubts"] = [f"only {n_assessed} of {len(assessed)} structures that the error is measured on have a label"]
    reached = n_assessed > 0 and goal["value"] <= stage2.goal_enthalpy_mev and "doubts" not in goal
    # The new labels are trained on even when the goal is met: they are paid for, and the search gains from them.
    return _learn_from(ctx, learned, "stage2", index, chosen, explored, goal, found, fresh, reached)


def _learn_from(
    ctx: Context,
    learned: Learned,
    stage: str,
    index: int,
    chosen: StructureArrays,
    explored: dict[str, Any],
    goal: dict[str, Any],
    found: Labelled,
    fresh: dict[str, Any] | None = None,
    reached: bool = False,
) -> Learned:
    """Train on the new labels and record the iteration; one that brought none goes on with the same models.

    `fresh` are errors on what was explored, beside those of the training.
    """
    after, errors = replace(learned, reached=False), dict[str, Any]()
    if len(found.frames):
        dataset = build_dataset(ctx.store, ctx.campaign.name, found.frames, learned.dataset)
        models, errors = train(ctx, dataset, learned.models, stage, index)
        after = Learned(dataset, models, reached)
    record(
        ctx,
        stage,
        index,
        explored=explored,
        goal=goal,
        selected=len(chosen),
        labelled=len(found.frames),
        quarantined=found.quarantined,
        held=found.held,
        dataset=after.dataset,
        models=list(after.models),
        errors={**errors, **(fresh or {})},
        reached=reached,
    )
    return after
