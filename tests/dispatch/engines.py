"""Small real engines for the tests of the dispatcher: real processes, no science."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.python_engine import PythonEngine
from hydroflow.errors import EngineFailure, FailureCode

ECHO = "tests.dispatch.engines:Echo"
PYTHON = "tests.dispatch.engines:Square"


class Echo:
    """A shell command that counts its own executions by appending its key to a file.

    Inputs: ``value`` (echoed), ``sleep`` (s), ``log`` (file that each execution appends to), ``exit`` (exit code of the
    first ``fail_times`` attempts as told by the adjustments), ``garbage`` (write an unreadable answer), ``proof`` (keep
    the answer as proof, packed with other jobs').
    """

    kind = ECHO
    executables = ("sleep",)

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        (folder / "value.txt").write_text(json.dumps(job.inputs["value"]))

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        i = job.inputs
        lines = []
        if "log" in i:
            lines.append(f"echo {job.key} $HYDROFLOW_CLUSTER >> {i['log']}")
        lines.append(f"{executables['sleep']} {i.get('sleep', 0)} || exit $?")
        if i.get("exit") and adjustments.get("tries", 0) < i.get("fail_times", 99):
            lines.append(f"echo trouble >&2; exit {i['exit']}")
        if i.get("garbage"):
            lines.append("echo '{half' > answer.json")
        else:
            lines.append("cp value.txt answer.json || exit 74; echo said")
        if "log" in i:
            lines.append(f"echo {job.key} $HYDROFLOW_CLUSTER >> {i['log']}.finished")
        return "\n".join(lines)

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("answer.json",)

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        code = (folder / "exit_code").read_text().strip()
        if code != "0":
            raise EngineFailure(FailureCode.killed if code in ("137", "143") else FailureCode.unknown, f"exit code {code}")
        try:
            answer = json.loads((folder / "answer.json").read_text())
        except (OSError, ValueError) as error:
            raise EngineFailure(FailureCode.corrupted_output, f"answer.json: {error}") from error
        files = {"answer.json": folder / "answer.json"}
        if job.inputs.get("proof"):
            return Collected({"answer": answer}, proof={**files, "stdout.txt": folder / "stdout.txt"})
        return Collected({"answer": answer}, files)

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        if failure.code == FailureCode.corrupted_output or attempt > job.inputs.get("recoveries", 0):
            return None
        return Recovery(f"try number {attempt + 1}", {"tries": attempt})


class Square(PythonEngine):
    """A Python engine with a checkpoint: counts up, one step per 0.1 s, and goes on from where it was stopped."""

    kind = PYTHON
    output_names = ("steps.txt",)

    def compute(self, inputs: Mapping[str, Any], adjustments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        path = folder / "steps.txt"
        done = len(path.read_text().split()) if path.exists() else 0
        if inputs.get("die_at") is not None and done < inputs["die_at"]:
            for i in range(done, inputs["die_at"]):
                with open(path, "a") as handle:
                    handle.write(f"{i}\n")
            os.kill(os.getpid(), 9)
        for i in range(done, inputs.get("steps", 1)):
            with open(path, "a") as handle:
                handle.write(f"{i}\n")
            time.sleep(inputs.get("pace", 0.0))
        if inputs["x"] < 0:
            raise EngineFailure(FailureCode.unphysical_result, f"x = {inputs['x']} is negative")
        return {"square": inputs["x"] ** 2, "resumed_at": done, "threads": os.environ["OMP_NUM_THREADS"]}
