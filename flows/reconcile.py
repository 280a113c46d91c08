"""Prefect's view after a kill: a flow run whose process died stays Running there for ever unless somebody says so."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed


@contextmanager
def marked_with_process() -> Iterator[None]:
    """Flow runs started inside carry host, process id and its start time as tags, so that their death can be noticed."""
    with tags(_tag(os.getpid())):
        yield


def close_abandoned(campaign: str) -> int:
    """Set flow runs of this campaign that a dead process of this host left Running to Crashed; how many there were."""
    prefix = f"process:{socket.gethostname()}:"
    closed = 0
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(
            name=FlowRunFilterName(any_=[campaign]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
        ))
        for run in runs:
            owner = next((t for t in run.tags if t.startswith(prefix)), None)
            if owner is None or owner == _tag(int(owner.split(":")[2])):
                continue
            client.set_flow_run_state(run.id, Crashed(message="its process was killed; run the campaign again to go on"),
                                      force=True)
            closed += 1
    return closed


def _tag(pid: int) -> str:
    """Names a process uniquely: pids are re-used, pid and start time are not (Linux; elsewhere the pid must do)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            started = stat.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        started = "none"
    return f"process:{socket.gethostname()}:{pid}:{started}"
