"""The search on a pair potential: what it costs beside relaxation, and what rounds find against an even spread.

The potential (Born–Mayer repulsion with a shallow H–metal attraction, held together by 200 GPa) stands where the model stands;
it has many minima and costs little, so that generation, symmetry, prototypes and duplicates are seen beside it. The same
number of structures is searched evenly and in rounds, with several seeds; counted is which of the two has the lower phase at
each composition within 0.1 eV/atom of the hull of both together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
from ase.data import atomic_numbers, covalent_radii

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, parse
from hydroflow.dispatch.ledger import Ledger, spec_of
from hydroflow.lam import LamModel
from hydroflow.screening.hull import hull_distances
from hydroflow.screening.storage import minima
from hydroflow.search import plan
from hydroflow.search.adaptive import search
from hydroflow.search.shard import SearchShard, search_block
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store, open_store, services
from hydroflow.store.documents import Job

SYMBOLS = ("H", "Ca", "Y")
NEAR_EV = 0.1
ROUNDS = [0.5, 0.25, 0.25]
CAMPAIGN = """
name = "benchmark"
seed = {seed}
[space]
elements = ["Ca", "Y"]
m = [1, 1]
n = [1, 1]
hydrogen_ratio = [3, 4]
formula_units = [1, 1]
binary_hydrogen = [2, 5]
[generator]
mix = {{random = 0.5, swarm = 0.5}}
[relaxation]
fmax_ev_a = 0.1
max_steps = 100
[search]
structures_per_composition = {each}
rounds = {rounds}
"""


@numba.njit
def _pairs(types, pointers, neighbour, vector, reach, depth, cutoff, energy, forces, virials, owner):  # type: ignore[no-untyped-def]
    for i in range(len(types)):
        for e in range(pointers[i], pointers[i + 1]):
            r = np.sqrt(vector[e, 0] ** 2 + vector[e, 1] ** 2 + vector[e, 2] ** 2)
            r0, d = reach[types[i], types[neighbour[e]]], depth[types[i], types[neighbour[e]]]
            wall, well = np.exp(5.0 * (1 - r / r0)), d * np.exp(-((r / r0 - 1.3) ** 2) / 0.05)
            energy[owner[i]] += 0.5 * (wall - np.exp(5.0 * (1 - cutoff / r0)) - well)
            slope = -5.0 / r0 * wall + well * 2 * (r / r0 - 1.3) / (0.05 * r0)
            for a in range(3):
                forces[i, a] += slope * vector[e, a] / r
                for b in range(3):
                    virials[owner[i], a, b] -= 0.5 * slope * vector[e, a] * vector[e, b] / r


class PairPotential:
    """The kernel that :class:`hydroflow.lam.LamModel` evaluates."""

    cutoff_a = 4.5

    def __init__(self) -> None:
        radius = np.array([covalent_radii[atomic_numbers[s]] for s in SYMBOLS])
        self.reach = radius[:, None] + radius[None, :]
        self.depth = np.array([[0.0, 0.25, 0.35], [0.25, 0.05, 0.1], [0.35, 0.1, 0.05]])

    def __call__(self, offsets, types, pointers, neighbour, vector):  # type: ignore[no-untyped-def]
        n = len(offsets) - 1
        energy, forces, virials = np.zeros(n), np.zeros((len(types), 3)), np.zeros((n, 3, 3))
        owner = np.repeat(np.arange(n), np.diff(offsets))
        _pairs(types, pointers, neighbour, vector, self.reach, self.depth, self.cutoff_a, energy, forces, virials, owner)
        return energy, forces, virials


class HereLedger(Ledger):
    """Shards that are wanted are computed in this process, one after another."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store)
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.structures = 0

    def wait(self, keys: Any, *args: Any, **kwargs: Any) -> list[Job]:
        for job in self.jobs(keys):
            if job.state != "prepared":
                continue
            folder = self.folder / job.key
            folder.mkdir(parents=True)
            for name, digest in job.files.items():
                self.store.objects.fetch(digest, folder / name)
            SearchShard().prepare(spec_of(job), {}, folder)
            result = SearchShard().compute(job.inputs, {}, folder)
            for stage, seconds in result["seconds"].items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
            self.structures += result["generated"]
            outputs = {n: self.store.objects.put_file(folder / n) for n in SearchShard.output_names}
            self.collection.update_one({"_id": job.key}, {"$set": {"state": "done", "result": result, "outputs": outputs}})
        return super().wait(keys, *args, **kwargs)


