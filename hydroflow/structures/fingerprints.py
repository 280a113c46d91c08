"""When are two structures the same crystal? A pair-distribution fingerprint, and duplicate removal that uses it.

The fingerprint holds, per pair of species, the pair distribution g(r) − 1 in units of the mean atomic spacing
(V/N)^⅓, smeared, tapered to zero at the cutoff. It does not depend on the choice of cell, origin, orientation or (small)
volume differences, and is the same for a cell and its supercells. Mirror images have the same fingerprint, as they have the
same enthalpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.structures.compiled import compiled
from hydroflow.structures.environments import difference, surroundings
from hydroflow.structures.symmetric import invert

CUTOFF = 4.0
"""In mean atomic spacings: about 6 Å in a hydride at 200 GPa."""
BINS = 120
SMEARING = 0.06
"""Gaussian width in mean atomic spacings, about 0.08 Å: above the scatter of relaxed twins."""


@dataclass(frozen=True)
class Tolerances:
    """How alike duplicates must be.

    Attributes
    ----------
    enthalpy_ev
        Largest difference in enthalpy per atom, eV.
    volume
        Largest relative difference in volume per atom.
    fingerprint
        Largest distance of the fingerprints, see :func:`distance`.
    surroundings
        Largest difference of any two paired atoms' surroundings, see :mod:`hydroflow.structures.environments`. The default
        joins copies whose atoms are scattered by 0.013 Å (rms) and parts structures in which one atom is moved by 0.3 Å.
    """

    enthalpy_ev: float = 0.010
    volume: float = 0.03
    fingerprint: float = 0.10
    surroundings: float = 0.245


@compiled
def _histograms(
    offsets: np.ndarray, kinds: np.ndarray, fractional: np.ndarray, cells: np.ndarray, channels: int, bins: int,
    cutoff: float, out: np.ndarray,
) -> None:
    """Pair counts per structure, channel and bin, each pair shared linearly by its two nearest bins."""
    inverse = np.empty((3, 3))
    for i in range(len(cells)):
        cell = cells[i]
        invert(cell, inverse)
        n = offsets[i + 1] - offsets[i]
        volume = abs(cell[0, 0] * (cell[1, 1] * cell[2, 2] - cell[1, 2] * cell[2, 1])
                     - cell[0, 1] * (cell[1, 0] * cell[2, 2] - cell[1, 2] * cell[2, 0])
                     + cell[0, 2] * (cell[1, 0] * cell[2, 1] - cell[1, 1] * cell[2, 0]))
        reach = cutoff * (volume / n) ** (1.0 / 3.0)
        scale = bins / reach
        reach2 = reach * reach
        rx = reach * math.sqrt(inverse[0, 0] ** 2 + inverse[1, 0] ** 2 + inverse[2, 0] ** 2)
        ry = reach * math.sqrt(inverse[0, 1] ** 2 + inverse[1, 1] ** 2 + inverse[2, 1] ** 2)
        rz = reach * math.sqrt(inverse[0, 2] ** 2 + inverse[1, 2] ** 2 + inverse[2, 2] ** 2)
        for p in range(offsets[i], offsets[i + 1]):
            for q in range(p, offsets[i + 1]):
                a, b = min(kinds[p], kinds[q]), max(kinds[p], kinds[q])
                channel = b * (b + 1) // 2 + a
                # every pair of different atoms is met once here and counts for both
                weight = 1.0 if p == q else 2.0
                dx = fractional[p, 0] - fractional[q, 0]
                dy = fractional[p, 1] - fractional[q, 1]
                dz = fractional[p, 2] - fractional[q, 2]
                for u in range(math.ceil(-rx - dx), math.floor(rx - dx) + 1):
                    fx = dx + u
                    for v in range(math.ceil(-ry - dy), math.floor(ry - dy) + 1):
                        fy = dy + v
                        ax = fx * cell[0, 0] + fy * cell[1, 0]
                        ay = fx * cell[0, 1] + fy * cell[1, 1]
                        az = fx * cell[0, 2] + fy * cell[1, 2]
                        for w in range(math.ceil(-rz - dz), math.floor(rz - dz) + 1):
                            if p == q and u == 0 and v == 0 and w == 0:
                                continue
                            fz = dz + w
                            x, y, z = ax + fz * cell[2, 0], ay + fz * cell[2, 1], az + fz * cell[2, 2]
                            r2 = x * x + y * y + z * z
                            if r2 >= reach2:
                                continue
                            at = math.sqrt(r2) * scale
                            low = int(at)
                            part = at - low
                            out[i, channel, low] += weight * (1.0 - part)
                            out[i, channel, low + 1] += weight * part


def species_ranks(arrays: StructureArrays) -> tuple[np.ndarray, int]:
    """Rank of each atom's element among those of its structure (N,), by atomic number, and the most elements in a structure."""
    ranks = np.empty(len(arrays.numbers), np.int64)
    most = 0
    for i in range(len(arrays)):
        rows = slice(arrays.offsets[i], arrays.offsets[i + 1])
        present, ranks[rows] = np.unique(arrays.numbers[rows], return_inverse=True)
        most = max(most, len(present))
    return ranks, most


