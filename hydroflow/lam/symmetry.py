"""The space group of a structure, kept during a relaxation: its operations, the idealised start, projected gradients.

Energy is invariant under the group, so the gradient at a symmetric point is symmetric too, and so is every step that is
made of such gradients. What is projected out is the noise of the model, which would otherwise grow along soft modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import spglib

SYMPREC_A = 0.01
"""How far a start may be from its symmetry, Å; generated structures are exact."""


@dataclass(frozen=True)
class Group:
    """Operations of one structure of n atoms.

    Attributes
    ----------
    rotations : (m, 3, 3)
        Cartesian, acting on rows: v' = v @ rotation.
    images : (m, n) int64
        Where each operation takes each atom.
    """

    rotations: np.ndarray
    images: np.ndarray

    @classmethod
    def trivial(cls, n: int) -> Group:
        return cls(np.eye(3)[None], np.arange(n, dtype=np.int64)[None])


def symmetrised(fractional: np.ndarray, cell: np.ndarray, numbers: np.ndarray, symprec_a: float = SYMPREC_A,
                ) -> tuple[np.ndarray, np.ndarray, Group]:
    """A structure with its cell and positions averaged over its space group, and the group.

    Parameters
    ----------
    fractional, cell, numbers
        (n, 3), (3, 3) with lattice vectors as rows in Å, (n,).
    symprec_a
        Tolerance of the search in Å.

    Returns
    -------
    fractional, cell, group
        The structure as it is, and the trivial group, where no symmetry can be found.
    """
    n = len(numbers)
    if not (np.isfinite(fractional).all() and np.isfinite(cell).all() and abs(np.linalg.det(cell)) > 1e-3):
        return fractional, cell, Group.trivial(n)
    found = spglib.get_symmetry_dataset((cell, fractional, numbers), symprec=symprec_a)
    if found is None or len(found.rotations) == 1:
        return fractional, cell, Group.trivial(n)
    rotations, translations = found.rotations.astype(float), found.translations
    # offset[g, i, j]: from atom j to the image of atom i under g, by the shortest way
    moved = np.einsum("gab,ib->gia", rotations, fractional) + translations[:, None]
    offset = moved[:, :, None] - fractional[None, None]
    offset -= np.round(offset)
    distance = np.linalg.norm(offset @ cell, axis=3) + np.where(numbers[:, None] == numbers[None], 0.0, np.inf)
    images = distance.argmin(axis=2)
    closest = np.take_along_axis(distance, images[:, :, None], axis=2)
    if closest.max() > 10 * symprec_a or (np.sort(images, axis=1) != np.arange(n)).any():
        return fractional, cell, Group.trivial(n)  # an operation that is no permutation of the atoms
    shift = np.take_along_axis(offset, images[:, :, None, None], axis=2)[:, :, 0]
    mean = np.zeros_like(fractional)
    np.add.at(mean, images, shift / len(rotations))
    metric = np.einsum("gba,bc,gcd->ad", rotations, cell @ cell.T, rotations) / len(rotations)
    # The symmetric stretch T with (cell T)(cell T)ᵀ = metric leaves the cell's orientation alone.
    inverse = np.linalg.inv(cell)
    values, vectors = np.linalg.eigh(inverse @ metric @ inverse.T)
    ideal = cell @ (vectors * np.sqrt(values)) @ vectors.T
    cartesian = np.linalg.inv(ideal) @ rotations.transpose(0, 2, 1) @ ideal
    return fractional + mean, ideal, Group(cartesian, images.astype(np.int64))


@numba.njit(cache=True)
def project(slots, counts, g, fmax, first, rotations, atoms, images):
    """Average the generalised forces `g` (B, D) of each structure over its group, and their largest norm `fmax` (B,).

    Operations of the q-th of `slots` are ``first[q]:first[q + 1]`` of `rotations`; operation o of them takes atom i to
    ``images[atoms[q] + o·n + i]``.
    """
    for q in range(len(slots)):
        b = slots[q]
        n = counts[b]
        m = first[q + 1] - first[q]
        if m == 1:
            continue
        mean = np.zeros((n, 3))
        strain = np.zeros((3, 3))
        force = np.ascontiguousarray(g[b, :3 * n]).reshape(n, 3)
        stress = np.ascontiguousarray(g[b, 3 * n:3 * n + 9]).reshape(3, 3)
        for o in range(m):
            r = rotations[first[q] + o]
            strain += r.T @ stress @ r
            for i in range(n):
                j = images[atoms[q] + o * n + i]
                for k in range(3):
                    mean[j, k] += force[i, 0] * r[0, k] + force[i, 1] * r[1, k] + force[i, 2] * r[2, k]
        worst = 0.0
        for i in range(n):
            norm = 0.0
            for k in range(3):
                g[b, 3 * i + k] = mean[i, k] / m
                norm += (mean[i, k] / m) ** 2
            worst = max(worst, norm)
        for a in range(3):
            norm = 0.0
            for k in range(3):
                g[b, 3 * n + 3 * a + k] = strain[a, k] / m
                norm += (strain[a, k] / m) ** 2
            worst = max(worst, norm)
        fmax[b] = math.sqrt(worst)
