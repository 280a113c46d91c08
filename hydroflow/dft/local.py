"""Labels made on this machine, one after another, without services: for comparing levels of theory on a few structures.

A campaign's labels go through the agent (:mod:`hydroflow.dispatch`); this runs the same engine with the same corrections.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydroflow.arrays import StructureArrays
from hydroflow.dft.batch import label_specs, labelled_frames
from hydroflow.dft.jobs import Label
from hydroflow.dft.settings import LabelSettings
from hydroflow.dft.vasp_jobs import VaspLabel
from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, FailureCode


class _Folder:
    """The one method of the object store that making jobs needs, on a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = self
        root.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        (self.root / digest.removeprefix("sha256:")).write_bytes(data)
        return digest

    def put_file(self, path: Path) -> str:
        return self.put(path.read_bytes())

    def copy(self, digest: str, target: Path) -> None:
        shutil.copyfile(self.root / digest.removeprefix("sha256:"), target)


@dataclass
class _Finished:
    """What :func:`hydroflow.dft.batch.labelled_frames` reads of a job document."""

    key: str
    inputs: Mapping[str, Any]
    result: dict[str, Any]
    state: str = "done"


def label_here(
    structures: StructureArrays, settings: LabelSettings, folder: Path, executables: Mapping[str, str],
    on_label: Callable[[str, dict[str, Any] | EngineFailure], None] = lambda formula, outcome: None,
) -> StructureArrays:
    """Label `structures` in `folder`, each with its declared corrections.

    Parameters
    ----------
    executables
        ``pw.x`` (or ``vasp_std``) → how it is called.
    on_label
        Called after each structure with its formula and the result or the failure that no correction was left for.

    Returns
    -------
    StructureArrays
        the labelled frames as a campaign stores them; structures that failed or are held for review are left out.
    """
    store, done = _Folder(folder / "files"), []
    engine = VaspLabel() if settings.code == "vasp" else Label()
    for formula, spec in zip(structures.formulas(), label_specs(store, structures, settings), strict=True):
        try:
            result = _with_corrections(engine, spec, store, folder / spec.key, executables)
        except EngineFailure as failure:
            on_label(formula, failure)
            continue
        on_label(formula, result)
        done.append(_Finished(spec.key, spec.inputs, result))
    return labelled_frames(None, done, "here")


def _with_corrections(engine: Label | VaspLabel, spec: JobSpec, store: _Folder, folder: Path,
                      executables: Mapping[str, str]) -> dict[str, Any]:
    adjustments: dict[str, Any] = {}
    times: Counter[FailureCode] = Counter()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, digest in spec.files.items():
                store.copy(digest, folder / name)
            engine.prepare(spec, adjustments, folder)
            with open(folder / "stderr.txt", "w") as errors:
                done = subprocess.run(["bash", "-c", engine.command(spec, adjustments, executables)], cwd=folder,
                                      stdout=subprocess.DEVNULL, stderr=errors, env={"OMP_NUM_THREADS": "1", **os.environ})
            (folder / "exit_code").write_text(str(done.returncode))
            return engine.collect(spec, folder).result
        except EngineFailure as failure:
            times[failure.code] += 1
            recovery = engine.recover(spec, failure, times[failure.code])
            if recovery is None:
                raise
            adjustments |= recovery.adjustments
            if not recovery.keep_folder:
                shutil.rmtree(folder)
