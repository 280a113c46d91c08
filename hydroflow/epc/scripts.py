"""What the chain's jobs share: the head of their scripts, pools, and what every one of them recovers from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.dispatch import mpi
from hydroflow.dispatch.engine import Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, FailureCode

SAVE = "save.tar.gz"
"""The ground state as ``epc.scf`` packs it for linear response."""

# Some messages of a Fortran program that is killed stay in its buffers without this.
# Without ESPRESSO_PSEUDO a missing pseudopotential would be looked for, and perhaps found, in the system's directory.
_HEAD = """set -e
export GFORTRAN_UNBUFFERED_PRECONNECTED=y
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ESPRESSO_PSEUDO="$PWD"
"""


def head(job: JobSpec) -> str:
    """First lines of a job's script."""
    return _HEAD + (f"export {mpi.SERIAL}\n" if job.resources.cores == 1 else "")


def exit_code(folder: Path) -> str:
    """What the agent noted of the whole job, empty where it noted nothing."""
    path = folder / "exit_code"
    return path.read_text().strip() if path.exists() else ""


def pools(job: JobSpec, adjustments: Mapping[str, Any], mesh: str = "coarse") -> str:
    """``-nk`` for pw.x and ph.x: k points are the cheapest thing to share, as far as there surely are enough of them on the
    smallest mesh of the job."""
    k_points = int(np.prod(job.inputs[mesh])) // 8
    number = adjustments.get("pools") or max(
        d for d in range(1, job.resources.cores + 1) if job.resources.cores % d == 0 and d <= max(k_points, 1))
    return f" -nk {number}" if number > 1 else ""


DAMAGED = (FailureCode.missing_restart_data, FailureCode.truncated_output, FailureCode.missing_output,
           FailureCode.corrupted_output)
"""Failures of which an attempt in a fresh folder is likely to be free."""


def killed(failure: EngineFailure, attempt: int, most: int) -> Recovery | None:
    """What a job does that was stopped from outside, up to `most` times."""
    if failure.code in (FailureCode.walltime, FailureCode.killed) and attempt <= most:
        return Recovery("continued in its folder, from what it had finished", keep_folder=True)
    return None


def times(parts: list[dict[str, float]]) -> dict[str, float]:
    """CPU and wall seconds of the runs of a job."""
    return {key: round(sum(p.get(key, 0.0) for p in parts), 2) for key in ("cpu_s", "wall_s")}
