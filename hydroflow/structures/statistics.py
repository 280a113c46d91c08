"""What a batch of structures looks like: the figures behind `hydroflow structures stats`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from hydroflow.arrays import StructureArrays
from hydroflow.structures.compiled import compiled
from hydroflow.structures.symmetric import invert
from hydroflow.structures.symmetry import SYMPREC_A, spacegroup_symbol, spacegroups

_SYSTEMS = ((1, "triclinic"), (3, "monoclinic"), (16, "orthorhombic"), (75, "tetragonal"), (143, "trigonal"),
            (168, "hexagonal"), (195, "cubic"))


def crystal_system(number: int) -> str:
    """Crystal system of a space-group number (1 to 230)."""
    return next(name for first, name in reversed(_SYSTEMS) if number >= first)


@compiled
def _shortest(offsets: np.ndarray, kinds: np.ndarray, fractional: np.ndarray, cells: np.ndarray, reach: float,
              out: np.ndarray) -> None:
    inverse = np.empty((3, 3))
    for i in range(len(cells)):
        cell = cells[i]
        invert(cell, inverse)
        for p in range(offsets[i], offsets[i + 1]):
            for q in range(p, offsets[i + 1]):
                d = fractional[p] - fractional[q]
                d -= np.floor(d + 0.5)
                a, b = min(kinds[p], kinds[q]), max(kinds[p], kinds[q])
                least = min(out[i, a, b], reach)
                rx = least * np.sqrt(inverse[0, 0] ** 2 + inverse[1, 0] ** 2 + inverse[2, 0] ** 2)
                ry = least * np.sqrt(inverse[0, 1] ** 2 + inverse[1, 1] ** 2 + inverse[2, 1] ** 2)
                rz = least * np.sqrt(inverse[0, 2] ** 2 + inverse[1, 2] ** 2 + inverse[2, 2] ** 2)
                for u in range(int(np.ceil(-rx - d[0])), int(np.floor(rx - d[0])) + 1):
                    for v in range(int(np.ceil(-ry - d[1])), int(np.floor(ry - d[1])) + 1):
                        for w in range(int(np.ceil(-rz - d[2])), int(np.floor(rz - d[2])) + 1):
                            if p == q and u == 0 and v == 0 and w == 0:
                                continue
                            x = (d[0] + u) * cell[0, 0] + (d[1] + v) * cell[1, 0] + (d[2] + w) * cell[2, 0]
                            y = (d[0] + u) * cell[0, 1] + (d[1] + v) * cell[1, 1] + (d[2] + w) * cell[2, 1]
                            z = (d[0] + u) * cell[0, 2] + (d[1] + v) * cell[1, 2] + (d[2] + w) * cell[2, 2]
                            r = np.sqrt(x * x + y * y + z * z)
                            if r < out[i, a, b]:
                                out[i, a, b] = r


def shortest_distances(arrays: StructureArrays, reach_a: float = 4.0) -> tuple[list[str], np.ndarray]:
    """Shortest distance of every pair of elements in every structure, images included.

    Returns
    -------
    symbols : list of s str
        Elements of the batch by atomic number.
    distances : (n, s, s) float
        Å, symmetric; infinite where a structure has no such pair within `reach_a`.
    """
    present, kinds = np.unique(arrays.numbers, return_inverse=True)
    out = np.full((len(arrays), len(present), len(present)), np.inf)
    _shortest(arrays.offsets, kinds, arrays.fractional, arrays.cells, reach_a, out)
    return [chemical_symbols[int(z)] for z in present], np.minimum(out, np.swapaxes(out, 1, 2))


def statistics(arrays: StructureArrays, symprec_a: float = SYMPREC_A) -> dict[str, Any]:
    """Numbers, sizes, volumes, shortest distances and space groups of n structures, as plain JSON values."""
    found, _ = spacegroups(arrays, symprec_a)
    symbols, distances = shortest_distances(arrays)
    least = distances.min(0) if len(arrays) else distances
    groups = Counter(found.tolist()).most_common()
    systems = Counter(crystal_system(int(g)) if g else "unknown" for g in found)
    counts = arrays.counts
    out: dict[str, Any] = {
        "structures": len(arrays),
        "formulas": len(set(arrays.formulas())),
        "atoms": {"least": int(counts.min()), "mean": float(counts.mean()), "most": int(counts.max())},
        "volume_per_atom_a3": {"mean": float((arrays.volumes / counts).mean())},
        "shortest_distances_a": {
            f"{a}-{b}": round(float(least[i, j]), 4) for i, a in enumerate(symbols) for j, b in enumerate(symbols)
            if i <= j and np.isfinite(least[i, j])},
        "crystal_systems": {name: systems[name] for _, name in _SYSTEMS if systems[name]},
        "spacegroups": {f"{spacegroup_symbol(g)} ({g})": n for g, n in groups},
    }
    requested = arrays.columns.get("requested_spacegroup")
    if requested is not None and (requested > 0).any():
        aimed = requested > 0
        out["requested_found"] = float((found[aimed] == requested[aimed]).mean())
    return out
