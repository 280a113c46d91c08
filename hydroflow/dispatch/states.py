"""The states of a job and the legal transitions between them: the one table that the ledger enforces."""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """Where a job stands. The value is what is stored and queried."""

    prepared = "prepared"
    """Wanted, not yet taken by an agent."""
    submitted = "submitted"
    """Taken for a cluster; it may be in the scheduler's queue (intent is recorded before the scheduler is asked)."""
    running = "running"
    collecting = "collecting"
    """Its process has ended; outputs are being fetched and judged."""
    done = "done"
    failed = "failed"
    """It could not be run for reasons outside itself (no engine, input object missing, lost too often)."""
    quarantined = "quarantined"
    """The engine's verdict after the last declared recovery; files are kept."""
    cancelled = "cancelled"


S = State
TRANSITIONS: dict[State, frozenset[State]] = {
    S.prepared: frozenset({S.submitted, S.failed, S.cancelled}),
    # back to prepared: given back before the scheduler was asked, or lost
    S.submitted: frozenset({S.running, S.collecting, S.prepared, S.failed, S.cancelled}),
    S.running: frozenset({S.collecting, S.prepared, S.failed, S.cancelled}),
    # back to prepared: a recovery or a lost attempt
    S.collecting: frozenset({S.done, S.prepared, S.quarantined, S.failed, S.cancelled}),
    # only on a person's word, or because stored outputs were lost
    S.done: frozenset({S.prepared}),
    S.failed: frozenset({S.prepared}),
    S.quarantined: frozenset({S.prepared}),
    S.cancelled: frozenset({S.prepared}),
}
ACTIVE = (S.submitted, S.running, S.collecting)
"""States in which an agent owns the job and holds a lease on it."""
TERMINAL = (S.done, S.failed, S.quarantined, S.cancelled)


def sources(target: State) -> list[str]:
    """States from which `target` may be reached."""
    return [s.value for s in State if target in TRANSITIONS[s]]
