"""How pw.x is started in a job's folder, and how a run is read back: shared by all engines built on it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydroflow.dft import pw_output, verdict
from hydroflow.dft.settings import LabelSettings
from hydroflow.dispatch import mpi
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, FailureCode

NOTES = "hydroflow.json"
"""What `prepare` leaves for `collect`: the structure of this attempt and its adjustments."""

_MPI = re.compile(r"\b(mpirun|mpiexec\S*|orterun|srun|aprun|jsrun|prun)\b")


def write_inputs(folder: Path, files: Mapping[str, str], settings: LabelSettings, notes: Mapping[str, Any]) -> None:
    """Verify the pseudopotentials that lie in the folder and write the input files.

    A missing file would make pw.x fall back silently to the system's pseudopotential directory.

    Raises
    ------
    EngineFailure
        ``bad_pseudopotential`` when one is missing or not the one that the settings name.
    """
    for element, pseudo in settings.pseudos.items():
        path = folder / pseudo.file
        if not path.is_file():
            raise EngineFailure(FailureCode.bad_pseudopotential, f"the job's folder lacks {pseudo.file} for {element}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != pseudo.sha256:
            raise EngineFailure(FailureCode.bad_pseudopotential, f"{pseudo.file} for {element} is not the file that the label "
                                "settings name (checksum differs)")
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / NOTES).write_text(json.dumps(dict(notes)))


def read_notes(folder: Path) -> dict[str, Any]:
    path = folder / NOTES
    return json.loads(path.read_text()) if path.exists() else {}


def parallel(executable: str) -> bool:
    """Whether a command line starts several MPI processes."""
    return _MPI.search(executable) is not None


def run_line(executable: str, name: str, pools: int = 1) -> str:
    """One program on ``NAME.in``, output in ``NAME.out``."""
    extra = f" -nk {pools}" if pools > 1 and parallel(executable) else ""
    # unbuffered, or the error box of a crash can be lost
    variables = "GFORTRAN_UNBUFFERED_PRECONNECTED=y"
    if not parallel(executable):
        variables += f" {mpi.SERIAL}"
    return f"{variables} {executable}{extra} -i {name}.in > {name}.out 2> {name}.err"


# The scratch folder `out` lies in HYDROFLOW_SCRATCH where a cluster's setup lines export it (a node's own disk). What an
# earlier attempt left behind must not be taken for this one's; a restart without saved data starts from scratch.
BEFORE = (
    "rm -f *.out *.err *.xml CRASH pdos.tar.gz; "
    'if [ ! -d out/x.save ]; then sed -i "s/\'restart\'/\'from_scratch\'/" *.in; rm -rf out; '
    'if [ -n "$HYDROFLOW_SCRATCH" ]; then ln -s "$(mktemp -d "$HYDROFLOW_SCRATCH/hydroflow-XXXXXX")" out; fi; fi; '
)
# Wave functions and densities go; only a run that stopped at its wall time keeps them, for the restart.
AFTER = (
    "; code=$?; cp -f out/x.xml pw.xml 2>/dev/null; "
    "grep -q 'Maximum CPU time exceeded' *.out || rm -rf \"$(readlink -f out)\" out; exit $code"
)


def command(steps: list[str]) -> str:
    """The shell line of a chain of programs."""
    return BEFORE + "{ " + " && ".join(steps) + "; }" + AFTER


def exit_code(folder: Path) -> int | None:
    try:
        return int((folder / "exit_code").read_text())
    except (OSError, ValueError):
        return None


def read_run(folder: Path, name: str = "pw", *, xml: str = "pw.xml") -> tuple[pw_output.PwResult, str]:
    """The result of one pw.x run and its text, after every sign of failure has been looked for.

    Raises
    ------
    EngineFailure
        what the run shows; ``unknown`` never hides a readable error message.
    """
    text, errors, crash = (_read(folder / n) for n in (f"{name}.out", f"{name}.err", "CRASH"))
    failure = verdict.diagnose(text, exit_code(folder), errors + _read(folder / "stderr.txt"), crash)
    if failure is not None:
        raise failure
    from_text = pw_output.read_text(text)
    path = folder / xml
    if not path.exists():
        return from_text, text
    try:
        result = pw_output.read_xml(path)
    except EngineFailure:
        # the text is complete (JOB DONE, no error): the XML alone was damaged on its way
        return from_text, text
    if result.exit_status not in (0, None):
        meaning = {2: FailureCode.scf_not_converged, 3: FailureCode.relaxation_not_converged, 255: FailureCode.walltime}
        raise EngineFailure(meaning.get(result.exit_status, FailureCode.unknown),
                            f"pw.x ended with status {result.exit_status} in its XML")
    ours, theirs = result.energy_ev, from_text.energy_ev
    if ours is not None and theirs is not None and abs(ours - theirs) > 1e-5 * max(1.0, abs(ours) * 1e-3):
        raise EngineFailure(FailureCode.corrupted_output, f"XML and text of pw.x disagree: {ours:.6f} and {theirs:.6f} eV")
    return result, text


def check_version(result: pw_output.PwResult, job: JobSpec) -> None:
    """A cluster with another version of the program than the settings say must not label for this data set."""
    wanted = job.engine.split()[-1]
    if result.version and result.version != wanted:
        raise EngineFailure(FailureCode.executable_missing, f"this cluster's pw.x is version {result.version}; the label "
                            f"settings say {wanted}")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
