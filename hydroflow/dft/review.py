"""Does a batch of fresh labels fit the data set? Outliers are held for a person to look at, never silently dropped.

The range is robust (median and median absolute deviation), so that the outliers that it is meant to find do not widen it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hydroflow.arrays import StructureArrays

MIN_FRAMES = 20
"""Below so many frames there is no range to speak of and nothing is held."""
DEVIATIONS = 10.0
"""Held when farther from the median than this many robust standard deviations …"""
SLACK = {"energy": 1.0, "pressure": 100.0, "force": 20.0}
"""… and than this much in any case: eV/atom, GPa, eV/Å. A narrow data set must not call every new structure an outlier."""


@dataclass(frozen=True)
class Review:
    """`held` is (n,) bool; `reasons` has one line per held frame."""

    held: np.ndarray
    reasons: dict[int, str]


def review_batch(frames: StructureArrays, dataset: StructureArrays | None = None) -> Review:
    """Which of freshly labelled `frames` lie outside the robust range of the data set (and of the batch itself).

    Compared are the energy per atom beside what its composition lets expect (linear in the element counts, fitted robustly),
    the pressure, and the largest force.

    Parameters
    ----------
    frames
        Labelled frames: columns ``energy_ev``, ``pressure_gpa``, atom column ``forces_ev_a``.
    dataset
        Frames labelled before, at the same level of theory; None for the first batch.
    """
    held: np.ndarray = np.zeros(len(frames), bool)
    reasons: dict[int, str] = {}
    everything = frames if dataset is None or not len(dataset) else StructureArrays.concatenate([dataset, frames])
    if len(everything) < MIN_FRAMES or not len(frames):
        return Review(held, reasons)
    new = slice(len(everything) - len(frames), None)
    largest = np.zeros(len(everything))
    np.maximum.at(largest, everything.owner, np.linalg.norm(everything.atom_columns["forces_ev_a"], axis=1))
    checks = {
        "energy": (_energy_residual(everything), "eV/atom beside its composition's"),
        "pressure": (everything.columns["pressure_gpa"], "GPa"),
        "force": (largest, "eV/Å as its largest force"),
    }
    for name, (values, unit) in checks.items():
        middle = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - middle)))
        limit = max(DEVIATIONS * spread, SLACK[name])
        for i in np.flatnonzero(np.abs(values[new] - middle) > limit):
            held[i] = True
            text = f"{name} {values[new][i]:.4g} {unit} (data set: {middle:.4g} ± {spread:.2g})"
            reasons[int(i)] = f"{reasons[int(i)]}; {text}" if int(i) in reasons else text
    return Review(held, reasons)


def _energy_residual(frames: StructureArrays) -> np.ndarray:
    """(n,) energy per atom minus its composition's expectation: least absolute deviations by reweighted least squares."""
    numbers = np.unique(frames.numbers)
    shares = np.stack([frames.count_of(int(z)) for z in numbers], axis=1) / frames.counts[:, None]
    energies = frames.columns["energy_ev"] / frames.counts
    weights = np.ones(len(frames))
    residual = energies
    for _ in range(30):
        coefficients = np.linalg.lstsq(shares * weights[:, None], energies * weights, rcond=None)[0]
        residual = energies - shares @ coefficients
        weights = 1 / np.sqrt(np.maximum(np.abs(residual), 1e-3))
    return residual