def fingerprints(arrays: StructureArrays, species: int = 3) -> np.ndarray:
    """Identity fingerprints.

    Parameters
    ----------
    arrays
        n structures; those compared with each other must have the same reduced formula.
    species
        Room for so many different elements per structure; more are made room for when a structure has more.

    Returns
    -------
    (n, channels, bins) float32
        Channels are pairs of species, species in order of atomic number.
    """
    ranks, found = species_ranks(arrays)
    species = max(species, found)
    channels = species * (species + 1) // 2
    counts = np.zeros((len(arrays), channels, BINS + 2))
    _histograms(arrays.offsets, ranks, arrays.fractional, arrays.cells, channels, BINS, CUTOFF, counts)
    counts = counts[:, :, :BINS]
    atoms = arrays.counts
    per_species = np.zeros((len(arrays), species))
    np.add.at(per_species, (arrays.owner, ranks), 1)
    b = np.concatenate([np.full(k + 1, k) for k in range(species)])
    a = np.concatenate([np.arange(k + 1) for k in range(species)])
    share_a, share_b = per_species[:, a] / atoms[:, None], per_species[:, b] / atoms[:, None]
    step = CUTOFF / BINS
    r = np.arange(BINS) * step
    shell = 4 * np.pi * np.maximum(r, step) ** 2 * step
    # what a structureless mixture would give per atom; in units of the spacing the density is one
    expected = share_a * share_b * np.where(a == b, 1.0, 2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        g = counts / (atoms[:, None, None] * expected[:, :, None] * shell)
    g[~np.isfinite(g)] = 0.0
    width = SMEARING / step
    kernel = np.exp(-0.5 * (np.arange(-round(4 * width), round(4 * width) + 1) / width) ** 2)
    kernel /= kernel.sum()
    half = len(kernel) // 2
    padded = np.pad(g, ((0, 0), (0, 0), (half, half)))
    smooth = np.zeros_like(g)
    for k, weight in enumerate(kernel):
        smooth += weight * padded[:, :, k:k + BINS]
    taper = (1 - (r / CUTOFF) ** 2) ** 2
    present = expected > 0
    return ((smooth - 1.0) * taper * np.sqrt(expected)[:, :, None] * present[:, :, None]).astype(np.float32)


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance of fingerprints (…, channels, bins): 0 for the same crystal, about √2 for unrelated ones."""
    a, b = first.reshape(*first.shape[:-2], -1), second.reshape(*second.shape[:-2], -1)
    norm = 0.5 * ((a**2).sum(-1) + (b**2).sum(-1))
    return np.sqrt(((a - b) ** 2).sum(-1) / np.maximum(norm, 1e-12))


@compiled
def _candidates(x: int, energy: np.ndarray, volume: np.ndarray, prints: np.ndarray, norm: np.ndarray, keep: np.ndarray,
                energy_tolerance: float, volume_tolerance: float, tolerance: float) -> np.ndarray:
    """Kept structures below x (sorted by energy) that are as near as the tolerances allow, nearest in energy first."""
    found = np.empty(x, np.int64)
    n = 0
    for y in range(x - 1, -1, -1):
        if energy[x] - energy[y] > energy_tolerance:
            break
        if not keep[y] or abs(volume[x] - volume[y]) > volume_tolerance * volume[y]:
            continue
        limit = tolerance * tolerance * 0.5 * (norm[x] + norm[y])
        total = 0.0
        for k in range(prints.shape[1]):
            total += (prints[x, k] - prints[y, k]) ** 2
            if total > limit:
                break
        if total <= limit:
            found[n] = y
            n += 1
    return found[:n]


def deduplicate(
    arrays: StructureArrays, enthalpy_per_atom_ev: np.ndarray, tolerances: Tolerances | None = None,
) -> np.ndarray:
    """Which structures to keep so that every crystal is there once, with its lowest enthalpy: (n,) bool; see
    :func:`representatives`."""
    return representatives(arrays, enthalpy_per_atom_ev, tolerances) == np.arange(len(arrays))


def representatives(
    arrays: StructureArrays, enthalpy_per_atom_ev: np.ndarray, tolerances: Tolerances | None = None,
) -> np.ndarray:
    """For each structure the index of the same crystal with the lowest enthalpy; its own where it is that one.

    Only structures of one reduced formula, one space group (where the column ``spacegroup`` is there) and nearly equal
    enthalpy and volume are compared: by fingerprint, and what passes by its atoms' surroundings.

    Parameters
    ----------
    arrays
        n structures.
    enthalpy_per_atom_ev : (n,)
        eV per atom; NaN keeps a structure out of all comparisons (it stands for itself).
    tolerances
        Default :class:`Tolerances`.

    Returns
    -------
    (n,) int
    """
    tolerances = tolerances or Tolerances()
    enthalpy = np.asarray(enthalpy_per_atom_ev, float)
    out = np.arange(len(arrays))
    groups = arrays.columns.get("spacegroup", np.zeros(len(arrays), int))
    buckets: dict[tuple[str, int], list[int]] = {}
    for i, name in enumerate(arrays.formulas()):
        if np.isfinite(enthalpy[i]):
            buckets.setdefault((name, int(groups[i])), []).append(i)
    volume = arrays.volumes / arrays.counts
    for members in buckets.values():
        if len(members) < 2:
            continue
        own = np.array(members)
        own = own[np.argsort(enthalpy[own], kind="stable")]
        # only those with a neighbour in enthalpy need a fingerprint
        gaps = np.diff(enthalpy[own]) <= tolerances.enthalpy_ev
        own = own[np.concatenate([gaps, [False]]) | np.concatenate([[False], gaps])]
        if not len(own):
            continue
        prints = fingerprints(arrays[own]).reshape(len(own), -1)
        norm = (prints**2).sum(1)
        kept = np.ones(len(own), np.bool_)
        known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for x in range(1, len(own)):
            for y in _candidates(x, enthalpy[own], volume[own], prints, norm, kept, tolerances.enthalpy_ev,
                                 tolerances.volume, tolerances.fingerprint).tolist():
                for k in (x, y):
                    if k not in known:
                        known[k] = surroundings(arrays, int(own[k]))
                if difference(known[x], known[y]) <= tolerances.surroundings:
                    kept[x] = False
                    out[own[x]] = own[y]
                    break
    return out
