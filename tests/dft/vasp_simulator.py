#!/usr/bin/env python
"""Speaks VASP's files without being VASP: reads INCAR, POSCAR, KPOINTS and POTCAR, writes OUTCAR, vasprun.xml and CONTCAR.

Energies come from a repulsive pair potential, so that forces, stress and relaxation under PSTRESS are consistent. The
variable VASP_SIMULATOR names a failure of VASP to act out until the INCAR has its correction.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.neighborlist import neighbor_list
from ase.optimize import LBFGS

KBAR = 6.241509074e-4  # eV/Å³


class Repulsion(Calculator):
    """60 eV · exp(−2r/Å) · (1 − r/4 Å)²."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, d, vector = neighbor_list("idD", atoms, 4.0)
        tail = 1 - d / 4.0
        pair = 60 * np.exp(-2 * d) * tail**2
        slope = -60 * np.exp(-2 * d) * (2 * tail**2 + tail / 2)
        force = (slope / d)[:, None] * vector
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, force)
        virial = 0.5 * vector.T @ force
        voigt = (virial / atoms.get_volume())[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        self.results = {"energy": 0.5 * pair.sum(), "forces": forces, "stress": voigt}


def incar() -> dict[str, str]:
    pairs = (line.split("=", 1) for line in Path("INCAR").read_text().splitlines() if "=" in line)
    return {k.strip(): v.strip() for k, v in pairs}


def vectors(rows: np.ndarray) -> str:
    return "".join(f"    <v> {r[0]:.8f} {r[1]:.8f} {r[2]:.8f} </v>\n" for r in rows)


def vasprun(atoms: Atoms, tags: dict[str, str], steps: list[Atoms], electrons: float, cycles: int) -> str:
    pressure = float(tags.get("PSTRESS", 0)) * KBAR
    mesh = [int(w) for w in Path("KPOINTS").read_text().splitlines()[3].split()]
    names = "".join(f"    <rc><c>{s}</c><c> 1</c></rc>\n" for s in atoms.get_chemical_symbols())
    calculations = ""
    for step in steps:
        energy = step.get_potential_energy() + pressure * step.get_volume()
        calculations += (
            " <calculation>\n" + "  <scstep></scstep>\n" * cycles + "  <structure><crystal><varray name=\"basis\">\n"
            + vectors(step.cell.array) + "  </varray></crystal><varray name=\"positions\">\n"
            + vectors(step.get_scaled_positions(wrap=False)) + "  </varray></structure>\n  <varray name=\"forces\">\n"
            + vectors(step.get_forces()) + "  </varray>\n  <varray name=\"stress\">\n"
            + vectors(-step.get_stress(voigt=False) / KBAR) + "  </varray>\n"
            f"  <energy><i name=\"e_fr_energy\"> {energy:.8f} </i></energy>\n"
            "  <dos><i name=\"efermi\"> 10.0 </i></dos>\n </calculation>\n")
    return (
        "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>\n<modeling>\n <generator><i name=\"version\">6.3.0 </i></generator>\n"
        f" <kpoints><varray name=\"kpointlist\">\n{vectors(np.zeros((np.prod(mesh), 3)))} </varray></kpoints>\n"
        f" <parameters><i name=\"NELECT\"> {electrons} </i><i name=\"NELM\"> {tags.get('NELM', 60)} </i>"
        f"<i name=\"NSW\"> {tags.get('NSW', 0)} </i><i name=\"PSTRESS\"> {tags.get('PSTRESS', 0)} </i></parameters>\n"
        f" <atominfo><array name=\"atoms\"><set>\n{names} </set></array></atominfo>\n{calculations}</modeling>\n")


def main() -> int:
    tags, failure = incar(), os.environ.get("VASP_SIMULATOR", "")
    atoms = read("POSCAR", format="vasp")
    valences = [float(line.split("ZVAL")[1].split("=")[1].split()[0]) for line in Path("POTCAR").read_text().splitlines()
                if "ZVAL" in line]
    kinds = list(dict.fromkeys(atoms.get_chemical_symbols()))
    if len(valences) != len(kinds):
        print(" ERROR: the type information on POSCAR and POTCAR are incompatible")
        return 1
    electrons = sum(valences[kinds.index(s)] for s in atoms.get_chemical_symbols())
    cycles, relaxing = 12, int(tags.get("NSW", 0)) > 0
    if failure == "hermitian" and tags["ALGO"] != "Fast":
        print(" WARNING: Sub-Space-Matrix is not hermitian in DAV            1")
        return 1
    if failure == "nelm" and tags["ALGO"] != "All":
        cycles = int(tags["NELM"])
    if failure == "zbrent" and relaxing and tags["IBRION"] != "1":
        print(" ZBRENT: fatal error in bracketing\n     please rerun with smaller EDIFF, or copy CONTCAR")
        atoms.set_cell(atoms.cell * 1.001, scale_atoms=True)
        write("CONTCAR", atoms, format="vasp", direct=True)
        return 1
    atoms.calc = Repulsion()
    steps = []
    if relaxing:
        moved = FrechetCellFilter(atoms, scalar_pressure=float(tags["PSTRESS"]) * KBAR)
        search = LBFGS(moved, logfile=None)
        search.attach(lambda: steps.append(atoms.copy()))
        search.run(fmax=-float(tags["EDIFFG"]), steps=int(tags["NSW"]) - 1)
        for step in steps:
            step.calc = Repulsion()
    else:
        steps = [atoms]
    write("CONTCAR", steps[-1], format="vasp", direct=True)
    text = vasprun(atoms, tags, steps, electrons, cycles)
    footer = " General timing and accounting informations for this job:\n"
    if failure == "truncated" and not Path("again").exists():
        Path("../again").touch()
        text, footer = text[: len(text) // 2], ""
    if failure == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    Path("vasprun.xml").write_text(text)
    Path("OUTCAR").write_text(" vasp.6.3.0 20Jan22 (build) complex\n" + footer)
    Path("WAVECAR").write_bytes(b"0" * 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
