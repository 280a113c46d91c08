"""Run an engine's attempts as the agent would: prepare, command, collect, recover; without a ledger."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydroflow.dispatch.engine import Collected, Engine
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure

EXECUTABLES = {"pw.x": "pw.x", "projwfc.x": "projwfc.x", "vasp_std": "vasp_std"}


class Objects:
    """The two methods of the object store that making jobs needs, on a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.root / digest).write_bytes(data)
        return f"sha256:{digest}"

    def put_file(self, path: Path) -> str:
        return self.put(Path(path).read_bytes())

    def get(self, digest: str) -> bytes:
        return (self.root / digest.removeprefix("sha256:")).read_bytes()


@dataclass
class FolderStore:
    objects: Objects


@dataclass
class Finished:
    """What a job document has of a finished job."""

    spec: JobSpec
    collected: Collected
    actions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    state = "done"

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def inputs(self) -> Mapping[str, Any]:
        return self.spec.inputs

    @property
    def result(self) -> dict[str, Any]:
        return self.collected.result


def attempt(engine: Engine, spec: JobSpec, store: FolderStore, folder: Path, adjustments: Mapping[str, Any] | None = None,
            executables: Mapping[str, str] | None = None, *, before: Path | None = None, timeout_s: float = 300) -> Collected:
    """One attempt in a fresh folder; `before` is the folder of the attempt that it goes on from."""
    folder.mkdir(parents=True)
    for name, digest in spec.files.items():
        (folder / name).write_bytes(store.objects.get(digest))
    engine.prepare(spec, adjustments or {}, folder)
    if before is not None:
        for source in before.rglob("*"):
            target = folder / source.relative_to(before)
            if source.is_file() and not target.exists() and source.name != "exit_code":
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    line = engine.command(spec, adjustments or {}, {**EXECUTABLES, **(executables or {})})
    with open(folder / "stdout.txt", "w") as out, open(folder / "stderr.txt", "w") as err:
        done = subprocess.run(["bash", "-c", line], cwd=folder, stdout=out, stderr=err, timeout=timeout_s,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    (folder / "exit_code").write_text(str(done.returncode))
    return engine.collect(spec, folder)


def run(engine: Engine, spec: JobSpec, store: FolderStore, folder: Path, adjustments: Mapping[str, Any] | None = None,
        executables: Mapping[str, str] | None = None) -> Finished:
    """Attempts with the engine's own recoveries until the job is done; raises the failure that none is left for."""
    now, before, actions, failures = dict(adjustments or {}), None, [], []
    for number in range(1, 8):
        here = folder / f"attempt{number}"
        try:
            return Finished(spec, attempt(engine, spec, store, here, now, executables, before=before), actions, failures)
        except EngineFailure as failure:
            failures.append(failure.code.value)
            recovery = engine.recover(spec, failure, number)
            if recovery is None:
                raise
            actions.append(recovery.action)
            now |= recovery.adjustments
            before = here if recovery.keep_folder else None
    raise AssertionError("recoveries never ended")
