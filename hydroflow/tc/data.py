"""Tc values as deepmd systems, and predictions from a property model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError

PROPERTY = "tc"


def type_indices(numbers: np.ndarray, type_map: Sequence[str]) -> np.ndarray:
    """Index in the type map of each atomic number.

    Raises
    ------
    DataError
        naming the elements that the model does not know.
    """
    table = np.full(len(chemical_symbols), -1)
    for t, symbol in enumerate(type_map):
        table[atomic_numbers[symbol]] = t
    types = table[numbers]
    if (types < 0).any():
        unknown = ", ".join(chemical_symbols[int(z)] for z in np.unique(numbers[types < 0]))
        raise DataError(f"the model does not know {unknown}; its type map is {' '.join(type_map)}")
    return types


def padded(structures: StructureArrays, type_map: Sequence[str], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates (n, 3·width) in Å, cells (n, 9), types (n, width), filled up with virtual atoms of type −1."""
    n = len(structures)
    coordinates, types = np.zeros((n, width, 3)), np.full((n, width), -1)
    all_types, positions = type_indices(structures.numbers, type_map), structures.positions
    for i in range(n):
        rows = slice(structures.offsets[i], structures.offsets[i + 1])
        k = rows.stop - rows.start
        coordinates[i, :k], types[i, :k] = positions[rows], all_types[rows]
    return coordinates.reshape(n, -1), structures.cells.reshape(n, 9), types


def write_property_systems(
    structures: StructureArrays, values: np.ndarray, folder: Path, type_map: Sequence[str], pad: int = 8,
) -> list[str]:
    """Write ``deepmd/npy/mixed`` systems with a property label, one per padded number of atoms; returns their folders."""
    widths = np.ceil(structures.counts / pad).astype(int) * pad
    out = []
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width)
        coordinates, cells, types = padded(structures[rows], type_map, int(width))
        system = folder / str(width)
        (system / "set.000").mkdir(parents=True, exist_ok=True)
        np.savetxt(system / "type.raw", np.zeros(width, int), fmt="%d")
        (system / "type_map.raw").write_text("\n".join(type_map) + "\n")
        np.save(system / "set.000" / "coord.npy", coordinates)
        np.save(system / "set.000" / "box.npy", cells)
        np.save(system / "set.000" / "real_atom_types.npy", types)
        np.save(system / "set.000" / f"{PROPERTY}.npy", np.asarray(values, float)[rows].reshape(-1, 1))
        out.append(str(system))
    return out


def predict(checkpoint: Path, structures: StructureArrays, batch_atoms: int = 2000) -> np.ndarray:
    """Tc in K of each structure by the Tc head of a multi-task checkpoint; (n,)."""
    from hydroflow.lam.backend import import_deepmd

    model = import_deepmd("deepmd.infer.deep_property").DeepProperty(str(checkpoint), head=PROPERTY)
    type_map = list(model.get_type_map())
    out = np.full(len(structures), np.nan)
    order = np.argsort(structures.counts, kind="stable")
    start = 0
    while start < len(order):
        # structures of similar size together, so that little is padded
        width = int(structures.counts[order[start]])
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * int(structures.counts[order[stop]]) <= batch_atoms:
            width = int(structures.counts[order[stop]])
            stop += 1
        rows = order[start:stop]
        coordinates, cells, types = padded(structures[rows], type_map, width)
        out[rows] = model.eval(coordinates, cells, types, mixed_type=True)[0].reshape(len(rows), -1)[:, 0]
        start = stop
    return out
