"""Is what an engine left behind a label? Neither the exit code nor ``JOB DONE`` proves it: everything is read and checked.

:func:`diagnose` names the failure that the text and exit code show; :func:`check_result` finds the wrong numbers of runs
that ended well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hydroflow.dft import crystal
from hydroflow.dft.pw_output import PwResult
from hydroflow.dft.settings import LabelSettings
from hydroflow.errors import EngineFailure, FailureCode

C = FailureCode

# First match decides. Patterns are searched in the routine's name and message of pw.x's own error box.
_ERRORS: tuple[tuple[str, FailureCode], ...] = (
    (r"check_atoms|overlap!", C.atoms_too_close),
    (r"too few bands", C.too_few_bands),
    (r"smearing is needed|fixed occupations and .*need", C.needs_smearing),
    (r"S matrix not positive definite|problems computing cholesky|[cr]diaghg|[cr]egterg|zhegvx?|c_bands|"
     r"eigenvectors failed to converge|too many bands are not converged", C.diagonalisation),
    (r"readpp|read_upf|upf_|pseudo|set_dft_from_name|conflicting values for i|read_ps", C.bad_pseudopotential),
    (r"some nodes have no k-points|inconsistent number of sticks|fft_type_set|divide_et_impera|not enough planes|"
     r"too many processors|no plane waves found|nbgrp|npool|inconsistent number of", C.parallel_limits),
    (r"more bands than PWs|read_namelists|read_cards|bad line in namelist|card_|setup .*ecut|lattice|cell_base|"
     r"iosys|latgen", C.bad_input),
    (r"scale_h|Not enough space allocated for radial FFT|bfgs", C.relaxation_not_converged),
    (r"charge is wrong|negative density|wrong charge", C.charge_density),
    (r"No space left|disk full|error writing|write_.*failed", C.disk_full),
    (r"allocat|memory", C.out_of_memory),
    (r"davcio|diropn|pw_restart|read_collected|read_rhog|cannot open|xml|file .*not found", C.missing_restart_data),
)

# Searched in the whole text where there is no error box.
_SIGNS: tuple[tuple[str, FailureCode, str], ...] = (
    (r"Cannot allocate memory|Error allocating|std::bad_alloc|insufficient virtual memory|Out of memory|oom-kill|"
     r"Allocation would exceed memory limit|exceeded memory limit", C.out_of_memory, "pw.x ran out of memory"),
    (r"No space left on device|Disk quota exceeded", C.disk_full, "no space left on the disk"),
    (r"S matrix not positive definite|problems computing cholesky", C.diagonalisation, "the diagonalisation broke down"),
    (r"Maximum CPU time exceeded", C.walltime, "pw.x stopped itself before the wall time"),
    (r"DUE TO TIME LIMIT|CANCELLED AT .* TIME LIMIT|walltime .*exceeded", C.walltime, "the scheduler's wall time ended the run"),
    (r"convergence NOT achieved", C.scf_not_converged, "the self-consistent cycle did not converge"),
    (r"The maximum number of steps has been reached", C.relaxation_not_converged, "the relaxation used all its steps"),
    (r"bfgs failed after|bfgs: history already reset.*stop", C.relaxation_not_converged, "the relaxation's line search failed"),
    (r"command not found|No such file or directory.*pw\.x|pw\.x: not found|executable file not found|"
     r"error while loading shared libraries", C.executable_missing, "pw.x could not be started"),
    # a start-up race of Open MPI on a busy node, nothing the program or its path could help
    (r"before MPI_INIT completed|orte_init failed", C.killed, "Open MPI gave up before pw.x began"),
    (r"no slots available|There are not enough slots", C.parallel_limits, "mpirun found too few slots"),
)

_KILLED = {-9, -15, 9, 15, 130, 137, 143}


def diagnose(text: str, exit_code: int | None = None, stderr: str = "", crash: str = "") -> EngineFailure | None:
    """The failure that a pw.x run shows, or None when it shows none.

    Parameters
    ----------
    text, stderr, crash
        Standard output, standard error and the ``CRASH`` file (pw.x writes its error box there too, and only there when
        the output was lost in a buffer).
    exit_code
        Of the process; None where unknown.
    """
    everything = "\n".join((text, stderr, crash))
    for pattern, code, words in _SIGNS[:2]:
        # memory and disk come first: what they break afterwards looks like other errors
        if match := re.search(pattern, everything):
            return EngineFailure(code, f"{words}: {_line(everything, match.start())}", _exit(exit_code))
    if box := error_box(everything):
        routine, message = box
        for pattern, code in _ERRORS:
            if re.search(pattern, f"{routine} {message}"):
                return EngineFailure(code, f"pw.x: {routine}: {message}", _exit(exit_code))
        return EngineFailure(C.unknown, f"pw.x: {routine}: {message}", _exit(exit_code))
    for pattern, code, words in _SIGNS[2:]:
        if match := re.search(pattern, everything):
            return EngineFailure(code, f"{words}: {_line(everything, match.start())}", _exit(exit_code))
    if "JOB DONE" not in text:
        if exit_code in (126, 127) or "Program PWSCF" not in text:
            return EngineFailure(C.executable_missing, "pw.x printed nothing: is the cluster's executable 'pw.x' right? "
                                 f"{_last(stderr)}".strip(), _exit(exit_code))
        if exit_code in _KILLED:
            return EngineFailure(C.killed, "pw.x was killed by a signal", _exit(exit_code))
        return EngineFailure(C.truncated_output, "the output of pw.x ends in the middle", _exit(exit_code))
    return None


def error_box(text: str) -> tuple[str, str] | None:
    """(routine, message) of pw.x's ``Error in routine`` box or of its ``CRASH`` file; None without one."""
    if match := re.search(r"Error in routine\s+(\S+)\s*\(\s*-?\d+\):\s*\n?\s*(.*)", text):
        return match.group(1), match.group(2).strip()
    if match := re.search(r"from\s+(\S+)\s*:\s*error #\s*-?\d+\s*\n\s*(.*)", text):
        return match.group(1), match.group(2).strip()
    return None


