"""A million structures through store → hull → filters on this machine, and what that means for the published search.

The structures are real ones from the generator over five elements beside hydrogen at the paper's limits (8–88 atoms); what
is made up is their enthalpy: above a smooth convex function of composition by a gamma distribution that puts about the
published 0.7 % within 50 meV/atom of the hull. They rest in shards in the object store, are read back with flat memory, and
go through the funnel's own code into the embedded MongoDB; phonons and DFT are engine time and are left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, parse
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import Ledger
from hydroflow.screening.atomic_hydrogen import atomic_fraction
from hydroflow.screening.funnel import screen
from hydroflow.screening.storage import MINIMA, SHARD, minima, write_shard
from hydroflow.search import collect, plan
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store, open_store, services
from hydroflow.store.documents import Candidate
from hydroflow.structures import generate
from hydroflow.structures.symmetry import spacegroups

PAPER = 36_292_030
RATE_ATOMS = 36
"""The cheap filters are timed on structures of about this size."""
RELAXATION_STEPS = 200
ATOM_STEPS_PER_S = (10_000, 30_000)
"""Published throughput of a batched optimiser with a graph potential on one data-centre GPU, atoms × steps per second."""
CAMPAIGN = """
name = "benchmark"
[space]
elements = ["Li", "Mg", "Ca", "Y", "La"]
[search]
structures_per_composition = {each}
shard_structures = 20000
[funnel]
min_atomic_h = 1.0   # nothing is above 1: phonons and DFT are not asked
"""


def pretend_relaxed(made: StructureArrays, seed: int) -> StructureArrays:
    """The columns of a relaxation, enthalpies made up."""
    rng = np.random.default_rng(seed)
    n = len(made)
    x = made.count_of(1) / made.counts
    heavy = np.bincount(made.owner, made.numbers, n) / made.counts
    per_atom = -1.5 * x * (1 - x) - 0.02 * heavy + rng.gamma(2.0, 0.4, n)
    made.columns |= {
        "enthalpy_ev": per_atom * made.counts, "energy_ev": (per_atom - 2.0) * made.counts,
        "pressure_gpa": np.full(n, 200.0), "converged": np.ones(n, bool), "fmax_ev_a": rng.uniform(0, 0.03, n),
        "status": np.full(n, "converged", dtype=object), "steps": rng.integers(20, 200, n),
        "formula": np.array(made.formulas(), dtype=object), "natoms": made.counts,
    }
    return made


def shards(store: Store, campaign: Campaign, clock: dict[str, float]) -> tuple[list[str], int, int]:
    """Generate, pretend and store; keys of the ledger's finished jobs, structures, bytes."""
    ledger = Ledger(store)
    keys, structures, stored = [], 0, 0
    for i, piece in enumerate(plan.shards(plan.requests(campaign), campaign.search.shard_structures)):
        start = time.process_time()
        made = generate(campaign, piece, 200.0, i, on_failure=lambda failure: None)
        clock["generate"] += time.process_time() - start
        relaxed = pretend_relaxed(made, i)
        start = time.process_time()
        whole, lowest = write_shard(relaxed), write_shard(relaxed[minima(relaxed)])
        outputs = {SHARD: store.objects.put(whole), MINIMA: store.objects.put(lowest)}
        clock["store"] += time.process_time() - start
        spec = JobSpec("search.shard", {"pressure_gpa": 200.0, "part": i}, "benchmark", {"model.pt": "sha256:model"})
        keys += ledger.submit([spec], campaign.name)
        ledger.collection.update_one({"_id": spec.key}, {"$set": {
            "state": "done", "outputs": outputs, "result": {"unique": len(relaxed), "pressure_gpa": 200.0}}})
        structures, stored = structures + len(relaxed), stored + len(whole) + len(lowest)
    return keys, structures, stored


def per_core_rates(sample: StructureArrays) -> dict[str, float]:
    """Structures per second of the cheap filters, each on the same sample."""
    spacegroups(sample[:5])
    atomic_fraction(sample[:5])
    start = time.process_time()
    spacegroups(sample[:2000])
    symmetry = min(2000, len(sample)) / (time.process_time() - start)
    start = time.process_time()
    atomic_fraction(sample)
    return {"symmetry_per_s": symmetry, "atomic_hydrogen_per_s": len(sample) / (time.process_time() - start),
            "atoms_of_rates": float(sample.counts.mean())}


