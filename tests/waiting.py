"""Waiting in tests: for a condition with a generous limit, never for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], wait_s: float = 60.0) -> bool:
    """True as soon as the condition holds, False when it never did."""
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def connected(agent: Any) -> None:
    """Wait until all clusters of an agent are connected and have looked for work."""
    assert until(lambda: all(actor.placement.room is not None for actor in agent.actors.values())), {
        name: actor.health for name, actor in agent.actors.items()}
