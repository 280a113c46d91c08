"""Queries over everything that was searched: the shards in the object store and the candidates in MongoDB.

    query(store, "formula = 'CaYH12' and spacegroup > 75", campaign="ca-y-h")

Every distinct relaxed structure is in a shard; what the funnel and EPC added is in MongoDB. A condition on something only
candidates have (Tc, λ, phonons, the stage) is answered from MongoDB, every other one from the shards; either way a row
carries both kinds of values where there are both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hydroflow.arrays import StructureArrays, formula
from hydroflow.errors import DataError
from hydroflow.screening.hull import Hull, distances, hulls_of
from hydroflow.screening.records import structures_at
from hydroflow.screening.storage import MINIMA, SHARD, lowest_of, read_shard
from hydroflow.search.conditions import Condition, parse
from hydroflow.store import Store
from hydroflow.store.documents import Candidate, Job

SEARCHED: dict[str, type] = {
    "id": str, "formula": str, "system": str, "prototype": str, "generator": str, "natoms": float, "spacegroup": float,
    "requested_spacegroup": float, "enthalpy_ev_atom": float, "ehull_lam_ev": float, "fmax_ev_a": float, "steps": float,
}
"""Fields that every searched structure has."""
CANDIDATE: dict[str, type] = {
    "stage": str, "rejected_by": str, "epc_status": str, "ehull_dft_ev": float, "atomic_h_fraction": float,
    "min_frequency_thz": float, "lambda": float, "omega_log_k": float, "tc_k": float, "tc_mcmillan_k": float,
    "tc_predicted_k": float,
}
"""Fields that only candidates in MongoDB have."""
FIELDS = {**SEARCHED, **CANDIDATE}
_DOCUMENT = {"id": "structure_id", "enthalpy_ev_atom": "enthalpy_lam_ev"}
_ROW = (*SEARCHED, *CANDIDATE, "shard", "row")


def query(store: Store, where: str, campaign: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Structures of a campaign's search that meet a condition (:mod:`hydroflow.search.conditions`).

    Parameters
    ----------
    where
        E.g. ``formula = 'CaYH12' and spacegroup > 75``; fields are :data:`FIELDS`. Empty for everything.
    limit
        At most so many rows.

    Returns
    -------
    list of dict
        One row per structure with the keys of :data:`FIELDS`, ``shard`` and ``row``; None where there is no value.

    Raises
    ------
    DataError
        a condition that cannot be read, or a campaign without a finished search.
    """
    condition = parse(where, FIELDS) if where.strip() else None
    if condition is not None and condition.fields() & CANDIDATE.keys():
        return _from_documents(store, condition, campaign, limit)
    rows: list[dict[str, Any]] = []
    for found in _from_shards(store, condition, campaign):
        rows += found
        if limit is not None and len(rows) >= limit:
            rows = rows[:limit]
            break
    return _with_documents(store, campaign, rows)


def structures(store: Store, rows: Sequence[dict[str, Any]]) -> StructureArrays:
    """The structures of rows of :func:`query`, in their order."""
    return structures_at(store, [(r["shard"], r["row"]) for r in rows])


def _from_documents(store: Store, condition: Condition, campaign: str, limit: int | None) -> list[dict[str, Any]]:
    names = {name: _DOCUMENT.get(name, name) for name in FIELDS}
    if "generator" in condition.fields() or {"fmax_ev_a", "steps", "requested_spacegroup"} & condition.fields():
        raise DataError("generator, requested_spacegroup, fmax_ev_a and steps are not in MongoDB; ask for them without "
                        f"{', '.join(sorted(condition.fields() & CANDIDATE.keys()))}")
    collection = store.database[Candidate._get_collection_name()]
    found = collection.find({"campaign": campaign, **condition.mongo(names)},
                            {names[n]: 1 for n in FIELDS} | {"shard": 1, "row": 1}).sort("ehull_lam_ev", 1)
    if limit is not None:
        found = found.limit(limit)
    return [{key: d.get(names.get(key, key)) for key in _ROW} for d in found]


