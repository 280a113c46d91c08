"""A pair potential behind the interface of the model: relaxations that end in real minima in milliseconds."""

from __future__ import annotations

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from hydroflow.lam import LamModel

TYPES = ("H", "Ca", "Y")


class PairPotential:
    """Born–Mayer repulsion with the sum of the covalent radii as its length, shifted to zero at the cutoff; the pressure
    holds the crystal together."""

    cutoff_a = 5.0
    height_ev = 1.0
    steepness = 5.0

    def __init__(self) -> None:
        radius = np.array([covalent_radii[atomic_numbers[s]] for s in TYPES])
        self.distance = radius[:, None] + radius[None, :]

    def __call__(self, offsets, types, pointers, neighbour, vector):  # type: ignore[no-untyped-def]
        centre = np.repeat(np.arange(len(types)), np.diff(pointers))
        r = np.linalg.norm(vector, axis=1)
        r0 = self.distance[types[centre], types[neighbour]]
        height = self.height_ev * np.exp(self.steepness * (1 - r / r0))
        energy = 0.5 * (height - self.height_ev * np.exp(self.steepness * (1 - self.cutoff_a / r0)))
        slope = -0.5 * height * self.steepness / r0  # of half the pair energy
        force = 2 * slope[:, None] * vector / r[:, None]  # on the centre: both halves of the pair
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        forces = np.zeros((len(types), 3))
        np.add.at(forces, centre, force)
        virial = np.zeros((len(offsets) - 1, 3, 3))
        np.add.at(virial, owner[centre], -0.5 * vector[:, :, None] * force[:, None, :])
        total = np.bincount(owner[centre], weights=energy, minlength=len(offsets) - 1)
        return total, forces, virial


def pair_model() -> LamModel:
    return LamModel(PairPotential(), list(TYPES), "pair potential")
