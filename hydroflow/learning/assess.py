"""What an exploration says of the models, and whether a goal of stage 1 can be judged by it."""

from __future__ import annotations

from typing import Any

from hydroflow.lam.ensemble import CLASSES
from hydroflow.store.documents import Job

MOST_UNPHYSICAL = 0.5
"""Share of broken frames (overlapping atoms, exploded cells) beyond which the accuracy of the others is no success."""


def uncertainty(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The trust window of an exploration and what deviations meant on held-out frames; the same in all its jobs."""
    first = next((r for r in results if r.get("trust")), {})
    return {k: first[k] for k in ("trust", "calibration") if first.get(k)}


def unanswered(jobs: list[Job]) -> list[str]:
    """In words, the pressures whose exploration failed."""
    return [
        f"no answer at {j.inputs['pressure_gpa']:g} GPa: {(j.failure or {}).get('message', j.state)}"
        for j in jobs
        if j.state != "done"
    ]


def mostly_unphysical(classes: dict[str, int]) -> list[str]:
    """In words, that more than half of the frames are broken; nothing where they are not."""
    frames = sum(classes.values())
    share = classes["unphysical"] / frames if frames else 0.0
    return [f"{share:.0%} of the frames are unphysical"] if share > MOST_UNPHYSICAL else []


def accurate_share(classes: dict[str, int]) -> float:
    """Share of accurate frames among the physical ones; broken structures say nothing about accuracy."""
    physical = sum(classes[c] for c in CLASSES if c != "unphysical")
    return classes["accurate"] / physical if physical else 0.0