def _from_shards(store: Store, condition: Condition | None, campaign: str) -> Iterator[list[dict[str, Any]]]:
    jobs = finished(campaign)
    hulls = _hulls(store, jobs)
    for job in jobs:
        if condition is not None and not _may_hold(condition, job):
            continue
        columns = _columns(store, job.outputs[SHARD], hulls)
        mask = np.ones(len(columns["id"]), bool) if condition is None else condition.mask(columns)
        yield [{key: _plain(columns[key][i]) if key in columns else None for key in _ROW} | {
            "shard": job.outputs[SHARD], "row": int(i)} for i in np.flatnonzero(mask)]


def finished(campaign: str) -> list[Job]:
    """Finished shards of the newest model of a campaign's search, in a stable order."""
    jobs = list(Job.objects(campaigns=campaign, kind="search.shard", state="done").order_by("-created", "key"))
    if not jobs:
        raise DataError(f"campaign {campaign!r} has no finished search (`hydroflow jobs list --kind search.shard` shows shards)")
    return [j for j in jobs if j.files["model.pt"] == jobs[0].files["model.pt"]]


def _may_hold(condition: Condition, job: Job) -> bool:
    """Whether a shard can hold what is asked for, by the compositions it was asked to make."""
    cells = [cell for cell, _, _ in job.inputs["requests"]]
    formulas, systems = condition.required("formula"), condition.required("system")
    return (formulas is None or not formulas.isdisjoint(formula({s: int(n) for s, n in c.items()}) for c in cells)) and (
        systems is None or not systems.isdisjoint("-".join(sorted(c)) for c in cells))


def _hulls(store: Store, jobs: Sequence[Job]) -> dict[frozenset[str], Hull]:
    lowest = lowest_of(read_shard(store.objects, j.outputs[MINIMA]) for j in jobs)
    return hulls_of(lowest, float(jobs[0].result["pressure_gpa"]), jobs[0].files["model.pt"])


def _columns(store: Store, digest: str, hulls: dict[frozenset[str], Hull]) -> dict[str, np.ndarray]:
    """The columns that can be asked for, of one shard; coordinates are not read."""
    try:
        file = pq.ParquetFile(pa.BufferReader(store.objects.get(digest)))
        asked = [n for n in file.schema_arrow.names if n.startswith("column:") and n.removeprefix("column:") in SEARCHED]
        table = file.read(columns=[*asked, "column:enthalpy_ev", "numbers"])
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"shard {digest} is not a whole Parquet file (half-written?): {error}") from error
    numbers = table.column("numbers").combine_chunks()
    offsets = np.asarray(numbers.offsets)
    atoms = numbers.flatten().to_numpy()
    bare = StructureArrays(
        (offsets - offsets[0]).astype(np.int64), atoms, np.broadcast_to(np.zeros(3), (len(atoms), 3)),
        np.broadcast_to(np.zeros((3, 3)), (len(numbers), 3, 3)),
        {"enthalpy_ev": table.column("column:enthalpy_ev").to_numpy()})
    out = {n.removeprefix("column:"): table.column(n).to_numpy() for n in table.column_names if n.startswith("column:")}
    out["enthalpy_ev_atom"] = out.pop("enthalpy_ev") / bare.counts
    out["ehull_lam_ev"] = np.maximum(distances(bare, hulls), 0.0)
    out["system"] = np.array(bare.chemical_systems(), dtype=object)
    return out


def _with_documents(store: Store, campaign: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fill in what MongoDB knows about those that are candidates."""
    collection = store.database[Candidate._get_collection_name()]
    at = {r["id"]: r for r in rows}
    names = list(at)
    for start in range(0, len(names), 10_000):
        match = {"campaign": campaign, "structure_id": {"$in": names[start:start + 10_000]}}
        for d in collection.find(match, {"structure_id": 1, **{k: 1 for k in CANDIDATE}}):
            at[d["structure_id"]].update({k: d.get(k) for k in CANDIDATE})
    return rows


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
