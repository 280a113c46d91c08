"""Which compositions an exploration draws from the chemical space."""

from __future__ import annotations

import numpy as np

from hydroflow.campaign import Space
from hydroflow.structures import Request
from hydroflow.structures.space import compositions, formula_units

ELEMENT_SHARE = 0.2
BINARY_SHARE = 0.25
"""Shares of explored structures that are elements and binaries: a hull is only as good as its ends, and an element has few
cells in a random draw over compositions but stands in every distance to the hull."""


def draw_requests(space: Space, structures: int, rng: np.random.Generator) -> list[Request]:
    """Requests for `structures` structures over the space: ternaries uniformly, elements and binaries in turn.

    The same composition and cell size drawn twice is one request with count 2, so the result is short for a small space.
    """
    every = compositions(space)
    drawn = []
    if every.references:
        references = every[every.ternaries :]
        for kind, share in (("element", ELEMENT_SHARE), ("binary", BINARY_SHARE)):
            some = [c for c in references if c.kind == kind]
            start = int(rng.integers(len(some)))
            drawn += [some[(start + i) % len(some)] for i in range(round(structures * share))]
    drawn += [every[int(i)] for i in rng.integers(every.ternaries, size=structures - len(drawn))]

    counts: dict[tuple[tuple[str, int], ...], int] = {}
    for composition in drawn:
        multiples = formula_units(space, composition)
        if multiples:
            cell = tuple(composition.cell(int(rng.choice(multiples))).items())
            counts[cell] = counts.get(cell, 0) + 1
    return [Request(dict(cell), n) for cell, n in sorted(counts.items())]
