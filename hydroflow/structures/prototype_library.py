"""Known structure types of superconducting hydrides, decorated with other elements: the generator ``prototypes``.

The library is data (``prototypes.toml``, each entry with its source). A type of one metal is also decorated with two, in
all ways in which they can share its metal sites in small supercells, so that Ca3YH24 comes from CaH6 and YThH18 from
CeH9. Off by default: a blind search must find these by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from hydroflow.arrays import StructureArrays, numbers_of
from hydroflow.campaign import Campaign
from hydroflow.structures.generate import Failure, Generation, Request, stream_key, structure_ids
from hydroflow.structures.symmetric import reduce_cell
from hydroflow.structures.symmetry import primitive, prototype_labels, spacegroups
from hydroflow.structures.variation import Crystal, clashes, scaled
from hydroflow.structures.volumes import atomic_volumes, minimum_distances

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CELLS = 8
"""Largest supercell of a type's primitive cell that is decorated."""
TRIES = 40
PASSES = 3
"""A cell counts as exhausted after so many random decorations without a new one, and at least so many per supercell shape."""
DISTANCE_FACTOR = 0.85
"""Foreign elements may come this much closer than the minimum distances; relaxation parts them."""


@dataclass(frozen=True)
class Prototype:
    """One structure type in its primitive cell: roles A, B, H per atom, fractional coordinates (k, 3), cell (3, 3)."""

    name: str
    space_group: int
    source: str
    roles: tuple[str, ...]
    fractional: np.ndarray
    cell: np.ndarray

    def count(self, role: str) -> int:
        return self.roles.count(role)


@lru_cache(maxsize=1)
def library() -> list[Prototype]:
    """All types of the shipped library."""
    import moyopy

    text = Path(__file__).with_name("prototypes.toml").read_text()
    stand_in = {"A": 57, "B": 39, "H": 1}
    back = {z: role for role, z in stand_in.items()}
    out = []
    for name, entry in tomllib.loads(text).items():
        operations = moyopy.operations_from_number(entry["space_group"], setting=moyopy.Setting.standard())
        a, b, c = entry["lengths"]
        cell = np.diag([a, b, c]).astype(float)
        if 143 <= entry["space_group"] <= 194:
            cell[1] = [-0.5 * b, np.sqrt(0.75) * b, 0.0]
        numbers, points = [], []
        for role, *x in entry["sites"]:
            orbit: list[np.ndarray] = []
            for rotation, translation in zip(operations.rotations, operations.translations, strict=True):
                image = (np.array(rotation) @ x + translation) % 1.0
                apart = [np.abs((image - other + 0.5) % 1.0 - 0.5).max() for other in orbit]
                if not orbit or min(apart) > 1e-4:
                    orbit.append(image)
            points += orbit
            numbers += [stand_in[role]] * len(orbit)
        conventional = StructureArrays.from_lists([np.array(numbers)], [np.array(points)], [cell])
        one = primitive(conventional, 1e-3)
        out.append(Prototype(name, entry["space_group"], entry["source"], tuple(back[int(z)] for z in one.numbers),
                             one.fractional, one.cells[0]))
    return out


class PrototypeGenerator:
    """Decorated known structure types, at the estimated volume; only as many as there are distinct ones."""

    name = "prototypes"

    def generate(
        self, campaign: Campaign, requests: Sequence[Request], pressure_gpa: float, seed: int,
        relaxed: StructureArrays | None = None,
    ) -> Generation:
        parts, failures = [], []
        for i, request in enumerate(requests):
            cell = {s: n for s, n in request.composition.items() if n}
            # always drawn from the first one on, so that a later request goes on in the same list
            rng = np.random.default_rng(stream_key(self.name, seed, request.cell_id, float(pressure_gpa)))
            crystals = _distinct(campaign, cell, pressure_gpa, request.first + request.count, rng)[request.first:]
            if crystals:
                made = StructureArrays.from_lists(
                    [c.numbers for c in crystals], [c.fractional for c in crystals], [c.cell for c in crystals])
                made.columns |= {
                    "composition_index": np.full(len(made), i), "requested_spacegroup": np.zeros(len(made), int),
                    "generator": np.full(len(made), self.name, dtype=object),
                    "id": np.array(structure_ids(request, pressure_gpa, seed, self.name,
                                                 request.first + np.arange(len(made))), dtype=object)}
                parts.append(made)
            if len(crystals) < request.count:
                failures.append(Failure(i, request.cell_id, request.count - len(crystals),
                                        "known structure types have no more distinct decorations that fit this cell"))
        return Generation(StructureArrays.concatenate(parts), failures)


