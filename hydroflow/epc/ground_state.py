"""The first job of the chain, ``epc.scf``: eigenvalues on the dense k mesh, the coarse ground state and the list of q points."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.epc import failures
from hydroflow.epc.fermi import dense_dos, fermi_level_ev, phonon_dos, read_dense_bands
from hydroflow.epc.inputs import PREFIX, pw_input, q_list_input
from hydroflow.epc.modes import INSULATOR_DOS
from hydroflow.epc.protocols import Crystal
from hydroflow.epc.qe_files import read_q_list
from hydroflow.epc.scripts import DAMAGED, SAVE, exit_code, head, killed, pools, times
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.store.documents import Job
from hydroflow.store.objects import ObjectStore

K_SAMPLING = "k_sampling_dos"
"""Key of the result: N(E_F) with the smearing of the phonons, [on the dense k mesh, on theirs], states/spin/Ry/cell. Its older
name ``phonon_dos`` had both at the Fermi level of the dense run, and is not read."""

# ph.x integrates by tetrahedra where the description of the ground state says so; the phonons need the smeared one.
_TETRAHEDRAL_GROUND_STATE = f"""rm -rf tetrahedra out/tetrahedra.xml
mkdir tetrahedra
cp -r out/{PREFIX}.save tetrahedra
rm -f tetrahedra/{PREFIX}.save/wfc*
$PW -in tetrahedra.in > tetrahedra.out 2>&1
cp tetrahedra/{PREFIX}.save/data-file-schema.xml out/tetrahedra.xml
rm -rf tetrahedra
"""


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
        (folder / "run.sh").write_text(head(job) + f"""
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
        return f"PW='{executables['pw.x']}{pools(job, adjustments)}' PH='{executables['ph.x']}' sh run.sh"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("dense.out", "coarse.out", "list.out", f"{PREFIX}.dyn0", "representations.txt", "dense.eigenvalues", SAVE)

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        code = exit_code(folder)
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
        dos = dense_dos(read_dense_bands(folder / "dense.eigenvalues"), fermi, sigmas)
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
            "dos_sigma_ry": sigmas, "dos": dos,
            K_SAMPLING: _k_sampling(job.inputs, folder),
            "pressure_gpa": float(pressure[-1]) / 10 if pressure else None,
            "symmetries": int(symmetries[1]) if symmetries else None,
            "electrons": float(electrons[1]) if electrons else None, **times(parts),
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
        if failure.code in DAMAGED and attempt <= 1:
            return Recovery("started afresh")
        # pw.x starts its run again: where one of the two does not fit into the wall time, no number of attempts helps
        return killed(failure, attempt, most=1 if failure.code is FailureCode.walltime else 6)


def k_sampling(scf: Job, objects: ObjectStore) -> list[float]:
    """N(E_F) with the smearing of the phonons on the dense and on their own k mesh (:func:`phonon_dos`) of a finished ``epc.scf``
    job; from what it left in the object store where an older version collected it."""
    if K_SAMPLING in scf.result:
        return list(scf.result[K_SAMPLING])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run in ("dense.out", "coarse.out"):
            (folder / run).write_bytes(objects.get(scf.outputs[run]))
        with tarfile.open(fileobj=io.BytesIO(objects.get(scf.outputs[SAVE]))) as saved:
            eigenvalues = saved.extractfile(f"out/{PREFIX}.a2Fsave")
            assert eigenvalues is not None
            (folder / "dense.eigenvalues").write_bytes(eigenvalues.read())
        return _k_sampling(scf.inputs, folder)


def _k_sampling(inputs: Mapping[str, Any], folder: Path) -> list[float]:
    levels = fermi_level_ev(folder / "dense.out"), fermi_level_ev(folder / "coarse.out")
    return phonon_dos(read_dense_bands(folder / "dense.eigenvalues"), levels, inputs["degauss_ry"],
                      Crystal.from_inputs(inputs["crystal"]).cell, inputs["coarse"])


def _numbered(path: Path) -> list[str]:
    """Lines ``…patterns.<q>.xml:<count>`` in the order of q."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines() if ":" in line]
    return sorted(lines, key=lambda line: int(re.findall(r"patterns\.(\d+)\.xml", line)[0]))
