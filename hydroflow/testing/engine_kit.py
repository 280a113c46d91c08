"""Conformance tests for engines, the plug-ins that run jobs: run them on your own.

In your package's tests::

    from hydroflow.testing.engine_kit import EngineContract

    class TestMyEngine(EngineContract):
        def make(self):
            return MyEngine()

        def job(self):
            return JobSpec("my.kind", {"x": 1}, "my-engine 1.0")

and register the class under its kind in the entry-point group ``hydroflow.engines``. The job runs for real, once per class;
the other tests read what it left, whole and damaged. Override :meth:`objects` when the job has input files,
:meth:`executables` when its commands have other names here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hydroflow.dispatch.collector import MAX_RESULT_BYTES
from hydroflow.dispatch.engine import Collected, Engine, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.wrapper import LOGS, SCRIPT
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.store.objects import ObjectStore

MOST_RECOVERIES = 20
"""An engine that still declares a recovery after so many failures of one kind would never give a job up."""
RESERVED = frozenset({SCRIPT, ".started", *LOGS})
"""Names in a job's folder that are the dispatcher's."""


class EngineContract:
    """What every engine must keep. Subclass it, override :meth:`make` and :meth:`job`."""

    timeout_s: ClassVar[float] = 300.0
    """Time that the job may take on this machine."""

    def make(self) -> Engine:
        raise NotImplementedError("override make() to return your engine")

    def job(self) -> JobSpec:
        raise NotImplementedError("override job() to return a job that ends well within a minute or so")

    def objects(self) -> ObjectStore:
        """Where the job's `files` are."""
        raise NotImplementedError("override objects(): the job has input files")

    def executables(self) -> Mapping[str, str]:
        """Command line per name in ``executables`` of the engine."""
        return {name: name for name in self.make().executables}

    def same(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether two results are the same answer. Override it where an engine reads a second source of lower precision when
        the first is damaged."""
        return one == other

    # ---- one real run ----
    def prepared(self, folder: Path) -> Path:
        """A job's folder as the dispatcher stages it, without the script."""
        folder.mkdir(parents=True)
        spec = self.job()
        for name, digest in spec.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self.objects().fetch(digest, folder / name)
        self.make().prepare(spec, {}, folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def returned(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What comes back from the cluster after a real run: the logs and the declared outputs, nothing else."""
        self = cls()
        there = self.prepared(tmp_path_factory.mktemp("engine") / "there")
        line = self.make().command(self.job(), {}, self.executables())
        with open(there / "stdout.txt", "w") as out, open(there / "stderr.txt", "w") as err:
            done = subprocess.run(["bash", "-c", line], cwd=there, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                  timeout=self.timeout_s, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        (there / "exit_code").write_text(f"{done.returncode}\n")
        # the dispatcher collects where it staged: the inputs are still there
        here = self.prepared(there.with_name("here"))
        for pattern in (*LOGS, *self.make().outputs(self.job())):
            for path in there.glob(pattern):
                target = here / path.relative_to(there)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return here

    @pytest.fixture
    def folder(self, returned: Path, tmp_path: Path) -> Path:
        """A copy of what came back, to be damaged."""
        return Path(shutil.copytree(returned, tmp_path / "folder"))

    def collected(self, folder: Path) -> Collected:
        return self.make().collect(self.job(), folder)

    # ---- tests ----
    def test_is_an_engine(self) -> None:
        engine = self.make()
        assert isinstance(engine, Engine)
        assert engine.kind and engine.kind == self.job().kind
        assert all(isinstance(name, str) and name for name in engine.executables)

    def test_inputs_are_a_function_of_the_job(self, tmp_path: Path) -> None:
        """The same job gives the same files, and none where the dispatcher writes."""
        one, two = self.prepared(tmp_path / "one"), self.prepared(tmp_path / "two")
        names = sorted(str(p.relative_to(one)) for p in one.rglob("*") if p.is_file())
        assert names == sorted(str(p.relative_to(two)) for p in two.rglob("*") if p.is_file())
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
        assert not RESERVED.intersection(names)

    def test_the_command_is_a_shell_line_with_the_clusters_executables(self) -> None:
        named = {name: f"/cluster/bin/{name}" for name in self.make().executables}
        line = self.make().command(self.job(), {}, named)
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0
        assert all(path in line for path in named.values())

    def test_a_real_run_is_collected_from_its_outputs_alone(self, folder: Path) -> None:
        found = self.collected(folder)
        assert len(json.dumps(found.result, allow_nan=False)) <= MAX_RESULT_BYTES
        for name, path in [*found.keep.items(), *found.proof.items()]:
            assert Path(path).is_file() and folder in Path(path).parents, name
        assert not set(found.keep) & set(found.proof)

    def test_damaged_outputs_are_a_failure_or_change_nothing(self, folder: Path, tmp_path: Path) -> None:
        """Each output missing, empty or cut in half: a typed failure, or the same answer when it was not needed; never
        another exception and never another answer."""
        whole = self.collected(folder).result
        outputs = sorted({p for pattern in self.make().outputs(self.job()) for p in folder.glob(pattern) if p.is_file()})
        failed = 0
        for path in outputs:
            for cut in (None, 0, path.stat().st_size // 2):
                damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
                target = damaged / path.relative_to(folder)
                if cut is None:
                    target.unlink()
                else:
                    target.write_bytes(path.read_bytes()[:cut])
                try:
                    assert self.same(whole, self.collected(damaged).result), f"{path.name} cut to {cut}"
                except EngineFailure:
                    failed += 1
                shutil.rmtree(damaged)
        assert failed, "no output is needed for the answer: what is it made of?"

    @pytest.mark.parametrize("code", ["1", "137", "143"])
    def test_a_job_that_left_nothing_is_a_failure(self, tmp_path: Path, code: str) -> None:
        folder = self.prepared(tmp_path / "folder")
        for name in ("stdout.txt", "stderr.txt"):
            (folder / name).write_text("")
        (folder / "exit_code").write_text(f"{code}\n")
        with pytest.raises(EngineFailure):
            self.collected(folder)

    @pytest.mark.parametrize("code", list(FailureCode))
    def test_recoveries_are_declared_and_end(self, code: FailureCode) -> None:
        failure = EngineFailure(code, "for the test")
        for attempt in range(1, MOST_RECOVERIES + 1):
            recovery = self.make().recover(self.job(), failure, attempt)
            if recovery is None:
                return
            assert isinstance(recovery, Recovery) and recovery.action.strip()
            json.dumps(recovery.adjustments, allow_nan=False)
        pytest.fail(f"after {MOST_RECOVERIES} failures with {code.value} there is still a recovery")
