"""What an EPC calculation will cost, before it runs: from the crystal and the protocol, scaled to the ledger's own timings.

Linear response is one self-consistent problem per mode and q, over the k points that symmetry leaves:

    work = 3N · (q points · k points / operations) · (V · E_cut^1.5) · electrons

with plane waves per band in the third factor. Constant and exponent of ``core hours = c · work^p`` are fitted to finished
chains where there are enough of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import spglib

from hydroflow.epc.protocols import Crystal, Meshes

DEFAULT_CONSTANT = 1.2e-9
"""Core hours per unit of work of QE 6.7 on one core of an ordinary server."""
DEFAULT_EXPONENT = 1.0
LEAST_TIMINGS = 8
"""Finished calculations before the exponent is fitted too; with fewer, only the constant is."""


def work(crystal: Crystal, grid: Meshes, ecutwfc_ry: float, electrons: float) -> float:
    """Size of the linear-response problem, in arbitrary units.

    Parameters
    ----------
    electrons
        Valence electrons per cell.
    """
    data = spglib.get_symmetry((crystal.cell, crystal.fractional, crystal.numbers), symprec=1e-3)
    operations = len(data["rotations"]) if data is not None else 1
    points = np.prod(grid.q) * np.prod(grid.coarse) / operations
    volume = abs(np.linalg.det(crystal.cell))
    return float(3 * len(crystal.numbers) * max(points, 1.0) * volume * ecutwfc_ry**1.5 * max(electrons, 1.0))


@dataclass(frozen=True)
class CostModel:
    """Core hours = constant · work^exponent; `relative_error` is the scatter of ln(hours) of the fit."""

    constant: float = DEFAULT_CONSTANT
    exponent: float = DEFAULT_EXPONENT
    relative_error: float = 1.0
    timings: int = 0

    def core_hours(self, work_units: float) -> float:
        return float(self.constant * work_units**self.exponent)


def fit(works: Sequence[float], core_hours: Sequence[float]) -> CostModel:
    """Cost model from finished calculations; the default one when there are none.

    Few timings only shift the constant: an exponent from a handful of similar cells would extrapolate badly.
    """
    w, h = np.asarray(works, float), np.asarray(core_hours, float)
    good = (w > 0) & (h > 0) & np.isfinite(w) & np.isfinite(h)
    x, y = np.log(w[good]), np.log(h[good])
    if not len(x):
        return CostModel()
    exponent = DEFAULT_EXPONENT
    if len(x) >= LEAST_TIMINGS and np.ptp(x) > 1:
        exponent = float(np.clip(np.polyfit(x, y, 1)[0], 0.5, 1.5))
    offset = float(np.median(y - exponent * x))
    return CostModel(float(np.exp(offset)), exponent, float(np.std(y - exponent * x - offset)), len(x))


def timings(results: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Work and core hours of finished results of :func:`hydroflow.epc.chain.run_chain`."""
    rows = [r for r in results if r.get("status") == "done" and r.get("work") and r.get("core_hours")]
    return [float(r["work"]) for r in rows], [float(r["core_hours"]) for r in rows]
