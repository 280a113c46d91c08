"""Entries of a convex hull: phases of one chemical system, checked to be at one pressure and one level of theory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase.data import chemical_symbols

from hydroflow.arrays import StructureArrays, numbers_of
from hydroflow.errors import DataError
from hydroflow.structures.compiled import compiled

MAX_ELEMENTS = 4
COUNT_BITS = 15
"""Bits per element in the packed key of a composition: counts up to 32 767."""


@dataclass(frozen=True)
class Entries:
    """Phases of one chemical system for a hull.

    Attributes
    ----------
    elements : (e,) symbols of the system, 1 to 4.
    counts : (n, e) int
        Atoms of each element per cell.
    enthalpies_ev : (n,) float
        Enthalpy per cell, eV.
    pressure_gpa : float
    level : str
        Level of theory: checksum of the model or DFT settings. One hull never mixes two.
    ids : (n,)
        Names of the entries, or their row numbers.
    """

    elements: tuple[str, ...]
    counts: np.ndarray
    enthalpies_ev: np.ndarray
    pressure_gpa: float
    level: str
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.enthalpies_ev)

    @cached_property
    def cells(self) -> Cells:
        """The entries by their atoms per cell."""
        return Cells(*_group(self.counts, self.enthalpies_ev))


@dataclass(frozen=True)
class Cells:
    """Entries grouped by atoms per cell, in order of first appearance (Ca2H12 and CaH6 are two cells).

    Attributes
    ----------
    index : (n,) int32
        Cell of each entry.
    lowest : (c,) int64
        Row of the entry with the lowest enthalpy of each cell; the earlier row when two are equal.
    """

    index: np.ndarray
    lowest: np.ndarray


def entries(
    elements: Sequence[str], counts: np.ndarray, enthalpies_ev: np.ndarray, pressure_gpa: float | np.ndarray,
    level: str | np.ndarray, ids: Sequence[str] | np.ndarray | None = None,
) -> Entries:
    """Checked entries of one chemical system.

    Parameters
    ----------
    elements
        1 to 4 symbols.
    counts : (n, e) int
        Atoms of each element per cell.
    enthalpies_ev : (n,)
        Enthalpy per cell, eV.
    pressure_gpa, level
        Of every entry (scalar), or of each (n,); all must agree.
    ids : (n,)
        Names used in errors and decompositions; default: the row number.

    Raises
    ------
    DataError
        NaN or infinite enthalpies, mixed pressures, mixed levels of theory, an empty cell; the offending ids are named.
    """
    elements = tuple(elements)
    if not 1 <= len(elements) <= MAX_ELEMENTS or len(set(elements)) != len(elements):
        raise DataError(f"a hull needs 1 to {MAX_ELEMENTS} different elements, not {'-'.join(elements) or 'none'}")
    numbers_of(elements)
    counts = np.ascontiguousarray(counts, np.int64).reshape(-1, len(elements))
    enthalpies_ev = np.ascontiguousarray(enthalpies_ev, float)
    n = len(counts)
    ids = np.arange(n) if ids is None else np.asarray(ids)
    if len(enthalpies_ev) != n or len(ids) != n:
        raise DataError(f"a hull got {n} compositions, {len(enthalpies_ev)} enthalpies and {len(ids)} ids")
    if not _sound(counts, enthalpies_ev, 1 << COUNT_BITS):
        _refuse(~np.isfinite(enthalpies_ev), ids, "enthalpy is not a finite number")
        _refuse((counts < 0).any(axis=1) | (counts >= 1 << COUNT_BITS).any(axis=1), ids,
                f"atom counts outside 0 to {(1 << COUNT_BITS) - 1}")
        _refuse(~counts.any(axis=1), ids, f"no atom of {'-'.join(elements)}")
    return Entries(elements, counts, enthalpies_ev, float(_one(pressure_gpa, ids, "pressures", "GPa")),
                   str(_one(level, ids, "levels of theory", "")), ids)


def entries_of(
    arrays: StructureArrays, elements: Sequence[str], level: str | np.ndarray,
    pressure_gpa: float | np.ndarray | None = None, enthalpy: str = "enthalpy_ev",
) -> Entries:
    """Entries of relaxed structures; all must consist of `elements`.

    `pressure_gpa` defaults to the column of that name, the ids to the column ``id``.

    Raises
    ------
    DataError
        as :func:`entries`, and when a structure has an atom outside `elements`.
    """
    counts = composition_matrix(arrays, elements)
    ids = arrays.columns.get("id")
    names = np.arange(len(arrays)).astype(str) if ids is None else np.asarray(ids)
    _refuse(counts.sum(axis=1) != arrays.counts, names, f"atoms outside the system {'-'.join(elements)}")
    pressure = arrays.columns["pressure_gpa"] if pressure_gpa is None else pressure_gpa
    return entries(elements, counts, arrays.columns[enthalpy], pressure, level, names)


def composition_matrix(arrays: StructureArrays, elements: Sequence[str]) -> np.ndarray:
    """(n, e) atoms of each of `elements` per structure; atoms of other elements are not counted."""
    column = np.full(128, -1, np.int64)
    column[numbers_of(elements)] = np.arange(len(elements))
    return _count(arrays.offsets, arrays.numbers.astype(np.int64), column, len(elements))


def by_system(arrays: StructureArrays) -> Iterator[tuple[tuple[str, ...], np.ndarray, np.ndarray]]:
    """Chemical systems of a mixed batch, each with the phases that belong to its hull.

    Yields
    ------
    elements : (e,) symbols, sorted
    rows : (k,) int
        Structures that consist of these elements only.
    own : (k,) bool
        Those of `rows` that contain all of them.
    """
    found, index = element_sets(arrays)
    for s, wanted in enumerate(found):
        inside = np.array([set(other) <= set(wanted) for other in found])
        rows = np.flatnonzero(inside[index])
        yield wanted, rows, index[rows] == s


def element_sets(arrays: StructureArrays) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The different sets of elements of a batch (sorted symbols) and the index of each structure's set (n,)."""
    numbers = np.unique(arrays.numbers)
    bit = np.zeros(128, np.int64)
    if len(numbers) > 62:
        raise DataError(f"a batch with {len(numbers)} different elements is too mixed; split it by chemical system")
    bit[numbers] = 1 << np.arange(len(numbers))
    masks = np.bitwise_or.reduceat(bit[arrays.numbers], arrays.offsets[:-1]) if len(arrays) else np.zeros(0, np.int64)
    found, index = np.unique(masks, return_inverse=True)
    return [tuple(sorted(chemical_symbols[z] for z in numbers if m & bit[z])) for m in found], index