def _distinct(
    campaign: Campaign, cell: dict[str, int], pressure_gpa: float, count: int, rng: np.random.Generator,
) -> list[Crystal]:
    """Up to `count` decorations that differ in prototype label and space group."""
    symbols = list(cell)
    volumes = atomic_volumes(campaign, symbols, pressure_gpa)
    volume = sum(n * volumes[s] for s, n in cell.items())
    least = DISTANCE_FACTOR * minimum_distances(symbols, volumes, campaign.generator.minimum_distances_a)
    order = np.argsort(numbers_of(symbols))
    least = least[np.ix_(order, order)]
    out: list[Crystal] = []
    seen: set[tuple[int, str]] = set()
    # every supercell shape gets its turn, so that no ordered arrangement is missed by chance
    choices = [(p, transform, roles) for p, cells, roles in _fitting(cell) for transform in _supercells(cells)]
    if not choices or not count:
        return []
    turn = rng.permutation(len(choices))
    misses = k = 0
    while len(out) < count and misses < max(TRIES, PASSES * len(choices)):
        prototype, transform, roles = choices[turn[k % len(choices)]]
        k += 1
        misses += 1
        made = scaled(_decorated(prototype, transform, roles, rng), volume)
        if clashes(made.fractional, np.unique(made.numbers, return_inverse=True)[1], made.cell, least):
            continue
        one = StructureArrays.from_lists([made.numbers], [made.fractional], [made.cell])
        identity = (int(spacegroups(one, 1e-3)[0][0]), prototype_labels(one, 1e-3)[0])
        if identity not in seen:
            seen.add(identity)
            out.append(made)
            misses = 0
    return out


def _fitting(cell: dict[str, int]) -> Iterator[tuple[Prototype, int, dict[str, dict[str, int]]]]:
    """Types, number of their primitive cells, and how many atoms of which element go on each role."""
    metals = {s: n for s, n in cell.items() if s != "H"}
    hydrogen = cell.get("H", 0)
    for p in library():
        if p.count("B") == 0 and metals:
            cells, rest = divmod(sum(metals.values()), p.count("A"))
            if not rest and 1 <= cells <= MAX_CELLS and hydrogen == cells * p.count("H"):
                yield p, cells, {"A": metals}
        elif p.count("B") and len(metals) == 2:
            for a, b in (tuple(metals), tuple(metals)[::-1]):
                cells, rest = divmod(metals[a], p.count("A"))
                if not rest and 1 <= cells <= MAX_CELLS and metals[b] == cells * p.count("B") and (
                        hydrogen == cells * p.count("H")):
                    yield p, cells, {"A": {a: metals[a]}, "B": {b: metals[b]}}


def _decorated(
    prototype: Prototype, transform: np.ndarray, roles: dict[str, dict[str, int]], rng: np.random.Generator,
) -> Crystal:
    """A supercell of the primitive cell with the elements dealt out at random over the sites of each role."""
    inverse = np.linalg.inv(transform)
    # all primitive cells whose origin lies in the supercell
    reach = int(np.abs(transform).sum())
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    origins = grid[((grid @ inverse > -1e-9) & (grid @ inverse < 1 - 1e-9)).all(1)]
    points = ((prototype.fractional[None, :, :] + origins[:, None, :]).reshape(-1, 3) @ inverse) % 1.0
    role = np.array(prototype.roles * len(origins))
    numbers = np.ones(len(points), np.int64)
    for name, elements in roles.items():
        dealt = np.repeat(numbers_of(elements), list(elements.values()))
        numbers[role == name] = rng.permutation(dealt)
    cell, shape = transform @ prototype.cell, np.empty((3, 3))
    reduce_cell(cell, shape)
    order = np.argsort(numbers, kind="stable")
    return Crystal(numbers[order], (points @ np.linalg.inv(shape) % 1.0)[order], cell)


def _supercells(cells: int) -> Iterator[np.ndarray]:
    """Every superlattice of this index once: lower-triangular row matrices in Hermite normal form, new = matrix · old."""
    for a in range(1, cells + 1):
        for b in range(1, cells // a + 1):
            c, rest = divmod(cells, a * b)
            if rest == 0:
                for i, j, k in product(range(a), range(a), range(b)):
                    yield np.array([[a, 0, 0], [i, b, 0], [j, k, c]], float)
