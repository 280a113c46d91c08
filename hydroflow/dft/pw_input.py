"""Input of pw.x (and projwfc.x) from a structure and label settings; written through ASE."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.io.espresso import write_espresso_in

from hydroflow.dft import crystal
from hydroflow.dft.settings import LabelSettings
from hydroflow.units import KBAR_GPA

PREFIX = "x"
OUTDIR = "./out"


def pw_input(
    structure: Mapping[str, Any], settings: LabelSettings, calculation: str, *, adjustments: Mapping[str, Any] | None = None,
    k_spacing_per_a: float | None = None, pressure_gpa: float = 0.0, max_seconds: float | None = None,
    least_mesh: Sequence[int] | None = None,
) -> str:
    """Text of a pw.x input file.

    Parameters
    ----------
    structure
        Plain JSON structure (:mod:`hydroflow.dft.crystal`).
    calculation
        ``scf``, ``nscf`` or ``vc-relax``.
    adjustments
        A recovery's changes: namelist name → keyword → value, e.g. ``{"electrons": {"mixing_beta": 0.2}}``.
    k_spacing_per_a
        Instead of the settings' own.
    pressure_gpa
        Target of a ``vc-relax``.
    max_seconds
        pw.x stops cleanly after so long.
    least_mesh
        k mesh (3,) below which the cell's own is made denser.
    """
    atoms = crystal.to_atoms(structure)
    values = settings.values
    data: dict[str, dict[str, Any]] = {
        "control": {
            "calculation": calculation, "prefix": PREFIX, "outdir": OUTDIR, "pseudo_dir": "./", "tprnfor": True,
            # below 'low' pw.x 6.7 writes no XML either; the wave functions it leaves are deleted after the run
            "tstress": True, "disk_io": "low",
        },
        "system": {
            "ecutwfc": settings.ecutwfc_ry, "ecutrho": settings.ecutrho_ry, "occupations": "smearing",
            "smearing": values["smearing"], "degauss": values["degauss_ry"],
        },
        "electrons": {
            "conv_thr": values["conv_thr_ry_per_atom"] * len(atoms), "mixing_beta": values["mixing_beta"],
            "electron_maxstep": values["electron_maxstep"],
        },
    }
    if max_seconds is not None:
        data["control"]["max_seconds"] = float(round(max_seconds))
    if calculation == "vc-relax":
        relax = values["relax"]
        data["control"] |= {"nstep": relax["max_ionic_steps"], "forc_conv_thr": relax["force_threshold_ry_bohr"],
                            # jobs submitted before protocols named it have none
                            "etot_conv_thr": relax.get("energy_threshold_ry_per_atom", 1e-5) * len(atoms)}
        data["cell"] = {"press": pressure_gpa / KBAR_GPA, "press_conv_thr": relax["pressure_threshold_gpa"] / KBAR_GPA,
                        "cell_factor": 2.0}
        # The default first step (0.5 bohr) can halve the volume of a cell of one or two atoms that is tens of GPa off its
        # pressure; the charge density cannot be extrapolated over that.
        data["ions"] = {"ion_dynamics": "bfgs", "trust_radius_ini": round(min(0.5, 0.04 * len(atoms)), 3)}
    if calculation == "nscf":
        for key in ("tprnfor", "tstress"):
            data["control"].pop(key)
        for key in ("smearing", "degauss"):
            data["system"].pop(key)
        data["system"]["occupations"] = "tetrahedra_opt"
    for namelist, changes in (adjustments or {}).items():
        if namelist in ("control", "system", "electrons", "ions", "cell"):
            data.setdefault(namelist, {}).update(changes)
    mesh = crystal.k_mesh(atoms.cell.array, k_spacing_per_a or values["k_spacing_per_a"])
    if least_mesh is not None:
        mesh = crystal.denser_mesh(mesh, least_mesh)
    text = io.StringIO()
    write_espresso_in(text, atoms, input_data=data, pseudopotentials={e: p.file for e, p in settings.pseudos.items()},
                      kpts=mesh, koffset=(0, 0, 0), crystal_coordinates=True)
    # ASE writes every namelist; pw.x before 7.1 does not know the empty ones that are left out here.
    lines = text.getvalue()
    for empty in ("&CELL", "&FCP", "&RISM"):
        lines = lines.replace(f"{empty}\n/\n", "")
    return lines


def projwfc_input() -> str:
    """Text of a projwfc.x input: projected densities of states by the nscf run's tetrahedra, written as ``x.pdos*``."""
    return f"&PROJWFC\n  prefix = '{PREFIX}', outdir = '{OUTDIR}', filpdos = '{PREFIX}', DeltaE = 0.02\n/\n"


def stop_before(wall_time_s: int) -> float:
    """`max_seconds` that leaves pw.x time to stop cleanly before the scheduler kills it."""
    return max(0.75 * wall_time_s, wall_time_s - 180.0)


def pool_count(structure: Mapping[str, Any], settings: LabelSettings, cores: int) -> int:
    """k-point pools for so many cores: the largest divisor of `cores` that leaves no pool without k-points."""
    if cores <= 1:
        return 1
    mesh = crystal.k_mesh(np.array(structure["cell"]), settings.values["k_spacing_per_a"])
    points = crystal.irreducible_k_points(structure, mesh)
    return max(n for n in range(1, cores + 1) if cores % n == 0 and n <= points)


