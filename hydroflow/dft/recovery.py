"""Declared corrections of pw.x failures, tried in order; none of them changes the level of theory of a label."""

from __future__ import annotations

from typing import Any

from hydroflow.dispatch.engine import Recovery
from hydroflow.errors import EngineFailure, FailureCode

C = FailureCode

_RANDOM = {"startingwfc": "random"}

# code → (what is done, adjustments) for the first, second, … failure of a job with this code. After the last: quarantine.
CORRECTIONS: dict[FailureCode, tuple[tuple[str, dict[str, Any]], ...]] = {
    C.scf_not_converged: (
        ("mixing_beta 0.2, up to 200 iterations", {"electrons": {"mixing_beta": 0.2, "electron_maxstep": 200}}),
        ("local-TF mixing with mixing_beta 0.3, up to 200 iterations",
         {"electrons": {"mixing_mode": "local-TF", "mixing_beta": 0.3, "electron_maxstep": 200}}),
        ("conjugate gradients, mixing_beta 0.1 over 12 steps, up to 300 iterations",
         {"electrons": {"diagonalization": "cg", "mixing_beta": 0.1, "mixing_ndim": 12, "electron_maxstep": 300}}),
    ),
    C.diagonalisation: (
        ("random starting wave functions, Davidson space of 4", {"electrons": {**_RANDOM, "diago_david_ndim": 4}}),
        ("conjugate gradients from random wave functions", {"electrons": {**_RANDOM, "diagonalization": "cg"}}),
    ),
    C.charge_density: (
        ("random starting wave functions, mixing_beta 0.2, small steps of the cell",
         {"electrons": {**_RANDOM, "mixing_beta": 0.2}, "ions": {"trust_radius_ini": 0.01, "trust_radius_max": 0.1}}),
    ),
    C.too_few_bands: (("half as many bands again as are occupied", {"more_bands": 1.5}),),
    C.parallel_limits: (("one k-point pool", {"pools": 1}),),
    C.out_of_memory: (
        ("one k-point pool, Davidson space of 2, 4 mixing steps",
         {"pools": 1, "electrons": {"diago_david_ndim": 2, "mixing_ndim": 4}}),
        ("conjugate gradients, one k-point pool", {"pools": 1, "electrons": {"diagonalization": "cg", "mixing_ndim": 4}}),
    ),
    C.killed: (("started again", {}), ("started again", {})),
    C.lost: (("started again", {}), ("started again", {})),
    C.truncated_output: (("started again", {}),),
    C.missing_output: (("started again", {}),),
    C.corrupted_output: (("started again", {}),),
    C.missing_restart_data: (("started again from scratch", {}),),
    C.disk_full: (("started again", {}),),
    C.unknown: (("started again with random wave functions", {"electrons": {**_RANDOM}}),),
}

MAX_RESTARTS = 4


def correction(failure: EngineFailure, attempt: int) -> Recovery | None:
    """The correction after a job's `attempt`-th failure (1-based) with this code; None when nothing more is declared."""
    if failure.details.get("final"):
        return None
    if failure.code is C.walltime and attempt <= MAX_RESTARTS:
        return Recovery("went on from the wave functions it had saved", {"restart": True}, keep_folder=True)
    if failure.code is C.relaxation_not_converged and attempt <= MAX_RESTARTS and "structure" in failure.details:
        return Recovery("went on from the last structure of the relaxation", {
            "structure": failure.details["structure"], "restarts": failure.details.get("restarts", 0) + 1,
            **({"least_mesh": failure.details["least_mesh"]} if "least_mesh" in failure.details else {})})
    steps = CORRECTIONS.get(failure.code, ())
    if attempt > len(steps):
        return None
    action, adjustments = steps[attempt - 1]
    return Recovery(action, {k: dict(v) if isinstance(v, dict) else v for k, v in adjustments.items()})
