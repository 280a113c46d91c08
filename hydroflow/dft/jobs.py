"""Engines of the DFT jobs run by Quantum ESPRESSO: single points, variable-cell relaxations, projected densities of states."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.dft import crystal, projections, pw_output, recovery, verdict
from hydroflow.dft.batch import dos_specs, label_specs, labelled_frames, relax_specs, relaxed_structures
from hydroflow.dft.pw_input import pool_count, projwfc_input, pw_input, stop_before
from hydroflow.dft.pw_output import PwResult
from hydroflow.dft.pw_run import NOTES, check_version, command, read_notes, read_run, run_line, write_inputs
from hydroflow.dft.settings import LabelSettings
from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import GPA_A3_EV

__all__ = ["Dos", "Label", "Relax", "dos_specs", "label_specs", "labelled_frames", "relax_specs", "relaxed_structures"]

MESH_RESTARTS = 2
"""Restarts of a relaxation only because its cell came to ask for a denser k mesh; a third time it is held for review."""


class PwEngine:
    """What the engines built on pw.x share."""

    kind = ""
    executables: tuple[str, ...] = ("pw.x",)

    def _pools(self, job: JobSpec, adjustments: Mapping[str, Any]) -> int:
        if "pools" in adjustments:
            return int(adjustments["pools"])
        return pool_count(job.inputs["structure"], _settings(job), job.resources.cores)

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return command([run_line(executables["pw.x"], "pw", self._pools(job, adjustments))])

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("*.out", "*.err", "pw.xml", "CRASH", NOTES)

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        return recovery.correction(failure, attempt)


class Label(PwEngine):
    """Energy, forces and stress of one structure."""

    kind = "dft.label"

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        settings, structure = _settings(job), job.inputs["structure"]
        crystal.check_geometry(structure)
        text = pw_input(structure, settings, "scf", adjustments=_namelists(structure, settings, adjustments),
                        max_seconds=stop_before(job.resources.wall_time_s))
        write_inputs(folder, {"pw.in": text}, settings, {"adjustments": dict(adjustments)})

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        settings, structure = _settings(job), job.inputs["structure"]
        result, text = read_run(folder)
        check_version(result, job)
        review = verdict.check_result(result, structure, settings, pw_output.negative_charge(text))
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


class Relax(PwEngine):
    """Cell and positions relaxed at a pressure; energies are of a final self-consistent run on the relaxed cell's own plane
    waves and k mesh, so that they belong to the same level of theory as the labels."""

    kind = "dft.relax"

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        settings = _settings(job)
        structure = adjustments.get("structure") or job.inputs["structure"]
        crystal.check_geometry(structure)
        text = pw_input(structure, settings, "vc-relax", adjustments=_namelists(structure, settings, adjustments),
                        pressure_gpa=job.inputs["pressure_gpa"], max_seconds=stop_before(job.resources.wall_time_s),
                        least_mesh=adjustments.get("least_mesh"))
        write_inputs(folder, {"pw.in": text}, settings, {"adjustments": dict(adjustments), "structure": structure})

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        settings, target = _settings(job), float(job.inputs["pressure_gpa"])
        notes = read_notes(folder)
        start = notes.get("structure") or job.inputs["structure"]
        try:
            result, text = read_run(folder)
            if not result.ions_converged:
                raise EngineFailure(FailureCode.relaxation_not_converged, f"not relaxed after {result.n_ionic} steps")
        except EngineFailure as failure:
            raise _with_last_structure(failure, folder) from failure
        check_version(result, job)
        final = crystal.from_arrays(result.numbers, result.cell, result.fractional)
        review = verdict.check_result(result, final, settings, pw_output.negative_charge(text))
        energy, forces, stress = result.values()
        pressure = float(np.trace(stress)) / 3
        restarts = int(notes.get("adjustments", {}).get("restarts", 0))
        mesh = crystal.k_mesh(np.array(start["cell"]), settings.values["k_spacing_per_a"])
        if least := notes.get("adjustments", {}).get("least_mesh"):
            mesh = crystal.denser_mesh(mesh, least)
        self._check_consistent(settings, mesh, final, pressure - target, restarts, review)
        volume = crystal.volume_a3(final)
        return Collected({
            **_common(result, settings, review),
            "structure": final,
            "energy_ev": energy,
            "enthalpy_ev": energy + target * GPA_A3_EV * volume,
            "pressure_gpa": target,
            "pressure_error_gpa": pressure - target,
            "max_force_ev_a": float(np.linalg.norm(forces, axis=1).max(initial=0.0)),
            "volume_a3": volume,
            "n_ionic": result.n_ionic,
            "restarts": restarts,
        }, proof=_keep(folder))

    @staticmethod
    def _check_consistent(settings: LabelSettings, mesh: tuple[int, int, int], final: Mapping[str, Any], error_gpa: float,
                          restarts: int, review: list[str]) -> None:
        """Plane waves and k mesh of the run were those of the starting cell: far from it, once more from where it ended.

        A mesh denser than the relaxed cell asks for is as good; one that is too coarse is made denser and never coarser again,
        or a cell whose edge lies at a step of the mesh would go back and forth.
        """
        asked = crystal.k_mesh(np.array(final["cell"]), settings.values["k_spacing_per_a"])
        wanted = crystal.denser_mesh(mesh, asked)
        # the final run on the relaxed cell's own plane waves shows the error of the old ones as a pressure
        allowed = max(1.0, settings.values["relax"]["pressure_threshold_gpa"])
        reason = ""
        if abs(error_gpa) > allowed:
            reason = f"the relaxed cell has {error_gpa:+.1f} GPa beside its target (its plane waves changed with the cell)"
        elif wanted != mesh and restarts < MESH_RESTARTS:
            reason = f"the k mesh {mesh} of the starting cell is too coarse for the relaxed one, which asks for {asked}"
        if reason:
            raise EngineFailure(FailureCode.relaxation_not_converged, reason, {
                "structure": dict(final), "restarts": restarts, "least_mesh": list(wanted)})
        if wanted != mesh:
            review.append(f"k mesh {mesh} of the starting cell instead of {asked}")


class Dos(PwEngine):
    """Density of states at the Fermi level and hydrogen's share of it (self-consistent, denser mesh, projections)."""

    kind = "dft.dos"
    executables = ("pw.x", "projwfc.x")

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        settings, structure = _settings(job), job.inputs["structure"]
        crystal.check_geometry(structure)
        changes = _namelists(structure, settings, adjustments)
        # a chain that was cut is run again from its start: its parts are short and leave no common restart point
        changes.get("control", {}).pop("restart_mode", None)
        limit = stop_before(job.resources.wall_time_s)
        files = {
            "pw.in": pw_input(structure, settings, "scf", adjustments=changes, max_seconds=limit),
            "nscf.in": pw_input(structure, settings, "nscf", adjustments=changes, max_seconds=limit,
                                k_spacing_per_a=settings.values["dos"]["k_spacing_per_a"]),
            "projwfc.in": projwfc_input(),
        }
        write_inputs(folder, files, settings, {"adjustments": dict(adjustments)})

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        pools = self._pools(job, adjustments)
        return command([
            run_line(executables["pw.x"], "pw", pools), run_line(executables["pw.x"], "nscf", pools),
            run_line(executables["projwfc.x"], "projwfc", pools), "tar czf pdos.tar.gz x.pdos*"])

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return (*super().outputs(job), "pdos.tar.gz")

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        settings, structure = _settings(job), job.inputs["structure"]
        result, _ = read_run(folder, xml="-")
        check_version(result, job)
        nscf, _ = read_run(folder, "nscf")
        if nscf.fermi_ev is None:
            raise EngineFailure(FailureCode.no_fermi_surface, "the denser run found no Fermi energy: an insulator")
        projections.check_text(folder / "projwfc.out")
        shares = projections.at_fermi(folder / "pdos.tar.gz", nscf.fermi_ev)
        symbols = crystal.symbols_of(structure)
        return Collected({
            "settings": settings.text,
            "fermi_ev": nscf.fermi_ev,
            "dos_at_fermi_per_ev": shares.total,
            "hydrogen_dos_share": shares.share("H"),
            "shares": {e: shares.share(e) for e in symbols},
            "k_points": nscf.k_points,
            "cpu_s": result.cpu_s + nscf.cpu_s,
            "wall_s": result.wall_s + nscf.wall_s,
            "review": [],
        }, proof=_keep(folder, "pdos.tar.gz"))


