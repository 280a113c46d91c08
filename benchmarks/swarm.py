"""Does swarm evolution find the lowest structure with fewer relaxations than random search? On a model energy surface.

``python -m benchmarks.swarm [--quick] [--json] [--formula-units K] [--seeds N] [--budget N]``

The surface is a ternary mixture of Lennard-Jones pairs under pressure: A and B of different size, H small, unlike pairs bound
more strongly than like ones. Both searches get the same number of relaxations from the same seeds; the global minimum is the
lowest structure that any of the runs found. A run succeeds when it comes within 2 meV/atom of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import minimize

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.structures import Request
from hydroflow.structures.compiled import compiled
from hydroflow.structures.random import RandomGenerator
from hydroflow.structures.swarm import SwarmGenerator
from hydroflow.structures.symmetric import determinant, invert
from hydroflow.structures.symmetry import spacegroups
from hydroflow.units import GPA_A3_EV

PRESSURE_GPA = 200.0
CAMPAIGN = Campaign(name="model", space={"elements": ["Ca", "Y"]})
CUTOFF_A = 5.0
ELEMENTS = np.array([1, 20, 39])
# distance of the pair minimum in Å and its depth in eV; H, Ca, Y
DISTANCE_A = np.array([[1.10, 1.80, 1.95], [1.80, 2.85, 2.75], [1.95, 2.75, 3.10]])
DEPTH_EV = np.array([[0.10, 0.35, 0.45], [0.35, 0.20, 0.40], [0.45, 0.40, 0.25]])
SUCCESS_EV = 0.002


@compiled
def energy_gradient(kinds: np.ndarray, fractional: np.ndarray, cell: np.ndarray, distance: np.ndarray, depth: np.ndarray,
                    cutoff: float, by_fractional: np.ndarray, by_cell: np.ndarray) -> float:
    """Energy of a cell in eV and its derivatives by fractional coordinates (k, 3) and cell (3, 3)."""
    inverse = np.empty((3, 3))
    invert(cell, inverse)
    reach = np.empty(3)
    for i in range(3):
        reach[i] = cutoff * math.sqrt(inverse[0, i] ** 2 + inverse[1, i] ** 2 + inverse[2, i] ** 2)
    by_fractional[:] = 0.0
    by_cell[:] = 0.0
    energy = 0.0
    for p in range(len(kinds)):
        for q in range(p, len(kinds)):
            r0, e0 = distance[kinds[p], kinds[q]], depth[kinds[p], kinds[q]]
            shift = e0 * ((r0 / cutoff) ** 12 - 2 * (r0 / cutoff) ** 6)
            weight = 0.5 if p == q else 1.0
            dx, dy, dz = fractional[p] - fractional[q]
            for u in range(math.ceil(-reach[0] - dx), math.floor(reach[0] - dx) + 1):
                for v in range(math.ceil(-reach[1] - dy), math.floor(reach[1] - dy) + 1):
                    for w in range(math.ceil(-reach[2] - dz), math.floor(reach[2] - dz) + 1):
                        if p == q and u == 0 and v == 0 and w == 0:
                            continue
                        fx, fy, fz = dx + u, dy + v, dz + w
                        x = fx * cell[0, 0] + fy * cell[1, 0] + fz * cell[2, 0]
                        y = fx * cell[0, 1] + fy * cell[1, 1] + fz * cell[2, 1]
                        z = fx * cell[0, 2] + fy * cell[1, 2] + fz * cell[2, 2]
                        r2 = x * x + y * y + z * z
                        if r2 >= cutoff * cutoff:
                            continue
                        # below 0.6 of the minimum distance the wall goes on as a straight line
                        r = math.sqrt(r2)
                        inner = max(r, 0.6 * r0)
                        s6 = (r0 / inner) ** 6
                        slope = 12 * e0 * (s6 - s6 * s6) / inner
                        energy += weight * (e0 * (s6 * s6 - 2 * s6) - shift + slope * (r - inner))
                        g = weight * slope / max(r, 1e-6)
                        for k in range(3):
                            c = g * (x * cell[k, 0] + y * cell[k, 1] + z * cell[k, 2])
                            if p != q:
                                by_fractional[p, k] += c
                                by_fractional[q, k] -= c
                        f = (fx, fy, fz)
                        for k in range(3):
                            by_cell[k, 0] += g * f[k] * x
                            by_cell[k, 1] += g * f[k] * y
                            by_cell[k, 2] += g * f[k] * z
    return energy


def relax(arrays: StructureArrays, steps: int = 250) -> StructureArrays:
    """Relaxed structures with the column ``enthalpy_ev``; those that collapse get NaN."""
    numbers, fractional, cells, enthalpies = [], [], [], []
    pressure = PRESSURE_GPA * GPA_A3_EV
    for i in range(len(arrays)):
        rows = slice(arrays.offsets[i], arrays.offsets[i + 1])
        kinds = np.searchsorted(ELEMENTS, arrays.numbers[rows])
        n = len(kinds)
        length = arrays.volumes[i] ** (1 / 3)
        by_fractional, by_cell, inverse = np.empty((n, 3)), np.empty((3, 3)), np.empty((3, 3))

        def value(x: np.ndarray, n: int = n, kinds: np.ndarray = kinds, length: float = length,
                  by_fractional: np.ndarray = by_fractional, by_cell: np.ndarray = by_cell,
                  inverse: np.ndarray = inverse) -> tuple[float, np.ndarray]:
            cell = np.ascontiguousarray(x[3 * n:].reshape(3, 3))
            volume = determinant(cell)
            if volume < 0.3 * length**3:  # folding over
                return 1e3 * n, np.zeros_like(x)
            points = np.ascontiguousarray(x[:3 * n].reshape(n, 3)) / length
            e = energy_gradient(kinds, points, cell, DISTANCE_A, DEPTH_EV, CUTOFF_A, by_fractional, by_cell)
            invert(cell, inverse)
            by_cell += pressure * volume * inverse.T
            return e + pressure * volume, np.concatenate([by_fractional.ravel() / length, by_cell.ravel()])

        start = np.concatenate([(arrays.fractional[rows] * length).ravel(), arrays.cells[i].ravel()])
        found = minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxcor": 20, "ftol": 1e-10})
        numbers.append(arrays.numbers[rows])
        fractional.append(found.x[:3 * n].reshape(n, 3) / length % 1.0)
        cells.append(found.x[3 * n:].reshape(3, 3))
        enthalpies.append(found.fun if found.fun < 500 * n else np.nan)
    columns = {**arrays.columns, "enthalpy_ev": np.array(enthalpies)}
    return StructureArrays.from_lists(numbers, fractional, cells, columns)


def search(generator: Any, cell: dict[str, int], seed: int, budget: int, generation: int) -> StructureArrays:
    """All relaxed structures of one run, in the order in which they were relaxed."""
    done = StructureArrays.empty()
    while len(done) < budget:
        request = Request(cell, min(generation, budget - len(done)), first=len(done))
        made = generator.generate(CAMPAIGN, [request], PRESSURE_GPA, seed, done if len(done) else None).structures
        done = StructureArrays.concatenate([done, relax(made)])
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 50 s")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    parser.add_argument("--formula-units", type=int, default=2, help="CaYH6 units per cell (2: 16 atoms)")
    parser.add_argument("--seeds", type=int, default=None, help="runs of each search (20; --quick: 10)")
    parser.add_argument("--budget", type=int, default=None, help="relaxations per run (150; --quick: 80)")
    options = parser.parse_args()
    seeds = options.seeds or (10 if options.quick else 20)
    budget = options.budget or (80 if options.quick else 150)
    cell = {s: n * options.formula_units for s, n in {"Ca": 1, "Y": 1, "H": 6}.items()}
    runs: dict[str, list[np.ndarray]] = {"random": [], "swarm": []}
    best_structure, lowest = None, math.inf
    start = time.process_time()
    for seed in range(seeds):
        for name, generator in (("random", RandomGenerator()), ("swarm", SwarmGenerator())):
            done = search(generator, cell, seed, budget, 20)
            per_atom = np.nan_to_num(done.columns["enthalpy_ev"] / done.counts, nan=np.inf)
            runs[name].append(per_atom)
            if per_atom.min() < lowest:
                lowest, best_structure = float(per_atom.min()), done[int(per_atom.argmin())]
    assert best_structure is not None
    out: dict[str, Any] = {"atoms": sum(cell.values()), "seeds": seeds, "budget": budget,
                           "relaxations_per_s": 2 * seeds * budget / (time.process_time() - start)}
    print(f"{best_structure.formulas()[0]}, {out['atoms']} atoms, {seeds} seeds × {budget} relaxations each; lowest "
          f"{spacegroups(best_structure)[1][0]} at {lowest:.4f} eV/atom ({out['relaxations_per_s']:.0f} relaxations/s)")
    for name, found in runs.items():
        first = [int(np.argmax(e < lowest + SUCCESS_EV)) + 1 if e.min() < lowest + SUCCESS_EV else None for e in found]
        hits = [n for n in first if n is not None]
        # a run that did not succeed counts with its whole budget
        mean = float(np.mean([n or budget for n in first]))
        above = float(np.mean([e.min() - lowest for e in found]))
        out |= {f"{name}_success": len(hits) / seeds, f"{name}_mean_relaxations": mean,
                f"{name}_mean_above_minimum_mev": 1e3 * above}
        print(f"{name}: success in {len(hits)} of {seeds}, mean relaxations {mean:.0f} (failures count {budget}), lowest on "
              f"average {1e3 * above:.1f} meV/atom above the minimum")
    out["ratio_relaxations_random_to_swarm"] = out["random_mean_relaxations"] / out["swarm_mean_relaxations"]
    verdict = "fewer" if out["ratio_relaxations_random_to_swarm"] > 1.05 else (
        "more" if out["ratio_relaxations_random_to_swarm"] < 0.95 else "as many")
    print(f"the swarm needs {verdict} relaxations: random / swarm = {out['ratio_relaxations_random_to_swarm']:.2f}")
    if options.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