def check_result(
    result: PwResult, structure: Mapping[str, Any], settings: LabelSettings, negative_electrons: float = 0.0,
) -> list[str]:
    """Check the numbers of a run that ended well; returns reasons to hold it for review (empty: it is a label).

    Parameters
    ----------
    structure
        The structure that was asked for (plain JSON). For a relaxation the one that it ended with.
    negative_electrons
        What pw.x reported of negative density, electrons per cell.

    Raises
    ------
    EngineFailure
        for everything that makes the result no label at all.
    """
    count = len(structure["numbers"])
    if not result.scf_converged:
        raise EngineFailure(C.scf_not_converged, f"no self-consistency after {result.n_scf} iterations")
    energy, forces, stress = result.values()
    if len(forces) != count or len(result.numbers) != count or list(result.numbers) != list(structure["numbers"]):
        raise EngineFailure(C.corrupted_output, f"the output has {len(forces)} forces and "
                            f"{len(result.numbers)} atoms, the job {count}")
    _check_structure(result, structure)
    crystal.check_geometry(structure)
    if not (np.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(stress).all()):
        raise EngineFailure(C.unphysical_result, "energy, forces or stress are not finite (overflowed fields)")
    _check_electrons(result, structure, settings)
    limits = settings.checks
    pressure, largest = float(np.trace(stress)) / 3, float(np.linalg.norm(forces, axis=1).max(initial=0.0))
    if abs(pressure) > limits["max_abs_pressure_gpa"]:
        raise EngineFailure(C.unphysical_result, f"pressure {pressure:.0f} GPa (limit {limits['max_abs_pressure_gpa']:g} GPa)")
    if largest > limits["max_force_ev_a"]:
        raise EngineFailure(C.unphysical_result, f"a force of {largest:.0f} eV/Å (limit {limits['max_force_ev_a']:g} eV/Å)")
    net = float(np.abs(forces.sum(axis=0)).max())
    if net > 1e-3 * count + 1e-3 * largest:
        raise EngineFailure(C.corrupted_output, f"the forces sum to {net:.3g} eV/Å instead of zero")
    norm_conserving = all(p.kind == "NC" for p in settings.pseudos.values())
    allowed = limits["max_negative_charge_per_atom" if norm_conserving else "max_negative_charge_per_atom_augmented"]
    if not negative_electrons <= allowed * count:  # an overflowed field is NaN
        raise EngineFailure(C.charge_density, f"{negative_electrons:.2g} electrons of negative density in {count} atoms: cutoffs "
                            "too low for this compression or overlapping cores", {"final": True})
    review = []
    atoms = crystal.to_atoms(structure)
    overlap = crystal.sphere_overlap(atoms, {e: p.core_radius_a for e, p in settings.pseudos.items()})
    if overlap > limits["max_sphere_overlap"]:
        review.append(f"core spheres overlap by {100 * overlap:.0f} % of their summed radii "
                      f"(limit {100 * limits['max_sphere_overlap']:.0f} %)")
    broken = symmetry_error(structure, forces)
    if broken > 0.05 + 0.02 * largest:
        review.append(f"forces break the crystal's symmetry by {broken:.3f} eV/Å")
    return review


