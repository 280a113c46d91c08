"""What an actor remembers: the batches it is responsible for, and how its cluster is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hydroflow.dispatch.engine import engine_for
from hydroflow.dispatch.job import Resources
from hydroflow.dispatch.ledger import spec_of
from hydroflow.dispatch.scheduler import Batch, BatchJob
from hydroflow.errors import HydroflowError


@dataclass
class Tracked:
    """A batch this actor is responsible for."""

    name: str
    jobs: dict[str, dict[str, Any]]
    ident: str = ""
    """Scheduler id; empty while it is not known whether it was submitted."""
    offered: bool = False
    """The scheduler may have been asked: it must be looked for before anything else is done with it."""
    stopped: set[str] = field(default_factory=set)
    """Jobs that were stopped because nobody wants them any more."""
    seen_running: bool = False
    ended: bool = False
    silent_since: float | None = None
    """Since when it has ended with a job that left no exit code."""

    def batch(self) -> Batch:
        return Batch(self.name, tuple(
            BatchJob(key, Resources(**job.get("resources", {})), _outputs(job)) for key, job in sorted(self.jobs.items())))

    @property
    def cores(self) -> int:
        return max((job.get("resources", {}).get("cores", 1) for job in self.jobs.values()), default=0)

    @property
    def gpus(self) -> int:
        return max((job.get("resources", {}).get("gpus", 0) for job in self.jobs.values()), default=0)


@dataclass
class Health:
    """What people are told about a cluster."""

    state: str = "connecting"
    reason: str = ""
    failures: int = 0
    until: float = 0.0
    jobs: dict[str, int] = field(default_factory=dict)


def _outputs(job: Mapping[str, Any]) -> tuple[str, ...]:
    spec = spec_of(job)
    try:
        return tuple(engine_for(spec.kind).outputs(spec))
    except HydroflowError:
        return ()
