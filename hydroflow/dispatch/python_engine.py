"""Jobs computed by hydroflow's own Python on a cluster (training, relaxation shards, phonons): one way to run them.

A subclass gives `kind` and `compute`; this module writes ``job.json``, runs ``python -m hydroflow.dispatch.python_engine
KIND`` in the job's folder, and turns an :class:`EngineFailure` raised there into the job's verdict.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydroflow.dispatch.engine import Collected, Recovery, engine_for
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, FailureCode, HydroflowError


class PythonEngine:
    """Base of engines whose work is a Python function."""

    kind: str = ""
    executables: tuple[str, ...] = ("python",)
    cores_may_change = True
    output_names: tuple[str, ...] = ()
    """Files that `compute` writes and that are kept; globs allowed."""

    def compute(self, inputs: Mapping[str, Any], adjustments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Do the work in `folder` (input files are there) and return the small JSON-able result.

        Raises :class:`EngineFailure` for a typed verdict. Work that is long should leave checkpoints in `folder` and go on
        from them when it finds them.
        """
        raise EngineFailure(FailureCode.bad_input, f"engine {self.kind} does not compute anything")

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        (folder / "job.json").write_text(json.dumps(
            {"inputs": dict(job.inputs), "adjustments": dict(adjustments), "cores": job.resources.cores}))

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return f"{executables['python']} -m hydroflow.dispatch.python_engine {self.kind}"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("result.json", "failure.json", *self.output_names)

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        if (folder / "failure.json").exists():
            raise EngineFailure.from_dict(json.loads((folder / "failure.json").read_text()))
        try:
            result = json.loads((folder / "result.json").read_text())
        except FileNotFoundError:
            raise EngineFailure(_death(folder), f"the {self.kind} process ended without a result: {_tail(folder)}") from None
        except json.JSONDecodeError as error:
            raise EngineFailure(FailureCode.corrupted_output, f"result.json of a {self.kind} job is damaged: {error}") from error
        keep = {p.name: p for pattern in self.output_names for p in sorted(folder.glob(pattern))}
        missing = [n for n in self.output_names if not any(c in n for c in "*?[") and n not in keep]
        if missing:
            raise EngineFailure(FailureCode.missing_output, f"a {self.kind} job did not write {', '.join(missing)}")
        return Collected(result, keep)

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        """A killed or timed-out process goes on from its own checkpoints; everything else is final."""
        if failure.code in (FailureCode.killed, FailureCode.walltime) and attempt < 4:
            return Recovery("continued from the checkpoints in its folder", keep_folder=True)
        return None


def _tail(folder: Path) -> str:
    for name in ("stderr.txt", "stdout.txt"):
        if (folder / name).exists():
            lines = [line.strip() for line in (folder / name).read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return lines[-1][:300]
    return "no output"


def _death(folder: Path) -> FailureCode:
    code = (folder / "exit_code").read_text().strip() if (folder / "exit_code").exists() else ""
    text = (folder / "stderr.txt").read_text(errors="replace") if (folder / "stderr.txt").exists() else ""
    if "No space left on device" in text:
        return FailureCode.disk_full
    if "MemoryError" in text or "out of memory" in text.lower():
        return FailureCode.out_of_memory
    return FailureCode.killed if code in ("", "137", "143", "-9", "-15") else FailureCode.unknown


def main(kind: str, folder: Path) -> int:
    """Run one job in its folder; the exit code is 0 when a result or a typed failure was written."""
    job = json.loads((folder / "job.json").read_text())
    os.environ.setdefault("OMP_NUM_THREADS", str(job["cores"]))
    engine = engine_for(kind)
    assert isinstance(engine, PythonEngine)
    try:
        result = engine.compute(job["inputs"], job["adjustments"], folder)
        _write(folder / "result.json", result)
    except EngineFailure as failure:
        _write(folder / "failure.json", failure.to_dict())
    except HydroflowError as error:
        _write(folder / "failure.json", EngineFailure(FailureCode.bad_input, str(error)).to_dict())
    return 0


def _write(path: Path, data: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(data, allow_nan=False))
    temporary.replace(path)


if __name__ == "__main__":
    # the importable twin of this module: engines are subclasses of its PythonEngine, not of __main__'s
    from hydroflow.dispatch.python_engine import main as run

    sys.exit(run(sys.argv[1], Path.cwd()))
