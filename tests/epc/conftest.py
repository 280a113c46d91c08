from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def table() -> np.ndarray:
    """Frequencies in Ry and total α²F of H3S."""
    lines = (DATA / "h3s" / "a2F.dos4").read_text().splitlines()
    return np.array([[float(x) for x in line.split()[:2]] for line in lines if line.strip() and line.split()[0][0].isdigit()])
