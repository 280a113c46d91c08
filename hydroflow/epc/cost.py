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

from hydroflow.epc.protocols import Crystal, Meshes, Protocol, meshes, symmetries

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
    operations = max(1, symmetries(np.array(crystal.numbers), crystal.cell, crystal.fractional))
    return _work(len(crystal.numbers), abs(np.linalg.det(crystal.cell)), grid, operations, ecutwfc_ry, electrons)


def _work(atoms: int, volume: float, grid: Meshes, operations: int, ecutwfc_ry: float, electrons: float) -> float:
    points = np.prod(grid.q) * np.prod(grid.coarse) / operations
    return float(3 * atoms * max(points, 1.0) * volume * ecutwfc_ry**1.5 * max(electrons, 1.0))


def typical_core_hours(settings: Protocol, atoms: int) -> float:
    """Core-hours of a hydride with so many atoms per primitive cell, for plans that have no structures yet.

    A cubic cell at 200 GPa: 3.2 Å³ and 3 valence electrons per atom (H3S, CaH6, YH6, LaYH12, LaBeH8: 2.8 to 3.4 Å³), 60 Ry, and 8
    symmetry operations: crystals of the space groups from 75 on have 4 to 48, so single ones are from 6 times cheaper to twice as
    dear.
    """
    volume = 3.2 * atoms
    cube = Crystal((1, 1), volume ** (1 / 3) * np.eye(3), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]))
    return CostModel().core_hours(_work(atoms, volume, meshes(cube, settings), 8, 60.0, 3.0 * atoms))


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
