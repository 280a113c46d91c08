"""What a search asks for: how many structures of which cell, cut into shards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hydroflow.campaign import Campaign
from hydroflow.structures import Composition, Request, compositions, formula_units


def requests(campaign: Campaign, structures_per_composition: int | None = None) -> list[Request]:
    """Requests for every composition of the campaign, references included.

    The structures of a composition are shared evenly over its formula units per cell. Compositions that are multiples of
    each other meet in one cell (A2B2H12 and twice ABH6): its structures are added up and numbered on, never generated
    twice.

    Parameters
    ----------
    structures_per_composition
        Default: ``search.structures_per_composition``.
    """
    per_composition = structures_per_composition or campaign.search.structures_per_composition
    counts: dict[Composition, int] = {}
    for composition in compositions(campaign.space):
        units = formula_units(campaign.space, composition)
        for cell, n in zip(units, split(per_composition, len(units)), strict=True):
            if n:
                key = Composition.from_dict(composition.cell(cell))
                counts[key] = counts.get(key, 0) + n
    return [Request(cell.as_dict(), n) for cell, n in counts.items()]


def split(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by at most one, the larger first."""
    return [total // parts + (i < total % parts) for i in range(parts)] if parts else []


def shards(wanted: Sequence[Request], most: int) -> list[list[Request]]:
    """Cut requests, in order, into shards of about equal size with at most `most` structures each."""
    total = sum(r.count for r in wanted)
    if not total:
        return []
    sizes = split(total, math.ceil(total / most))
    return cut(wanted, sizes)


def blocks(wanted: Sequence[Request], size: int) -> list[list[Request]]:
    """Cut requests, in order, into pieces of `size` structures, the last one smaller."""
    total = sum(r.count for r in wanted)
    return cut(wanted, [size] * (total // size) + [total % size] * bool(total % size))


def cut(wanted: Iterable[Request], sizes: Sequence[int]) -> list[list[Request]]:
    """Pieces with these numbers of structures; a request that crosses a border goes on in the next piece by number."""
    out: list[list[Request]] = [[] for _ in sizes]
    piece, room = 0, sizes[0] if sizes else 0
    for request in wanted:
        first, left = request.first, request.count
        while left:
            if not room:
                piece += 1
                room = sizes[piece]
            n = min(left, room)
            out[piece].append(Request(dict(request.composition), n, first))
            first, left, room = first + n, left - n, room - n
    return out
