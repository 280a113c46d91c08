"""What pw.x and ph.x say when something is wrong, as typed verdicts.

Neither the exit code nor "JOB DONE" can be trusted: a run that did not converge or ran out of time prints it too, and
an output that was appended to may hold it from an earlier run. Only what follows the last program header counts.
"""

from __future__ import annotations

import re
from pathlib import Path

from hydroflow.errors import EngineFailure, FailureCode

_PATTERNS: list[tuple[str, FailureCode, str]] = [
    (r"Maximum CPU time exceeded", FailureCode.walltime, "stopped at its time limit"),
    (r"convergence NOT achieved", FailureCode.scf_not_converged, "self-consistency was not reached"),
    (r"No convergence has been achieved", FailureCode.phonon_not_converged,
     "the linear response did not converge"),
    (r"S matrix not positive definite|problems computing cholesky|too many bands are not converged|"
     r"eigenvectors failed to converge", FailureCode.diagonalisation, "a diagonalisation failed"),
    (r"(?<!Possibly )too few bands", FailureCode.too_few_bands, "too few bands"),
    (r"smearing is needed", FailureCode.needs_smearing, "a metal without smearing"),
    (r"Cannot allocate memory|Allocation would exceed memory|out of memory|std::bad_alloc",
     FailureCode.out_of_memory, "out of memory"),
    (r"No space left on device|error while writing from davcio|error writing file", FailureCode.disk_full, "the disk is full"),
    (r"check_atoms|atoms.{0,40}overlap", FailureCode.atoms_too_close, "atoms overlap"),
    (r"force =[^\n]*\*\*\*", FailureCode.unphysical_result, "forces overflow: atoms lie almost on one another"),
    # the routine's box: a mere message of readpp says that a file is looked for elsewhere
    (r"Error in routine\s+(?:readpp|read_upf)|conflicting values for igcx|unable to read pseudo",
     FailureCode.bad_pseudopotential, "a pseudopotential cannot be used"),
    (r"q-mesh breaks symmetry", FailureCode.symmetry_mismatch, "the q mesh breaks the crystal's symmetry"),
    (r"q is not a vector in the dense grid", FailureCode.bad_input, "q is not a difference of dense k points"),
    (r"problems reading u|elphon\.f90[^\n]*a2Fsave|check_tempdir|cannot open.{0,40}\.save|PARSE_ERR|"
     r"fatal error reading xml|PARTIAL_EL_PHON not found|"
     r"error opening .{0,60}(?:wfc|dvscf)|problems opening", FailureCode.missing_restart_data,
     "data that this step starts from are missing or damaged"),
    # Every run of the chain is smeared, or says that it uses tetrahedra. ph.x 6.7 that recovers from the saved bands of its q
    # forgets their smearing and treats the metal as an insulator: it ends well, with wrong frequencies in every representation
    # that was still to do.
    (r"(?s)\A(?!.*\[opt_tetra\]).*?\n\s*number of k points=\s*\d+[ \t]*\n", FailureCode.missing_restart_data,
     "the bands it went on from had lost their smearing"),
    (r"some nodes have no k-points|too many processors|wrong number of pools|inconsistent number of sticks",
     FailureCode.parallel_limits, "too many processes for this size"),
    (r"bad line in namelist|read_namelists|read_cards|Error in routine\s+phq_readin|more bands than PWs", FailureCode.bad_input,
     "the input was refused"),
]


def last_run(text: str, program: str) -> str:
    """The part of an output that belongs to its last run: from the last header of that program on."""
    starts = [m.start() for m in re.finditer(rf"Program {program} v", text)]
    return text[starts[-1]:] if starts else text


def judge(path: Path, program: str, exit_code: str = "") -> None:
    """Raise the verdict on one output file; return when its last run ended as it should.

    Parameters
    ----------
    path
        Output of the run.
    program
        ``PWSCF`` or ``PHONON``.
    exit_code
        Of the whole job, as text; tells a kill from a crash where the output just stops.

    Raises
    ------
    EngineFailure
    """
    try:
        text = last_run(path.read_text(errors="replace"), program)
    except OSError:
        raise EngineFailure(FailureCode.missing_output, f"{path.name} was not written: {program} did not start",
                            {"file": path.name}) from None
    if f"Program {program} v" not in text and re.search(r"before MPI_INIT completed|orte_init failed", text):
        # a start-up race of Open MPI on a busy node
        raise EngineFailure(FailureCode.killed, f"{path.name}: Open MPI gave up before {program} began", {"file": path.name})
    if f"Program {program} v" not in text and re.search(r"not found|unable to find|could not access|Permission denied", text):
        raise EngineFailure(FailureCode.executable_missing, f"{path.name}: {' '.join(text.split())[:200]}; check the cluster's "
                            "executables", {"file": path.name})
    for pattern, code, words in _PATTERNS:
        found = re.search(pattern, text, re.IGNORECASE)
        if found:
            raise EngineFailure(code, f"{path.name}: {words}", {"file": path.name, "text": _error_text(text) or found[0]})
    error = _error_text(text)
    if error:
        raise EngineFailure(FailureCode.unknown, f"{path.name}: {error}", {"file": path.name, "text": error})
    if "JOB DONE" not in text:
        killed = exit_code in ("", "137", "143", "-9", "-15", "130")
        code = FailureCode.killed if killed else FailureCode.truncated_output
        words = f" (exit code {exit_code})" if exit_code else ""
        raise EngineFailure(code, f"{path.name} stops before the end of the run{words}",
                            {"file": path.name, "exit_code": exit_code})


def _error_text(text: str) -> str:
    """The first error box or Fortran runtime error, in one line."""
    box = re.search(r"Error in routine\s+(.*?)\n\s*%%%", text, re.DOTALL)
    if box:
        return " ".join(box[1].split())[:300]
    runtime = re.search(r"Fortran runtime error:[^\n]*|MPI_ABORT was invoked[^\n]*|Segmentation fault[^\n]*", text)
    return runtime[0][:300] if runtime else ""


def timings(path: Path) -> dict[str, float]:
    """CPU and wall seconds that QE prints for a run, the last of them; empty when there are none."""
    if not path.exists():
        return {}
    found = re.findall(r"(?:PWSCF|PHONON|DOS)\s*:\s*(.*?)CPU\s*(.*?)WALL", path.read_text(errors="replace"))
    if not found:
        return {}
    return {"cpu_s": round(_seconds(found[-1][0]), 2), "wall_s": round(_seconds(found[-1][1]), 2)}


def _seconds(text: str) -> float:
    total = 0.0
    for value, unit in re.findall(r"([\d.]+)\s*([dhms])", text):
        total += float(value) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit]
    return total