def compare(even: StructureArrays, rounds: StructureArrays) -> tuple[int, int, int]:
    """Compositions near the common hull at which the even search, the rounds, or neither found the lower phase."""
    both = StructureArrays.concatenate([even, rounds])
    h = both.columns["enthalpy_ev"] / both.counts
    near = {f for f, d in zip(both.formulas(), hull_distances(both, h), strict=True) if d <= NEAR_EV}
    best = []
    for part in (even, rounds):
        low = part[minima(part)]
        best.append(dict(zip(low.formulas(), (low.columns["enthalpy_ev"] / low.counts).tolist(), strict=True)))
    gap = [best[0].get(f, np.inf) - best[1].get(f, np.inf) for f in sorted(near)]
    return sum(g < -1e-3 for g in gap), sum(g > 1e-3 for g in gap), sum(abs(g) <= 1e-3 for g in gap)


def measure(store: Store, home: Path, seeds: int, each: int) -> dict[str, Any]:
    wins = np.zeros(3, int)
    totals: dict[str, float] = {}
    structures = 0
    model = store.objects.put(b"the pair potential")
    warm = parse(CAMPAIGN.format(seed=99, each=2, rounds=[1.0]))
    search_block(warm, LamModel.load("warm"), plan.requests(warm))  # compile and import before the clock runs
    start = time.perf_counter()
    for seed in range(seeds):
        found = []
        for name, shares in (("even", [1.0]), ("rounds", ROUNDS)):
            campaign: Campaign = parse(CAMPAIGN.format(seed=seed, each=each, rounds=shares))
            store.database.drop_collection("jobs")
            ledger = HereLedger(store, home / f"{name}-{seed}")
            found.append(search(campaign, store, ledger, model).structures)
            structures += ledger.structures
            for stage, seconds in ledger.seconds.items():
                totals[stage] = totals.get(stage, 0.0) + seconds
        wins += compare(*found)
    wall = time.perf_counter() - start
    return {
        "searches": 2 * seeds, "structures": structures, "seconds_per_stage": totals, "structures_per_s": structures / wall,
        "generated_and_analysed_per_s": structures / (totals["generate"] + totals["analyse"]),
        "near_hull_lower_even": int(wins[0]), "near_hull_lower_rounds": int(wins[1]), "near_hull_equal": int(wins[2]),
        "wins_of_rounds_per_win_of_even": float(wins[1] / max(wins[0], 1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed instead of ten")
    parser.add_argument("--json", action="store_true", help="only the last line of figures")
    args = parser.parse_args()
    potential = LamModel(PairPotential(), list(SYMBOLS), "pair potential")
    LamModel.load = classmethod(lambda cls, *_, **__: potential)  # type: ignore[method-assign]  # stands for the model file
    home = Path(tempfile.mkdtemp(prefix="hf-search-"))
    settings = ServiceSettings(home=home)
    services.up(settings, prefect=False)
    try:
        with open_store(settings) as store:
            figures = measure(store, home / "jobs", 1 if args.quick else 10, 12 if args.quick else 40)
    finally:
        services.down(settings)
        shutil.rmtree(home, ignore_errors=True)
    if not args.json:
        f = figures
        print(f"{f['structures']} structures in {f['searches']} searches: "
              + ", ".join(f"{k} {v:.1f} s" for k, v in f["seconds_per_stage"].items())
              + f"; generation and analysis alone {f['generated_and_analysed_per_s']:.0f}/s")
        print(f"compositions within {1000 * NEAR_EV:.0f} meV/atom of the hull where rounds found the lower phase: "
              f"{f['near_hull_lower_rounds']}, the even search: {f['near_hull_lower_even']}, equal: {f['near_hull_equal']}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
