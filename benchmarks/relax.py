"""Relaxation at 200 GPa: hydroflow's batch against sequential ASE and torch-sim, the same model, the same convergence, one run.

The starts are random symmetric Mg–Ca–H crystals of 8 to 22 atoms. The peers are ASE's ``LBFGS`` on ``FrechetCellFilter`` with
deepmd-kit's own calculator (what one would write without hydroflow), the same with hydroflow's kernels behind the calculator
(what batching and the optimizer alone gain), and torch-sim's FIRE with hydroflow's kernels wrapped for it, where torch-sim
is installed (``pip install .[benchmark]``). Times are CPU times of one thread (wall times on a GPU), so that a busy machine
does not count; first calls that compile are left out. Each ratio is of the same structures: those that the peer relaxed one
after another are repeated in hydroflow's batch until it is as full as in use.

A result is *equal* when both converged, within 1 meV/atom and in the same space group; the share is given of the structures
that converged in both and of all compared. What is not equal is sorted by its cause: not converged (here, in ASE, in
neither, with the reason here), or another minimum. A start is *sensitive* when hydroflow itself ends elsewhere after its
atoms are moved by 10⁻⁶ Å, which changes forces as much as single precision does: noise decides which basin such a path falls
into, whoever walks it. The share of sensitive starts among the equal ones stands beside it, for what the word is worth, and so
does how often ASE itself ends where it ended before when its own starts are moved so.
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
import spglib
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
    return found[np.random.default_rng(1).permutation(len(found))[:n]]


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


def per_structure(model: LamModel, structures: StructureArrays, slots: int, device: str) -> float:
    """Seconds that each of `structures` takes in a batch filled with copies of them."""
    copies = structures[np.arange(max(slots, len(structures))) % len(structures)]
    began = clock(device)
    relax(model, copies, PRESSURE, SETTINGS)
    return (clock(device) - began) / len(copies)


def nudged(structures: StructureArrays, rng: np.random.Generator) -> StructureArrays:
    """The same structures with every atom moved by some 10⁻⁶ Å."""
    moved = structures[np.arange(len(structures))]
    shift = rng.normal(0, 1e-6, moved.fractional.shape)
    moved.fractional = moved.fractional + np.einsum("ni,nij->nj", shift, np.linalg.inv(moved.cells)[moved.owner])
    return moved


def ase_beside_itself(model: LamModel, starts: StructureArrays, first: dict[str, Any], device: str) -> dict[str, Any]:
    """How often sequential ASE ends where it ended `first` when its starts are moved by 10⁻⁶ Å: what no other walker of the same
    path can be asked to exceed."""
    again = ase_relax(nudged(starts, np.random.default_rng(1)), Kernels(model), device)
    both = np.flatnonzero(np.isfinite(first["enthalpy"]) & np.isfinite(again["enthalpy"]))
    close = np.abs(first["enthalpy"] - again["enthalpy"])[both] < 1e-3
    group = same_space_group(*(StructureArrays.from_atoms([run["final"][i] for i in both]) for run in (first, again)))
    one = np.isfinite(first["enthalpy"]) != np.isfinite(again["enthalpy"])
    return {"ase_beside_itself_converged_in_both": len(both), "ase_beside_itself_converged_in_one": int(one.sum()),
            "ase_beside_itself_equal_share": round(float((close & group).mean()), 3)}


def sensitive(model: LamModel, structures: StructureArrays, enthalpy: np.ndarray, copies: int = 4) -> np.ndarray:
    """(n,) whether a start that is moved by 10⁻⁶ Å relaxes to another `enthalpy` (n,) in eV/atom in one of a few tries."""
    rng, out = np.random.default_rng(0), np.zeros(len(structures), bool)
    for _ in range(copies):
        found = relax(model, nudged(structures, rng), PRESSURE, SETTINGS).relaxed
        off = np.abs(found.columns["enthalpy_ev"] / found.counts - enthalpy)
        out |= ~((off < 1e-3) & found.columns["converged"])
    return out


def agreement(model: LamModel, starts: StructureArrays, found: StructureArrays, peer: dict[str, Any]) -> dict[str, Any]:
    """How the same starts ended here (`found`) and in sequential ASE (`peer`), and why not the same."""
    enthalpy = found.columns["enthalpy_ev"] / found.counts
    here, there = found.columns["converged"].astype(bool), np.isfinite(peer["enthalpy"])
    both = np.flatnonzero(here & there)
    off = np.abs(enthalpy - peer["enthalpy"])
    ends = StructureArrays.from_atoms([peer["final"][i] for i in both])
    close, group = off[both] < 1e-3, same_space_group(found[both], ends)
    equal = close & group
    differing = both[~close]
    fragile = sensitive(model, starts[both], enthalpy[both])
    reasons, counts = np.unique(found.columns["status"][~here].astype(str), return_counts=True)
    return {
        "compared_with_ase": len(found), "converged_in_both": len(both), "converged_only_here": int((here & ~there).sum()),
        "converged_only_in_ase": int((~here & there).sum()), "converged_in_neither": int((~here & ~there).sum()),
        "not_converged_here": {str(r): int(c) for r, c in zip(reasons, counts, strict=True)},
        "equal_share_of_converged_in_both": round(float(equal.mean()), 3),
        "equal_share_of_compared": round(float(equal.sum() / len(found)), 3),
        "within_1_mev": int(close.sum()), "same_spacegroup": int(group.sum()),
        "other_minimum": {"all": len(differing), "sensitive_starts": int(fragile[~close].sum()),
                          "lower_here": int((enthalpy < peer["enthalpy"])[differing].sum())},
        "sensitive_share_of_equal": round(float(fragile[equal].mean()), 3) if equal.any() else None,
        "median_difference_mev": round(float(np.median(off[both])) * 1e3, 4),
    }


def same_space_group(a: StructureArrays, b: StructureArrays) -> np.ndarray:
    def number(one: StructureArrays, i: int) -> int:
        rows = slice(one.offsets[i], one.offsets[i + 1])
        return spglib.get_symmetry_dataset((one.cells[i], one.fractional[rows], one.numbers[rows]), symprec=0.05).number

    return np.array([number(a, i) == number(b, i) for i in range(len(a))])


def against_torchsim(model: LamModel, structures: StructureArrays) -> dict[str, Any]:
    """Figures against torch-sim's FIRE, the same structures and kernels; none where it is not installed."""
    try:
        from benchmarks._torchsim_peer import relax_with_torchsim
    except ImportError:
        return {"peer_missing": "torch-sim-atomistic"}
    began = time.process_time()
    mine = relax(model, structures, PRESSURE, SETTINGS).relaxed.columns["converged"].sum()
    seconds = time.process_time() - began
    peer, converged = relax_with_torchsim(model, structures, PRESSURE, SETTINGS)
    return {"ratio_vs_torchsim": round(peer / seconds, 2), "torchsim_converged": converged,
            "converged_beside_torchsim": int(mine), "compared_with_torchsim": len(structures)}


