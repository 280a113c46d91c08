"""The chain as jobs of the ledger: scf, one job per irreducible q, collection.

``epc.scf`` leaves the eigenvalues on the dense k mesh, the coarse ground state and the list of q points, packed. ``epc.q``
unpacks them and runs ph.x twice: phonons with stored potential variations (which survives a kill at the wall time), then
couplings from those. ``epc.collect`` puts the q points together, interpolates where the mesh allows, and judges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.epc import failures
from hydroflow.epc.fermi import dense_dos, fermi_level_ev
from hydroflow.epc.inputs import (
    PREFIX,
    band_path,
    coupling_input,
    matdyn_input,
    path_input,
    phonon_input,
    pw_input,
    q2r_input,
    q_list_input,
)
from hydroflow.epc.modes import INSULATOR_DOS, unknown_couplings
from hydroflow.epc.protocols import Crystal, limits
from hydroflow.epc.qe_files import read_couplings, read_dynamical, read_q_list
from hydroflow.epc.verdict import summarise
from hydroflow.errors import DataError, EngineFailure, FailureCode

SAVE = "save.tar.gz"
ELPH = "elph.tar.gz"
RESERVE = 0.93
"""Share of the wall time after which ph.x stops by itself, to leave time for writing its checkpoint."""

# Some messages of a Fortran program that is killed stay in its buffers without this.
# Without ESPRESSO_PSEUDO a missing pseudopotential would be looked for, and perhaps found, in the system's directory.
_HEAD = """set -e
export GFORTRAN_UNBUFFERED_PRECONNECTED=y
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ESPRESSO_PSEUDO=$PWD
"""
# One process under Open MPI needs neither a daemon nor a search for network hardware: 0.1 s instead of 0.5 s to start.
_SERIAL = "export OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_pml=${OMPI_MCA_pml:-ob1}\n"


# ph.x integrates by tetrahedra where the description of the ground state says so; the phonons need the smeared one.
_TETRAHEDRAL_GROUND_STATE = f"""rm -rf tetrahedra out/tetrahedra.xml
mkdir tetrahedra
cp -r out/{PREFIX}.save tetrahedra
rm -f tetrahedra/{PREFIX}.save/wfc*
$PW -in tetrahedra.in > tetrahedra.out 2>&1
cp tetrahedra/{PREFIX}.save/data-file-schema.xml out/tetrahedra.xml
rm -rf tetrahedra
"""
_TETRAHEDRAL_COUPLINGS = f"""cp out/tetrahedra.xml out/{PREFIX}.save/data-file-schema.xml
cp out/tetrahedra.xml out/{PREFIX}.xml
$PH -in tetrahedra.in > tetrahedra.out 2>&1
cp {PREFIX}.dyn{{q}}.elph.{{q}} tetrahedra.dat
"""


def _head(job: JobSpec) -> str:
    return _HEAD + (_SERIAL if job.resources.cores == 1 else "")


def _exit_code(folder: Path) -> str:
    path = folder / "exit_code"
    return path.read_text().strip() if path.exists() else ""


def _pools(job: JobSpec, adjustments: Mapping[str, Any]) -> str:
    """``-nk`` for pw.x and ph.x: k points are the cheapest thing to share, as far as there surely are enough of them."""
    k_points = int(np.prod(job.inputs["coarse"])) // 8
    pools = adjustments.get("pools") or max(
        d for d in range(1, job.resources.cores + 1) if job.resources.cores % d == 0 and d <= max(k_points, 1))
    return f" -nk {pools}" if pools > 1 else ""


_DAMAGED = (FailureCode.missing_restart_data, FailureCode.truncated_output, FailureCode.missing_output,
            FailureCode.corrupted_output)


def _killed(failure: EngineFailure, attempt: int, most: int = 6) -> Recovery | None:
    if failure.code in (FailureCode.walltime, FailureCode.killed) and attempt <= most:
        return Recovery("continued from the checkpoints in its folder", keep_folder=True)
    return None


class EpcScf:
    """Dense and coarse ground state and the list of q points (kind ``epc.scf``).

    Inputs: crystal, ecutwfc_ry, ecutrho_ry, degauss_ry, conv_thr_ry, q_mesh, coarse, dense, tetrahedra (where wanted). Files: one
    UPF per element.
    """

    kind = "epc.scf"
    executables = ("pw.x", "ph.x")

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        crystal = Crystal.from_inputs(job.inputs["crystal"])
        tetrahedra = job.inputs.get("tetrahedra", False)
        for run in ("dense", "coarse", "tetrahedra") if tetrahedra else ("dense", "coarse"):
            (folder / f"{run}.in").write_text(pw_input(crystal, job.inputs, run=run, adjustments=adjustments))
        (folder / "list.in").write_text(q_list_input(job.inputs["q_mesh"]))
        (folder / "run.sh").write_text(_head(job) + f"""
