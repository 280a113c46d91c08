"""Neighbours of many periodic structures at once, as edge lists.

Cells here are small (tens of atoms) and change at every step of a relaxation, so that every image is looked at anew: for
each pair of atoms only the images that the cell's heights allow. This costs a few percent of a model evaluation.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from ase.data import covalent_radii

from hydroflow.arrays import StructureArrays

_MAX_IMAGES = 40
"""Images per direction beyond which a cell is called collapsed."""
_CLOSE_SHARE = 0.4
_CLOSE_LEAST_A = 0.62


def closest_allowed(numbers_i: np.ndarray, numbers_j: np.ndarray) -> np.ndarray:
    """Distance in Å below which two atoms overlap beyond anything physical: 0.4 times the sum of covalent radii, never
    below 0.62 Å (H–H in a molecule is 0.74 Å, a little less at 200 GPa; a model that knows no closer pairs has holes there into
    which hydrogen collapses; La–La in compressed LaHx stays above 1.85 Å)."""
    return np.maximum(_CLOSE_SHARE * (covalent_radii[numbers_i] + covalent_radii[numbers_j]), _CLOSE_LEAST_A)


@numba.njit(cache=True, inline="always")
def _ranges(d0, d1, d2, reach0, reach1, reach2):
    """Integer shifts for which each fractional distance d + shift can lie within reach (= cutoff / height)."""
    return (math.ceil(-reach0 - d0), math.floor(reach0 - d0), math.ceil(-reach1 - d1), math.floor(reach1 - d1),
            math.ceil(-reach2 - d2), math.floor(reach2 - d2))


@numba.njit(cache=True, error_model="numpy")
def _reach(cell, cutoff):
    """Cutoff divided by the three heights of a cell."""
    volume = abs(np.linalg.det(cell))
    out = np.empty(3)
    for k in range(3):
        a, b = cell[(k + 1) % 3], cell[(k + 2) % 3]
        x = a[1] * b[2] - a[2] * b[1]
        y = a[2] * b[0] - a[0] * b[2]
        z = a[0] * b[1] - a[1] * b[0]
        out[k] = cutoff * math.sqrt(x * x + y * y + z * z) / volume
    return out


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _count(offsets, fractional, cells, cutoff, counts):
    """Fill `counts` (N,) with the neighbours of each atom; −1 for the atoms of a collapsed cell."""
    for s in numba.prange(len(cells)):
        cell = cells[s]
        reach = _reach(cell, cutoff)
        if not (reach.max() < _MAX_IMAGES):
            counts[offsets[s]:offsets[s + 1]] = -1
            continue
        for i in range(offsets[s], offsets[s + 1]):
            n = 0
            for j in range(offsets[s], offsets[s + 1]):
                d0 = fractional[j, 0] - fractional[i, 0]
                d1 = fractional[j, 1] - fractional[i, 1]
                d2 = fractional[j, 2] - fractional[i, 2]
                a0, a1, b0, b1, c0, c1 = _ranges(d0, d1, d2, reach[0], reach[1], reach[2])
                for a in range(a0, a1 + 1):
                    for b in range(b0, b1 + 1):
                        for c in range(c0, c1 + 1):
                            x = (d0 + a) * cell[0, 0] + (d1 + b) * cell[1, 0] + (d2 + c) * cell[2, 0]
                            y = (d0 + a) * cell[0, 1] + (d1 + b) * cell[1, 1] + (d2 + c) * cell[2, 1]
                            z = (d0 + a) * cell[0, 2] + (d1 + b) * cell[1, 2] + (d2 + c) * cell[2, 2]
                            r2 = x * x + y * y + z * z
                            if r2 < cutoff * cutoff and not (i == j and a == 0 and b == 0 and c == 0):
                                n += 1
            counts[i] = n


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _fill(offsets, fractional, cells, cutoff, pointers, neighbour, vector):
    """Fill the edges: `neighbour` (E,) atom index, `vector` (E, 3) from the centre to that image, grouped by centre."""
    for s in numba.prange(len(cells)):
        cell = cells[s]
        reach = _reach(cell, cutoff)
        for i in range(offsets[s], offsets[s + 1]):
            e = pointers[i]
            for j in range(offsets[s], offsets[s + 1]):
                d0 = fractional[j, 0] - fractional[i, 0]
                d1 = fractional[j, 1] - fractional[i, 1]
                d2 = fractional[j, 2] - fractional[i, 2]
                a0, a1, b0, b1, c0, c1 = _ranges(d0, d1, d2, reach[0], reach[1], reach[2])
                for a in range(a0, a1 + 1):
                    for b in range(b0, b1 + 1):
                        for c in range(c0, c1 + 1):
                            x = (d0 + a) * cell[0, 0] + (d1 + b) * cell[1, 0] + (d2 + c) * cell[2, 0]
                            y = (d0 + a) * cell[0, 1] + (d1 + b) * cell[1, 1] + (d2 + c) * cell[2, 1]
                            z = (d0 + a) * cell[0, 2] + (d1 + b) * cell[1, 2] + (d2 + c) * cell[2, 2]
                            r2 = x * x + y * y + z * z
                            if r2 < cutoff * cutoff and not (i == j and a == 0 and b == 0 and c == 0):
                                neighbour[e] = j
                                vector[e, 0] = x
                                vector[e, 1] = y
                                vector[e, 2] = z
                                e += 1


def edges(offsets: np.ndarray, fractional: np.ndarray, cells: np.ndarray, cutoff_a: float,
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All neighbours within a cutoff, self-images included.

    Parameters
    ----------
    offsets, fractional, cells
        As in :class:`StructureArrays`.
    cutoff_a : float
        Cutoff in Å.

    Returns
    -------
    pointers : (N + 1,) int64
        Edges of atom i are ``pointers[i]:pointers[i + 1]``.
    neighbour : (E,) int32
        Index of the neighbouring atom (in the whole batch).
    vector : (E, 3) float64
        From the atom to that image of the neighbour, in Å.
    sound : (n,) bool
        False for cells that are collapsed or not finite; they get no edges.
    """
    n_atoms = len(fractional)
    counts = np.zeros(n_atoms, np.int64)
    finite = np.isfinite(cells).all(axis=(1, 2))
    finite &= np.bincount(np.repeat(np.arange(len(cells)), np.diff(offsets))[~np.isfinite(fractional).all(axis=1)],
                          minlength=len(cells)) == 0
    cells = np.where(finite[:, None, None], cells, np.eye(3) * 1e-9)
    _count(offsets, fractional, cells, cutoff_a, counts)
    sound = np.minimum.reduceat(counts, offsets[:-1]) >= 0 if n_atoms else np.zeros(0, bool)
    pointers = np.concatenate([[0], np.cumsum(np.maximum(counts, 0))])
    neighbour = np.empty(pointers[-1], np.int32)
    vector = np.empty((pointers[-1], 3))
    if not sound.all():
        keep = np.where(sound[:, None, None], cells, np.eye(3) * 1e9)  # no neighbours within any cutoff
        fractional = np.where(np.repeat(sound, np.diff(offsets))[:, None], fractional, _spread(n_atoms))
        _fill(offsets, fractional, keep, cutoff_a, pointers, neighbour, vector)
    else:
        _fill(offsets, fractional, cells, cutoff_a, pointers, neighbour, vector)
    return pointers, neighbour, vector, sound


