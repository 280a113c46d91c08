"""The bond characterisation matrix: how the bonds of each pair of species are oriented, as CALYPSO tells structures apart.

One row per pair of species, one column per even l up to 10: the length of the bonds' mean spherical harmonics of degree l,
short bonds counting most (Wang, Lv, Zhu & Ma, Comput. Phys. Commun. 183, 2063 (2012); the bond order parameters of
Steinhardt, Nelson & Ronchetti, Phys. Rev. B 28, 784 (1983)). It does not depend on the choice of cell, origin or orientation,
and is smooth and coarse: good for keeping a swarm's structures apart, not for proving two structures identical, for which
:mod:`hydroflow.structures.fingerprints` is there.
"""

from __future__ import annotations

import math

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.structures.compiled import compiled
from hydroflow.structures.fingerprints import species_ranks
from hydroflow.structures.symmetric import determinant, invert

CUTOFF = 4.0
"""In mean atomic spacings (V/N)^⅓: about 5 Å in a hydride at 200 GPa."""
DECAY = 2.0
"""α of the weight exp(−α (r − shortest r of the pair of species)), per mean atomic spacing. Weights are divided by their sum,
so that bonds leaving the cutoff do not make the matrix jump."""
MOST = 10
"""Highest degree l. Odd degrees vanish, because every bond is met in both directions."""


@compiled
def _harmonics(x: float, y: float, z: float, weight: float, out: np.ndarray) -> None:
    """Add weight · √(4π/(2l+1)) · Y_lm of a unit vector for even l, −l ≤ m ≤ l, to ``out`` (L + 1, 2L + 1), m at l + m.

    Associated Legendre functions by the usual recursion over l; the factors e^{imφ} sin^m θ from powers of x + iy.
    """
    most = out.shape[0] - 1
    # P_mm / sin^m θ, normalised so that the sum of squares over m of degree l is 1
    diagonal = 1.0
    cos_m, sin_m = 1.0, 0.0
    for m in range(most + 1):
        if m > 0:
            diagonal *= math.sqrt((2.0 * m - 1.0) / (2.0 * m))
            cos_m, sin_m = cos_m * x - sin_m * y, sin_m * x + cos_m * y
        factor = math.sqrt(2.0) if m > 0 else 1.0
        before, value = 0.0, diagonal
        for degree in range(m, most + 1):
            if degree > m:
                after = (2.0 * degree - 1.0) * z * value - math.sqrt((degree - 1.0) ** 2 - m * m) * before
                before, value = value, after / math.sqrt(degree * degree - m * m)
            if degree % 2 == 0:
                out[degree, degree + m] += weight * factor * value * cos_m
                if m > 0:
                    out[degree, degree - m] += weight * factor * value * sin_m


@compiled
def _matrices(offsets: np.ndarray, kinds: np.ndarray, fractional: np.ndarray, cells: np.ndarray, channels: int,
              cutoff: float, decay: float, out: np.ndarray) -> None:
    """Per structure, pair of species and degree: length of the weighted mean harmonics, into ``out`` (n, channels, L + 1)."""
    inverse = np.empty((3, 3))
    reach = np.empty(3)
    degrees = out.shape[2]
    sums = np.empty((channels, degrees, 2 * degrees - 1))
    shortest, total = np.empty(channels), np.empty(channels)
    for i in range(len(cells)):
        cell = cells[i]
        invert(cell, inverse)
        spacing = (abs(determinant(cell)) / (offsets[i + 1] - offsets[i])) ** (1.0 / 3.0)
        limit = cutoff * spacing
        for k in range(3):
            reach[k] = limit * math.sqrt(inverse[0, k] ** 2 + inverse[1, k] ** 2 + inverse[2, k] ** 2)
        sums[:] = 0.0
        total[:] = 0.0
        shortest[:] = limit
        for search in range(2):  # first the shortest bond of each pair of species, then the sums
            for p in range(offsets[i], offsets[i + 1]):
                for q in range(p, offsets[i + 1]):
                    a, b = min(kinds[p], kinds[q]), max(kinds[p], kinds[q])
                    channel = b * (b + 1) // 2 + a
                    dx, dy, dz = fractional[p] - fractional[q]
                    for u in range(math.ceil(-reach[0] - dx), math.floor(reach[0] - dx) + 1):
                        for v in range(math.ceil(-reach[1] - dy), math.floor(reach[1] - dy) + 1):
                            for w in range(math.ceil(-reach[2] - dz), math.floor(reach[2] - dz) + 1):
                                if p == q and u == 0 and v == 0 and w == 0:
                                    continue
                                fx, fy, fz = dx + u, dy + v, dz + w
                                x = fx * cell[0, 0] + fy * cell[1, 0] + fz * cell[2, 0]
                                y = fx * cell[0, 1] + fy * cell[1, 1] + fz * cell[2, 1]
                                z = fx * cell[0, 2] + fy * cell[1, 2] + fz * cell[2, 2]
                                r = math.sqrt(x * x + y * y + z * z)
                                if r >= limit or r < 1e-9:
                                    continue
                                if search == 0:
                                    shortest[channel] = min(shortest[channel], r)
                                    continue
                                weight = math.exp(-decay * (r - shortest[channel]) / spacing)
                                if p != q:
                                    weight *= 2.0
                                total[channel] += weight
                                _harmonics(x / r, y / r, z / r, weight, sums[channel])
        for c in range(channels):
            for degree in range(0, degrees, 2):
                out[i, c, degree] = math.sqrt((sums[c, degree] ** 2).sum()) / max(total[c], 1e-300)


def bond_matrices(arrays: StructureArrays) -> np.ndarray:
    """Bond characterisation matrices.

    Parameters
    ----------
    arrays
        n structures; those compared with each other must have the same elements.

    Returns
    -------
    (n, channels, 5) float
        Per pair of species (in the order of :func:`hydroflow.structures.fingerprints.fingerprints`) and even degree 2 to 10,
        between 0 and 1. Degree 0 is left out: it is 1 for weights that add up to one. Compare two with
        :func:`hydroflow.structures.fingerprints.distance`.
    """
    ranks, species = species_ranks(arrays)
    channels = species * (species + 1) // 2
    out = np.zeros((len(arrays), channels, MOST + 1))
    _matrices(arrays.offsets, ranks, arrays.fractional, arrays.cells, channels, CUTOFF, DECAY, out)
    return out[:, :, 2::2]
