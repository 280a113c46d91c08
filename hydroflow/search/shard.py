"""One shard of the structure search: generate, relax with the model, find symmetry, drop duplicates, keep the rest.

The search is cut into jobs of kind ``search.shard``: some cells with a number of structures each. Shards know nothing of
each other: any number of workers take them in any order, and the same campaign asks for the same shards. A shard works
in blocks, each written when it is done, so that a killed one goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.python_engine import PythonEngine
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.lam.train import METHOD
from hydroflow.screening.storage import MINIMA, SHARD, expand, minima, write_shard
from hydroflow.search import plan
from hydroflow.search.collect import collect_search, distinct
from hydroflow.store import Store
from hydroflow.store.documents import ModelRecord
from hydroflow.structures import Request, generate
from hydroflow.structures.generate import Failure
from hydroflow.structures.symmetry import prototype_labels, spacegroups

__all__ = ["SearchShard", "collect_search", "search_block", "search_specs"]

BLOCK_STRUCTURES = 2_000
"""Structures generated and relaxed between two checkpoints: bounds memory and the work that a kill can cost."""
SYMPREC_A = 0.05
"""Tolerance of the space group stored in shards, Å. The funnel applies its own tolerance to what reaches it."""
MODEL_FILE = "model.pt"
PARENTS_FILE = "parents.parquet"
REASONS_SHOWN = 20


def search_specs(
    campaign: Campaign, store: Store, model_digest: str, requests: Sequence[Request] | None = None,
    parents: StructureArrays | None = None,
) -> list[JobSpec]:
    """Jobs of a search, each a shard of ``search.shard_structures`` structures or fewer.

    Parameters
    ----------
    model_digest
        Object digest of the model's checkpoint.
    requests
        What to generate; default: the whole campaign (:func:`hydroflow.search.plan.requests`).
    parents
        Relaxed structures that evolving generators go on from; a shard gets those of its own cells.
    """
    wanted = plan.requests(campaign) if requests is None else requests
    parents = StructureArrays.empty() if parents is None else parents
    cells = np.array([Request(c, 1).cell_id for c in parents.compositions()], dtype=str)

    def files(piece: list[Request]) -> dict[str, str]:
        own = np.flatnonzero(np.isin(cells, [r.cell_id for r in piece]))
        return {MODEL_FILE: model_digest} | (
            {PARENTS_FILE: store.objects.put(write_shard(parents[own]))} if len(own) else {})

    pieces = plan.shards(wanted, campaign.search.shard_structures)
    engine = model_engine(model_digest)
    return [
        JobSpec(
            kind=SearchShard.kind,
            inputs={
                "requests": [[dict(r.composition), r.count, r.first] for r in piece],
                "pressure_gpa": campaign.pressure.campaign_gpa,
                "seed": campaign.seed,
                "space": campaign.space.model_dump(mode="json"),
                "generator": campaign.generator.model_dump(mode="json"),
                "relaxation": campaign.relaxation.model_dump(mode="json"),
                "method": METHOD,
            },
            engine=engine,
            files=files(piece),
            resources=Resources(cores=campaign.model.cores, gpus=campaign.model.gpus,
                                wall_time_s=campaign.model.wall_time_s),
            label=f"search {i + 1}/{len(pieces)}: {sum(r.count for r in piece)} structures of {len(piece)} cells",
        )
        for i, piece in enumerate(pieces)
    ]


def model_engine(model_digest: str) -> str:
    """Engine stamp of a model: what its record says, else the installed deepmd-kit."""
    record = ModelRecord.objects(digest=model_digest).only("engine").first()
    return record.engine if record and record.engine else f"deepmd-kit {version('deepmd-kit')}"


class SearchShard(PythonEngine):
    """Engine of ``search.shard`` jobs.

    Inputs: ``requests`` (atoms per cell, how many structures, number of the first), ``pressure_gpa``, ``seed``, and the
    campaign's sections ``space``, ``generator`` and ``relaxation``. Files: ``model.pt`` and, for evolving generators,
    ``parents.parquet``. Outputs: ``shard.parquet`` with all distinct physical structures and ``minima.parquet`` with the
    lowest one of each reduced composition.
    """

    kind = "search.shard"
    output_names = (SHARD, MINIMA)

    def compute(self, inputs: Mapping[str, Any], adjustments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        from hydroflow.lam import LamModel  # loads PyTorch, which planning a search does not need

        campaign = Campaign.model_validate({
            "name": "shard", "seed": inputs["seed"], "space": inputs["space"], "generator": inputs["generator"],
            "pressure": {"campaign_gpa": inputs["pressure_gpa"]}, "relaxation": inputs["relaxation"],
            "model": {"type_map": ["H", *inputs["space"]["elements"]]}})
        model = LamModel.load(folder / MODEL_FILE)
        parents = None
        if (folder / PARENTS_FILE).exists():
            parents = expand(StructureArrays.from_parquet((folder / PARENTS_FILE).read_bytes()))
        requests = [Request(dict(cell), count, first) for cell, count, first in inputs["requests"]]
        parts, figures = [], []
        for i, block in enumerate(plan.blocks(requests, BLOCK_STRUCTURES)):
            structures, numbers = folder / f"block-{i:05d}.parquet", folder / f"block-{i:05d}.json"
            if not numbers.exists():
                kept, found = search_block(campaign, model, block, parents)
                _write(structures, write_shard(kept) if len(kept) else b"")
                _write(numbers, json.dumps(found).encode())
            parts.append(StructureArrays.from_parquet(structures.read_bytes()) if structures.stat().st_size
                         else StructureArrays.empty())
            figures.append(json.loads(numbers.read_text()))
        result = _total(figures)
        kept = StructureArrays.concatenate(parts)
        if len(parts) > 1 and len(kept):
            kept = distinct(expand(kept))
        if not len(kept):
            why = ", ".join(f"{n} {k}" for k, n in result["statuses"].items()) or "; ".join(result["not_generated"])
            raise EngineFailure(FailureCode.unphysical_result, f"no structure of the shard is usable: {why}")
        _write(folder / MINIMA, write_shard(kept[minima(kept)]))
        _write(folder / SHARD, write_shard(kept))
        return {**result, "unique": len(kept), "compositions": len(minima(kept)), "pressure_gpa": inputs["pressure_gpa"]}


def search_block(
    campaign: Campaign, model: Any, requests: Sequence[Request], parents: StructureArrays | None = None,
) -> tuple[StructureArrays, dict[str, Any]]:
    """Generate and relax one block.

    Returns
    -------
    kept : StructureArrays
        Distinct physical relaxed structures with the columns ``id, energy_ev, enthalpy_ev, pressure_gpa, converged,
        fmax_ev_a, steps, status, spacegroup, prototype, generator, requested_spacegroup, formula, natoms``.
    figures : dict
        ``generated, relaxed, converged, statuses, not_generated, seconds``; JSON-able.
    """
    from hydroflow.lam import relax

    pressure = campaign.pressure.campaign_gpa
    clock = [time.perf_counter()]
    failures: list[Failure] = []
    structures = generate(campaign, requests, pressure, campaign.seed, parents, failures.append)
    clock.append(time.perf_counter())
    figures: dict[str, Any] = {
        "generated": len(structures), "relaxed": 0, "converged": 0, "statuses": {},
        "not_generated": [str(f) for f in failures[:REASONS_SHOWN]], "missing": sum(f.missing for f in failures)}
    kept = StructureArrays.empty()
    if len(structures):
        relaxed = relax(model, structures, pressure, campaign.relaxation, record="none").relaxed
        clock.append(time.perf_counter())
        physical = relaxed[usable(relaxed)]
        figures |= {
            "relaxed": len(physical), "converged": int(physical.columns["converged"].astype(bool).sum()),
            "statuses": dict(sorted(Counter(relaxed.columns["status"].astype(str).tolist()).items()))}
        kept = distinct(describe(physical)) if len(physical) else physical
    clock.append(time.perf_counter())
    figures["seconds"] = dict(zip(("generate", "relax", "analyse"), [*np.diff(clock).tolist(), 0.0, 0.0], strict=False))
    return kept, figures


def usable(relaxed: StructureArrays) -> np.ndarray:
    """(n,) bool: physical structures. One that ran out of steps counts: its enthalpy is an upper bound of its minimum's."""
    status = relaxed.columns["status"].astype(str)
    return np.isfinite(relaxed.columns["enthalpy_ev"]) & np.isin(status, ("converged", "max_steps"))


def describe(arrays: StructureArrays) -> StructureArrays:
    """Add space group, prototype label, reduced formula and number of atoms."""
    arrays.columns["spacegroup"] = spacegroups(arrays, SYMPREC_A)[0]
    arrays.columns["prototype"] = np.array(prototype_labels(arrays, SYMPREC_A), dtype=object)
    arrays.columns["formula"] = np.array(arrays.formulas(), dtype=object)
    arrays.columns["natoms"] = arrays.counts
    return arrays


def _total(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of all blocks added up."""
    def added(key: str) -> dict[str, Any]:
        out: Counter[str] = Counter()
        for f in figures:
            out.update(f[key])
        return dict(sorted(out.items()))

    reasons = [r for f in figures for r in f["not_generated"]]
    return {**{k: sum(f[k] for f in figures) for k in ("generated", "relaxed", "converged", "missing")},
            "statuses": added("statuses"), "seconds": added("seconds"), "not_generated": reasons[:REASONS_SHOWN]}


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)