def _spread(n: int) -> np.ndarray:
    """Fractional coordinates far from one another, for atoms that must have no neighbours."""
    return np.repeat((np.arange(n) + 0.5)[:, None] / (n + 1), 3, axis=1)


def shortest_ratio(numbers: np.ndarray, pointers: np.ndarray, neighbour: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(N,) each atom's smallest distance divided by :func:`closest_allowed`; infinite without neighbours."""
    radii = covalent_radii[numbers]
    out = np.full(len(numbers), np.inf)
    _shortest(radii, pointers, neighbour, vector, out)
    return out


@numba.njit(cache=True)
def _shortest(radii, pointers, neighbour, vector, out):
    for i in range(len(out)):
        best = np.inf
        for e in range(pointers[i], pointers[i + 1]):
            r = math.sqrt(vector[e, 0] ** 2 + vector[e, 1] ** 2 + vector[e, 2] ** 2)
            best = min(best, r / max(_CLOSE_SHARE * (radii[i] + radii[neighbour[e]]), _CLOSE_LEAST_A))
        out[i] = best


def closest_contacts(arrays: StructureArrays, cutoff_a: float = 3.0) -> np.ndarray:
    """(n,) smallest distance of each structure over :func:`closest_allowed`; below 1 atoms overlap, 0 for a broken cell."""
    if not len(arrays):
        return np.zeros(0)
    pointers, neighbour, vector, sound = edges(arrays.offsets, arrays.fractional, arrays.cells, cutoff_a)
    ratio = np.minimum.reduceat(shortest_ratio(arrays.numbers, pointers, neighbour, vector), arrays.offsets[:-1])
    return np.where(sound, ratio, 0.0)
