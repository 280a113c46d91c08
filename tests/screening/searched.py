"""Relaxed structures as a search hands them on: real structures from the generator with a made-up, smooth enthalpy."""

from __future__ import annotations

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, parse
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import Ledger
from hydroflow.screening.storage import MINIMA, SHARD, minima, write_shard
from hydroflow.search import plan
from hydroflow.store import Store
from hydroflow.store.documents import Job
from hydroflow.structures import generate
from hydroflow.structures.symmetry import spacegroups

CAMPAIGN = """
name = "screened"
seed = 3
[space]
elements = ["Ca", "Y"]
m = [1, 1]
n = [1, 1]
hydrogen_ratio = [5, 6]
formula_units = [1, 1]
binary_hydrogen = [3, 4]
[search]
structures_per_composition = {count}
[funnel]
{funnel}
"""


def campaign(count: int = 40, funnel: str = "") -> Campaign:
    return parse(CAMPAIGN.format(count=count, funnel=funnel))


def searched(settings: Campaign, spread_ev: float = 0.12) -> StructureArrays:
    """Structures of every composition of the campaign; enthalpies lie above a smooth convex function of composition by a
    random amount, so that there is a hull with ternaries on it."""
    made = generate(settings, plan.requests(settings), settings.pressure.campaign_gpa, settings.seed,
                    on_failure=lambda failure: None)
    rng = np.random.default_rng(settings.seed)
    x = made.count_of(1) / made.counts
    y = made.count_of(39) / made.counts
    depth = -1.2 * x * (1 - x) - 0.3 * y * (1 - x - y)
    per_atom = depth + rng.exponential(spread_ev, len(made))
    made.columns |= {
        "enthalpy_ev": per_atom * made.counts, "energy_ev": (per_atom - 3.0) * made.counts,
        "pressure_gpa": np.full(len(made), settings.pressure.campaign_gpa),
        "converged": np.ones(len(made), bool), "status": np.full(len(made), "converged", dtype=object),
        "fmax_ev_a": np.full(len(made), 0.01), "steps": np.full(len(made), 50),
    }
    made.columns["spacegroup"] = spacegroups(made)[0]
    return made


def finished_shards(store: Store, settings: Campaign, structures: StructureArrays, model: str, parts: int = 3) -> list[Job]:
    """The structures in finished shards of the campaign's search, as its jobs leave them."""
    structures = structures[:]
    structures.columns |= {"formula": np.array(structures.formulas(), dtype=object), "natoms": structures.counts}
    ledger = Ledger(store)
    keys = []
    for i in range(parts):
        part = structures[i::parts]
        spec = JobSpec("search.shard", {"pressure_gpa": 200.0, "part": i}, "test", {"model.pt": model})
        keys += ledger.submit([spec], settings.name)
        outputs = {SHARD: store.objects.put(write_shard(part)), MINIMA: store.objects.put(write_shard(part[minima(part)]))}
        ledger.collection.update_one({"_id": spec.key}, {"$set": {
            "state": "done", "outputs": outputs, "result": {"unique": len(part), "pressure_gpa": 200.0}}})
    return ledger.jobs(keys)