def symmetry_error(structure: Mapping[str, Any], forces_ev_a: np.ndarray) -> float:
    """Largest difference (eV/Å) between a force and its image under the crystal's symmetry operations; 0 for P1."""
    import spglib

    cell, fractional = np.array(structure["cell"], float), np.array(structure["fractional"], float)
    numbers = np.array(structure["numbers"])
    found = spglib.get_symmetry((cell, fractional, numbers), symprec=1e-4)
    if found is None:
        return 0.0
    worst = 0.0
    to_cartesian, to_fractional = cell.T, np.linalg.inv(cell.T)
    for rotation, translation in zip(found["rotations"], found["translations"], strict=True):
        images = fractional @ rotation.T + translation
        delta = images[:, None, :] - fractional[None, :, :]
        delta -= np.round(delta)
        distance = np.linalg.norm(delta @ cell, axis=2) + 1e6 * (numbers[:, None] != numbers[None, :])
        partner = distance.argmin(axis=1)
        rotated = forces_ev_a @ (to_cartesian @ rotation @ to_fractional).T
        worst = max(worst, float(np.abs(rotated - forces_ev_a[partner]).max()))
    return worst


def _check_structure(result: PwResult, structure: Mapping[str, Any]) -> None:
    cell, fractional = np.array(structure["cell"]), np.array(structure["fractional"])
    delta = result.fractional - fractional
    shift = np.abs((delta - np.round(delta)) @ cell).max()
    if not (np.abs(result.cell - cell).max() <= 1e-3 and shift <= 1e-3):  # NaN must not pass
        raise EngineFailure(C.corrupted_output, "the output is of another structure than the job's (left over from another run?)")


def _check_electrons(result: PwResult, structure: Mapping[str, Any], settings: LabelSettings) -> None:
    """A wrong element's pseudopotential runs without complaint; the number of electrons gives it away."""
    if result.electrons is None:
        return
    symbols = crystal.to_atoms(structure).get_chemical_symbols()
    expected = sum(settings.pseudos[s].valence for s in symbols)
    if abs(result.electrons - expected) > 1e-3:
        raise EngineFailure(C.bad_pseudopotential, f"the calculation has {result.electrons:g} electrons where the "
                            f"pseudopotentials have {expected:g}: a wrong file was read")


def _line(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return text[start:end if end >= 0 else None].strip()[:200]


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _exit(exit_code: int | None) -> dict[str, Any]:
    return {} if exit_code is None else {"exit_code": exit_code}
