"""How fast structures are generated and told apart, and how that compares with pyxtal on the same draws in the same run.

``python benchmarks/structures.py [--quick] [--json] [--peer-python PYTHON]``

The peer is pyxtal 1.1.5 (``pip install "hydroflow[benchmark]"``, here or in another environment named by ``--peer-python``);
without it, only our own figures are printed. One core each, times are CPU times. pyxtal gets a CPU limit per draw; where it
makes no structure at all, the ratio is the lower bound from one structure in the time it spent, and is said to be one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import TYPE_MAP, Campaign
from hydroflow.structures import Composition, Request, compositions, generate
from hydroflow.structures.fingerprints import fingerprints
from hydroflow.structures.random import RandomGenerator, hosts
from hydroflow.structures.statistics import shortest_distances
from hydroflow.structures.symmetry import prototype_labels, spacegroups
from hydroflow.structures.volumes import atomic_volumes, minimum_distances

PRESSURE = 200.0
PAPER = Campaign(name="paper", space={"elements": TYPE_MAP[1:]})


def whole_space(number: int) -> tuple[dict[str, Any], StructureArrays]:
    """Accepted structures per second over compositions drawn from the paper's space, 170 of each."""
    space = compositions(PAPER.space)
    picked = np.random.default_rng(0).integers(0, space.ternaries, number)
    requests = [Request(space[int(i)].as_dict(), 170) for i in picked]
    generate(PAPER, requests[:1], PRESSURE, 0)  # compiled
    failures: list[Any] = []
    start = time.process_time()
    made = generate(PAPER, requests, PRESSURE, 1, on_failure=failures.append)
    seconds = time.process_time() - start
    symbols, shortest = shortest_distances(made)
    least = minimum_distances(symbols, atomic_volumes(PAPER, symbols, PRESSURE))
    found, _ = spacegroups(made[::10], 0.01)
    return {
        "accepted_per_s": len(made) / seconds, "accepted": len(made), "asked_for": 170 * number,
        "mean_atoms": float(made.counts.mean()), "distance_violations": int((shortest < least - 1e-9).sum()),
        "requested_group_found": float((found == made.columns["requested_spacegroup"][::10]).mean()),
        "space_groups_visited": len(np.unique(made.columns["requested_spacegroup"])),
    }, made


def draws(atoms: int, number: int) -> list[dict[str, Any]]:
    """Random (composition, space group) pairs of one cell size that are possible, with volume and minimum distances."""
    rng = np.random.default_rng(atoms)
    space = compositions(PAPER.space)
    out: list[dict[str, Any]] = []
    while len(out) < number:
        composition: Composition = space[int(rng.integers(space.ternaries))]
        if composition.atoms != atoms:
            continue
        species = list(composition.symbols)
        volumes = atomic_volumes(PAPER, species, PRESSURE)
        least = minimum_distances(species, volumes)
        out.append({
            "species": species, "counts": list(composition.counts), "group": int(rng.choice(hosts(composition.counts, 2, 230))),
            "volume": sum(n * volumes[s] for s, n in composition.as_dict().items()), "seed": int(rng.integers(2**31)),
            "distances": {f"{a}-{b}": float(least[i, j]) for i, a in enumerate(species) for j, b in enumerate(species) if i <= j},
        })
    return out


def ours(tasks: list[dict[str, Any]], repeat: int) -> dict[str, Any]:
    """Our generator on the draws, `repeat` structures of each."""
    accepted, seconds = 0, 0.0
    for task in tasks:
        generator = RandomGenerator({task["group"]: 1.0})
        request = Request(dict(zip(task["species"], task["counts"], strict=True)), repeat)
        start = time.process_time()
        accepted += len(generator.generate(PAPER, [request], PRESSURE, task["seed"]).structures)
        seconds += time.process_time() - start
    return {"accepted": accepted, "asked_for": repeat * len(tasks), "cpu_s": seconds, "per_s": accepted / seconds}


