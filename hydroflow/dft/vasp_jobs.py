"""Engines of the DFT jobs run by VASP: single points and variable-cell relaxations.

VASP is the user's own program and potentials. Inputs, parsing, verdicts and recoveries are tested on real output files
and on an executable that speaks VASP's files; no run of VASP itself stands behind them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.dft import crystal, vasp_output, verdict
from hydroflow.dft.pw_output import PwResult
from hydroflow.dft.pw_run import NOTES, exit_code, read_notes
from hydroflow.dft.settings import LabelSettings
from hydroflow.dft.vasp_input import incar, kpoints, poscar, species
from hydroflow.dft.vasp_recovery import correction
from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import GPA_A3_EV

MESH_RESTARTS = 2

_CLEAN = "rm -f vasprun.xml OUTCAR vasp.out *.relax OSZICAR; "
_SCRAP = "; code=$?; rm -f WAVECAR CHGCAR CHG DOSCAR EIGENVAL PCDAT XDATCAR REPORT IBZKPT PROCAR; exit $code"


class VaspEngine:
    """What the engines built on VASP share."""

    kind = ""
    executables: tuple[str, ...] = ("vasp_std",)

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("vasprun.xml", "OUTCAR", "vasp.out", "vasp.err", "CONTCAR", "*.relax", NOTES)

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        return correction(failure, attempt)


class VaspLabel(VaspEngine):
    """Energy, forces and stress of one structure."""

    kind = "vasp.label"

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        settings, structure = _settings(job), job.inputs["structure"]
        _write(folder, structure, settings, adjustments)
        incar(settings, len(structure["numbers"]), adjustments=adjustments.get("incar")).write_file(str(folder / "INCAR"))

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return f"{_CLEAN}{executables['vasp_std']} > vasp.out 2> vasp.err{_SCRAP}"

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        settings, structure = _settings(job), job.inputs["structure"]
        result = _read(folder, job)
        result = _in_order(result, structure)
        review = verdict.check_result(result, structure, settings)
        energy, forces, stress = result.values()
        volume = crystal.volume_a3(structure)
        return Collected({
            **_common(result, settings, review),
            "energy_ev": energy,
            "forces_ev_a": np.round(forces, 8).tolist(),
            "virial_ev": np.round(stress * volume * GPA_A3_EV, 8).tolist(),
            "pressure_gpa": float(np.trace(stress)) / 3,
            "volume_a3": volume,
        }, proof=_keep(folder))


class VaspRelax(VaspEngine):
    """Cell and positions relaxed under PSTRESS, then a single point of the relaxed cell without it: energies without P·V on
    the relaxed cell's own plane waves."""

    kind = "vasp.relax"

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        settings = _settings(job)
        structure = adjustments.get("structure") or job.inputs["structure"]
        _write(folder, structure, settings, adjustments)
        atoms, changes = len(structure["numbers"]), dict(adjustments.get("incar", {}))
        relax = incar(settings, atoms, relax_to_gpa=float(job.inputs["pressure_gpa"]), adjustments=changes)
        relax.write_file(str(folder / "INCAR"))
        still = {k: v for k, v in changes.items() if k not in ("IBRION", "POTIM", "NSW")}
        incar(settings, atoms, adjustments=still).write_file(str(folder / "INCAR.static"))

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        vasp = executables["vasp_std"]
        # the single point runs only after a relaxation that left a structure
        return (f"{_CLEAN}{vasp} > vasp.out 2> vasp.err; "
                "for f in vasprun.xml OUTCAR vasp.out; do [ -e $f ] && mv $f $f.relax; done; "
                "[ -s CONTCAR ] && cp CONTCAR POSCAR && cp INCAR.static INCAR && "
                f"{vasp} > vasp.out 2>> vasp.err{_SCRAP}")

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        settings, target = _settings(job), float(job.inputs["pressure_gpa"])
        notes = read_notes(folder)
        start = notes.get("structure") or job.inputs["structure"]
        restarts = int(notes.get("adjustments", {}).get("restarts", 0))
        try:
            relaxed = _read(folder, job, ".relax")
            if not relaxed.ions_converged:
                raise EngineFailure(FailureCode.relaxation_not_converged, f"not relaxed after {relaxed.n_ionic} steps")
            result = _read(folder, job)
        except EngineFailure as failure:
            raise _with_last_structure(failure, folder, restarts) from failure
        final = crystal.from_arrays(result.numbers, result.cell, result.fractional)
        review = verdict.check_result(result, final, settings)
        energy, forces, stress = result.values()
        error = float(np.trace(stress)) / 3 - target
        spacing = settings.values["k_spacing_per_a"]
        before, after = (crystal.k_mesh(np.array(s["cell"]), spacing) for s in (start, final))
        if abs(error) > 2.0 or (before != after and restarts < MESH_RESTARTS):
            raise EngineFailure(FailureCode.relaxation_not_converged, f"the relaxed cell has {error:+.1f} GPa beside its target "
                                f"and k mesh {after} instead of {before}", {"structure": final, "restarts": restarts})
        if before != after:
            review.append(f"k mesh {before} of the starting cell instead of {after}")
        volume = crystal.volume_a3(final)
        return Collected({
            **_common(result, settings, review),
            "structure": final,
            "energy_ev": energy,
            "enthalpy_ev": energy + target * GPA_A3_EV * volume,
            "pressure_gpa": target,
            "pressure_error_gpa": error,
            "max_force_ev_a": float(np.linalg.norm(forces, axis=1).max(initial=0.0)),
            "volume_a3": volume,
            "n_ionic": relaxed.n_ionic,
            "restarts": restarts,
        }, proof=_keep(folder))


