"""The α²F of H3S that tests write in many forms, and what reading any of them must give."""

from __future__ import annotations

from pathlib import Path

import pytest

from hydroflow.epc.readers import A2FFile, read_a2f

LAMBDA, OMEGA_LOG = 1.84194, 1570.7
"""Of a2F.dos4: λ as matdyn.x wrote it, ω_log from it."""


def check(path: Path, name: str, unit: str = "auto") -> A2FFile:
    found = read_a2f(path, unit)
    assert found.format == name
    assert found.spectra[0].coupling.lambda_ == pytest.approx(LAMBDA, rel=2e-3)
    assert found.spectra[0].coupling.omega_log_k == pytest.approx(OMEGA_LOG, rel=2e-3)
    return found
