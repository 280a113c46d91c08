"""Hull distances of all entries of one ternary against pymatgen's PhaseDiagram in the same run, and their equality.

The entries are a search at the paper's limits: 576 compositions A_mB_nH_x with 1 ≤ m, n ≤ 4 and 3(m+n) ≤ x ≤ 10(m+n),
elements and binaries, enthalpies above a smooth convex function of composition. pymatgen is asked for every entry, or with
``--quick`` for a sample; its time per entry times the number of entries, plus building its diagram, is then compared. Times
are CPU times of one core.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from hydroflow.screening.entries import Entries, entries
from hydroflow.screening.hull import energy_above_hull

ELEMENTS = ("Ca", "Y", "H")
SAMPLE = 1_500


def searched_entries(n: int, seed: int = 0) -> Entries:
    """n entries of one ternary, in random order as shards come in; elements first."""
    rng = np.random.default_rng(seed)
    m, b = rng.integers(1, 5, n), rng.integers(1, 5, n)
    counts = np.stack([m, b, rng.integers(3 * (m + b), 10 * (m + b) + 1)], axis=1)
    binary = rng.random(n) < 0.1
    counts[binary, rng.integers(0, 2, binary.sum())] = 0
    counts *= rng.integers(1, 3, n)[:, None]
    counts = np.concatenate([np.eye(3, dtype=int), counts])
    x = counts / counts.sum(1, keepdims=True)
    above = rng.exponential(0.25, len(counts))
    above[:3] = 0
    per_atom = x @ [-1.0, -4.0, -2.0] - 1.5 * x[:, 2] * (1 - x[:, 2]) - 0.4 * x[:, 0] * x[:, 1] + above
    return entries(ELEMENTS, counts, per_atom * counts.sum(1), 200.0, "synthetic")


def ours(given: Entries, repeats: int) -> tuple[float, np.ndarray]:
    """Seconds of the fastest of some runs, checks of the input included, and the distances."""
    seconds, distances = np.inf, np.zeros(0)
    for _ in range(repeats):
        start = time.process_time()
        checked = entries(given.elements, given.counts, given.enthalpies_ev, 200.0, "synthetic", given.ids)
        distances = energy_above_hull(checked)[0]
        seconds = min(seconds, time.process_time() - start)
    return seconds, distances


def pymatgen(given: Entries, asked: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Seconds to build the diagram, seconds per distance, and the distances of the entries `asked`."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    compositions = {row: Composition(dict(zip(ELEMENTS, row, strict=True))) for row in map(tuple, given.counts.tolist())}
    peers = [PDEntry(compositions[tuple(row)], h) for row, h in zip(given.counts.tolist(), given.enthalpies_ev, strict=True)]
    start = time.process_time()
    diagram = PhaseDiagram(peers)
    built = time.process_time() - start
    start = time.process_time()
    distances = np.array([diagram.get_e_above_hull(peers[i]) for i in asked])
    return built, (time.process_time() - start) / len(asked), distances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="pymatgen on a sample of the entries")
    parser.add_argument("--json", action="store_true", help="only the last line of figures")
    args = parser.parse_args()
    n = 100_000
    given = searched_entries(n)
    ours(given, 1)  # compile
    seconds, distances = ours(given, 7)
    asked = np.random.default_rng(1).choice(n, SAMPLE, replace=False) if args.quick else np.arange(n)
    built, each, peer = pymatgen(given, asked)
    million = searched_entries(1_000_000)
    large, _ = ours(million, 3)
    figures = {
        "entries": n, "hydroflow_s": seconds, "hydroflow_entries_per_s": len(given) / seconds,
        "hydroflow_entries_per_s_at_1e6": len(million) / large, "pymatgen_build_s": built, "pymatgen_s_per_entry": each,
        "pymatgen_entries_asked": len(asked), "pymatgen_s": built + each * n,
        "largest_difference_ev": float(np.abs(distances[asked] - peer).max()),
        "ratio_to_pymatgen": (built + each * n) / seconds,
    }
    if not args.json:
        print(f"{n} entries of {'-'.join(ELEMENTS)}: {1000 * seconds:.1f} ms ({len(given) / seconds:.3g} entries/s)")
        print(f"pymatgen: {built:.1f} s to build, {1000 * each:.2f} ms per entry ({len(asked)} asked), "
              f"{figures['pymatgen_s']:.0f} s for all")
        print(f"ratio {figures['ratio_to_pymatgen']:.0f}, largest difference {figures['largest_difference_ev']:.1e} eV/atom")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
