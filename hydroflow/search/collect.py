"""From finished shards to what the funnel works on: near-hull structures and minima, read with flat memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.screening.entries import element_sets
from hydroflow.screening.hull import Hull, distances, hulls_of
from hydroflow.screening.storage import MINIMA, SHARD, lowest_of, read_row_groups
from hydroflow.store import Store
from hydroflow.store.documents import Job
from hydroflow.structures.fingerprints import deduplicate

SMALL = 200_000
"""A search with no more structures than this is handed on whole."""


@dataclass(frozen=True)
class Collected:
    """What a search found.

    Attributes
    ----------
    structures
        With the columns of :func:`hydroflow.search.shard.search_block`, ``shard`` (object digest) and ``row``.
    ternaries
        How many ternary structures were searched, those included that a large search leaves in its shards.
    """

    structures: StructureArrays
    ternaries: int


def collect_search(store: Store, jobs: Sequence[Job], keep_ehull_ev: float = 0.2) -> Collected:
    """Relaxed structures of finished ``search.shard`` jobs.

    A small search comes whole. Of a large one come the structures within `keep_ehull_ev` of the hull of all minima, and
    all minima; the rest stays in the shards, where :func:`hydroflow.search.query.query` finds it.

    Raises
    ------
    DataError
        shards of different pressures or models, or one that is damaged; their jobs are named.
    """
    done = [j for j in jobs if j.state == "done"]
    check_alike(done)
    if sum(j.result["unique"] for j in done) <= SMALL:
        whole = distinct(StructureArrays.concatenate(_row_groups(store, done, SHARD)))
        return Collected(whole, _ternaries(whole))
    lowest = lowest_of(_row_groups(store, done, MINIMA))
    hulls = hulls_of(lowest, done[0].result["pressure_gpa"], done[0].files["model.pt"])
    always = set(lowest.columns["id"])
    parts, ternaries = [], 0
    for part in _row_groups(store, done, SHARD):
        ternaries += _ternaries(part)
        parts.append(near_hull(part, hulls, keep_ehull_ev, always))
    return Collected(distinct(StructureArrays.concatenate(parts)), ternaries)


def _row_groups(store: Store, jobs: Iterable[Job], output: str) -> Iterator[StructureArrays]:
    """One output of each job, a row group at a time; what cannot be read is named with the job that wrote it."""
    for job in jobs:
        try:
            yield from read_row_groups(store.objects, job.outputs[output])
        except DataError as error:
            raise DataError(f"{error}; job {job.key} wrote it, `hydroflow jobs retry {job.key[:12]} --redo` computes it "
                            "again") from error


def _ternaries(arrays: StructureArrays) -> int:
    found, index = element_sets(arrays)
    return int(np.isin(index, [k for k, elements in enumerate(found) if len(elements) == 3]).sum())


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
