"""Settings that need neither pw.x nor installed pseudopotentials."""

from __future__ import annotations

import pytest

from hydroflow.dft.protocol import load_protocol
from hydroflow.dft.settings import LabelSettings
from hydroflow.dft.upf import Pseudo

VALENCE = {"H": 1, "S": 6, "Ca": 10, "La": 11, "Be": 4, "Y": 11, "K": 9, "Ti": 12}


@pytest.fixture(scope="session")
def level() -> LabelSettings:
    """Label level of protocol ``fast`` with made-up checksums for the elements of the stored outputs."""
    protocol = load_protocol("fast")
    pseudos = {e: Pseudo(e, f"{e}.UPF", "0" * 64, "PBE", float(v), "NC", 0.6) for e, v in VALENCE.items()}
    return LabelSettings("quantum-espresso 6.7", "fast", protocol.version, protocol.qe.model_dump(exclude={"cutoffs"}),
                         protocol.checks.model_dump(), "folder", "", "0" * 12, 50.0, 200.0, pseudos)
