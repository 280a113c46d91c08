"""The search in rounds on a pair potential: the same budget, spent near the hull, evolving, resumable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import parse
from hydroflow.dispatch.ledger import Ledger, spec_of
from hydroflow.search import plan
from hydroflow.search.adaptive import next_requests, search
from hydroflow.search.shard import SearchShard
from hydroflow.store import Store
from hydroflow.store.documents import Job
from hydroflow.structures import Request
from tests.search.potential import pair_model
from tests.search.test_shard import CAMPAIGN


class HereLedger(Ledger):
    """Shards that are wanted are computed in this process."""

    def __init__(self, store: Store, folder: Path) -> None:
        super().__init__(store)
        self.folder, self.computed = folder, 0

    def wait(self, keys: Any, *args: Any, **kwargs: Any) -> list[Job]:
        for job in self.jobs(keys):
            if job.state == "prepared":
                self.computed += 1
                folder = self.folder / job.key
                folder.mkdir()
                SearchShard().prepare(spec_of(job), {}, folder)
                for name, digest in job.files.items():
                    (folder / name).write_bytes(self.store.objects.get(digest))
                result = SearchShard().compute(job.inputs, {}, folder)
                outputs = {n: self.store.objects.put_file(folder / n) for n in SearchShard.output_names}
                self.collection.update_one({"_id": job.key}, {"$set": {"state": "done", "result": result, "outputs": outputs}})
        return super().wait(keys, *args, **kwargs)


@pytest.mark.service
def test_rounds(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydroflow.lam.LamModel.load", lambda path: pair_model())
    campaign = parse(CAMPAIGN.replace("max_steps = 60", "max_steps = 30").replace(
        "[search]", "[search]\nrounds = [0.5, 0.25, 0.25]") + "[generator]\nmix = {random = 0.5, swarm = 0.5}\n")
    ledger = HereLedger(store, tmp_path)
    lines: list[str] = []
    model = store.objects.put(b"a model")
    found = search(campaign, store, ledger, model, lambda what, done, total: lines.append(what)).structures
    jobs = list(Job.objects(kind="search.shard"))
    asked = Counter()
    numbers = set()
    for job in jobs:
        for cell, count, first in job.inputs["requests"]:
            key = str(sorted(cell.items()))
            asked[key] += count
            numbers |= {(key, first + k) for k in range(count)}
    assert asked.total() == len(numbers) == sum(r.count for r in plan.requests(campaign)), "the budget, every number once"
    assert len(set(asked.values())) > 1, "later rounds must not be even"
    assert sum("parents.parquet" in j.files for j in jobs) == len(jobs) - 2
    assert "swarm" in set(found.columns["generator"]) and len(set(found.columns["id"])) == len(found)
    assert "hull changes" in lines[-1] and "round 3 of 3" in lines[-1]

    computed = ledger.computed
    again = search(campaign, store, ledger, model).structures
    assert ledger.computed == computed == len(jobs), "a finished search computes nothing"
    assert again.columns["id"].tolist() == found.columns["id"].tolist()


def test_structures_go_to_compositions_near_the_hull() -> None:
    z = {"Ca": 20, "Y": 39, "H": 1}
    cells = {r.cell_id: r for r in (
        Request({"Ca": 1}, 1), Request({"Y": 1}, 1), Request({"H": 1}, 1), Request({"Ca": 1, "H": 6}, 1),
        Request({"Ca": 2, "H": 12}, 1), Request({"Y": 1, "H": 3}, 1))}
    lowest = [({"Ca": 1}, 0.0), ({"Y": 1}, 0.0), ({"H": 1}, 0.0), ({"Ca": 1, "H": 6}, -0.5), ({"Y": 1, "H": 3}, 0.1)]
    numbers = [np.repeat([z[s] for s in c], list(c.values())) for c, _ in lowest]
    enthalpy = np.array([h * len(n) for (_, h), n in zip(lowest, numbers, strict=True)])
    arrays = StructureArrays.from_lists(numbers, [np.zeros((len(n), 3)) for n in numbers], [np.eye(3)] * 5,
                                        {"enthalpy_ev": enthalpy})
    wanted = next_requests(arrays, cells, Counter({"Ca1H6": 7}), 100, 200.0)
    counts = {r.cell_id: r.count for r in wanted}
    assert sum(counts.values()) == 100
    assert counts["Ca1H6"] + counts["Ca2H12"] == pytest.approx(counts["Ca1"], abs=2), "two cells share their composition's part"
    assert counts["Y1H3"] == pytest.approx(counts["Ca1"] * np.exp(-2), abs=1)
    assert next(r.first for r in wanted if r.cell_id == "Ca1H6") == 7
