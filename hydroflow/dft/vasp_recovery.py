"""Declared corrections of VASP failures, tried in order; none of them changes the level of theory of a label."""

from __future__ import annotations

from typing import Any

from hydroflow.dispatch.engine import Recovery
from hydroflow.errors import EngineFailure, FailureCode

C = FailureCode

CORRECTIONS: dict[FailureCode, tuple[tuple[str, dict[str, Any]], ...]] = {
    C.scf_not_converged: (
        ("ALGO All, 200 iterations", {"incar": {"ALGO": "All", "NELM": 200}}),
        ("slow linear mixing (AMIX 0.1, BMIX 0.0001), 300 iterations",
         {"incar": {"ALGO": "Normal", "AMIX": 0.1, "BMIX": 0.0001, "NELM": 300}}),
        ("ALGO Damped with TIME 0.2, 400 iterations", {"incar": {"ALGO": "Damped", "TIME": 0.2, "NELM": 400}}),
    ),
    C.diagonalisation: (
        ("ALGO Fast", {"incar": {"ALGO": "Fast"}}),
        ("ALGO All", {"incar": {"ALGO": "All"}}),
    ),
    C.charge_density: (
        ("ALGO All from random wave functions", {"incar": {"ALGO": "All", "INIWAV": 1}}),
        ("slow linear mixing (AMIX 0.1, BMIX 0.0001)", {"incar": {"AMIX": 0.1, "BMIX": 0.0001}}),
    ),
    C.symmetry_mismatch: (
        ("SYMPREC 1e-8", {"incar": {"SYMPREC": 1e-8}}),
        ("no symmetry (ISYM 0)", {"incar": {"ISYM": 0}}),
    ),
    C.killed: (("started again", {}), ("started again", {})),
    C.lost: (("started again", {}), ("started again", {})),
    C.truncated_output: (("started again", {}),),
    C.missing_output: (("started again", {}),),
    C.corrupted_output: (("started again", {}),),
    C.disk_full: (("started again", {}),),
}

MAX_RESTARTS = 4


def correction(failure: EngineFailure, attempt: int) -> Recovery | None:
    """The correction after the `attempt`-th failure (1-based) of a job; None when nothing more is declared."""
    if failure.details.get("final"):
        return None
    from_last = "structure" in failure.details
    if failure.code in (C.relaxation_not_converged, C.walltime) and from_last and attempt <= MAX_RESTARTS:
        again: dict[str, Any] = {"structure": failure.details["structure"], "restarts": failure.details.get("restarts", 0) + 1}
        if "line search" in failure.message:
            return Recovery("went on from CONTCAR with quasi-Newton steps (IBRION 1)", {**again, "incar": {"IBRION": 1}})
        return Recovery("went on from CONTCAR", again)
    steps = CORRECTIONS.get(failure.code, ())
    if attempt > len(steps):
        return None
    action, adjustments = steps[attempt - 1]
    return Recovery(action, {k: dict(v) for k, v in adjustments.items()})
