"""The job ``epc.dos``: N(E) around the Fermi level by optimised tetrahedra, on a k mesh of its own at the density of the
phonons' ground state.

Broadenings and smearings average over the edge of a van Hove peak; a mesh fine enough for phonons is too coarse for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.epc import failures
from hydroflow.epc.inputs import PREFIX, dos_input, pw_input
from hydroflow.epc.protocols import Crystal
from hydroflow.epc.scripts import DAMAGED, SAVE, exit_code, head, killed, pools, times
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import RYDBERG_EV

STEP_EV = 0.05
OFFSETS_EV = tuple(round(STEP_EV * i, 9) for i in range(-2, 3))
"""Where N(E) is told, from E_F: three k_B Tc of a hydride are some 0.05 eV."""
ELECTRONS_OFF = 0.005
"""Relative difference of the states below E_F from the electrons that is taken for a sign of other eigenvalues."""
_RUNS = ("dos_rough", "dos")


def _steps(run: str) -> str:
    """Eigenvalues on one mesh and N(E) at :data:`OFFSETS_EV` from their Fermi level. dos.x goes through all tetrahedra for each
    energy: an interval wide enough for a level not known beforehand took as long as the eigenvalues."""
    return f"""$PW -in {run}.in > {run}.out 2>&1
level=$(sed -n 's/.*the Fermi energy is *\\([-0-9.]*\\) ev.*/\\1/p' {run}.out | tail -n 1)
[ -n "$level" ]
set -- $(awk -v e="$level" 'BEGIN {{ printf "%.4f %.4f", e + {OFFSETS_EV[0]}, e + {OFFSETS_EV[-1] + 0.4 * STEP_EV:g} }}')
sed -i "s/EMIN/$1/; s/EMAX/$2/" {run}_table.in
$DOS -in {run}_table.in > {run}_table.out 2>&1
rm -f out/{PREFIX}.save/wfc*
"""


class EpcDos:
    """N(E_F) by optimised tetrahedra (kind ``epc.dos``).

    Inputs: crystal, ecutwfc_ry, ecutrho_ry, dos and dos_rough (k meshes). Files: one UPF per element and the saved ground state.
    Result: ``mesh``, ``rough_mesh``, ``fermi_ev``, ``offsets_ev`` and, of both meshes, N(E) at those energies from their own
    E_F, ``dos`` and ``rough_dos``, in states/spin/Ry/cell.
    """

    kind = "epc.dos"
    executables = ("pw.x", "dos.x")

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        crystal = Crystal.from_inputs(job.inputs["crystal"])
        for run in _RUNS:
            (folder / f"{run}.in").write_text(pw_input(crystal, job.inputs, run=run, adjustments=adjustments))
            (folder / f"{run}_table.in").write_text(dos_input(run, "EMIN", "EMAX", STEP_EV))
        (folder / "run.sh").write_text(
            head(job) + f"rm -rf out\ntar -xzf {SAVE}\n" + "".join(map(_steps, _RUNS)) + "rm -rf out\n")

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        own = pools(job, adjustments, "dos_rough")
        return f"PW='{executables['pw.x']}{own}' DOS='{executables['dos.x']}' sh run.sh"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return tuple(f"{run}{end}" for run in _RUNS for end in (".out", "_table.out", ".dat"))

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        code, found = exit_code(folder), {}
        for run in _RUNS:
            failures.judge(folder / f"{run}.out", "PWSCF", code)
            failures.judge(folder / f"{run}_table.out", "DOS", code)
            text = (folder / f"{run}.out").read_text(errors="replace")
            electrons = re.search(r"number of electrons\s*=\s*([\d.]+)", text)
            found[run] = states_near_fermi(folder / f"{run}.dat", float(electrons[1]) if electrons else 0.0)
        fermi, dos = found["dos"]
        return Collected({
            "mesh": list(job.inputs["dos"]), "rough_mesh": list(job.inputs["dos_rough"]), "fermi_ev": fermi,
            "offsets_ev": list(OFFSETS_EV), "dos": dos, "rough_dos": found["dos_rough"][1],
            **times([failures.timings(folder / f"{run}{end}") for run in _RUNS for end in (".out", "_table.out")]),
        }, {"dos.dat": folder / "dos.dat"})

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        if failure.code is FailureCode.parallel_limits and attempt <= 1:
            return Recovery("without pools", {"pools": 1})
        if failure.code is FailureCode.diagonalisation and attempt <= 1:
            return Recovery("conjugate-gradient diagonalisation", {"diagonalization": "cg"})
        if failure.code in DAMAGED and attempt <= 1:
            return Recovery("started afresh")
        # nothing of it can be continued: what does not fit into the wall time never does
        return None if failure.code is FailureCode.walltime else killed(failure, attempt, most=6)


def states_near_fermi(table: Path, electrons: float) -> tuple[float, list[float]]:
    """E_F in eV and N(E) at :data:`OFFSETS_EV` from it, in states/spin/Ry/cell, from a table of dos.x at these energies.

    The file: a header that ends with ``EFermi = <E> eV``; energy (eV), N(E) of both spins (states/eV), states below it.

    Raises
    ------
    EngineFailure
        ``missing_output`` without a table, ``corrupted_output`` when it cannot be read or is not at these energies,
        ``unphysical_result`` when its states below E_F are not the `electrons`.
    """
    try:
        header, *lines = table.read_text().splitlines()
        fermi = float(re.findall(r"EFermi\s*=\s*([-\d.]+)", header)[-1])
        energies, both_spins, below = np.array([line.split() for line in lines], float).T
        if not np.allclose(energies, fermi + np.array(OFFSETS_EV), atol=0.0021, rtol=0):
            raise ValueError("other energies than asked for")
    except FileNotFoundError:
        raise EngineFailure(FailureCode.missing_output, f"dos.x left no {table.name}") from None
    except (ValueError, IndexError) as error:
        raise EngineFailure(FailureCode.corrupted_output, f"{table.name} is not the table asked of dos.x: {error}") from error
    states = float(below[len(OFFSETS_EV) // 2])
    if abs(states - electrons) > ELECTRONS_OFF * electrons:
        raise EngineFailure(FailureCode.unphysical_result, f"{table.name} has {states:.3f} states below E_F for {electrons:g} "
                            "electrons: not the eigenvalues of this run")
    return fermi, [round(float(x), 5) for x in both_spins / 2 * RYDBERG_EV]
