"""Batches of jobs as Prefect sees them: a table when one has ended, and the wish to cancel from its UI."""

from __future__ import annotations

import time
from uuid import UUID

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run

from hydroflow.store.documents import Job

ASK_EVERY_S = 5.0


class CancelledInPrefect:
    """Whether this flow run was cancelled in Prefect's UI; a run started without a worker is told by nobody else."""

    def __init__(self) -> None:
        self._id = UUID(flow_run.id) if flow_run.id else None
        self._asked = time.monotonic()
        self._answer = False

    def __call__(self) -> bool:
        if self._id is not None and not self._answer and time.monotonic() - self._asked > ASK_EVERY_S:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self._id).state
            self._answer = state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
            self._asked = time.monotonic()
        return self._answer


def show_batch(jobs: list[Job]) -> None:
    """A table artifact ``jobs-KIND``, one version per batch: how many jobs ended how and where, and what they cost."""
    for kind in sorted({job.kind for job in jobs}):
        mine = [job for job in jobs if job.kind == kind]
        ends: dict[tuple[str, str, str], list[Job]] = {}
        for job in mine:
            ends.setdefault((job.state, (job.failure or {}).get("code", ""), job.cluster or ""), []).append(job)
        table = [{
            "state": state, "failure": failure, "cluster": cluster, "jobs": len(those),
            "attempts": sum(j.attempt for j in those),
            "core-hours": round(sum((j.cost or {}).get("core_hours", 0.0) for j in those), 4),
            "first": those[0].key[:12], "said": (those[0].failure or {}).get("message", "")[:200],
        } for (state, failure, cluster), those in sorted(ends.items())]
        key = "jobs-" + "".join(c if c.isalnum() else "-" for c in kind.lower())
        create_table_artifact(key=key, table=table, description=f"{len(mine)} jobs of kind {kind}; `hydroflow jobs show FIRST`")