def peer(tasks: list[dict[str, Any]], python: str, cap_s: float, budget_s: float) -> dict[str, Any] | None:
    """pyxtal on the draws until its wall-clock budget is used; None when that Python has no pyxtal."""
    results: list[dict[str, Any]] = []
    start = time.monotonic()
    worker = Path(__file__).with_name("_pyxtal_peer.py")
    while len(results) < len(tasks) and time.monotonic() - start < budget_s:
        process = subprocess.Popen([python, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True)
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"draws": tasks[len(results):], "cap_s": cap_s}) + "\n")
        process.stdin.flush()
        ready = process.stdout.readline()
        if not ready:
            process.wait()
            return None
        while True:
            line = process.stdout.readline()
            if line:
                results.append(json.loads(line))
            elif len(results) < len(tasks):  # killed by its CPU limit
                results.append({"accepted": False, "cpu_s": cap_s, "reason": "time-out"})
            if not line or len(results) == len(tasks) or time.monotonic() - start > budget_s:
                break
        process.kill()
        process.wait()
    seconds = sum(r["cpu_s"] for r in results)
    accepted = sum(r["accepted"] for r in results)
    return {"accepted": accepted, "draws": len(results), "cpu_s": seconds, "per_s": accepted / seconds,
            "failures": dict(Counter(r["reason"].split(":")[0] or "not valid" for r in results if not r["accepted"]))}


def looking(made: StructureArrays) -> dict[str, float]:
    """Structures per second of symmetry search, prototype labels and fingerprints, near 36 atoms."""
    near = made[np.flatnonzero(np.abs(made.counts - 36) <= 4)[:400]]
    fingerprints(near[:1])
    prototype_labels(near[:5])
    out = {}
    for name, function in (("symmetry_per_s", spacegroups), ("prototype_labels_per_s", prototype_labels),
                           ("fingerprints_per_s", fingerprints)):
        start = time.process_time()
        function(near)
        out[name] = len(near) / (time.process_time() - start)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 50 s")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has pyxtal 1.1.5")
    options = parser.parse_args()
    number, cap_s, budget_s, repeat = (3, 3.0, 9.0, 200) if options.quick else (20, 12.0, 120.0, 500)

    figures, made = whole_space(40 if options.quick else 400)
    print(f"over the paper's space (mean {figures['mean_atoms']:.1f} atoms): {figures['accepted_per_s']:.0f} accepted "
          f"structures/s/core, {figures['accepted']} of {figures['asked_for']}, {figures['distance_violations']} distance "
          f"violations, {figures['space_groups_visited']} space groups, requested group found in "
          f"{figures['requested_group_found']:.1%}")
    top = Counter(made.columns["requested_spacegroup"].tolist()).most_common(8)
    print("most frequent space groups: " + ", ".join(f"{g} ({n})" for g, n in top))
    out: dict[str, Any] = {**figures, **looking(made)}
    print(f"symmetry {out['symmetry_per_s']:.0f}/s, prototype labels {out['prototype_labels_per_s']:.0f}/s, fingerprints "
          f"{out['fingerprints_per_s']:.0f}/s at about 36 atoms")

    total = {"ours": [0, 0.0], "pyxtal": [0, 0.0]}
    for atoms in (10, 30, 88):
        tasks = draws(atoms, number)
        own = ours(tasks, repeat)
        out[f"ours_{atoms}_atoms_per_s"] = own["per_s"]
        text = f"{atoms} atoms, same draws: ours {own['per_s']:.0f}/s ({own['accepted']} of {own['asked_for']})"
        other = peer(tasks, options.peer_python, cap_s, budget_s)
        if other is None:
            print(text)
            continue
        out[f"pyxtal_{atoms}_atoms_per_s"] = other["per_s"]
        out[f"pyxtal_{atoms}_atoms_success"] = other["accepted"] / other["draws"]
        bound = max(other["accepted"], 1) / other["cpu_s"]
        out[f"ratio_pyxtal_{atoms}_atoms"] = own["per_s"] / bound
        print(f"{text}, pyxtal {other['per_s']:.3f}/s ({other['accepted']} of {other['draws']} in {other['cpu_s']:.1f} s, "
              f"{other['failures']}), ratio {'≥ ' if not other['accepted'] else ''}{own['per_s'] / bound:.0f}")
        for key, found, seconds in (("ours", own["accepted"], own["cpu_s"]), ("pyxtal", other["accepted"], other["cpu_s"])):
            total[key][0] += found
            total[key][1] += seconds
    if total["pyxtal"][1]:
        # equal numbers of draws of each size, so the mean time per draw counts
        rate = max(total["pyxtal"][0], 1) / total["pyxtal"][1]
        out["ratio_pyxtal_all_sizes"] = (total["ours"][0] / total["ours"][1]) / rate
        out["pyxtal_made_none"] = total["pyxtal"][0] == 0
        print(f"all sizes together: ratio {'≥ ' if out['pyxtal_made_none'] else ''}{out['ratio_pyxtal_all_sizes']:.0f}")
    else:
        out["peer_missing"] = "pyxtal"
        print('pyxtal is not installed in that Python: pip install "hydroflow[benchmark]", or --peer-python PYTHON')
    if options.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
