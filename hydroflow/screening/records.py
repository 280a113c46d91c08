"""Candidates in MongoDB: what the funnel writes and how structures are got back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pymongo import UpdateOne

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.screening.hull import Hull
from hydroflow.screening.storage import compact, expand, read_row_groups
from hydroflow.store import Store
from hydroflow.store.documents import Candidate, now
from hydroflow.structures.symmetry import spacegroup_symbol

CHUNK = 1_000
_STORED = ("id", "energy_ev", "enthalpy_ev", "pressure_gpa")
"""Columns that go with a candidate's own structure; the rest are fields of the document."""


def structure_blob(arrays: StructureArrays, i: int) -> bytes:
    """One structure as it is stored in ``Candidate.structure``."""
    one = arrays[i]
    one.columns = {k: one.columns[k] for k in _STORED if k in one.columns}
    one.atom_columns = {}
    return compact(one).to_parquet()


def structure_of(store: Store, candidate: Candidate, dft: bool = True) -> StructureArrays:
    """The structure of a candidate: relaxed by DFT where there is one (and `dft`), else by the model.

    Raises
    ------
    DataError
        when neither the document nor its shard holds it.
    """
    blob = (candidate.structure_dft if dft else None) or candidate.structure
    if blob:
        return expand(StructureArrays.from_parquet(bytes(blob)))
    if not candidate.shard:
        raise DataError(f"candidate {candidate.structure_id} has no structure and no shard; screen the campaign again")
    return structures_at(store, [(candidate.shard, candidate.row)])


def structures_at(store: Store, places: Sequence[tuple[str | None, int | None]]) -> StructureArrays:
    """Structures by shard (object digest) and row, in this order; each shard is read once.

    Raises
    ------
    DataError
        a structure without a shard, or a row that its shard does not have.
    """
    wanted: dict[str, list[int]] = {}
    for k, (shard, row) in enumerate(places):
        if shard is None or row is None:
            raise DataError("a candidate has no shard to read its structure from; screen the campaign again")
        wanted.setdefault(shard, []).append(k)
    parts, order = [], []
    for shard, positions in wanted.items():
        rows = np.array([places[k][1] for k in positions])
        for part in read_row_groups(store.objects, shard):
            inside = np.flatnonzero((rows >= part.columns["row"][0]) & (rows <= part.columns["row"][-1]))
            if len(inside):
                parts.append(part[rows[inside] - part.columns["row"][0]])
                order += [positions[k] for k in inside]
    if len(order) != len(places):
        raise DataError(f"{len(places) - len(order)} structures are not in the shards that their candidates name")
    return StructureArrays.concatenate(parts)[np.argsort(order)]


def describe(
    campaign: str, arrays: StructureArrays, rows: np.ndarray, model_digest: str, pressure_gpa: float,
    ehull_ev: np.ndarray, ehull_error_ev: np.ndarray, decompositions: Sequence[Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Document fields of some structures as the search found them; verdicts come later."""
    formulas = arrays[rows].formulas()
    systems = arrays[rows].chemical_systems()
    counts, volumes = arrays.counts, arrays.volumes
    columns = arrays.columns
    out = []
    for k, i in enumerate(rows):
        out.append({
            "campaign": campaign, "structure_id": str(columns["id"][i]),
            "shard": _text(columns, "shard", i), "row": int(columns["row"][i]) if "row" in columns else None,
            "formula": formulas[k], "reduced_formula": formulas[k], "system": systems[k],
            "elements": systems[k].split("-"), "natoms": int(counts[i]), "pressure_gpa": float(pressure_gpa),
            "volume_a3": float(volumes[i]), "prototype": _text(columns, "prototype", i),
            "enthalpy_lam_ev": float(columns["enthalpy_ev"][i] / counts[i]),
            "ehull_lam_ev": float(ehull_ev[k]), "ehull_lam_error_ev": _finite(ehull_error_ev[k]),
            "decomposition": dict(decompositions[k]), "model": model_digest,
            **spacegroup_fields(int(columns["spacegroup"][i]) if "spacegroup" in columns else None),
        })
    return out


def spacegroup_fields(number: int | None) -> dict[str, Any]:
    """Fields ``spacegroup`` and ``spacegroup_symbol``."""
    return {"spacegroup": number, "spacegroup_symbol": spacegroup_symbol(number)} if number else {}


def decompositions(hull: Hull, counts: np.ndarray) -> list[dict[str, float]]:
    """What each composition (k, e) decomposes into on the hull: formula → share of the atoms."""
    if not len(counts):
        return []
    unique, index = np.unique(counts, axis=0, return_inverse=True)
    found = [hull.reaction(row) for row in unique]
    return [found[i] for i in index.reshape(-1)]


def upsert(store: Store, campaign: str, fields: Iterable[Mapping[str, Any]]) -> int:
    """Write fields of candidates, creating those that are not there. EPC and Tc fields are never touched.

    A field that is None is removed, so that a second screening leaves nothing of the first.
    """
    collection = store.database[Candidate._get_collection_name()]
    written, batch = 0, []
    stamp = now()
    for item in fields:
        values = {k: v for k, v in item.items() if v is not None} | {"updated": stamp}
        update: dict[str, Any] = {"$set": values}
        gone = {k: "" for k, v in item.items() if v is None}
        if gone:
            update["$unset"] = gone
        batch.append(UpdateOne({"campaign": campaign, "structure_id": item["structure_id"]}, update, upsert=True))
        if len(batch) == CHUNK:
            collection.bulk_write(batch, ordered=False)
            written, batch = written + len(batch), []
    if batch:
        collection.bulk_write(batch, ordered=False)
    return written + len(batch)


def drop_stale(store: Store, campaign: str, model_digest: str) -> int:
    """Remove candidates of an earlier model; those with an EPC result stay, they are paid for."""
    collection = store.database[Candidate._get_collection_name()]
    return collection.delete_many(
        {"campaign": campaign, "model": {"$ne": model_digest}, "epc_status": None}).deleted_count


def _text(columns: Mapping[str, np.ndarray], name: str, i: int) -> str | None:
    return str(columns[name][i]) if name in columns and columns[name][i] is not None else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
