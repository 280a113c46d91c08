"""Candidate queries on the embedded MongoDB: 95th percentile of their times, and that each runs on an index.

Documents are made like the funnel's: most rejected by the first filters with the shares of the published funnel, a few
with EPC. Every question is asked with many different values; a time covers asking, fetching the first 50 and building
documents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mongoengine import QuerySet

from hydroflow.campaign import TYPE_MAP, Funnel
from hydroflow.screening import listing
from hydroflow.screening.filters import filters_of
from hydroflow.settings import ServiceSettings
from hydroflow.store import open_store, services
from hydroflow.store.documents import Candidate, ensure_indexes

PAIRS = list(itertools.combinations(sorted(set(TYPE_MAP) - {"H"}), 2))
STRUCTURE_BYTES = 2_900
FIRST = 50


def documents(n: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for start in range(0, n, 10_000):
        for i in range(start, min(n, start + 10_000)):
            yield document(i, rng)


def document(i: int, rng: np.random.Generator) -> dict[str, Any]:
    """One candidate; passes each filter with about the share of the paper (and the first with a fifth)."""
    a, b = PAIRS[int(rng.integers(len(PAIRS)))]
    m, n = rng.integers(1, 5, 2).tolist()
    x = int(rng.integers(3 * (m + n), 10 * (m + n) + 1))
    out: dict[str, Any] = {
        "campaign": "paper", "structure_id": f"{a}{m}{b}{n}H{x}-200gpa-0-random-{i}", "formula": f"{a}{m}{b}{n}H{x}",
        "reduced_formula": f"{a}{m}{b}{n}H{x}", "system": "-".join(sorted((a, b, "H"))), "elements": sorted((a, b, "H")),
        "natoms": m + n + x, "pressure_gpa": 200.0, "volume_a3": 3.0 * x, "model": "sha256:" + "0" * 64,
        "enthalpy_lam_ev": -2.0, "ehull_lam_ev": float(0.25 * rng.random()), "ehull_lam_error_ev": 0.04,
        "decomposition": {f"{a}H6": 0.4, f"{b}H6": 0.6}, "shard": "sha256:" + "1" * 64, "row": i, "stage": "searched",
        "spacegroup": int(rng.integers(1, 76) if rng.random() < 0.9 else rng.integers(76, 231)),
        "prototype": f"AB{n}C{x}_aP{m + n + x}_1", "verdicts": [],
    }
    values = {"atomic_hydrogen": float(min(1.0, 0.55 + 0.5 * rng.random())), "phonons": float(-8 * rng.random() ** 2),
              "ehull_dft": float(0.1 * rng.random())}
    for f in filters_of(Funnel()):
        value = values.get(f.name, out.get(f.document_field))
        out[f.document_field] = value
        threshold = f.threshold(Funnel())
        passed = bool(f.passes(np.array([value]), threshold)[0])
        out["verdicts"].append({"filter": f.name, "passed": passed, "value": float(value), "threshold": threshold,
                                "settings": "benchmark", "reason": "" if passed else f.words(value, threshold)})
        if f.name == "ehull_lam" and passed:
            out["structure"] = rng.bytes(STRUCTURE_BYTES)
        if not passed:
            return out | {"stage": f.name, "rejected_by": f.name}
    out["tc_predicted_k"] = float(rng.normal(120, 50))
    out["stage"] = "passed"
    if rng.random() < 0.25:
        out |= {"stage": "epc", "epc_status": "done", "tc_k": float(rng.normal(130, 60)), "usable": bool(rng.random() < 0.4)}
    return out


def questions(rng: np.random.Generator) -> dict[str, Callable[[], QuerySet]]:
    """What users ask, each with fresh values at every call."""
    def pair() -> tuple[str, str]:
        return PAIRS[int(rng.integers(len(PAIRS)))]

    def some(field: str) -> Any:
        a, b = pair()
        return f"{a}-{b}-H" if field == "system" else a

    ask: dict[str, Callable[[], QuerySet]] = {
        "system": lambda: listing.find("paper", system=some("system")).order_by("ehull_lam_ev"),
        "system_near_hull": lambda: listing.find("paper", system=some("system"), max_ehull_lam_ev=0.02).order_by("ehull_lam_ev"),
        "element": lambda: listing.find("paper", elements=[some("element")]).order_by("ehull_lam_ev"),
        "two_elements": lambda: listing.find("paper", elements=pair()).order_by("ehull_lam_ev"),
        "formula": lambda: listing.find("paper", formula=f"{'1'.join(pair())}1H{rng.integers(6, 21)}"),
        "tc_above": lambda: listing.sorted_by(listing.find("paper", min_tc_k=float(rng.uniform(50, 200))), "tc"),
        "highest_predicted_tc": lambda: listing.sorted_by(listing.find("paper"), "tc-predicted"),
        "near_hull": lambda: listing.sorted_by(listing.find("paper", max_ehull_lam_ev=float(rng.uniform(0, 0.05))), "ehull"),
        "near_dft_hull": lambda: listing.sorted_by(
            listing.find("paper", max_ehull_dft_ev=float(rng.uniform(0, 0.05))), "ehull-dft"),
        "passed": lambda: listing.find("paper", stage="passed").order_by("ehull_lam_ev"),
        "epc_done": lambda: listing.find("paper", epc_status="done"),
    }
    for f in filters_of(Funnel()):
        ask[f"rejected_by_{f.name}"] = lambda f=f: listing.find("paper", rejected_by=f.name).order_by("ehull_lam_ev")
        ask[f"narrowly_{f.name}"] = lambda f=f: listing.narrowly_rejected(listing.find("paper"), f.name, Funnel())
    return ask


def scans(plan: Any) -> set[str]:
    """Names of all stages of an explained plan."""
    if isinstance(plan, dict):
        return ({plan["stage"]} if isinstance(plan.get("stage"), str) else set()).union(*(scans(v) for v in plan.values()), set())
    return set().union(*(scans(v) for v in plan), set()) if isinstance(plan, list) else set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 000 documents instead of 1 000 000")
    parser.add_argument("--json", action="store_true", help="only the last line of figures")
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    n = 40_000 if args.quick else 1_000_000
    home = Path(tempfile.mkdtemp(prefix="hf-queries-"))
    settings = ServiceSettings(home=home)
    services.up(settings, prefect=False)
    try:
        with open_store(settings) as store:
            figures = measure(store, n, args.repeats)
    finally:
        services.down(settings)
        shutil.rmtree(home, ignore_errors=True)
    if not args.json:
        for name, value in figures["p95_ms"].items():
            plan = f"{figures['examined'][name]:6d} documents looked at, {figures['plans'][name]}"
            print(f"{name:<28} p95 {value:7.1f} ms, {plan}")
        print(f"{n} candidates of {figures['bytes_per_document']:.0f} bytes (stored {figures['stored_bytes_per_document']:.0f}, "
              f"indexes {figures['index_bytes_per_document']:.0f}), inserted at {figures['insert_per_s']:.0f}/s")
    print(json.dumps(figures))


def measure(store: Any, n: int, repeats: int) -> dict[str, Any]:
    collection = store.database[Candidate._get_collection_name()]
    collection.drop_indexes()
    start = time.perf_counter()
    source = documents(n)
    while batch := list(itertools.islice(source, 2_000)):
        collection.insert_many(batch, ordered=False)
    inserted = time.perf_counter() - start
    Candidate._collection = None
    ensure_indexes()
    indexed = time.perf_counter() - start - inserted
    times: dict[str, float] = {}
    plans: dict[str, str] = {}
    examined: dict[str, int] = {}
    for name, ask in questions(np.random.default_rng(1)).items():
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            list(ask().limit(FIRST))
            taken.append(time.perf_counter() - start)
        times[name] = 1000 * float(np.percentile(taken, 95))
        explained = ask().limit(FIRST).explain()
        found = scans(explained["queryPlanner"]["winningPlan"])
        examined[name] = explained["executionStats"]["totalDocsExamined"]
        plans[name] = "COLLECTION SCAN" if "COLLSCAN" in found else "index" + (", sorted in memory" if "SORT" in found else "")
    stats = store.database.command("collstats", collection.name)
    return {
        "documents": n, "p95_ms": times, "p95_worst_ms": max(times.values()), "plans": plans,
        "examined": examined,
        "without_index": sum(p.startswith("COLL") for p in plans.values()), "insert_per_s": n / inserted, "index_s": indexed,
        "bytes_per_document": stats["size"] / n, "stored_bytes_per_document": stats["storageSize"] / n,
        "index_bytes_per_document": stats["totalIndexSize"] / n,
    }


if __name__ == "__main__":
    main()
