"""Atomic hydrogen: the share of H atoms whose nearest H is farther than a molecular bond.

Counted as in the paper: an H atom is atomic when no other H, self-images included, is within the distance
(0.9 Å there).
"""

from __future__ import annotations

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.structures.compiled import compiled


def atomic_fraction(arrays: StructureArrays, distance_a: float = 0.9) -> np.ndarray:
    """(n,) share of the H atoms of each structure whose nearest H is farther than `distance_a` Å; NaN without H.

    Raises
    ------
    DataError
        a cell without volume, a coordinate that is not finite, or a distance that is not positive.
    """
    if not distance_a > 0:
        raise DataError(f"the atomic-hydrogen distance must be positive, not {distance_a!r} Å")
    bad = ~(arrays.volumes > 1e-6)
    finite = np.isfinite(arrays.fractional).all(axis=1)
    if not finite.all():
        bad[arrays.owner[~finite]] = True
    if bad.any():
        ids = arrays.columns.get("id", np.arange(len(arrays)))[bad]
        raise DataError(
            f"structures {', '.join(map(str, ids[:10]))}: no cell volume or coordinates that are not finite")
    return _fractions(
        arrays.offsets, arrays.numbers.astype(np.int64), np.ascontiguousarray(arrays.fractional, np.float64),
        np.ascontiguousarray(arrays.cells, np.float64), float(distance_a))


@compiled
def _fractions(
    offsets: np.ndarray, numbers: np.ndarray, fractional: np.ndarray, cells: np.ndarray, distance: float,
) -> np.ndarray:
    n = len(cells)
    out = np.empty(n)
    limit = distance * distance
    wrapped = np.empty((0, 3))
    for s in range(n):
        cell = cells[s]
        normal = np.empty((3, 3))
        reach = np.empty(3, np.int64)
        for k in range(3):
            a, b = cell[(k + 1) % 3], cell[(k + 2) % 3]
            normal[k, 0] = a[1] * b[2] - a[2] * b[1]
            normal[k, 1] = a[2] * b[0] - a[0] * b[2]
            normal[k, 2] = a[0] * b[1] - a[1] * b[0]
        volume = abs(cell[0, 0] * normal[0, 0] + cell[0, 1] * normal[0, 1] + cell[0, 2] * normal[0, 2])
        # Lattice planes are `height` apart: |Δ + shift| along a fractional axis is at most distance / height.
        span = np.empty(3)
        for k in range(3):
            span[k] = distance * np.sqrt(normal[k, 0] ** 2 + normal[k, 1] ** 2 + normal[k, 2] ** 2) / volume
            reach[k] = int(np.floor(span[k]))
        one_image = span[0] < 0.5 and span[1] < 0.5 and span[2] < 0.5
        hydrogens = 0
        for i in range(offsets[s], offsets[s + 1]):
            if numbers[i] == 1:
                hydrogens += 1
        if hydrogens == 0:
            out[s] = np.nan
            continue
        if hydrogens > len(wrapped):
            wrapped = np.empty((hydrogens, 3))
        j = 0
        for i in range(offsets[s], offsets[s + 1]):
            if numbers[i] == 1:
                for k in range(3):
                    wrapped[j, k] = fractional[i, k] - np.floor(fractional[i, k])
                j += 1
        molecular = np.zeros(hydrogens, np.bool_)
        if _has_short_translation(cell, reach, limit):
            molecular[:] = True
        for i in range(hydrogens):
            for j in range(i + 1, hydrogens):
                if molecular[i] and molecular[j]:
                    continue
                if one_image:
                    near = _nearest_within(wrapped, i, j, cell, span, limit)
                else:
                    near = _any_within(wrapped, i, j, cell, span, limit)
                if near:
                    molecular[i] = True
                    molecular[j] = True
        atomic = 0
        for i in range(hydrogens):
            if not molecular[i]:
                atomic += 1
        out[s] = atomic / hydrogens
    return out


@compiled
def _has_short_translation(cell: np.ndarray, reach: np.ndarray, limit: float) -> bool:
    """Whether an atom has its own image within the distance."""
    for a in range(-reach[0], reach[0] + 1):
        for b in range(-reach[1], reach[1] + 1):
            for c in range(-reach[2], reach[2] + 1):
                if a == 0 and b == 0 and c == 0:
                    continue
                r = 0.0
                for k in range(3):
                    r += (a * cell[0, k] + b * cell[1, k] + c * cell[2, k]) ** 2
                if r <= limit:
                    return True
    return False


@compiled
def _nearest_within(x: np.ndarray, i: int, j: int, cell: np.ndarray, span: np.ndarray, limit: float) -> bool:
    """Whether two atoms are within the distance, where at most one image can be."""
    u = x[j, 0] - x[i, 0]
    u -= np.rint(u)
    if abs(u) > span[0]:
        return False
    v = x[j, 1] - x[i, 1]
    v -= np.rint(v)
    if abs(v) > span[1]:
        return False
    w = x[j, 2] - x[i, 2]
    w -= np.rint(w)
    if abs(w) > span[2]:
        return False
    r = 0.0
    for k in range(3):
        r += (u * cell[0, k] + v * cell[1, k] + w * cell[2, k]) ** 2
    return r <= limit


@compiled
def _any_within(x: np.ndarray, i: int, j: int, cell: np.ndarray, span: np.ndarray, limit: float) -> bool:
    """Whether two atoms have any images within the distance, in a cell that is small against it."""
    d0, d1, d2 = x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2]
    for a in range(int(np.ceil(-span[0] - d0)), int(np.floor(span[0] - d0)) + 1):
        for b in range(int(np.ceil(-span[1] - d1)), int(np.floor(span[1] - d1)) + 1):
            for c in range(int(np.ceil(-span[2] - d2)), int(np.floor(span[2] - d2)) + 1):
                r = 0.0
                for k in range(3):
                    r += ((d0 + a) * cell[0, k] + (d1 + b) * cell[1, k] + (d2 + c) * cell[2, k]) ** 2
                if r <= limit:
                    return True
    return False
