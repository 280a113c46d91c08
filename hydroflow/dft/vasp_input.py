"""Input files of VASP for compressed hydrides, written through pymatgen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar

from hydroflow.dft import crystal
from hydroflow.dft.settings import LabelSettings
from hydroflow.units import KBAR_GPA


def incar(
    settings: LabelSettings, atoms: int, *, relax_to_gpa: float | None = None, adjustments: Mapping[str, Any] | None = None,
) -> Incar:
    """INCAR of a label, or of a relaxation at a pressure.

    A label has no PSTRESS: with it, energies in vasprun.xml contain P·V.
    """
    v = settings.values
    tags: dict[str, Any] = {
        "SYSTEM": "hydroflow", "PREC": v["precision"], "ENCUT": v["encut_ev"], "GGA": "PE", "ISPIN": 1, "ALGO": "Normal",
        "EDIFF": v["ediff_ev_per_atom"] * atoms, "NELM": 120, "NELMIN": 4, "ISMEAR": v["smearing"], "SIGMA": v["sigma_ev"],
        "LREAL": False, "LASPH": True, "ISTART": 0, "ICHARG": 2, "LWAVE": False, "LCHARG": False, "LORBIT": 0,
        "IBRION": -1, "NSW": 0, "ISIF": 2,
    }
    if relax_to_gpa is not None:
        relax = v["relax"]
        tags |= {"IBRION": 2, "ISIF": 3, "NSW": relax["max_ionic_steps"], "EDIFFG": -relax["force_threshold_ev_a"],
                 "PSTRESS": relax_to_gpa / KBAR_GPA, "POTIM": 0.2}
    return Incar({**tags, **(adjustments or {})})


def kpoints(structure: Mapping[str, Any], settings: LabelSettings) -> Kpoints:
    """Γ-centred mesh at the settings' spacing: the rule of KSPACING, written out."""
    return Kpoints.gamma_automatic(crystal.k_mesh(np.array(structure["cell"]), settings.values["k_spacing_per_a"]))


def poscar(structure: Mapping[str, Any]) -> tuple[Poscar, list[int]]:
    """POSCAR with atoms grouped by element, and the order: position in the POSCAR → index in `structure`."""
    symbols = crystal.to_atoms(structure).get_chemical_symbols()
    order = sorted(range(len(symbols)), key=lambda i: (symbols[i], i))
    cell, fractional = np.array(structure["cell"], float), np.array(structure["fractional"], float)
    if np.linalg.det(cell) < 0:
        # VASP refuses a left-handed cell; inverting all vectors and coordinates keeps every Cartesian position
        cell, fractional = -cell, -fractional
    made = Structure(Lattice(cell), [symbols[i] for i in order], fractional[order])
    return Poscar(made, comment="hydroflow"), order


def species(structure: Mapping[str, Any]) -> list[str]:
    """Elements in the POSCAR's (and so the POTCAR's) order."""
    return crystal.symbols_of(structure)
