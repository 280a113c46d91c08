"""The last job of the chain, ``epc.collect``: all q points together, interpolated where the mesh allows, and judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.epc import failures
from hydroflow.epc.inputs import PREFIX, band_path, matdyn_input, path_input, q2r_input
from hydroflow.epc.protocols import Crystal
from hydroflow.epc.scripts import exit_code, head
from hydroflow.epc.verdict import summarise
from hydroflow.errors import DataError, EngineFailure, FailureCode


class EpcCollect:
    """All q points together: interpolation, α²F, λ(σ), Tc and the verdict (kind ``epc.collect``).

    Inputs: crystal, protocol (settings), q_mesh, coarse, n_q, mu_stars, hydrogen_dos_share, pressure_gpa (wanted; None where
    nobody said), limits and method (of the verdict), loosened (tr2_ph of the q that did not converge to the protocol's),
    phonon_dos (N(E_F) with the phonons' smearing, on the dense k mesh and on theirs), fermi_dos (the result of ``epc.dos``
    without its times, or ``failed``: why there is none). Files: the ground state's ``coarse.out``, ``x.dyn0``, and per q
    ``x.dyn<q>``, ``couplings<q>`` and ``elph<q>.tar.gz``, and where wanted ``tetrahedra<q>`` for all q but Γ.
    """

    kind = "epc.collect"
    executables = ("q2r.x", "matdyn.x")

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        mesh = job.inputs["q_mesh"]
        crystal = Crystal.from_inputs(job.inputs["crystal"])
        sigmas = int(job.inputs["protocol"]["sigma_count"])
        (folder / "q2r.in").write_text(q2r_input(sigmas))
        (folder / "matdyn.in").write_text(matdyn_input(crystal, [5 * n for n in mesh], sigmas))
        points = int(job.inputs["protocol"]["q_path_points"])
        steps = ""
        if _interpolates(mesh):
            unpack = "\n".join(f"tar -xzf elph{q}.tar.gz" for q in range(1, job.inputs["n_q"] + 1))
            steps = f"{unpack}\n$Q2R < q2r.in > q2r.out 2>&1\n$MATDYN < matdyn.in > matdyn.out 2>&1\n"
            if points:
                (folder / "path.in").write_text(path_input(crystal, band_path(crystal, points).kpts, sigmas))
                steps += "$MATDYN < path.in > path.out 2>&1\n"
        (folder / "run.sh").write_text(head(job) + steps)

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return f"Q2R='{executables['q2r.x']}' MATDYN='{executables['matdyn.x']}' sh run.sh"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("q2r.out", "matdyn.out", "a2F.dos*", "*.freq", "elph.gamma.*", f"{PREFIX}.phdos", f"{PREFIX}.fc",
                f"{PREFIX}.dyn*", "couplings*", "coarse.out")

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        note = _interpolation_failure(job, folder)
        try:
            result, spectra = summarise(job.inputs, folder, note)
        except DataError as error:
            raise EngineFailure(FailureCode.unphysical_result, str(error)) from error
        (folder / "spectra.json").write_text(json.dumps(spectra))
        keep = {"spectra.json": folder / "spectra.json"}
        keep |= {p.name: p for p in (folder / f"{PREFIX}.fc", folder / f"{PREFIX}.phdos") if p.exists()}
        return Collected(result, keep)

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        if failure.code in (FailureCode.killed, FailureCode.truncated_output) and attempt <= 2:
            return Recovery("repeated from the files of the finished q")
        return None


def _interpolates(mesh: list[int]) -> bool:
    return min(mesh) > 1


def _interpolation_failure(job: JobSpec, folder: Path) -> str:
    """Why α²F was not interpolated, in words; empty where it was. λ summed over the mesh stands without it, so only what a
    repetition mends is raised."""
    if not _interpolates(job.inputs["q_mesh"]):
        return "the q mesh is too small to interpolate"
    outputs = {"q2r.out": "Q2R", "matdyn.out": "MATDYN"} | (
        {"path.out": "MATDYN"} if job.inputs["protocol"]["q_path_points"] else {})
    for name, program in outputs.items():
        try:
            failures.judge(folder / name, program, exit_code(folder))
        except EngineFailure as failure:
            if failure.code in (FailureCode.killed, FailureCode.out_of_memory, FailureCode.disk_full,
                                FailureCode.executable_missing):
                raise
            # without its path only a figure is missing
            return "" if name == "path.out" else str(failure)
    return ""