def _settings(job: JobSpec) -> LabelSettings:
    return LabelSettings.from_json(job.inputs["settings"])


def _write(folder: Path, structure: Mapping[str, Any], settings: LabelSettings, adjustments: Mapping[str, Any]) -> None:
    """POSCAR, KPOINTS, POTCAR; the POTCARs of the elements lie in the folder already and are verified."""
    crystal.check_geometry(structure)
    parts = []
    for element in species(structure):
        pseudo = settings.pseudos[element]
        path = folder / pseudo.file
        if not path.is_file():
            raise EngineFailure(FailureCode.bad_pseudopotential, f"the job's folder lacks {pseudo.file} for {element}")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != pseudo.sha256:
            raise EngineFailure(FailureCode.bad_pseudopotential, f"{pseudo.file} for {element} is not the file that the label "
                                "settings name (checksum differs)")
        parts.append(data)
    (folder / "POTCAR").write_bytes(b"".join(parts))
    poscar(structure)[0].write_file(str(folder / "POSCAR"), significant_figures=12)
    kpoints(structure, settings).write_file(str(folder / "KPOINTS"))
    (folder / NOTES).write_text(json.dumps({"adjustments": dict(adjustments), "structure": structure}))


def _read(folder: Path, job: JobSpec, suffix: str = "") -> PwResult:
    """One VASP run, after every sign of failure has been looked for."""
    text = "\n".join(p.read_text(errors="replace") for p in (folder / f"vasp.out{suffix}", folder / "vasp.err",
                                                              folder / "stderr.txt") if p.exists())
    if failure := vasp_output.diagnose(text):
        raise failure
    outcar = folder / f"OUTCAR{suffix}"
    if not outcar.exists() or "General timing and accounting" not in outcar.read_text(errors="replace"):
        code = exit_code(folder)
        if not outcar.exists() and code in (126, 127):
            raise EngineFailure(FailureCode.executable_missing, "VASP could not be started")
        verdict_code = FailureCode.killed if code in (-9, -15, 137, 143) else FailureCode.truncated_output
        raise EngineFailure(verdict_code, "the OUTCAR of VASP ends in the middle")
    result = vasp_output.read_vasprun(folder / f"vasprun.xml{suffix}")
    if not result.scf_converged:
        raise EngineFailure(FailureCode.scf_not_converged, f"no self-consistency after {result.n_scf} iterations (NELM)")
    wanted = job.engine.split()[-1]
    if result.version and not f"{result.version}.".startswith(f"{wanted}."):
        raise EngineFailure(FailureCode.executable_missing, f"this cluster's VASP is version {result.version}; the label "
                            f"settings say {wanted}")
    return result


def _in_order(result: PwResult, structure: Mapping[str, Any]) -> PwResult:
    """From the POSCAR's order of atoms and handedness back to the job's."""
    order = poscar(structure)[1]
    if len(result.numbers) != len(order):
        raise EngineFailure(FailureCode.corrupted_output, f"the output has {len(result.numbers)} atoms, the job {len(order)}")
    back = np.argsort(order)
    result.numbers = result.numbers[back]
    result.fractional = result.fractional[back]
    if result.forces_ev_a is not None:
        result.forces_ev_a = result.forces_ev_a[back]
    if np.linalg.det(np.array(structure["cell"])) < 0:
        result.cell, result.fractional = -result.cell, -result.fractional
    return result


def _common(result: PwResult, settings: LabelSettings, review: list[str]) -> dict[str, Any]:
    return {"settings": settings.text, "source": result.source, "review": review, "n_scf": result.n_scf,
            "k_points": result.k_points, "fermi_ev": result.fermi_ev, "cpu_s": result.cpu_s, "wall_s": result.wall_s}


def _with_last_structure(failure: EngineFailure, folder: Path, restarts: int) -> EngineFailure:
    """A relaxation's failure with the structure of its CONTCAR, from which the next attempt goes on."""
    from pymatgen.io.vasp.inputs import Poscar

    try:
        found = Poscar.from_file(str(folder / "CONTCAR"), check_for_potcar=False).structure
        structure = crystal.from_arrays(np.array(found.atomic_numbers), found.lattice.matrix, found.frac_coords)
        crystal.check_geometry(structure)
    except (OSError, ValueError, IndexError, EngineFailure):
        return failure
    return EngineFailure(failure.code, failure.message, {**failure.details, "structure": structure, "restarts": restarts})


def _keep(folder: Path) -> dict[str, Path]:
    kept = {}
    for name in ("OUTCAR", "vasprun.xml"):
        path = folder / name
        if path.exists():
            packed = folder / f"{name}.gz"
            with path.open("rb") as source, gzip.GzipFile(packed, "wb", mtime=0) as target:
                shutil.copyfileobj(source, target)
            kept[packed.name] = packed
    return kept
