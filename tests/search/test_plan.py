"""What a search asks for: every composition, the right number, each structure once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from hydroflow.campaign import parse
from hydroflow.search import plan
from hydroflow.structures import Request, compositions

SPACE = """
name = "plan"
[space]
elements = ["Ca", "Y"]
m = [1, 2]
n = [1, 2]
hydrogen_ratio = [3, 4]
formula_units = [1, 2]
"""


def test_every_composition_gets_its_structures_and_no_cell_is_asked_twice() -> None:
    campaign = parse(SPACE)
    wanted = plan.requests(campaign, 10)
    assert len({r.cell_id for r in wanted}) == len(wanted)
    per_formula: Counter[str] = Counter()
    for composition in compositions(campaign.space):
        per_formula[composition.formula] += 10
    found: Counter[str] = Counter()
    for request in wanted:
        cell = {s: n for s, n in request.composition.items() if n}
        found[next(c.formula for c in [composition_of(cell)])] += request.count
    assert found == per_formula


def composition_of(cell: dict[str, int]):  # type: ignore[no-untyped-def]
    from hydroflow.structures import Composition

    return Composition.from_dict(cell)


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=12), most=st.integers(1, 60))
def test_cutting_loses_nothing_and_keeps_the_limit(counts: list[int], most: int) -> None:
    wanted = [Request({"H": i + 1}, n) for i, n in enumerate(counts)]
    numbers = {(i + 1, k) for i, n in enumerate(counts) for k in range(n)}
    for pieces in (plan.shards(wanted, most), plan.blocks(wanted, most)):
        sizes = [sum(r.count for r in piece) for piece in pieces]
        assert max(sizes) <= most and min(sizes) > 0
        got = [(r.composition["H"], r.first + k) for piece in pieces for r in piece for k in range(r.count)]
        assert len(got) == len(set(got)) and set(got) == numbers
    assert max(sizes := [sum(r.count for r in p) for p in plan.shards(wanted, most)]) - min(sizes) <= 1
