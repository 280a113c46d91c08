"""A search that spends its structures where phases are stable: evenly at first, then on compositions near the hull."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from hydroflow.arrays import StructureArrays, numbers_of
from hydroflow.campaign import Campaign
from hydroflow.dispatch.ledger import Ledger
from hydroflow.errors import DataError
from hydroflow.screening.hull import distances, hulls_of
from hydroflow.screening.storage import SHARD, read_row_groups
from hydroflow.search import plan
from hydroflow.search.collect import Collected, collect_search
from hydroflow.search.live import LiveFigures
from hydroflow.search.shard import search_specs
from hydroflow.store import Store
from hydroflow.store.documents import Job
from hydroflow.structures import Request

WIDTH_EV = 0.05
"""A composition whose lowest phase is this far above the hull gets 1/e of the structures of one on it, eV/atom."""
PARENTS = 12
"""Best structures per cell that later rounds evolve from."""


def search(
    campaign: Campaign, store: Store, ledger: Ledger, model_digest: str,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Collected:
    """Search every composition of the campaign in the rounds of ``search.rounds`` and collect what was found.

    Deterministic: run again, each round finds its shards finished and asks for the same ones next.

    Parameters
    ----------
    on_progress
        Called with (what, shards done, shards of this round); after `` · `` in what stand the live figures.

    Raises
    ------
    DataError
        when every shard of a round failed; the first reason is given.
    """
    rounds = campaign.search.rounds
    total = sum(r.count for r in plan.requests(campaign))
    live = LiveFigures(store, total)
    asked: Counter[str] = Counter()
    cells: dict[str, Request] = {}
    jobs: list[Job] = []
    for number, share in enumerate(rounds):
        budget = round(share * total) if number + 1 < len(rounds) else total - asked.total()
        if number == 0:
            each = campaign.search.structures_per_composition
            wanted = plan.requests(campaign, max(1, round(each * share)))
        else:
            wanted = next_requests(live.lowest, cells, asked, budget, campaign.pressure.campaign_gpa)
        if not wanted:
            break
        parents = best_of_cells(store, jobs, wanted) if number else None
        specs = search_specs(campaign, store, model_digest, wanted, parents)
        new = ledger.submit(specs, campaign.name)

        title = "search" if len(rounds) == 1 else f"search, round {number + 1} of {len(rounds)}"

        def tell(counts: dict[str, int], title: str = title, new: list[str] = new) -> None:
            live.update(new)
            if on_progress is not None:
                done = sum(counts.get(s, 0) for s in ("done", "failed", "quarantined", "cancelled"))
                on_progress(f"{title} · {live.line()}", done, len(set(new)))

        finished = ledger.wait(new, on_progress=tell)
        live.update(new)
        jobs += [j for j in finished if j.state == "done"]
        if not any(j.state == "done" for j in finished):
            said = next((j.failure for j in finished if j.failure), None) or {"message": "cancelled"}
            raise DataError(f"every shard of search round {number + 1} failed: {said['message']} (`hydroflow jobs list`)")
        for request in wanted:
            asked[request.cell_id] += request.count
            cells.setdefault(request.cell_id, request)
    return collect_search(store, jobs, campaign.search.keep_ehull_ev)


def next_requests(
    lowest: StructureArrays, cells: dict[str, Request], asked: Counter[str], budget: int, pressure_gpa: float,
) -> list[Request]:
    """`budget` structures for the cells of a search, more for those whose composition is nearer to the hull.

    Parameters
    ----------
    lowest
        The lowest phase of each composition found so far.
    cells
        Cell id → a request of that cell.
    asked
        Cell id → structures asked for so far: new ones are numbered on.
    """
    if not len(lowest) or budget < 1:
        return []
    distance = np.maximum(distances(lowest, hulls_of(lowest, pressure_gpa, "the model of this search")), 0.0)
    per_formula = dict(zip(lowest.formulas(), distance.tolist(), strict=True))
    names = sorted(cells)
    bare = StructureArrays.from_lists(
        [_numbers(cells[n]) for n in names], [np.zeros((len(_numbers(cells[n])), 3)) for n in names], [np.eye(3)] * len(names))
    above = np.array([per_formula.get(f, np.inf) for f in bare.formulas()])
    weights = np.exp(-above / WIDTH_EV)
    # the cells of one composition share what the composition is worth
    weights /= np.array([Counter(bare.formulas())[f] for f in bare.formulas()])
    if not weights.sum():
        return []
    exact = budget * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    order = np.lexsort((np.arange(len(names)), -(exact - counts)))
    counts[order[:budget - counts.sum()]] += 1
    return [Request(dict(cells[n].composition), int(c), asked[n]) for n, c in zip(names, counts, strict=True) if c]


def best_of_cells(store: Store, jobs: Sequence[Job], wanted: Sequence[Request]) -> StructureArrays:
    """The lowest structures of each wanted cell, read shard by shard: :data:`PARENTS`, and no more than are wanted of it."""
    most = {r.cell_id: min(PARENTS, r.count) for r in wanted}
    best = [_lowest_few(part, most) for job in jobs for part in read_row_groups(store.objects, job.outputs[SHARD])]
    return _lowest_few(StructureArrays.concatenate(best), most)


def _lowest_few(arrays: StructureArrays, most: dict[str, int]) -> StructureArrays:
    if not len(arrays):
        return arrays
    ids = np.array([Request(c, 1).cell_id for c in arrays.compositions()])
    order = np.lexsort((arrays.columns["id"].astype(str), arrays.columns["enthalpy_ev"], ids))
    rank = np.arange(len(order)) - np.searchsorted(ids[order], ids[order])
    return arrays[np.sort(order[rank < [most.get(i, 0) for i in ids[order]]])]


def _numbers(request: Request) -> np.ndarray:
    symbols = list(request.composition)
    return np.repeat(numbers_of(symbols), [int(request.composition[s]) for s in symbols])