if [ ! -e dense.done ]; then
  rm -rf out
  $PW -in dense.in > dense.out 2>&1
  touch dense.done
fi
if [ ! -e coarse.done ]; then
  rm -f out/{PREFIX}.save/wfc*
  $PW -in coarse.in > coarse.out 2>&1
  touch coarse.done
fi
{_TETRAHEDRAL_GROUND_STATE if tetrahedra else ""}rm -rf out/_ph0
$PH -in list.in > list.out 2>&1
grep -cH "<NUMBER_OF_PERTURBATIONS>" out/_ph0/{PREFIX}.phsave/patterns.*.xml > representations.txt
tar -cf - --exclude="{PREFIX}.wfc*" --exclude=_ph0 out | gzip -1 > {SAVE}.part
cp out/{PREFIX}.a2Fsave dense.eigenvalues
mv {SAVE}.part {SAVE}
""")

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return f"PW='{executables['pw.x']}{_pools(job, adjustments)}' PH='{executables['ph.x']}' sh run.sh"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("dense.out", "coarse.out", "list.out", f"{PREFIX}.dyn0", "representations.txt", "dense.eigenvalues", SAVE)

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        code = _exit_code(folder)
        for name in ("dense.out", "coarse.out") + (("tetrahedra.out",) if job.inputs.get("tetrahedra") else ()):
            failures.judge(folder / name, "PWSCF", code)
        if not (folder / f"{PREFIX}.dyn0").exists():
            failures.judge(folder / "list.out", "PHONON", code)
        listed = read_q_list(folder / f"{PREFIX}.dyn0")
        representations = [int(line.split(":")[-1]) for line in _numbered(folder / "representations.txt")]
        if not (folder / SAVE).exists() or len(representations) != len(listed.points):
            raise EngineFailure(FailureCode.missing_output, "the saved ground state was not packed: the job ended early")
        fermi = fermi_level_ev(folder / "dense.out")
        sigmas = [0.005, 0.01, 0.02]
        dos = dense_dos(folder / "dense.eigenvalues", fermi, sigmas)
        atoms = len(job.inputs["crystal"]["numbers"])
        if max(dos) < INSULATOR_DOS * atoms:
            raise EngineFailure(FailureCode.no_fermi_surface, f"N(E_F) = {max(dos):.3g} states/spin/Ry/cell on the dense k mesh: "
                                "an insulator, nothing to couple to", {"dos": dos})
        text = (folder / "coarse.out").read_text(errors="replace")
        pressure = re.findall(r"P=\s*([-\d.]+)", text)
        symmetries = re.search(r"(\d+) Sym\. Ops", text)
        electrons = re.search(r"number of electrons\s*=\s*([\d.]+)", text)
        parts = [failures.timings(folder / f"{n}.out") for n in ("dense", "coarse", "list")]
        return Collected({
            "q_points": listed.points.round(9).tolist(), "representations": representations, "fermi_ev": fermi,
            "dos_sigma_ry": sigmas, "dos": dos, "pressure_gpa": float(pressure[-1]) / 10 if pressure else None,
            "symmetries": int(symmetries[1]) if symmetries else None,
            "electrons": float(electrons[1]) if electrons else None, **_times(parts),
        }, {SAVE: folder / SAVE, f"{PREFIX}.dyn0": folder / f"{PREFIX}.dyn0", "dense.out": folder / "dense.out",
            "coarse.out": folder / "coarse.out"})

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        if failure.code is FailureCode.parallel_limits and attempt <= 1:
            return Recovery("without pools", {"pools": 1})
        if failure.code in (FailureCode.scf_not_converged, FailureCode.charge_density) and attempt <= 2:
            beta = 0.3 if attempt == 1 else 0.1
            return Recovery(f"mixing_beta {beta}, up to 300 steps", {"mixing_beta": beta, "electron_maxstep": 300})
        if failure.code is FailureCode.diagonalisation and attempt <= 1:
            return Recovery("conjugate-gradient diagonalisation", {"diagonalization": "cg"})
        if failure.code in _DAMAGED and attempt <= 1:
            return Recovery("started afresh")
        return _killed(failure, attempt)


class EpcQ:
    """Phonons and couplings of one irreducible q (kind ``epc.q``).

    Inputs: q (1-based), q_cartesian, q_mesh, coarse, tr2_ph, alpha_mix, sigma_first_ry, sigma_count; dense where tetrahedra are
    wanted too. Files: the scf's package.
    """

    kind = "epc.q"
    executables = ("ph.x",)

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        seconds = int(RESERVE * job.resources.wall_time_s)
        for name, recover in (("fresh.in", False), ("recover.in", True)):
            (folder / name).write_text(
                phonon_input(job.inputs, max_seconds=seconds, adjustments=adjustments, recover=recover))
        (folder / "couplings.in").write_text(coupling_input(job.inputs, max_seconds=seconds))
        if "dense" in job.inputs:
            (folder / "tetrahedra.in").write_text(coupling_input(job.inputs, max_seconds=seconds, tetrahedra=True))
        q = job.inputs["q"]
        (folder / "run.sh").write_text(_head(job) + f"""
