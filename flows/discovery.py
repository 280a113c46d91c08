"""The discovery flow: learning → search → screening → electron–phonon coupling → Tc loop, over plain Python.

Tasks carry the campaign's name and object digests only. Nothing is cached in Prefect: every stage is a deterministic
function of the campaign and the job ledger, so a flow that was killed is simply run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from flows.batches import CancelledInPrefect, show_batch
from flows.progress import StageProgress
from hydroflow.campaign import Campaign
from hydroflow.dispatch.ledger import Ledger
from hydroflow.errors import RunCancelled
from hydroflow.learning import loop
from hydroflow.learning.context import Context
from hydroflow.learning.loop import Learned
from hydroflow.screening.funnel import screen
from hydroflow.search import adaptive
from hydroflow.store import open_store
from hydroflow.store.documents import Iteration, Job
from hydroflow.store.runs import finish, get_run, open_run, summarise, timed_stage
from hydroflow.tc.rounds import tc_rounds


@contextmanager
def stage_context(campaign_name: str, stage: str) -> Iterator[Context]:
    """Context of one stage of a started campaign; its wall time goes into the record."""
    store = open_store()
    campaign = Campaign.from_json(get_run(campaign_name).text)
    with timed_stage(campaign_name, stage):
        ledger = Ledger(store, CancelledInPrefect(), show_batch)
        yield Context(campaign, store, ledger, StageProgress(campaign_name, stage))


@task(task_run_name="bootstrap")
def bootstrap(campaign_name: str) -> Learned:
    """First random labels and the first ensemble."""
    with stage_context(campaign_name, "bootstrap") as ctx:
        return loop.bootstrap(ctx)


@task(task_run_name="stage1-{index}")
def stage1(campaign_name: str, learned: Learned, index: int) -> Learned:
    """Explore, select by force deviation, label, train."""
    with stage_context(campaign_name, "stage1") as ctx:
        return loop.stage1_iteration(ctx, learned, index)


@task(task_run_name="stage2-{index}")
def stage2(campaign_name: str, learned: Learned, index: int) -> Learned:
    """Relax, label relaxed structures, compare enthalpies."""
    with stage_context(campaign_name, "stage2") as ctx:
        return loop.stage2_iteration(ctx, learned, index)


@task
def search_and_screen(campaign_name: str, learned: Learned) -> dict[str, int]:
    """Search every composition with the trained model, then the five filters; counts by filter."""
    with stage_context(campaign_name, "search") as ctx:
        found = adaptive.search(ctx.campaign, ctx.store, ctx.ledger, learned.models[0], ctx.progress)
    with stage_context(campaign_name, "screening") as ctx:
        counts = screen(ctx.campaign, ctx.store, ctx.ledger, found.structures, learned.models[0], ctx.progress,
                        searched=found.ternaries)
        summarise(campaign_name, funnel=[vars(s) for s in counts.steps], hull=counts.hull)
    create_table_artifact(key="funnel", table=[vars(s) for s in counts.steps])
    return {s.name: s.count for s in counts.steps}


@task
def coupling_and_tc(campaign_name: str, learned: Learned) -> int:
    """EPC of the best candidates, the Tc model and its ranking, more EPC; how many candidates have EPC."""
    with stage_context(campaign_name, "tc") as ctx:
        return tc_rounds(ctx.campaign, ctx.store, ctx.ledger, learned.models[0], learned.dataset, ctx.progress)


def cancel_jobs(flow, flow_run, state) -> None:  # type: ignore[no-untyped-def]  # Prefect wants these very names
    """A flow run cancelled in the UI cancels the campaign's unfinished jobs on their clusters."""
    campaign = flow_run.parameters["campaign"]
    cancel_campaign(campaign["name"] if isinstance(campaign, dict) else campaign.name)


def cancel_campaign(name: str) -> None:
    """Cancel the campaign's unfinished jobs; those that another campaign wants too go on."""
    keys = list(Job.objects(campaigns=name).scalar("key"))
    Ledger(open_store()).cancel(keys, campaign=name, reason="its flow run was cancelled")


@flow(name="discovery", flow_run_name="{campaign.name}", on_cancellation=[cancel_jobs])
def discovery(campaign: Campaign) -> dict[str, int] | State:
    """Discover superconducting ternary hydrides: learn the model, search, screen, compute Tc.

    Run again after any interruption, it goes on; finished labels and EPC calculations are never computed again.
    """
    open_store()
    open_run(campaign)
    try:
        return stages(campaign)
    except RunCancelled as told:
        cancel_campaign(campaign.name)
        return Cancelled(message=str(told))


def stages(campaign: Campaign) -> dict[str, int]:
    """All stages in their order; how many candidates each filter left."""
    name, learning = campaign.name, campaign.learning
    learned = bootstrap(name)
    for index in range(learning.stage1.max_iterations):
        learned = stage1(name, learned, index)
        if learned.reached:
            break
    for index in range(learning.stage2.max_iterations):
        learned = stage2(name, learned, index)
        if learned.reached:
            break
    create_table_artifact(
        key="learning",
        table=[
            {
                "stage": i.stage,
                "iteration": i.index,
                "labels": i.labelled,
                **{k: v for k, v in i.errors.items() if v is not None},
            }
            for i in Iteration.objects(campaign=name).order_by("started")
        ],
    )
    counts = search_and_screen(name, learned)
    counts["epc"] = coupling_and_tc(name, learned)
    finish(name)
    return counts