# ---- checks ---------------------------------------------------------------------------------------------------------
def named(ids: np.ndarray, most: int = 10) -> str:
    """The first ids, for a message."""
    shown = ", ".join(str(i) for i in ids[:most])
    return shown if len(ids) <= most else f"{shown} and {len(ids) - most} more"


def _refuse(bad: np.ndarray | np.bool_, ids: np.ndarray, why: str) -> None:
    if bad.any():
        raise DataError(f"hull entries {named(ids[bad])}: {why}; take them out or mend them")


def _one(value: float | str | np.ndarray, ids: np.ndarray, what: str, unit: str) -> float | str:
    """The one value of all entries."""
    values = np.asarray(value)
    if values.ndim == 0:
        return values.item()
    if not len(values):
        raise DataError(f"a hull of no entries has no {what}")
    found, first, index = np.unique(values, return_index=True, return_inverse=True)
    if len(found) > 1:
        common = np.bincount(index).argmax()
        odd = ids[index != common]
        shown = ", ".join(f"{v} {unit}".strip() for v in found[np.argsort(first)][:4])
        raise DataError(f"one hull cannot mix {what} ({shown}): entries {named(odd)} differ from the others")
    return found[0].item()


@compiled
def _count(offsets: np.ndarray, numbers: np.ndarray, column: np.ndarray, width: int) -> np.ndarray:
    out = np.zeros((len(offsets) - 1, width), np.int64)
    for i in range(len(offsets) - 1):
        for k in range(offsets[i], offsets[i + 1]):
            c = column[numbers[k]]
            if c >= 0:
                out[i, c] += 1
    return out


@compiled
def _sound(counts: np.ndarray, enthalpies: np.ndarray, limit: int) -> bool:
    """Whether every enthalpy is finite, every count within its limits and no cell empty."""
    for i in range(len(enthalpies)):
        if not np.isfinite(enthalpies[i]):
            return False
        atoms = 0
        for k in range(counts.shape[1]):
            if counts[i, k] < 0 or counts[i, k] >= limit:
                return False
            atoms += counts[i, k]
        if atoms == 0:
            return False
    return True


@compiled
def _group(counts: np.ndarray, enthalpies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One pass with an open-addressing table from cell to group; the lowest row of each group so far is kept beside it."""
    n, width = counts.shape
    index = np.empty(n, np.int32)
    size, used = 4096, 0
    keys = np.full(size, -1, np.int64)
    group_at = np.empty(size, np.int32)
    rows = np.empty(size, np.int64)
    lowest = np.empty(size)
    for i in range(n):
        key = 0
        for k in range(width):
            key = (key << COUNT_BITS) | counts[i, k]
        slot = _slot(key, size)
        while keys[slot] != -1 and keys[slot] != key:
            slot = (slot + 1) & (size - 1)
        if keys[slot] == key:
            group = group_at[slot]
            if enthalpies[i] < lowest[group]:
                lowest[group] = enthalpies[i]
                rows[group] = i
            index[i] = group
            continue
        keys[slot] = key
        group_at[slot] = used
        rows[used] = i
        lowest[used] = enthalpies[i]
        index[i] = used
        used += 1
        if 2 * used >= size:
            old_keys, old_groups = keys, group_at
            size *= 2
            keys = np.full(size, -1, np.int64)
            group_at = np.empty(size, np.int32)
            grown_rows, grown_lowest = np.empty(size, np.int64), np.empty(size)
            grown_rows[:used], grown_lowest[:used] = rows[:used], lowest[:used]
            rows, lowest = grown_rows, grown_lowest
            for s in range(len(old_keys)):
                if old_keys[s] != -1:
                    slot = _slot(old_keys[s], size)
                    while keys[slot] != -1:
                        slot = (slot + 1) & (size - 1)
                    keys[slot] = old_keys[s]
                    group_at[slot] = old_groups[s]
    return index, rows[:used].copy()


@compiled
def _slot(key: int, size: int) -> np.int64:
    """Start of the probe sequence: Fibonacci hashing, so that neighbouring compositions spread."""
    return ((key * np.int64(-7046029254386353131)) >> np.int64(20)) & (size - 1)