def measure(quick: bool, device: str) -> dict[str, Any]:
    n, n_ase, n_deepmd = (96, 12, 2) if quick else (1000, 200, 20)
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

    slots = 48 if quick else 128 if device == "cpu" else n
    mine_deepmd, mine_same = (per_structure(model, structures[:k], slots, device) for k in (n_deepmd, n_ase))
    out = {
        "structures": n, "atoms_mean": round(float(found.counts.mean()), 1), "device": device,
        "converged_share": round(float(found.columns["converged"].mean()), 3),
        "steps_median": float(np.median(found.columns["steps"])),
        "ms_per_structure_step": round(1e3 * seconds / batch.evaluations, 4),
        "structures_per_minute": round(60 * n / seconds),
        "ase_deepmd_structures_per_minute": round(60 * n_deepmd / deepmd["seconds"], 2),
        "ratio_vs_ase": round(deepmd["seconds"] / n_deepmd / mine_deepmd, 1), "ase_deepmd_structures": n_deepmd,
        "ratio_vs_ase_per_step": round(deepmd["seconds"] / deepmd["steps"] / (seconds / batch.evaluations), 1),
        "ratio_vs_ase_same_kernels": round(same["seconds"] / n_ase / mine_same, 1),
        **agreement(model, structures[:n_ase], found[:n_ase], same),
        **ase_beside_itself(model, structures[:n_ase], same, device),
    }
    return out | (against_torchsim(model, structures[: 16 if quick else 200]) if device == "cpu" else {})


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
            print(f"{name:<36}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
