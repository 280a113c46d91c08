"""From finished shards to what the funnel works on: near-hull structures and minima, read with flat memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.screening.hull import Hull, distances, hulls_of
from hydroflow.screening.storage import MINIMA, SHARD, lowest_of, read_row_groups, read_shard
from hydroflow.store import Store
from hydroflow.store.documents import Job
from hydroflow.structures.fingerprints import deduplicate

SMALL = 200_000
"""A search with no more structures than this is handed on whole."""


def collect_search(store: Store, jobs: Sequence[Job], keep_ehull_ev: float = 0.2) -> StructureArrays:
    """Relaxed structures of finished ``search.shard`` jobs.

    A small search comes whole. Of a large one come the structures within `keep_ehull_ev` of the hull of all minima, and
    all minima; the rest stays in the shards, where :func:`hydroflow.search.query.query` finds it.

    Returns
    -------
    StructureArrays
        With the columns of :func:`hydroflow.search.shard.search_block`, ``shard`` (object digest) and ``row``.

    Raises
    ------
    DataError
        shards of different pressures or models, or one that is damaged; they are named.
    """
    done = [j for j in jobs if j.state == "done"]
    check_alike(done)
    if sum(j.result["unique"] for j in done) <= SMALL:
        return distinct(StructureArrays.concatenate(read_shard(store.objects, j.outputs[SHARD]) for j in done))
    lowest = lowest_of(read_shard(store.objects, j.outputs[MINIMA]) for j in done)
    hulls = hulls_of(lowest, done[0].result["pressure_gpa"], done[0].files["model.pt"])
    parts = (near_hull(part, hulls, keep_ehull_ev, set(lowest.columns["id"]))
             for j in done for part in read_row_groups(store.objects, j.outputs[SHARD]))
    return distinct(StructureArrays.concatenate(parts))


def distinct(arrays: StructureArrays) -> StructureArrays:
    """Without duplicates, which different shards (or cells) of one composition may have found; of equal structures the one
    with the lowest enthalpy per atom stays."""
    if not len(arrays):
        return arrays
    return arrays[deduplicate(arrays, arrays.columns["enthalpy_ev"] / arrays.counts)]


def check_alike(jobs: Iterable[Job]) -> None:
    """:class:`DataError` when shards were computed at different pressures or with different models."""
    seen: dict[tuple[float, str], str] = {}
    for job in jobs:
        seen.setdefault((float(job.inputs["pressure_gpa"]), job.files["model.pt"]), job.key)
    if len(seen) > 1:
        raise DataError("one search cannot mix pressures or models: " + "; ".join(
            f"job {key} has {p:g} GPa and model {m[:19]}" for (p, m), key in seen.items()))


def near_hull(
    arrays: StructureArrays, hulls: dict[frozenset[str], Hull], keep_ehull_ev: float, always: set[str],
) -> StructureArrays:
    """Structures within `keep_ehull_ev` of the hull, and those whose id is in `always`."""
    keep = distances(arrays, hulls) <= keep_ehull_ev
    keep |= np.isin(arrays.columns["id"], list(always))
    return arrays[keep]
