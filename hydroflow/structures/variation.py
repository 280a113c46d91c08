"""Variation operators: how new structures are made from relaxed ones of the same cell composition.

Each operator takes structures whose atoms are sorted by element (:func:`sorted_cell`) and gives a :class:`Crystal` with the
same atoms, not yet checked for short distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from hydroflow.arrays import StructureArrays
from hydroflow.structures.compiled import compiled
from hydroflow.structures.symmetric import invert, reduce_cell, too_close


@dataclass(frozen=True)
class Crystal:
    """One structure: atomic numbers (k,), fractional coordinates (k, 3), cell (3, 3; rows, Å)."""

    numbers: np.ndarray
    fractional: np.ndarray
    cell: np.ndarray

    @property
    def volume(self) -> float:
        return float(abs(np.linalg.det(self.cell)))


def sorted_cell(arrays: StructureArrays, i: int) -> Crystal:
    """Structure i in a reduced cell whose vectors are ordered by length, in standard orientation, atoms by element.

    Structures brought to this form can be mixed: their cells differ by strain, not by the choice of vectors.
    """
    rows = slice(arrays.offsets[i], arrays.offsets[i + 1])
    order = np.argsort(arrays.numbers[rows], kind="stable")
    cell, transform = arrays.cells[i].copy(), np.empty((3, 3))
    reduce_cell(cell, transform)
    fractional = arrays.fractional[rows][order] @ np.linalg.inv(transform)
    by_length = np.argsort((cell**2).sum(1))
    cell, fractional = cell[by_length], fractional[:, by_length]
    # lower-triangular orientation: a along x, b in the xy plane; Cholesky also makes it right-handed, which a mirror
    # image of the structure does not mind
    return Crystal(arrays.numbers[rows][order], fractional % 1.0, np.linalg.cholesky(cell @ cell.T))


def scaled(crystal: Crystal, volume: float) -> Crystal:
    """The same crystal, uniformly scaled to a volume in Å³."""
    return Crystal(crystal.numbers, crystal.fractional, crystal.cell * (volume / crystal.volume) ** (1 / 3))


def rattle(crystal: Crystal, rng: np.random.Generator, displacement_a: float = 0.5, share: float = 0.6) -> Crystal:
    """Displace a random share of the atoms by normal steps with this standard deviation in Å."""
    moved = rng.random(len(crystal.numbers)) < share
    steps = rng.normal(0, displacement_a, (len(moved), 3)) * moved[:, None]
    return Crystal(crystal.numbers, (crystal.fractional + steps @ np.linalg.inv(crystal.cell)) % 1.0, crystal.cell)


def strain(crystal: Crystal, rng: np.random.Generator, size: float = 0.15) -> Crystal:
    """Strain the cell at constant volume; components are normal with this standard deviation."""
    e = rng.normal(0, size, (3, 3))
    new = Crystal(crystal.numbers, crystal.fractional, crystal.cell @ (np.eye(3) + 0.5 * (e + e.T)))
    return scaled(new, crystal.volume)


def permutation(crystal: Crystal, rng: np.random.Generator, swaps: int | None = None) -> Crystal:
    """Exchange atoms of different elements, two by two; not H where there are two other elements (A/B exchange)."""
    numbers = crystal.numbers.copy()
    others = [z for z in np.unique(numbers) if z != 1]
    pool = np.flatnonzero(numbers != 1) if len(others) > 1 else np.arange(len(numbers))
    # each atom is moved at most once, so that a second swap does not undo the first
    for _ in range(swaps or int(rng.integers(1, 3))):
        elements = np.unique(numbers[pool])
        if len(elements) < 2:
            break
        a, b = rng.choice(elements, 2, replace=False)
        i, j = rng.choice(pool[numbers[pool] == a]), rng.choice(pool[numbers[pool] == b])
        numbers[i], numbers[j] = b, a
        pool = pool[(pool != i) & (pool != j)]
    order = np.argsort(numbers, kind="stable")
    return Crystal(numbers[order], crystal.fractional[order], crystal.cell)


def heredity(first: Crystal, second: Crystal, rng: np.random.Generator) -> Crystal:
    """Cut both parents across a random axis and join a slab of each; the cell is a weighted mean of theirs.

    Atoms in excess are dropped from those nearest to the cut, missing ones are taken from the parent's other part
    (Glass, Oganov & Hansen, Comput. Phys. Commun. 175, 713 (2006)).
    """
    axis, cut = int(rng.integers(3)), float(rng.uniform(0.3, 0.7))
    parts = []
    for crystal in (first, second):
        parts.append((crystal.fractional + rng.random(3)) % 1.0)
    chosen = []
    for z in np.unique(first.numbers):
        own = np.flatnonzero(first.numbers == z)
        a, b = parts[0][own], parts[1][own]
        # positive: inside the slab that this parent gives; the larger, the farther from the cut
        depth = np.concatenate([cut - a[:, axis], b[:, axis] - cut])
        both = np.concatenate([a, b])
        chosen.append(both[np.argsort(-depth, kind="stable")[:len(own)]])
    weight = cut
    cell = weight * first.cell + (1 - weight) * second.cell
    mixed = Crystal(first.numbers, np.concatenate(chosen), cell)
    return scaled(mixed, weight * first.volume + (1 - weight) * second.volume)


def towards(crystal: Crystal, best: Crystal, rng: np.random.Generator, inertia: float = 0.6) -> Crystal:
    """A particle-swarm step of positions and cell from a structure towards a better one.

    The better structure is first laid over this one: an atom of its rarest element on one of the same here, atoms of each
    element paired by least squares. Then x' = x + inertia·v + 2 r (best − x) with a random velocity v of the size of that
    difference (Wang et al., Phys. Rev. B 82, 094116 (2010); without memory of earlier velocities, which relaxation
    makes meaningless).
    """
    elements, count = np.unique(crystal.numbers, return_counts=True)
    rare = np.flatnonzero(crystal.numbers == elements[np.argmin(count)])
    metric = crystal.cell @ crystal.cell.T
    least, aligned = np.inf, best.fractional
    anchor = crystal.fractional[rng.choice(rare)]
    for origin in best.fractional[np.flatnonzero(best.numbers == elements[np.argmin(count)])][:4]:
        shifted = best.fractional - origin + anchor
        total, laid = 0.0, np.empty_like(shifted)
        for z in elements:
            own = np.flatnonzero(crystal.numbers == z)
            d = shifted[own][None, :, :] - crystal.fractional[own][:, None, :]
            d -= np.round(d)
            cost = np.einsum("abi,ij,abj->ab", d, metric, d)
            rows, columns = linear_sum_assignment(cost)
            total += cost[rows, columns].sum()
            laid[own] = crystal.fractional[own] + d[rows, columns]
        if total < least:
            least, aligned = total, laid
    difference = aligned - crystal.fractional
    size = np.sqrt((difference**2).mean())
    step = inertia * size * rng.normal(size=difference.shape) + 2 * rng.random() * difference
    r = float(rng.random())
    moved = Crystal(crystal.numbers, (crystal.fractional + step) % 1.0, crystal.cell + r * (best.cell - crystal.cell))
    return scaled(moved, crystal.volume + r * (best.volume - crystal.volume))


@compiled
def clashes(fractional: np.ndarray, kinds: np.ndarray, cell: np.ndarray, distances: np.ndarray) -> bool:
    """Whether any two atoms, images included, are closer than the minimum of their kinds (s, s) in Å."""
    inverse, heights = np.empty((3, 3)), np.empty(3)
    reduced, transform = cell.copy(), np.empty((3, 3))
    reduce_cell(reduced, transform)
    for s in range(len(distances)):
        for i in range(3):
            if (reduced[i] ** 2).sum() < distances[s, s] ** 2:
                return True
    invert(cell, inverse)
    for i in range(3):
        heights[i] = np.sqrt(inverse[0, i] ** 2 + inverse[1, i] ** 2 + inverse[2, i] ** 2)
    for p in range(len(kinds)):
        for q in range(p + 1, len(kinds)):
            if too_close(fractional[p, 0] - fractional[q, 0], fractional[p, 1] - fractional[q, 1],
                         fractional[p, 2] - fractional[q, 2], cell, heights, distances[kinds[p], kinds[q]]):
                return True
    return False