def _settings(job: JobSpec) -> LabelSettings:
    return LabelSettings.from_json(job.inputs["settings"])


def _namelists(structure: Mapping[str, Any], settings: LabelSettings, adjustments: Mapping[str, Any]) -> dict[str, Any]:
    """A recovery's adjustments as changes of pw.x namelists."""
    changes = {k: dict(v) for k, v in adjustments.items() if k in ("control", "system", "electrons", "ions", "cell")}
    if adjustments.get("restart"):
        changes.setdefault("control", {})["restart_mode"] = "restart"
    if factor := adjustments.get("more_bands"):
        symbols = crystal.to_atoms(structure).get_chemical_symbols()
        occupied = sum(settings.pseudos[s].valence for s in symbols) / 2
        changes.setdefault("system", {})["nbnd"] = int(occupied * factor) + 8
    return changes


def _common(result: PwResult, settings: LabelSettings, review: list[str]) -> dict[str, Any]:
    return {
        "settings": settings.text, "source": result.source, "review": review, "n_scf": result.n_scf,
        "k_points": result.k_points, "fermi_ev": result.fermi_ev, "cpu_s": result.cpu_s, "wall_s": result.wall_s,
    }


def _with_last_structure(failure: EngineFailure, folder: Path) -> EngineFailure:
    """A relaxation's failure with the last structure it reached, from which the next attempt goes on."""
    notes = read_notes(folder)
    restarts = int(notes.get("adjustments", {}).get("restarts", 0))
    path = folder / "pw.out"
    last = pw_output.last_structure(path.read_text(errors="replace")) if path.exists() else None
    if last is None:
        return failure
    structure = crystal.from_arrays(*last)
    try:
        crystal.check_geometry(structure)
    except EngineFailure:
        return failure
    return EngineFailure(failure.code, failure.message, {**failure.details, "structure": structure, "restarts": restarts})


def _keep(folder: Path, *more: str) -> dict[str, Path]:
    """The outputs that prove a result, compressed."""
    kept = {name: folder / name for name in more if (folder / name).exists()}
    for name in ("pw.out", "pw.xml"):
        path = folder / name
        if path.exists():
            packed = folder / f"{name}.gz"
            # no time stamp: identical content has one digest
            with path.open("rb") as source, gzip.GzipFile(packed, "wb", mtime=0) as target:
                shutil.copyfileobj(source, target)
            kept[packed.name] = packed
    return kept
