"""What a search in progress shows, shard by shard."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Composition

from hydroflow.arrays import StructureArrays
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import Ledger
from hydroflow.screening.storage import MINIMA, write_shard
from hydroflow.search import live
from hydroflow.search.live import LiveFigures
from hydroflow.store import Store


def finished(store: Store, number: int, generated: int, minima: dict[str, float]) -> str:
    """Key of a finished shard with these lowest enthalpies per atom."""
    compositions = [Composition(f) for f in minima]
    numbers = [np.repeat([e.Z for e in c], [int(n) for n in c.values()]) for c in compositions]
    lowest = StructureArrays.from_lists(numbers, [np.zeros((len(z), 3)) for z in numbers], [5 * np.eye(3)] * len(numbers))
    lowest.columns = {"id": np.array([f"{f}-{number}" for f in minima], dtype=object),
                      "enthalpy_ev": np.array(list(minima.values())) * lowest.counts}
    ledger = Ledger(store)
    [key] = ledger.submit([JobSpec("search.shard", {"part": number}, "test", {"model.pt": "sha256:m"})], "seen")
    ledger.collection.update_one({"_id": key}, {"$set": {
        "state": "done", "outputs": {MINIMA: store.objects.put(write_shard(lowest))},
        "result": {"generated": generated, "pressure_gpa": 200.0}}})
    return key


@pytest.mark.service
def test_figures_follow_the_shards(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    figures = LiveFigures(store, 1000)
    keys = [finished(store, 0, 100, {"Ca": 0.0, "H": 0.0, "CaH6": -0.5})]
    figures.update(keys)
    assert figures.line() == "100 of 1000 structures, 3 new minima, 0 hull changes", "what was there before has no speed"

    # a shard with nothing lower, then one with a lower phase and a new composition above the hull
    keys.append(finished(store, 1, 50, {"CaH6": -0.4, "H": 0.1}))
    figures.update(keys)
    assert (figures.structures, figures.new_minima, figures.hull_changes) == (150, 3, 0)
    keys.append(finished(store, 2, 250, {"CaH6": -0.6, "CaH4": -0.1}))
    clock[0] += 60.0
    figures.update(keys)
    figures.update(keys)  # nothing is counted twice
    assert figures.line() == "400 of 1000 structures, 5/s, 2 min left, 5 new minima, 1 hull changes"
    assert dict(zip(figures.lowest.formulas(), figures.lowest.columns["id"], strict=True)) == {
        "Ca": "Ca-0", "H": "H-0", "CaH6": "CaH6-2", "CaH4": "CaH4-2"}
