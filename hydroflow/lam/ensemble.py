"""Uncertainty of the model: an ensemble trained from different seeds, and what its disagreement means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.lam.model import LamModel
from hydroflow.lam.neighbours import closest_contacts
from hydroflow.units import EV_A3_GPA

CLASSES = ("accurate", "candidate", "unreliable", "unphysical")
_VOLUME_PER_ATOM_A3 = (0.7, 60.0)


@dataclass(frozen=True)
class Deviation:
    """Disagreement of an ensemble about each structure.

    Attributes
    ----------
    max_force_ev_a, mean_force_ev_a : (n,)
        Largest and mean over the atoms of √⟨|F − ⟨F⟩|²⟩ (Zhang et al., Phys. Rev. Mater. 3, 023804 (2019)), eV/Å.
    relative_force : (n,)
        Largest over the atoms of the same divided by |⟨F⟩| + 1 eV/Å: large forces may differ more.
    enthalpy_ev_atom : (n,)
        Standard deviation of E + PV over the ensemble, eV/atom; PV is the same for all at a given cell, so that of E.
    pressure_gpa : (n,)
        Standard deviation of the pressure.
    unphysical : (n,) bool
        Atoms overlap, the cell exploded or collapsed, or a value is not finite: see :func:`unphysical_structures`.
    """

    max_force_ev_a: np.ndarray
    mean_force_ev_a: np.ndarray
    relative_force: np.ndarray
    enthalpy_ev_atom: np.ndarray
    pressure_gpa: np.ndarray
    unphysical: np.ndarray

    def classify(self, trust_low_ev_a: float, trust_high_ev_a: float) -> np.ndarray:
        """Class of each structure from its largest force deviation.

        Returns
        -------
        (n,) str
            ``accurate`` below `trust_low_ev_a`; ``candidate`` (worth a label) up to `trust_high_ev_a`; ``unreliable`` above;
            ``unphysical``, whatever the deviation, for what no label is spent on.
        """
        out = np.full(len(self.max_force_ev_a), "candidate", dtype="U10")
        out[self.max_force_ev_a < trust_low_ev_a] = "accurate"
        out[self.max_force_ev_a > trust_high_ev_a] = "unreliable"
        out[self.unphysical] = "unphysical"
        return out


class Ensemble:
    """Models that differ by their seed; ``models[0]`` is the one that relaxes."""

    def __init__(self, models: Sequence[LamModel]) -> None:
        if len(models) < 2:
            raise DataError(f"an ensemble needs two models or more, not {len(models)}")
        maps = {tuple(m.type_map) for m in models}
        if len(maps) > 1:
            raise DataError("the models of an ensemble have different type maps; train them from one campaign file")
        self.models = list(models)

    @classmethod
    def load(cls, paths: Sequence[str | Path], device: str | None = None) -> Ensemble:
        """Read the checkpoints of an ensemble.

        Raises
        ------
        DataError
            for fewer than two, an unreadable one, or different type maps.
        """
        return cls([LamModel.load(p, device=device) for p in paths])

    def deviation(self, arrays: StructureArrays) -> Deviation:
        """Disagreement about each structure; NaN for a collapsed cell."""
        n = len(arrays)
        if not n:
            nothing = np.zeros(0)
            return Deviation(nothing, nothing, nothing, nothing, nothing, np.zeros(0, bool))
        results = [m.evaluate(arrays) for m in self.models]
        energies = np.stack([r.energy_ev for r in results])
        forces = np.stack([r.forces_ev_a for r in results])
        mean = forces.mean(axis=0)
        atom = np.sqrt(((forces - mean) ** 2).sum(axis=2).mean(axis=0))
        relative = atom / (np.linalg.norm(mean, axis=1) + 1.0)
        starts = arrays.offsets[:-1]
        pressures = np.stack([np.trace(r.virial_ev, axis1=1, axis2=2) / (3 * arrays.volumes) * EV_A3_GPA for r in results])
        largest = np.maximum.reduceat(atom, starts)
        return Deviation(largest, np.add.reduceat(atom, starts) / arrays.counts,
                         np.maximum.reduceat(relative, starts), energies.std(axis=0) / arrays.counts, pressures.std(axis=0),
                         unphysical_structures(arrays) | ~np.isfinite(largest))


def unphysical_structures(arrays: StructureArrays) -> np.ndarray:
    """(n,) whether atoms overlap or the cell is no solid's; no label is spent on such a frame."""
    if not len(arrays):
        return np.zeros(0, bool)
    volume = arrays.volumes / arrays.counts
    low, high = _VOLUME_PER_ATOM_A3
    return (closest_contacts(arrays) < 1) | ~((volume > low) & (volume < high))