def measure(store: Store, each: int) -> dict[str, Any]:
    campaign = parse(CAMPAIGN.format(each=each))
    clock = {"generate": 0.0, "store": 0.0}
    keys, n, stored = shards(store, campaign, clock)
    ledger = Ledger(store)
    collect.SMALL = 0  # as a large search, whatever the size here
    start = time.process_time()
    found = collect.collect_search(store, ledger.jobs(keys), campaign.search.keep_ehull_ev)
    near = found.structures
    clock["collect"] = time.process_time() - start
    start = time.process_time()
    counts = screen(campaign, store, ledger, near, "sha256:model", searched=found.ternaries)
    clock["screen"] = time.process_time() - start
    documents = Candidate.objects.count()
    store.database.client.admin.command("fsync")  # sizes on disk, not what still waits in memory
    size = store.database.command("collstats", Candidate._get_collection_name())
    through = clock["store"] + clock["collect"] + clock["screen"]
    sample = near[np.argsort(np.abs(near.counts - RATE_ATOMS), kind="stable")[:min(len(near) // 4, 20_000)]]
    atoms = float(near.counts.mean())
    return {
        "structures": n, "mean_atoms": atoms, "near_hull": len(near), "documents": documents,
        "steps": {s.name: s.count for s in counts.steps},
        "seconds_per_stage": clock, "structures_per_s": n / through, "generated_per_s": n / clock["generate"],
        **per_core_rates(sample),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "parquet_bytes_per_structure": stored / n, "mongodb_bytes_per_candidate": size["storageSize"] / max(documents, 1),
        "paper_core_hours": PAPER / n * through / 3600, "paper_parquet_gb": PAPER * stored / n / 1e9,
        "paper_mongodb_gb": PAPER / n * (size["storageSize"] + size["totalIndexSize"]) / 1e9,
        "paper_relaxation_gpu_hours": [PAPER * atoms * RELAXATION_STEPS / rate / 3600 for rate in ATOM_STEPS_PER_S[::-1]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="17 000 structures instead of a million")
    parser.add_argument("--json", action="store_true", help="only the last line of figures")
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="hf-funnel-"))
    settings = ServiceSettings(home=home)
    services.up(settings, prefect=False)
    try:
        with open_store(settings) as store:
            figures = measure(store, 3 if args.quick else 172)
    finally:
        services.down(settings)
        shutil.rmtree(home, ignore_errors=True)
    if not args.json:
        report(figures)
    print(json.dumps(figures))


def report(f: dict[str, Any]) -> None:
    print(f"{f['structures']} structures of {f['mean_atoms']:.0f} atoms, one core, CPU seconds: "
          + ", ".join(f"{k} {v:.1f}" for k, v in f["seconds_per_stage"].items()))
    print(f"store + hull + filters {f['structures_per_s']:.0f} structures/s; at {f['atoms_of_rates']:.0f} atoms "
          f"symmetry {f['symmetry_per_s']:.0f}/s, atomic hydrogen {f['atomic_hydrogen_per_s']:.0f}/s; "
          f"peak memory {f['peak_memory_gib']:.2f} GiB")
    print(f"{f['parquet_bytes_per_structure']:.0f} bytes per structure in Parquet, {f['mongodb_bytes_per_candidate']:.0f} per "
          f"candidate in MongoDB ({f['documents']} of {f['structures']})")
    low, high = f["paper_relaxation_gpu_hours"]
    print(f"for the published {PAPER} structures: {f['paper_core_hours']:.1f} core-hours besides engines, "
          f"{f['paper_parquet_gb']:.0f} GB Parquet, {f['paper_mongodb_gb']:.0f} GB MongoDB, assuming the same share near "
          f"the hull; relaxation {low:.0f}–{high:.0f} GPU-hours, assuming {RELAXATION_STEPS} steps and "
          f"{ATOM_STEPS_PER_S[0]}–{ATOM_STEPS_PER_S[1]} atoms·steps/s per GPU")


if __name__ == "__main__":
    main()
