"""Errors of a model against labelled frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols

from hydroflow.arrays import StructureArrays
from hydroflow.lam.datasets import pressure_bins
from hydroflow.lam.model import Evaluation, LamModel


def errors(model: LamModel, frames: StructureArrays) -> dict[str, Any]:
    """Root-mean-square and mean absolute errors against the labels.

    Returns
    -------
    dict
        ``frames``; ``energy_mev_atom``, ``force_mev_a``, ``virial_mev_atom`` (root mean square, as the field reports them: energy
        and virial per atom, force per component); the same with ``mae_`` in front; ``per_element`` (force, meV/Å) and
        ``per_pressure`` (energy, force, virial in bins of 50 GPa). Empty frames give ``{"frames": 0}``.
    """
    if not len(frames):
        return {"frames": 0}
    return from_evaluation(model.evaluate(frames), frames)


def from_evaluation(found: Evaluation, frames: StructureArrays) -> dict[str, Any]:
    """As :func:`errors`, from an evaluation that was made already."""
    n = frames.counts
    energy = (found.energy_ev - frames.columns["energy_ev"]) / n * 1e3
    force = (found.forces_ev_a - frames.atom_columns["forces_ev_a"]) * 1e3
    virial = (found.virial_ev - frames.columns["virial_ev"]) / n[:, None, None] * 1e3
    owner = frames.owner
    out: dict[str, Any] = {"frames": len(frames), **_summary(energy, force, virial)}
    out["per_element"] = {chemical_symbols[int(z)]: _rms(force[frames.numbers == z]) for z in np.unique(frames.numbers)}
    out["per_pressure"] = {}
    pressures = pressure_bins(frames.columns["pressure_gpa"])
    for p in np.unique(pressures):
        rows = pressures == p
        values = _summary(energy[rows], force[rows[owner]], virial[rows])
        out["per_pressure"][str(p)] = {k: v for k, v in values.items() if not k.startswith("mae")} | {"frames": int(rows.sum())}
    return out


def _rms(values: np.ndarray) -> float:
    return round(float(np.sqrt((values**2).mean())), 3)


def _summary(energy: np.ndarray, force: np.ndarray, virial: np.ndarray) -> dict[str, float]:
    named = {"energy_mev_atom": energy, "force_mev_a": force, "virial_mev_atom": virial}
    return {k: _rms(v) for k, v in named.items()} | {f"mae_{k}": round(float(np.abs(v).mean()), 3) for k, v in named.items()}
