"""What the funnel would have kept at other thresholds, from the stored values alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.errors import DataError
from hydroflow.screening.filters import filters_of, thresholds
from hydroflow.screening.records import structures_at
from hydroflow.store import Store
from hydroflow.store.documents import Candidate


@dataclass(frozen=True)
class Recount:
    """One filter at the wanted threshold.

    Attributes
    ----------
    count
        Candidates known to be left after it.
    unknown
        Candidates that reach it with no value: they would have to be computed (phonons, DFT), and are not counted further.
    failed
        Those whose computation failed.
    """

    name: str
    threshold: float
    count: int
    unknown: int
    failed: int


def recount(store: Store, campaign: Campaign, changed: Mapping[str, float] | None = None) -> list[Recount]:
    """Count the funnel again with some thresholds changed, by filter name (``{"ehull_lam": 0.08}``).

    Nothing expensive is computed: filters that need the structure alone (space group, atomic hydrogen) measure here and now
    the candidates that an earlier filter had kept from them; missing phonons and DFT distances are counted as unknown.

    Raises
    ------
    DataError
        an unknown filter, or a hull distance beyond what the database holds (``search.keep_ehull_ev``).
    """
    wanted = thresholds(campaign.funnel, changed)
    kept = max(campaign.search.keep_ehull_ev, campaign.funnel.ehull_lam_ev)
    if wanted["ehull_lam"] > kept:
        raise DataError(f"MongoDB holds candidates within {kept:g} eV/atom of the hull (search.keep_ehull_ev); a threshold of "
                        f"{wanted['ehull_lam']:g} cannot be recounted: search with a larger search.keep_ehull_ev")
    table = _table(store, campaign)
    left = np.arange(len(table.ids))
    out = []
    for f in filters_of(campaign.funnel):
        unmeasured = left[~table.measured[f.name][left]]
        if f.structural and len(unmeasured):
            table.values[f.name][unmeasured] = f.structural(table.structures(store, unmeasured), campaign)
        values = table.values[f.name][left]
        unknown = np.isnan(values) & ~table.failed[f.name][left]
        failed = np.isnan(values) & ~unknown
        passes = f.passes(values, wanted[f.name])
        out.append(Recount(f.name, wanted[f.name], int(passes.sum()), int(unknown.sum()), int(failed.sum())))
        left = left[passes]
    return out


def to_json(counts: list[Recount]) -> list[dict[str, Any]]:
    return [asdict(c) for c in counts]


@dataclass
class _Table:
    """Values of all candidates of a campaign as arrays, by filter name."""

    ids: list[str]
    where: list[tuple[str | None, int | None]]
    values: dict[str, np.ndarray]
    measured: dict[str, np.ndarray]
    failed: dict[str, np.ndarray]

    def structures(self, store: Store, rows: np.ndarray) -> StructureArrays:
        return structures_at(store, [self.where[i] for i in rows])


def _table(store: Store, campaign: Campaign) -> _Table:
    filters = filters_of(campaign.funnel)
    fields = {"structure_id": 1, "shard": 1, "row": 1, "stage": 1, "verdicts.filter": 1, "verdicts.value": 1,
              **{f.document_field: 1 for f in filters}}
    collection = store.database[Candidate._get_collection_name()]
    documents = list(collection.find({"campaign": campaign.name}, fields).sort([("campaign", 1), ("structure_id", 1)]))
    table = _Table(
        [d["structure_id"] for d in documents], [(d.get("shard"), d.get("row")) for d in documents],
        {f.name: np.array([_value(d, f.document_field) for d in documents], float) for f in filters},
        {f.name: np.zeros(len(documents), bool) for f in filters}, {f.name: np.zeros(len(documents), bool) for f in filters})
    for i, d in enumerate(documents):
        for verdict in d.get("verdicts", []):
            if verdict["filter"] in table.measured:  # not one of a filter that the campaign had earlier
                table.measured[verdict["filter"]][i] = True
                table.failed[verdict["filter"]][i] = verdict.get("value") is None and d.get("stage") != "waiting"
    return table


def _value(document: Any, field: str) -> float:
    for key in field.split("."):
        document = document.get(key) if isinstance(document, Mapping) else None
    return np.nan if document is None else document
