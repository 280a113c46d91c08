"""Known crystals and disturbed copies of structures, for the tests of symmetry and identity."""

from __future__ import annotations

import numpy as np

from hydroflow.arrays import StructureArrays


def cah6() -> StructureArrays:
    """CaH6 Im-3m at 170 GPa, conventional cell."""
    d = [[0.25, 0.5, 0], [0.75, 0.5, 0], [0.5, 0, 0.25], [0.5, 0, 0.75], [0, 0.25, 0.5], [0, 0.75, 0.5]]
    h = np.array(d + (np.array(d) + 0.5).tolist()) % 1
    return StructureArrays.from_lists(
        [np.array([20] * 2 + [1] * 12)], [np.vstack([[[0, 0, 0], [0.5, 0.5, 0.5]], h])], [3.4565 * np.eye(3)])


def lah10(metal: int = 57, lattice: float = 4.8441) -> StructureArrays:
    """LaH10 Fm-3m at 250 GPa, primitive cell."""
    x = 0.1207
    conventional = [[s * a, t * a, u * a] for a in (x,) for s in (1, -1) for t in (1, -1) for u in (1, -1)]
    cell = lattice * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    cartesian = lattice * np.array([[0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75], *conventional])
    return StructureArrays.from_lists([np.array([metal] + [1] * 10)], [cartesian @ np.linalg.inv(cell) % 1], [cell])


def twins(arrays: StructureArrays, rng: np.random.Generator, scatter_a: float = 0.0075) -> StructureArrays:
    """The same crystals told differently: other cell vectors, origin, orientation, order of atoms; scattered by
    ``scatter_a`` per Cartesian component (0.013 Å rms by default)."""
    numbers, fractional, cells = [], [], []
    for i in range(len(arrays)):
        rows = slice(arrays.offsets[i], arrays.offsets[i + 1])
        transform = np.eye(3)
        for _ in range(2):
            a, b = rng.choice(3, 2, replace=False)
            shear = np.eye(3)
            shear[a, b] = rng.integers(-1, 2)
            transform = shear @ transform
        cell = transform @ arrays.cells[i]
        x = (arrays.fractional[rows] + rng.random(3)) @ np.linalg.inv(transform)
        x += rng.normal(0, scatter_a, x.shape) @ np.linalg.inv(cell)
        e = rng.normal(0, 0.002, (3, 3))
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        order = rng.permutation(len(x))
        numbers.append(arrays.numbers[rows][order])
        fractional.append(x[order])
        cells.append(cell @ (np.eye(3) + (e + e.T) / 2) @ rotation * (1 + 0.01 * (rng.random() - 0.5)) ** (1 / 3))
    return StructureArrays.from_lists(numbers, fractional, cells)


def one_hydrogen_moved(arrays: StructureArrays, rng: np.random.Generator, distance_a: float = 0.3) -> StructureArrays:
    """A near-twin of each structure: one H displaced."""
    fractional = arrays.fractional.copy()
    for i in range(len(arrays)):
        own = np.arange(arrays.offsets[i], arrays.offsets[i + 1])
        step = rng.normal(size=3)
        fractional[rng.choice(own[arrays.numbers[own] == 1])] += (
            distance_a * step / np.linalg.norm(step)) @ np.linalg.inv(arrays.cells[i])
    return StructureArrays(arrays.offsets, arrays.numbers, fractional, arrays.cells)


def two_metals_swapped(arrays: StructureArrays, rng: np.random.Generator) -> StructureArrays:
    """A near-twin of each structure: one A and one B exchanged."""
    numbers = arrays.numbers.copy()
    for i in range(len(arrays)):
        own = np.arange(arrays.offsets[i], arrays.offsets[i + 1])
        metals = np.unique(numbers[own])[1:]
        a, b = (rng.choice(own[numbers[own] == z]) for z in metals[:2])
        numbers[a], numbers[b] = numbers[b], numbers[a]
    return StructureArrays(arrays.offsets, numbers, arrays.fractional, arrays.cells)


def supercell(arrays: StructureArrays, i: int = 0) -> StructureArrays:
    """Structure i doubled along its first vector."""
    rows = slice(arrays.offsets[i], arrays.offsets[i + 1])
    x = arrays.fractional[rows] * [0.5, 1, 1]
    return StructureArrays.from_lists(
        [np.tile(arrays.numbers[rows], 2)], [np.vstack([x, x + np.array([0.5, 0, 0])])],
        [arrays.cells[i] * np.array([[2], [1], [1]])])
