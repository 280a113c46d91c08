"""Relaxation at 200 GPa: hydroflow's batch against sequential ASE and torch-sim, the same model, the same convergence, one run.

The starts are random symmetric Mg–Ca–H crystals of 8 to 22 atoms. The peers are ASE's ``LBFGS`` on ``FrechetCellFilter`` with
deepmd-kit's own calculator (what one would write without hydroflow), the same with hydroflow's kernels behind the calculator
(what batching and the optimizer alone gain), and torch-sim's FIRE with hydroflow's kernels wrapped for it, where torch-sim
is installed (``pip install .[benchmark]``). Times are CPU times of one thread (wall times on a GPU), so that a busy machine
does not count; first calls that compile are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Relaxation
from hydroflow.lam import LamModel, relax
from hydroflow.lam.backend import import_deepmd
from hydroflow.structures import Request, compositions, generate
from hydroflow.units import GPA_A3_EV

MODEL = Path(__file__).parent / "data" / "mg_ca_h.pt"
"""A tiny DPA-1 trained by deepmd-kit 3.2.0 on the labels of tests/lam/data."""
PRESSURE = 200.0
SETTINGS = Relaxation(fmax_ev_a=0.03, max_steps=300)


def starts(n: int) -> StructureArrays:
    """Random symmetric crystals of 8 to 22 atoms."""
    campaign = Campaign.model_validate({"name": "relax", "space": {"elements": ["Mg", "Ca"], "max_metal_atoms": 3}})
    cells = [dict(zip(c.symbols, c.counts, strict=True)) for c in compositions(campaign.space)]
    cells = [c for c in cells if 8 <= sum(c.values()) <= 22 and len(c) == 3]
    found = generate(campaign, [Request(c, 2 + n // len(cells)) for c in cells], PRESSURE, seed=7)
    sized = np.arange(len(found))
    return found[np.random.default_rng(1).permutation(sized)[:n]]


class Kernels(Calculator):
    """hydroflow's evaluation, one structure at a time."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, model: LamModel) -> None:
        super().__init__()
        self.model = model

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        found = self.model.evaluate(StructureArrays.from_atoms([atoms]))
        stress = -found.virial_ev[0] / atoms.get_volume()
        self.results = {"energy": found.energy_ev[0], "forces": found.forces_ev_a,
                        "stress": ((stress + stress.T) / 2)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]}


def clock(device: str) -> float:
    return time.perf_counter() if device == "cuda" else time.process_time()


def ase_relax(structures: StructureArrays, calculator: Calculator, device: str) -> dict[str, Any]:
    """Sequential relaxation: enthalpies per atom (NaN where not converged), geometries, seconds, steps."""
    began, enthalpies, steps, final = clock(device), [], 0, []
    for i in range(len(structures)):
        atoms = structures.atoms(i)
        atoms.calc = calculator
        optimizer = LBFGS(FrechetCellFilter(atoms, scalar_pressure=PRESSURE * GPA_A3_EV), logfile=None)
        try:
            done = optimizer.run(fmax=SETTINGS.fmax_ev_a, steps=SETTINGS.max_steps)
        except (ValueError, np.linalg.LinAlgError):  # a structure that fell apart
            done = False
        steps += optimizer.nsteps
        enthalpy = atoms.get_potential_energy() + PRESSURE * GPA_A3_EV * atoms.get_volume()
        enthalpies.append(enthalpy / len(atoms) if done else np.nan)
        final.append(atoms)
    return {"enthalpy": np.array(enthalpies), "final": final, "seconds": clock(device) - began, "steps": steps}


def same_space_group(a: StructureArrays, b: StructureArrays) -> np.ndarray:
    import spglib

    def number(one: StructureArrays, i: int) -> int:
        rows = slice(one.offsets[i], one.offsets[i + 1])
        return spglib.get_symmetry_dataset((one.cells[i], one.fractional[rows], one.numbers[rows]), symprec=0.05).number

    return np.array([number(a, i) == number(b, i) for i in range(len(a))])


def against_torchsim(model: LamModel, structures: StructureArrays) -> dict[str, Any]:
    """Figures against torch-sim's FIRE, the same structures and kernels; none where it is not installed."""
    try:
        from benchmarks._torchsim_peer import relax_with_torchsim
    except ImportError:
        return {}
    began = time.process_time()
    mine = relax(model, structures, PRESSURE, SETTINGS).relaxed.columns["converged"].sum()
    seconds = time.process_time() - began
    peer, converged = relax_with_torchsim(model, structures, PRESSURE, SETTINGS)
    return {"ratio_vs_torchsim": round(peer / seconds, 2), "torchsim_converged": converged,
            "converged_beside_torchsim": int(mine), "compared_with_torchsim": len(structures)}


def measure(quick: bool, device: str) -> dict[str, Any]:
    n, n_ase, n_deepmd = (96, 16, 2) if quick else (1000, 200, 20)
    structures = starts(n)
    n, n_ase = len(structures), min(n_ase, len(structures))
    model = LamModel.load(MODEL, device=device)
    relax(model, structures[:4], PRESSURE, Relaxation(max_steps=3))  # compiles
    began = clock(device)
    batch = relax(model, structures, PRESSURE, SETTINGS)
    seconds = clock(device) - began
    found = batch.relaxed

    Kernels(model).get_potential_energy(structures.atoms(0))
    same = ase_relax(structures[:n_ase], Kernels(model), device)
    import_deepmd()
    from deepmd.calculator import DP

    calculator = DP(str(MODEL))
    calculator.get_potential_energy(structures.atoms(0))
    deepmd = ase_relax(structures[:n_deepmd], calculator, device)

    enthalpy = found.columns["enthalpy_ev"] / found.counts
    both = np.isfinite(same["enthalpy"]) & found.columns["converged"][:n_ase]
    off = np.abs(enthalpy[:n_ase] - same["enthalpy"])[both]
    ends = StructureArrays.from_atoms([a for a, kept in zip(same["final"], both, strict=True) if kept])
    groups = same_space_group(found[:n_ase][both], ends)
    mine = seconds / n
    out = {
        "structures": n, "atoms_mean": round(float(found.counts.mean()), 1), "device": device,
        "converged_share": round(float(found.columns["converged"].mean()), 3),
        "steps_median": float(np.median(found.columns["steps"])),
        "ms_per_structure_step": round(1e3 * seconds / batch.evaluations, 4),
        "structures_per_minute": round(60 / mine),
        "ase_deepmd_structures_per_minute": round(60 * n_deepmd / deepmd["seconds"], 2),
        "ratio_vs_ase": round(deepmd["seconds"] / n_deepmd / mine, 1),
        "ratio_vs_ase_per_step": round(deepmd["seconds"] / deepmd["steps"] / (seconds / batch.evaluations), 1),
        "ratio_vs_ase_same_kernels": round(same["seconds"] / n_ase / mine, 1),
        "compared_with_ase": int(both.sum()), "converged_in_both_share": round(float(both.mean()), 3),
        "within_1_mev_share": round(float((off < 1e-3).mean()), 3), "same_spacegroup_share": round(float(groups.mean()), 3),
        "median_difference_mev": round(float(np.median(off)) * 1e3, 4),
    }
    return out | (against_torchsim(model, structures[: 32 if quick else 200]) if device == "cpu" else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 50 s")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    figures = measure(args.quick, args.device)
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<34}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