[ -e unpacked ] || {{ tar -xzf {SAVE}; touch unpacked; }}
if [ ! -e phonons.done ]; then
  input=fresh.in
  if [ -e out/_ph0/{PREFIX}.phsave/status_run.xml ]; then
    input=recover.in
    # ph.x 6.7 would go on from the bands of its q as it saved them, without their smearing: the representations left would
    # be those of an insulator. Without them it computes the bands again; converged representations stay.
    rm -rf out/_ph0/{PREFIX}.q_*/{PREFIX}.save
    rm -f out/_ph0/{PREFIX}.q_*/{PREFIX}.recover* out/_ph0/{PREFIX}.q_*/{PREFIX}.wfc*
    rm -f out/_ph0/{PREFIX}.q_*/{PREFIX}.bar* out/_ph0/{PREFIX}.q_*/{PREFIX}.dwf*
  fi
  $PH -in $input > phonons.out 2>&1
  touch phonons.done
fi
if [ ! -e {ELPH} ]; then
  rm -rf elph_dir
  $PH -in couplings.in > couplings.out 2>&1
  cp elph_dir/elph.inp_lambda.{q} couplings.dat
  tar -cf - elph_dir | gzip -1 > {ELPH}.part
  mv {ELPH}.part {ELPH}
fi
""" + (_TETRAHEDRAL_COUPLINGS.format(q=q) if "dense" in job.inputs else ""))

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return f"PH='{executables['ph.x']}{_pools(job, adjustments)}' sh run.sh"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("phonons.out", "couplings.out", f"{PREFIX}.dyn{job.inputs['q']}", "couplings.dat", ELPH,
                *(("tetrahedra.out", "tetrahedra.dat") if "dense" in job.inputs else ()))

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        code, q = _exit_code(folder), job.inputs["q"]
        failures.judge(folder / "phonons.out", "PHONON", code)
        failures.judge(folder / "couplings.out", "PHONON", code)
        dynamical = read_dynamical(folder / f"{PREFIX}.dyn{q}")
        couplings = read_couplings(folder / "couplings.dat")
        expected = np.array(job.inputs["q_cartesian"])
        if np.abs(dynamical.q - expected).max() > 1e-5:
            raise EngineFailure(FailureCode.bad_input, f"ph.x computed q = {dynamical.q}, wanted {expected}")
        if len(couplings.omega2_ry2) != len(dynamical.frequencies_thz):
            raise EngineFailure(FailureCode.corrupted_output, "couplings and dynamical matrix have different numbers of modes")
        lowest = float(np.min(dynamical.frequencies_thz))
        if not np.isfinite(couplings.gamma_ghz).all() and lowest < -limits()["imaginary_thz"]:
            # ph.x prints asterisks for the linewidths of strongly imaginary modes: the crystal is unstable, the file is whole
            raise EngineFailure(FailureCode.imaginary_modes, f"the lowest mode at q {q} is imaginary, {lowest:.1f} THz, and "
                                "linewidths overflow: unstable, or the k mesh is too coarse", {"lowest_thz": lowest})
        if unknown_couplings(couplings, dynamical) or not np.isfinite(dynamical.frequencies_thz).all():
            raise EngineFailure(FailureCode.corrupted_output, "NaN or overflow among frequencies or couplings")
        if not (folder / ELPH).exists():
            raise EngineFailure(FailureCode.missing_output, "the couplings were not packed: the job ended early")
        keep = {"dyn": folder / f"{PREFIX}.dyn{q}", "couplings": folder / "couplings.dat", ELPH: folder / ELPH,
                "phonons.out": folder / "phonons.out", "couplings.out": folder / "couplings.out"}
        if "dense" in job.inputs:
            failures.judge(folder / "tetrahedra.out", "PHONON", code)
            read_couplings(folder / "tetrahedra.dat")
            keep |= {"tetrahedra": folder / "tetrahedra.dat", "tetrahedra.out": folder / "tetrahedra.out"}
        parts = [failures.timings(path) for name, path in keep.items() if name.endswith(".out")]
        return Collected({
            "q": q, "star": dynamical.star, "frequencies_thz": dynamical.frequencies_thz.round(5).tolist(), **_times(parts),
        }, keep)

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        if failure.code is FailureCode.phonon_not_converged and attempt <= 3:
            # representations that did converge are kept; only the mixing of the others changes
            alpha = (0.3, 0.15, 0.1)[attempt - 1]
            changes: dict[str, Any] = {"alpha_mix": alpha, "nmix_ph": 5, "niter_ph": 100}
            action = f"alpha_mix {alpha}, mixing of 5 iterations, converged representations kept"
            if attempt == 3:
                changes["tr2_ph"] = 100 * job.inputs["tr2_ph"]
                action += f", tr2_ph {changes['tr2_ph']:.0e}"
            return Recovery(action, changes, keep_folder=True)
        if failure.code is FailureCode.parallel_limits and attempt <= 1:
            return Recovery("without pools", {"pools": 1}, keep_folder=True)
        if failure.code is FailureCode.diagonalisation and attempt <= 1:
            return Recovery("conjugate-gradient diagonalisation of the bands at k+q", {"diagonalization": "cg"},
                            keep_folder=True)
        if failure.code in _DAMAGED and attempt <= 1:
            return Recovery("started afresh from the saved ground state")
        return _killed(failure, attempt, most=12)


class EpcCollect:
    """All q points together: interpolation, α²F, λ(σ), Tc and the verdict (kind ``epc.collect``).

    Inputs: crystal, protocol (settings), q_mesh, coarse, n_q, mu_stars, hydrogen_dos_share, pressure_gpa (wanted; None where
    nobody said), limits and method (of the verdict), loosened (tr2_ph of the q that did not converge to the protocol's). Files:
    the ground state's ``coarse.out``, ``x.dyn0``, and per q ``x.dyn<q>``,
    ``couplings<q>`` and ``elph<q>.tar.gz``, and where wanted ``tetrahedra<q>`` for all q but Γ.
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
        (folder / "run.sh").write_text(_head(job) + steps)

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
            failures.judge(folder / name, program, _exit_code(folder))
        except EngineFailure as failure:
            if failure.code in (FailureCode.killed, FailureCode.out_of_memory, FailureCode.disk_full,
                                FailureCode.executable_missing):
                raise
            # without its path only a figure is missing
            return "" if name == "path.out" else str(failure)
    return ""


def _numbered(path: Path) -> list[str]:
    """Lines ``…patterns.<q>.xml:<count>`` in the order of q."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if ":" in line]
    return sorted(lines, key=lambda line: int(re.findall(r"patterns\.(\d+)\.xml", line)[0]))


def _times(parts: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(sum(p.get(key, 0.0) for p in parts), 2) for key in ("cpu_s", "wall_s")}
