"""The chemical space of a campaign: which compositions A_mB_nH_x, binaries and elements a search goes through.

Compositions are addressed by index without being enumerated, so that a search can be cut into shards, and named by ids
that do not depend on the order in which the campaign lists its elements, so that it can be resumed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations
from math import gcd
from typing import Literal, overload

from hydroflow.arrays import formula, numbers_of
from hydroflow.campaign import Space
from hydroflow.errors import DataError

Kind = Literal["ternary", "binary", "element"]

REFERENCE_FORMULA_UNITS = (1, 4)
"""Formula units per cell of elements and binaries at least: their cells are small, and a hull needs them well searched."""


@dataclass(frozen=True, order=True)
class Composition:
    """One formula unit.

    Attributes
    ----------
    symbols, counts
        Elements, non-hydrogen ones alphabetically and H last, and how many of each per formula unit.
    """

    symbols: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def from_dict(cls, counts: dict[str, int]) -> Composition:
        symbols = sorted((s for s, n in counts.items() if n), key=lambda s: (s == "H", s))
        return cls(tuple(symbols), tuple(int(counts[s]) for s in symbols))

    @classmethod
    def from_id(cls, text: str) -> Composition:
        """Inverse of :attr:`id`; also reads plain formulas such as ``CaYH12``. :class:`DataError` when it is neither."""
        parts = re.findall(r"([A-Z][a-z]?)(\d*)", text)
        if not parts or "".join(s + n for s, n in parts) != text or any(n == "0" for _, n in parts):
            raise DataError(f"{text!r} is not a composition such as Ca1Y1H12 or CaYH12")
        numbers_of(s for s, _ in parts)
        counts: Counter[str] = Counter()
        for s, n in parts:
            counts[s] += int(n or 1)
        return cls.from_dict(counts)

    @property
    def id(self) -> str:
        """Stable name with every count written, e.g. ``Ca1Y1H12``."""
        return "".join(f"{s}{n}" for s, n in zip(self.symbols, self.counts, strict=True))

    @property
    def kind(self) -> Kind:
        """``element`` (one species, H included), ``binary`` or ``ternary``."""
        kinds: tuple[Kind, ...] = ("element", "binary", "ternary")
        return kinds[min(len(self.symbols), 3) - 1]

    @property
    def formula(self) -> str:
        """Reduced formula, e.g. ``CaYH12`` for Ca2Y2H24."""
        return formula(self.as_dict())

    @property
    def atoms(self) -> int:
        """Atoms per formula unit."""
        return sum(self.counts)

    @property
    def divisor(self) -> int:
        """Greatest common divisor of the counts; above 1, this is a multiple of a smaller formula unit."""
        return reduce(gcd, self.counts)

    def as_dict(self) -> dict[str, int]:
        return dict(zip(self.symbols, self.counts, strict=True))

    def cell(self, formula_units: int) -> dict[str, int]:
        """Atoms per cell of so many formula units: what a :class:`~hydroflow.structures.generate.Request` takes."""
        return {s: n * formula_units for s, n in self.as_dict().items()}


class Compositions(Sequence[Composition]):
    """All compositions of a space, computed on demand: ternaries first, then (with references) H, elements, binaries."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.elements = tuple(sorted(space.elements))

    @cached_property
    def triples(self) -> list[tuple[int, int, int]]:
        """(m, n, x) per unordered pair of elements, sorted. Where the limits of m and n differ, either element may be A."""
        s = self.space
        low, high = s.hydrogen_ratio
        metals = {
            pair
            for m in range(s.m[0], s.m[1] + 1)
            for n in range(s.n[0], s.n[1] + 1)
            if s.max_metal_atoms is None or m + n <= s.max_metal_atoms
            for pair in ((m, n), (n, m))
        }
        return sorted((m, n, x) for m, n in metals for x in range(low * (m + n), high * (m + n) + 1)
                      if (m + n + x) * s.formula_units[0] <= s.max_atoms)

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        return list(combinations(self.elements, 2))

    @property
    def ternaries(self) -> int:
        """How many ternaries there are; they have the indices below this."""
        return len(self.pairs) * len(self.triples)

    @property
    def references(self) -> int:
        """How many elements and binaries there are for the hull (0 when the campaign switches them off)."""
        if not self.space.references:
            return 0
        low, high = self.space.binary_hydrogen
        return 1 + len(self.elements) * (1 + high - low + 1)

    def __len__(self) -> int:
        return self.ternaries + self.references

    @overload
    def __getitem__(self, index: int) -> Composition: ...
    @overload
    def __getitem__(self, index: slice) -> list[Composition]: ...
    def __getitem__(self, index: int | slice) -> Composition | list[Composition]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"composition {index} of {len(self)}")
        index %= len(self)
        if index < self.ternaries:
            pair, triple = divmod(index, len(self.triples))
            return Composition((*self.pairs[pair], "H"), self.triples[triple])
        index -= self.ternaries
        if index == 0:
            return Composition(("H",), (1,))
        if index <= len(self.elements):
            return Composition((self.elements[index - 1],), (1,))
        low, high = self.space.binary_hydrogen
        element, x = divmod(index - 1 - len(self.elements), high - low + 1)
        return Composition((self.elements[element], "H"), (1, low + x))

    def __iter__(self) -> Iterator[Composition]:
        return (self[i] for i in range(len(self)))

    def distinct_formulas(self) -> int:
        """How many different reduced formulas the ternaries have (178 794 at the paper's limits and 28 elements)."""
        return len(self.pairs) * len({(m // d, n // d, x // d) for m, n, x in self.triples for d in [gcd(m, n, x)]})


def compositions(space: Space) -> Compositions:
    """The compositions of a space: lazily iterable, indexable, sliceable, with a length."""
    return Compositions(space)


def count(space: Space) -> int:
    """How many compositions a space has, references included; costs nothing worth mentioning."""
    return len(Compositions(space))


def formula_units(space: Space, composition: Composition) -> list[int]:
    """Formula units per cell to generate: the campaign's range within its cell size; elements and binaries get more.

    Parameters
    ----------
    space
        With ``formula_units`` and ``max_atoms``.
    composition
        Any composition, of the space or not.

    Returns
    -------
    list of int
        Ascending; empty when even the smallest cell is above ``max_atoms``.
    """
    low, high = space.formula_units
    if composition.kind != "ternary":
        low, high = min(low, REFERENCE_FORMULA_UNITS[0]), max(high, REFERENCE_FORMULA_UNITS[1])
    return [k for k in range(low, high + 1) if k * composition.atoms <= space.max_atoms]
