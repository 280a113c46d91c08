"""Space groups, standard cells and structural prototypes of many structures, found by moyopy."""

from __future__ import annotations

import logging
from collections import Counter
from functools import cache, reduce
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from hydroflow.arrays import StructureArrays

if TYPE_CHECKING:
    from moyopy import MoyoDataset

# moyopy notes every cell whose shape is not compatible with its lattice's symmetry; generated cells often are not.
logging.getLogger("moyo").setLevel(logging.ERROR)

SYMPREC_A = 0.05
"""Default tolerance of the symmetry search in Å: relaxed positions are good to a few hundredths."""


def _dataset(arrays: StructureArrays, i: int, symprec_a: float) -> MoyoDataset | None:
    """moyopy's answer for structure i; None when it finds none (overlapping atoms, a degenerate cell)."""
    import moyopy

    rows = slice(arrays.offsets[i], arrays.offsets[i + 1])
    cell = moyopy.Cell(arrays.cells[i].tolist(), arrays.fractional[rows].tolist(), arrays.numbers[rows].tolist())
    # A tolerance near the shortest distance makes the search fail; a smaller one still gives the group.
    for tolerance in (symprec_a, 0.3 * symprec_a, 0.05 * symprec_a):
        try:
            return moyopy.MoyoDataset(cell, symprec=tolerance, setting=moyopy.Setting.standard())
        except Exception:  # moyopy's error class is not exported by every version
            continue
    return None


@cache
def spacegroup_symbol(number: int) -> str:
    """Short Hermann–Mauguin symbol, e.g. ``Fm-3m`` for 225; empty for 0."""
    import moyopy

    return "" if number == 0 else moyopy.SpaceGroupType(number).hm_short.replace(" ", "")


def spacegroups(arrays: StructureArrays, symprec_a: float = SYMPREC_A) -> tuple[np.ndarray, list[str]]:
    """Space group of each structure.

    Parameters
    ----------
    arrays
        n structures.
    symprec_a
        Tolerance in Å.

    Returns
    -------
    numbers : (n,) int
        International Tables numbers; 0 where none could be found (overlapping atoms).
    symbols : list of n str
        Short Hermann–Mauguin symbols.
    """
    numbers = np.zeros(len(arrays), np.int64)
    for i in range(len(arrays)):
        found = _dataset(arrays, i, symprec_a)
        numbers[i] = found.number if found is not None else 0
    return numbers, [spacegroup_symbol(int(n)) for n in numbers]


def prototype_labels(arrays: StructureArrays, symprec_a: float = SYMPREC_A) -> list[str]:
    """Label of the structural prototype of each structure, e.g. ``AB10_cF44_225_a_cf`` for LaH10.

    Anonymous formula, Pearson symbol, space-group number, then per species its occupied Wyckoff letters (``2e`` for two
    orbits on e). Species are anonymous and sorted by count, and of the equivalent choices of origin and axes (Euclidean
    normaliser) the first in order is taken, so that two compounds of one prototype have one label.

    Parameters
    ----------
    arrays
        n structures.
    symprec_a
        Tolerance in Å. Labels are comparable only for one tolerance.

    Returns
    -------
    list of str
        Empty text where no space group could be found.
    """
    out = []
    for i in range(len(arrays)):
        found = _dataset(arrays, i, symprec_a)
        out.append("" if found is None else _label(found, arrays.numbers[arrays.offsets[i]:arrays.offsets[i + 1]]))
    return out


@cache
def _relabellings(number: int) -> list[dict[str, str]]:
    """How equivalent choices of origin and axes rename the Wyckoff letters of a space group."""
    from pymatgen.analysis.prototypes import WYCKOFF_POSITION_RELAB_DICT

    return [{chr(int(k)): chr(v) if isinstance(v, int) else v for k, v in table.items()}
            for table in (str.maketrans(t) for t in WYCKOFF_POSITION_RELAB_DICT[str(number)])]


def _label(found: MoyoDataset, numbers: np.ndarray) -> str:
    letters, orbits = found.wyckoffs, found.orbits
    per_species: dict[int, Counter[str]] = {}
    for i in set(orbits):
        per_species.setdefault(int(numbers[i]), Counter())[letters[i]] += 1
    count = Counter(numbers.tolist())
    divisor = reduce(gcd, count.values())
    best = min(
        sorted((count[z] // divisor, _positions(sites, table)) for z, sites in per_species.items())
        for table in _relabellings(found.number)
    )
    formula = "".join(chr(ord("A") + k) + (str(n) if n > 1 else "") for k, (n, _) in enumerate(best))
    return f"{formula}_{found.pearson_symbol}_{found.number}_" + "_".join(
        "".join((str(n) if n > 1 else "") + letter for letter, n in sites) for _, sites in best)


def _positions(sites: Counter[str], table: dict[str, str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((table.get(letter, letter), n) for letter, n in sites.items()))


def standardised(arrays: StructureArrays, symprec_a: float = SYMPREC_A) -> StructureArrays:
    """The structures in their conventional standard cells, symmetrised; columns follow, atom columns are dropped.

    A structure whose symmetry cannot be found stays as it is.
    """
    return _cells(arrays, symprec_a, primitive_cells=False)


def primitive(arrays: StructureArrays, symprec_a: float = SYMPREC_A) -> StructureArrays:
    """The structures in their primitive standard cells, symmetrised; columns follow, atom columns are dropped.

    Columns in eV per cell (``energy_ev`` …) are not rescaled where the cell becomes smaller: divide by atoms first.
    """
    return _cells(arrays, symprec_a, primitive_cells=True)


def _cells(arrays: StructureArrays, symprec_a: float, primitive_cells: bool) -> StructureArrays:
    numbers, fractional, cells = [], [], []
    for i in range(len(arrays)):
        found = _dataset(arrays, i, symprec_a)
        if found is None:
            rows = slice(arrays.offsets[i], arrays.offsets[i + 1])
            numbers.append(arrays.numbers[rows])
            fractional.append(arrays.fractional[rows])
            cells.append(arrays.cells[i])
        else:
            cell = found.prim_std_cell if primitive_cells else found.std_cell
            numbers.append(np.array(cell.numbers))
            fractional.append(np.array(cell.positions))
            cells.append(np.array(cell.basis))
    return StructureArrays.from_lists(numbers, fractional, cells, arrays.columns)
