"""N(E_F) from the eigenvalues of the dense k mesh, before any phonon is computed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import RYDBERG_EV


def fermi_level_ev(pw_output: Path) -> float:
    """Fermi energy that pw.x printed last, in eV."""
    found = re.findall(r"the Fermi energy is\s+([-\d.]+)\s*ev", pw_output.read_text(errors="replace"), re.IGNORECASE)
    if not found:
        raise EngineFailure(FailureCode.truncated_output, f"{pw_output.name} has no Fermi energy")
    return float(found[-1])


def dense_dos(a2f_save: Path, fermi_ev: float, sigmas_ry: list[float]) -> list[float]:
    """N(E_F) at each Gaussian broadening, in states/spin/Ry/cell, from ``x.a2Fsave``.

    The file (list-directed): number of bands and of k points; eigenvalues in Ry, band fastest; k points; their weights.

    Raises
    ------
    EngineFailure
        ``truncated_output`` when the file ends early.
    """
    values = np.array(a2f_save.read_text().split()[:2], int) if a2f_save.exists() else np.zeros(0, int)
    if values.size < 2:
        raise EngineFailure(FailureCode.missing_output, f"{a2f_save.name} is missing or empty: was la2F set?")
    bands, k_points = int(values[0]), int(values[1])
    need = 2 + bands * k_points + 3 * k_points + k_points
    data = np.array(a2f_save.read_text().split()[:need], float)
    if data.size < need:
        raise EngineFailure(FailureCode.truncated_output, f"{a2f_save.name} ends after {data.size} of {need} numbers")
    energies = data[2:2 + bands * k_points].reshape(k_points, bands)
    weights = data[2 + bands * k_points + 3 * k_points:]
    weights = weights / weights.sum()
    out = []
    for sigma in sigmas_ry:
        x = (energies - fermi_ev / RYDBERG_EV) / sigma
        delta = np.exp(-x**2) / (sigma * np.sqrt(np.pi))
        out.append(float((delta.sum(axis=1) * weights).sum()))
    return out
