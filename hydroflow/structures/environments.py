"""The second, sharper test of identity: do the atoms of two structures have the same surroundings, one by one?

The fingerprint of a whole structure hardly changes when one hydrogen of forty moves. Here each atom has its own smeared
pair distribution, atoms of one element are paired off so that the sum of differences is least (assignment problem), and
the largest difference of any pair decides.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from hydroflow.arrays import StructureArrays
from hydroflow.structures.compiled import compiled
from hydroflow.structures.symmetric import invert

CUTOFF = 2.6
"""In mean atomic spacings: two to three shells."""
BINS = 52
SMEARING = 0.05
"""Gaussian width in mean atomic spacings, about 0.07 Å: sharp, so that one atom moved by 0.3 Å shows above all atoms
scattered by 0.013 Å."""


@compiled
def _surroundings(kinds: np.ndarray, fractional: np.ndarray, cell: np.ndarray, species: int, cutoff: float, bins: int,
                  smearing: float, out: np.ndarray) -> None:
    """Per atom, neighbour species and bin: neighbours smeared in distance, tapered and weighted by 1/r."""
    inverse = np.empty((3, 3))
    invert(cell, inverse)
    n = len(kinds)
    spacing = (abs(1.0 / (
        inverse[0, 0] * (inverse[1, 1] * inverse[2, 2] - inverse[1, 2] * inverse[2, 1])
        - inverse[0, 1] * (inverse[1, 0] * inverse[2, 2] - inverse[1, 2] * inverse[2, 0])
        + inverse[0, 2] * (inverse[1, 0] * inverse[2, 1] - inverse[1, 1] * inverse[2, 0]))) / n) ** (1.0 / 3.0)
    reach = cutoff * spacing
    step = cutoff / bins
    window = int(3.0 * smearing / step) + 1
    rx = reach * math.sqrt(inverse[0, 0] ** 2 + inverse[1, 0] ** 2 + inverse[2, 0] ** 2)
    ry = reach * math.sqrt(inverse[0, 1] ** 2 + inverse[1, 1] ** 2 + inverse[2, 1] ** 2)
    rz = reach * math.sqrt(inverse[0, 2] ** 2 + inverse[1, 2] ** 2 + inverse[2, 2] ** 2)
    for p in range(n):
        for q in range(p, n):
            dx = fractional[p, 0] - fractional[q, 0]
            dy = fractional[p, 1] - fractional[q, 1]
            dz = fractional[p, 2] - fractional[q, 2]
            for u in range(math.ceil(-rx - dx), math.floor(rx - dx) + 1):
                for v in range(math.ceil(-ry - dy), math.floor(ry - dy) + 1):
                    for w in range(math.ceil(-rz - dz), math.floor(rz - dz) + 1):
                        if p == q and u == 0 and v == 0 and w == 0:
                            continue
                        fx, fy, fz = dx + u, dy + v, dz + w
                        x = fx * cell[0, 0] + fy * cell[1, 0] + fz * cell[2, 0]
                        y = fx * cell[0, 1] + fy * cell[1, 1] + fz * cell[2, 1]
                        z = fx * cell[0, 2] + fy * cell[1, 2] + fz * cell[2, 2]
                        r = math.sqrt(x * x + y * y + z * z) / spacing
                        if r >= cutoff:
                            continue
                        height = (1.0 - (r / cutoff) ** 2) ** 2 / max(r, 0.2)
                        centre = int(r / step)
                        for k in range(max(0, centre - window), min(bins, centre + window + 1)):
                            value = height * math.exp(-0.5 * ((r - (k + 0.5) * step) / smearing) ** 2)
                            out[p, kinds[q] * bins + k] += value
                            if p != q:
                                out[q, kinds[p] * bins + k] += value


def surroundings(arrays: StructureArrays, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (k,) of structure i and its atoms' surroundings (k, species · bins)."""
    rows = slice(arrays.offsets[i], arrays.offsets[i + 1])
    present, kinds = np.unique(arrays.numbers[rows], return_inverse=True)
    out = np.zeros((len(kinds), len(present) * BINS))
    _surroundings(kinds, arrays.fractional[rows], arrays.cells[i], len(present), CUTOFF, BINS, SMEARING, out)
    return arrays.numbers[rows], out


def difference(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Largest difference between paired atoms' surroundings, relative to their norm; infinite for different formulas.

    Cells of different size are compared after repeating atoms, so that a supercell equals its cell.
    """
    elements = np.unique(first[0])
    if not np.array_equal(elements, np.unique(second[0])):
        return math.inf
    n, m = len(first[0]), len(second[0])
    times = math.lcm(n, m)
    worst = 0.0
    for z in elements:
        a, b = first[1][first[0] == z], second[1][second[0] == z]
        if len(a) * m != len(b) * n:
            return math.inf
        a, b = np.repeat(a, times // n, axis=0), np.repeat(b, times // m, axis=0)
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :]
        cost = np.maximum(squares - 2 * a @ b.T, 0.0)
        rows, columns = linear_sum_assignment(cost)
        worst = max(worst, float(np.sqrt((cost[rows, columns] / (0.5 * squares[rows, columns])).max())))
    return worst
