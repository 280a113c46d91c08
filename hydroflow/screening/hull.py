"""Convex hull of enthalpy per chemical system, at one pressure and one level of theory.

The distance above the hull is the first filter of the funnel and is asked of every structure of a search, so it is
vectorised: the lowest entry of each composition is found in one pass over all entries, Qhull sees only those at or
below the plane through the elements, and the hull's enthalpy at a composition is the largest of the supporting planes
(chemical potentials) of its lower facets. Equal to ``pymatgen.analysis.phase_diagram.PhaseDiagram`` to 1e-9 eV/atom
(tests/screening/test_hull.py); how much faster is measured by ``benchmarks/hull.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import ConvexHull

from hydroflow.arrays import StructureArrays, formula
from hydroflow.errors import DataError
from hydroflow.screening.entries import Entries, by_system, composition_matrix, element_sets, entries, named
from hydroflow.structures.compiled import compiled

_ON_PLANE_EV = 1e-10
"""Formation enthalpies above minus this are on the plane of the elements: they cannot make a facet Qhull could tell."""


@dataclass(frozen=True)
class Hull:
    """Lower convex hull of one chemical system.

    Attributes
    ----------
    elements, pressure_gpa, level
        What it is the hull of.
    ids : (v,)
        Stable entries, one per composition.
    counts : (v, e) int
        Their atoms per cell.
    enthalpies : (v,)
        Their enthalpies in eV/atom.
    simplices : (f, e) int
        Rows of `ids`: the phases in equilibrium on each facet.
    potentials : (f, e)
        Chemical potential of each element on each facet, eV/atom.
    """

    elements: tuple[str, ...]
    pressure_gpa: float
    level: str
    ids: np.ndarray
    counts: np.ndarray
    enthalpies: np.ndarray
    simplices: np.ndarray
    potentials: np.ndarray

    @cached_property
    def fractions(self) -> np.ndarray:
        """(v, e) atomic fractions of the stable entries."""
        return self.counts / self.counts.sum(axis=1, keepdims=True)

    @cached_property
    def formulas(self) -> list[str]:
        """(v,) reduced formula of each stable entry."""
        return [formula({s: int(c) for s, c in zip(self.elements, row, strict=True) if c}) for row in self.counts]

    @cached_property
    def _inverses(self) -> np.ndarray:
        """(f, e, e) turns atomic fractions into the shares of a facet's phases."""
        return np.linalg.inv(self.fractions[self.simplices])

    def at(self, counts: np.ndarray) -> np.ndarray:
        """Hull enthalpy at compositions `counts` (k, e), eV/atom (k,)."""
        counts = np.ascontiguousarray(counts, np.int64).reshape(-1, len(self.elements))
        return _highest_plane(counts, self.potentials)

    def above(self, counts: np.ndarray, enthalpies_ev: np.ndarray) -> np.ndarray:
        """(k,) distance above the hull in eV/atom of cells `counts` (k, e) with `enthalpies_ev` (k,) per cell.

        Negative for a phase that is not part of the hull and lies below it.
        """
        counts = np.ascontiguousarray(counts, np.int64).reshape(-1, len(self.elements))
        return np.asarray(enthalpies_ev, float) / counts.sum(axis=1) - self.at(counts)

    def shares(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Facet of each composition and the atomic share of each of its phases.

        Returns
        -------
        facet : (k,) int
        share : (k, e)
            Adds up to 1; tiny negative values at facet borders are set to 0.
        """
        counts = np.asarray(counts).reshape(-1, len(self.elements))
        x = counts / counts.sum(axis=1, keepdims=True)
        share = np.einsum("ke,fev->kfv", x, self._inverses)
        # Several facets may share a plane (coplanar phases): the one whose smallest share is largest holds the point.
        facet = share.min(axis=2).argmax(axis=1)
        picked = np.clip(share[np.arange(len(x)), facet], 0.0, None)
        return facet, picked / picked.sum(axis=1, keepdims=True)

    def decomposition(self, counts: np.ndarray) -> dict[str, float]:
        """What one composition (e,) decomposes into: id of the stable phase → share of the atoms."""
        facet, share = self.shares(np.asarray(counts)[None])
        return {str(self.ids[v]): float(s) for v, s in zip(self.simplices[facet[0]], share[0], strict=True) if s > 1e-9}

    def reaction(self, counts: np.ndarray) -> dict[str, float]:
        """As :meth:`decomposition`, by reduced formula."""
        facet, share = self.shares(np.asarray(counts)[None])
        return {self.formulas[v]: float(s) for v, s in zip(self.simplices[facet[0]], share[0], strict=True) if s > 1e-9}

    def error_ev(self, counts: np.ndarray, error_per_atom_ev: float) -> np.ndarray:
        """(k,) standard error of the distance above the hull when every enthalpy has the independent error
        `error_per_atom_ev` (eV/atom): σ·√(1 + Σ share²) with the shares of the decomposition."""
        _, share = self.shares(counts)
        return error_per_atom_ev * np.sqrt(1.0 + (share**2).sum(axis=1))

    def with_entries(self, new: Entries) -> Hull:
        """The hull after `new` entries: itself when none of them is below it, so that a growing search rebuilds only
        what changed.

        Raises
        ------
        DataError
            another system, pressure or level of theory; the ids of the new entries are named.
        """
        if (new.elements, new.pressure_gpa, new.level) != (self.elements, self.pressure_gpa, self.level):
            raise DataError(
                f"entries {named(new.ids)} ({'-'.join(new.elements)}, {new.pressure_gpa:g} GPa, {new.level}) do not "
                f"belong in the hull of {'-'.join(self.elements)} at {self.pressure_gpa:g} GPa, {self.level}")
        below = self.above(new.counts, new.enthalpies_ev) < -_ON_PLANE_EV
        if not below.any():
            return self
        sizes = self.counts.sum(axis=1)
        return build(Entries(
            self.elements, np.concatenate([self.counts, new.counts[below]]),
            np.concatenate([self.enthalpies * sizes, new.enthalpies_ev[below]]), self.pressure_gpa, self.level,
            np.concatenate([self.ids.astype(str), new.ids[below].astype(str)])))


def build(entries: Entries) -> Hull:
    """The lower convex hull of checked entries (see :func:`entries`).

    Raises
    ------
    DataError
        when an element of the system has no entry of its own.
    """
    lowest = lowest_per_composition(entries)
    counts = entries.counts[lowest]
    sizes = counts.sum(axis=1)
    x = counts / sizes[:, None]
    h = entries.enthalpies_ev[lowest] / sizes
    pure = [np.flatnonzero(counts[:, k] == sizes) for k in range(len(entries.elements))]
    missing = [s for s, rows in zip(entries.elements, pure, strict=True) if not len(rows)]
    if missing:
        raise DataError(
            f"the hull of {'-'.join(entries.elements)} at {entries.pressure_gpa:g} GPa has no entry of the "
            f"element{'s' if len(missing) > 1 else ''} {', '.join(missing)}; search them too (space.references)")
    corner = np.array([rows[0] for rows in pure])
    formation = h - x @ h[corner]
    if len(corner) == 1 or formation.min() > -_ON_PLANE_EV:
        simplices = corner[None]
    else:
        points = np.concatenate([corner, np.flatnonzero(formation <= -_ON_PLANE_EV)])
        # Qhull works with one tolerance for all coordinates: bring the enthalpies to the size of the fractions.
        scaled = np.where(np.isin(points, corner), 0.0, formation[points] / -formation.min())
        found = ConvexHull(np.column_stack([x[points, 1:], scaled]), qhull_options="Qt")
        simplices = points[found.simplices[found.equations[:, -2] < -1e-12]]
        # Facets that stand on a line of compositions have no volume in composition space and carry no information.
        simplices = simplices[np.abs(np.linalg.det(x[simplices])) > 1e-10]
    potentials = np.linalg.solve(x[simplices], h[simplices][..., None])[..., 0]
    stable, rows = np.unique(simplices, return_inverse=True)
    return Hull(entries.elements, entries.pressure_gpa, entries.level, entries.ids[lowest[stable]], counts[stable],
                h[stable], rows.reshape(simplices.shape), np.ascontiguousarray(potentials))


def lowest_per_composition(entries: Entries) -> np.ndarray:
    """(u,) rows of the entries with the lowest enthalpy per atom of each reduced composition, in order of first
    appearance; the earlier row where two are equal."""
    rows = entries.cells.lowest
    counts = entries.counts[rows]
    h = entries.enthalpies_ev[rows] / counts.sum(axis=1)
    reduced = counts // np.gcd.reduce(counts, axis=1, keepdims=True)
    _, first, index = np.unique(reduced, axis=0, return_index=True, return_inverse=True)
    index = index.reshape(-1)
    order = np.lexsort((rows, h, index))
    best = order[np.r_[True, np.diff(index[order]) > 0]]
    return rows[best[np.argsort(first, kind="stable")]]


def energy_above_hull(entries: Entries) -> tuple[np.ndarray, Hull]:
    """E_above_hull of every entry, eV/atom (n,), and the hull of them all. Never negative."""
    hull = build(entries)
    cells = entries.counts[entries.cells.lowest]
    return _above(entries.enthalpies_ev, entries.cells.index, 1.0 / cells.sum(axis=1), hull.at(cells)), hull


def hulls_of(
    arrays: StructureArrays, pressure_gpa: float | np.ndarray, level: str | np.ndarray,
    enthalpies_ev: np.ndarray | None = None,
) -> dict[frozenset[str], Hull]:
    """The hull of every chemical system that occurs in a mixed batch and of which it has all elements.

    The hull of a system is made of all entries of the batch that consist of its elements only.

    Parameters
    ----------
    pressure_gpa, level
        Of all structures, or of each (n,).
    enthalpies_ev : (n,)
        Per cell; default: the column ``enthalpy_ev``.

    Raises
    ------
    DataError
        as :func:`hydroflow.screening.entries.entries`.
    """
    h = arrays.columns["enthalpy_ev"] if enthalpies_ev is None else enthalpies_ev
    out = {}
    for elements, rows, _ in by_system(arrays):
        part = arrays[rows]
        counts = composition_matrix(part, elements)
        checked = entries(
            elements, counts, h[rows], pressure_gpa if np.ndim(pressure_gpa) == 0 else np.asarray(pressure_gpa)[rows],
            level if np.ndim(level) == 0 else level[rows], part.columns.get("id"))
        if (counts == part.counts[:, None]).any(axis=0).all():
            out[frozenset(elements)] = build(checked)
    return out


def distances(
    arrays: StructureArrays, hulls: Mapping[frozenset[str], Hull], enthalpies_ev: np.ndarray | None = None,
) -> np.ndarray:
    """(n,) distance of each structure above the hull of its own chemical system, eV/atom; inf where there is none.

    A wider system that contains a phase has the same hull at that phase, so its own system is enough.
    """
    h = arrays.columns["enthalpy_ev"] if enthalpies_ev is None else enthalpies_ev
    out = np.full(len(arrays), np.inf)
    found, index = element_sets(arrays)
    for s, elements in enumerate(found):
        hull = hulls.get(frozenset(elements))
        if hull is not None:
            rows = np.flatnonzero(index == s)
            out[rows] = hull.above(composition_matrix(arrays[rows], hull.elements), h[rows])
    return out


def hull_distances(arrays: StructureArrays, enthalpies_ev_atom: np.ndarray) -> np.ndarray:
    """(n,) distance of each structure of a batch above the hull of that batch, eV/atom; inf where an element is missing.

    Parameters
    ----------
    arrays
        Structures of one model at one pressure (column ``pressure_gpa``, checked where it is there).
    enthalpies_ev_atom : (n,)
        Enthalpy per atom, eV.
    """
    h = np.asarray(enthalpies_ev_atom, float) * arrays.counts
    return distances(arrays, hulls_of(arrays, arrays.columns.get("pressure_gpa", 0.0), "one model", h), h)


# ---- kernels --------------------------------------------------------------------------------------------------------
@compiled
def _highest_plane(counts: np.ndarray, potentials: np.ndarray) -> np.ndarray:
    """Largest supporting plane at each composition; consecutive equal compositions are computed once."""
    n, e = counts.shape
    out = np.empty(n)
    for i in range(n):
        if i > 0:
            same = True
            for k in range(e):
                same &= counts[i, k] == counts[i - 1, k]
            if same:
                out[i] = out[i - 1]
                continue
        best = -np.inf
        for f in range(len(potentials)):
            value = 0.0
            for k in range(e):
                value += counts[i, k] * potentials[f, k]
            best = max(best, value)
        size = 0
        for k in range(e):
            size += counts[i, k]
        out[i] = best / size
    return out


@compiled
def _above(enthalpies: np.ndarray, index: np.ndarray, per_atom: np.ndarray, hull: np.ndarray) -> np.ndarray:
    out = np.empty(len(enthalpies))
    for i in range(len(enthalpies)):
        out[i] = max(enthalpies[i] * per_atom[index[i]] - hull[index[i]], 0.0)
    return out
