"""One structure at two levels of theory: how far energies, forces and pressures are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError


@dataclass(frozen=True)
class Deviation:
    """Deviations of labelled frames B from A on the same structures.

    Attributes
    ----------
    frames
        Number of structures compared.
    relative_energy_mev
        Root mean square over frames of the energy difference per atom, meV, after the shift that each element's atoms bring
        with them (their reference energy differs between pseudopotentials) was fitted away; NaN where there are not more
        frames than elements.
    shifts_ev
        Element → that shift per atom in eV; the plain difference of the mean where it cannot be fitted.
    force_ev_a, force_max_ev_a
        Root mean square and largest component of the force difference, eV/Å.
    pressure_gpa, pressure_max_gpa
        Mean and largest absolute difference of the pressure, GPa.
    """

    frames: int
    relative_energy_mev: float
    shifts_ev: dict[str, float]
    force_ev_a: float
    force_max_ev_a: float
    pressure_gpa: float
    pressure_max_gpa: float


def deviation(a: StructureArrays, b: StructureArrays) -> Deviation:
    """Compare two sets of labelled frames of the same structures, in the same order.

    Atoms may come in another order within a structure (VASP groups them by element): they are matched by element and place.

    Raises
    ------
    DataError
        when they are not the same structures or there are none.
    """
    if not len(a) or len(a) != len(b) or not np.array_equal(a.counts, b.counts):
        raise DataError(f"the two sets of labels are not of the same structures ({len(a)} and {len(b)} frames)")
    if np.abs(a.cells - b.cells).max() > 1e-4:
        raise DataError("the two sets of labels are not of the same structures (their cells differ)")
    order = np.concatenate([start + _same_atoms(a[[i]], b[[i]]) for i, start in enumerate(np.cumsum(b.counts) - b.counts)])
    elements = sorted({s for c in a.compositions() for s in c})
    counts = np.array([[c.get(e, 0) for e in elements] for c in a.compositions()], float)
    difference = b.columns["energy_ev"] - a.columns["energy_ev"]
    if np.linalg.matrix_rank(counts / a.counts[:, None]) == len(elements) < len(a):
        shifts = np.linalg.lstsq(counts / a.counts[:, None], difference / a.counts, rcond=None)[0]
        left = 1000 * (difference - counts @ shifts) / a.counts
        relative = float(np.sqrt(np.mean(left**2)))
    else:
        shifts, relative = np.full(len(elements), float(np.mean(difference / a.counts))), float("nan")
    forces = b.atom_columns["forces_ev_a"][order] - a.atom_columns["forces_ev_a"]
    pressures = np.abs(b.columns["pressure_gpa"] - a.columns["pressure_gpa"])
    return Deviation(
        len(a), relative, dict(zip(elements, map(float, shifts), strict=True)),
        float(np.sqrt(np.mean(forces**2))), float(np.abs(forces).max(initial=0.0)),
        float(pressures.mean()), float(pressures.max()))


def _same_atoms(a: StructureArrays, b: StructureArrays) -> np.ndarray:
    """(N,) for each atom of one frame `a` the index of the same atom in `b`, whose order may be another."""
    delta = a.fractional[:, None, :] - b.fractional[None, :, :]
    distances = np.linalg.norm((delta - np.round(delta)) @ a.cells[0], axis=2)
    distances[a.numbers[:, None] != b.numbers[None, :]] = np.inf
    order = distances.argmin(axis=1)
    if len(set(order)) < len(order) or distances[np.arange(len(order)), order].max() > 1e-2:
        raise DataError("the two sets of labels are not of the same structures (elements or places of their atoms differ)")
    return order
