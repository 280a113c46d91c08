"""How relaxed structures rest: compact Parquet shards, their minima, and reading many of them with flat memory."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.store.objects import ObjectStore

SHARD = "shard.parquet"
MINIMA = "minima.parquet"
ROW_GROUP = 20_000
"""Structures per Parquet row group: what a reader holds in memory at once."""


def compact(arrays: StructureArrays) -> StructureArrays:
    """Fractional coordinates wrapped into [0, 1) in single precision (1e-6 Å), small columns in small types.

    Cells and energies keep double precision: hull distances are differences of large numbers.
    """
    out = arrays[:]
    out.fractional = (out.fractional - np.floor(out.fractional)).astype(np.float32)
    out.columns = {k: v.astype(np.float32) if k in _SINGLE else v.astype(np.int16) if k in _SHORT else v
                   for k, v in out.columns.items()}
    return out


_SINGLE = ("fmax_ev_a", "stress_off_gpa", "pressure_gpa")
_SHORT = ("steps", "spacegroup", "requested_spacegroup", "natoms")


def expand(arrays: StructureArrays) -> StructureArrays:
    """Double precision again, for whatever computes with it."""
    out = arrays[:]
    out.fractional = out.fractional.astype(float)
    out.columns = {k: v.astype(float) if v.dtype == np.float32 else v for k, v in out.columns.items()}
    return out


def write_shard(arrays: StructureArrays) -> bytes:
    """Parquet of compact structures in row groups that can be read one at a time."""
    sink = io.BytesIO()
    pq.write_table(compact(arrays).to_table(), sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


def read_shard(objects: ObjectStore, digest: str) -> StructureArrays:
    """All structures of one shard, with the columns ``shard`` and ``row`` that say where they rest.

    Raises
    ------
    DataError
        when the object is missing, damaged or not a whole shard; the digest is named.
    """
    return StructureArrays.concatenate(read_row_groups(objects, digest))


def read_row_groups(objects: ObjectStore, digest: str) -> Iterator[StructureArrays]:
    """The structures of one shard, a row group at a time (see :func:`read_shard`)."""
    data = objects.get(digest)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        first = 0
        for group in range(file.num_row_groups):
            part = expand(StructureArrays.from_table(file.read_row_group(group)))
            part.columns["shard"] = np.full(len(part), digest, dtype=object)
            part.columns["row"] = np.arange(first, first + len(part))
            first += len(part)
            yield part
    except (pa.ArrowInvalid, OSError, DataError) as error:
        raise DataError(f"shard {digest} is not a whole Parquet file of structures (half-written?): {error}") from error


def composition_keys(arrays: StructureArrays) -> np.ndarray:
    """(n,) index of the reduced composition of each structure, equal for CaYH12 and Ca2Y2H24, in order of appearance."""
    numbers = np.unique(arrays.numbers)
    counts = np.stack([arrays.count_of(int(z)) for z in numbers], axis=1)
    reduced = counts // np.gcd.reduce(counts, axis=1, keepdims=True)
    _, first, index = np.unique(reduced, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), int)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[index.reshape(-1)]


def minima(arrays: StructureArrays) -> np.ndarray:
    """Rows of the structure with the lowest enthalpy per atom of each reduced composition; the earlier one when equal."""
    if not len(arrays):
        return np.zeros(0, np.int64)
    keys = composition_keys(arrays)
    h = arrays.columns["enthalpy_ev"] / arrays.counts
    order = np.lexsort((np.arange(len(keys)), h, keys))
    return np.sort(order[np.r_[True, np.diff(keys[order]) > 0]])


def lowest_of(parts: Iterable[StructureArrays]) -> StructureArrays:
    """The minima over many batches, holding one batch at a time."""
    kept = StructureArrays.empty()
    for part in parts:
        joined = StructureArrays.concatenate([kept, part])
        kept = joined[minima(joined)]
    return kept
