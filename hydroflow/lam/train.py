"""Training of the Large Atomic Model with deepmd-kit, as jobs: one per member of the ensemble.

The job writes the dataset as deepmd systems, runs ``dp --pt train`` and judges the result on the validation and test splits.
Killed, it goes on from deepmd-kit's last whole checkpoint; a loss that is not finite restarts it once from its beginning with
a third of the learning rate.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Model
from hydroflow.dispatch.engine import Recovery
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.python_engine import PythonEngine
from hydroflow.errors import DataError, EngineFailure, FailureCode
from hydroflow.lam.backend import engine_version
from hydroflow.lam.datasets import parse_manifest, split_frames
from hydroflow.lam.formats import write_training_systems
from hydroflow.lam.inputs import training_input
from hydroflow.lam.metrics import errors
from hydroflow.lam.model import LamModel, read_checkpoint
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store, open_objects
from hydroflow.store.documents import Dataset, Job, ModelRecord

ENGINE = engine_version()
TRAIN_SAMPLE = 2000
"""Most frames of the training split that a model's errors are given for."""
METHOD = 2
"""Version of hydroflow's own rules in the keys of ``lam.train``, ``learning.explore`` and ``search.shard``: loss weights,
network sizes and training input (inputs.py), padding and split of the data, relaxation (relax.py, optimizers.py), deviation and
its classes. Raise it with every change of these that changes an answer: what was computed by the old rules is then computed
again, not reused.
2: L-BFGS remembers 100 steps, as ASE's; explorations bring back unreliable frames where candidates are few."""
_PAD_ATOMS = 8
_RATE_AFTER_DIVERGENCE = 1 / 3
_WARM_RATE = 0.5
_CURVE_POINTS = 60


# ---- jobs -----------------------------------------------------------------------------------------------------------
def train_specs(campaign: Campaign, dataset_digest: str, init_from: Sequence[str] | None, iteration_seed: int,
                store: Store | None = None) -> list[JobSpec]:
    """Jobs that train an ensemble.

    Parameters
    ----------
    campaign : Campaign
        Its ``[model]`` section says what is trained and for how long.
    dataset_digest : str
        A dataset of :func:`hydroflow.lam.datasets.build_dataset`.
    init_from : sequence of str, optional
        Checkpoint digests of the last iteration's ensemble: member i starts from number i (or i modulo their number). Without
        them from ``model.pretrained`` (the branch ``model.pretrained_branch`` of a multi-task one), and without that from random
        weights.
    iteration_seed : int
        Differs between iterations; every member's seed is drawn from it.
    store : Store, optional
        Needed only to store a pretrained checkpoint; opened from the environment by default.

    Raises
    ------
    DataError
        as :func:`dataset_files`; when the pretrained checkpoint cannot be read or has no such branch.
    """
    model = campaign.model
    files = dataset_files(dataset_digest)
    starts: list[str] = list(init_from or [])
    start = "warm" if starts else "scratch"
    if not starts and model.pretrained is not None:
        read_checkpoint(model.pretrained, model.pretrained_branch)
        objects = store.objects if store else open_objects(ServiceSettings.from_environment())
        starts, start = [objects.put_file(model.pretrained)], "pretrained"
    settings = model.model_dump(mode="json", include={
        "descriptor", "size", "cutoff_a", "type_map", "batch_size", "start_lr", "stop_lr"})
    branch = {"branch": model.pretrained_branch} if start == "pretrained" and model.pretrained_branch else {}
    specs = []
    for i in range(model.ensemble):
        seed = int.from_bytes(hashlib.sha256(f"{iteration_seed}/{i}".encode()).digest()[:4], "big") % (2**31 - 1)
        steps = model.warm_steps if start == "warm" else model.steps
        specs.append(JobSpec(
            kind=Train.kind, engine=ENGINE, label=f"train {model.descriptor} {model.size} {i + 1}/{model.ensemble}",
            inputs={"model": settings, "seed": seed, "steps": steps, "scratch_steps": model.steps, "start": start, **branch,
                    "method": METHOD},
            files=files | ({"start.pt": starts[i % len(starts)]} if starts else {}),
            resources=Resources(cores=model.cores, gpus=model.gpus, wall_time_s=model.wall_time_s),
        ))
    return specs


def dataset_files(digest: str) -> dict[str, str]:
    """Files of a job that reads a dataset with :func:`read_splits`: names and object digests.

    Raises
    ------
    DataError
        when the dataset is not in the records.
    """
    dataset = Dataset.objects(digest=digest).first()
    if dataset is None:
        raise DataError(f"dataset {digest} is not in the records; `hydroflow datasets list` names those that are")
    return {"dataset.json": digest} | {f"part-{i:03d}.parquet": d for i, d in enumerate(dataset.parts)}


def register_models(store: Store, campaign_name: str, jobs: Sequence[Job]) -> list[ModelRecord]:
    """Records of the models that finished training jobs brought back, in the order of the jobs; registering again is harmless."""
    records = []
    for job in jobs:
        digest = job.outputs["model.pt"]
        record = ModelRecord.objects(digest=digest).first()
        if record is None:
            result = job.result
            record = ModelRecord(
                digest=digest, campaign=campaign_name, role="lam", job=job.key, dataset=job.files["dataset.json"],
                parents=[job.files["start.pt"]] if _begun_from_start(job) else [], seed=result["seed"],
                type_map=result["type_map"], engine=job.engine, input=result["input"], metrics=result["metrics"],
                learning_curve=result["learning_curve"]).save()
        records.append(record)
    return records


def _begun_from_start(job: Job) -> bool:
    """Whether the checkpoint a job was given is where its model comes from: new elements begin from random weights."""
    return "start.pt" in job.files and not job.result.get("start", "").startswith("scratch")


class Train(PythonEngine):
    """Trains one model. Result: ``metrics`` on the test split (validation where there is no test), on each split; ``before``, the
    errors on the same frames of the model it started from (empty without one); the ``learning_curve`` and the ``input``; kept
    files ``model.pt``, ``lcurve.out``, ``input.json``."""

    kind = "lam.train"
    output_names = ("model.pt", "lcurve.out", "input.json")

    def compute(self, inputs: Mapping[str, Any], adjustments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        model = Model.model_validate({**inputs["model"], **adjustments})
        splits = read_splits(folder)
        start = _Start(folder / "start.pt", inputs.get("branch")) if inputs["start"] != "scratch" else None
        note = start.check(model, splits["train"]) if start else None
        if note == "new elements":
            start, inputs = None, {**inputs, "start": "scratch", "steps": inputs["scratch_steps"]}
        judged = "test" if len(splits["test"]) else "validation"
        before = errors(start.model(), splits[judged]) if start else {}
        state = _State.load(folder)
        while True:
            try:
                steps = _run(model, inputs, splits, start, inputs["start"], state, folder)
                break
            except _Diverged as divergence:
                if state.rate_scale < 1:
                    raise EngineFailure(
                        FailureCode.training_diverged,
                        f"the loss was not finite by step {divergence.step}, again with a third of the learning rate "
                        f"({model.start_lr * state.rate_scale:g}); lower model.start_lr or look for broken labels",
                        {"start_lr": model.start_lr}) from None
                state.restart(folder)
        shutil.copyfile(steps[-1], folder / "model.pt.part")
        _slim(folder / "model.pt.part", folder / "model.pt")
        trained = LamModel.load(folder / "model.pt")
        metrics = {s: errors(trained, _sample(splits[s]) if s == "train" else splits[s]) for s in ("train", "validation", "test")}
        held_out = metrics[judged]
        if not all(math.isfinite(held_out.get(k, 0.0)) for k in ("energy_mev_atom", "force_mev_a")):
            raise EngineFailure(FailureCode.training_diverged, "the trained model gives energies or forces that are not finite")
        begun = "scratch (the data have elements that the start was not trained on)" if note else inputs["start"]
        return {
            "metrics": {**held_out, "splits": metrics}, "before": {k: v for k, v in before.items() if not k.startswith("per_")},
            "learning_curve": read_learning_curve(folder / "lcurve.out"),
            "seed": inputs["seed"], "type_map": list(model.type_map), "start": begun,
            "rate_scale": state.rate_scale, "resumed": state.resumed, "input": json.loads((folder / "input.json").read_text()),
        }

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        """Out of memory, training goes on from its last checkpoint with half the batch; the rest as for all of our jobs."""
        if failure.code is FailureCode.out_of_memory and attempt < 6:
            used = failure.details.get("batch_size", job.inputs["model"]["batch_size"])
            half = halved(used)
            if half is not None:
                return Recovery(f"batch size {half} in place of {used}", {"batch_size": half}, keep_folder=True)
        return super().recover(job, failure, attempt)


def halved(batch_size: str) -> str | None:
    """Half of deepmd-kit's batch size (``auto:128`` → ``auto:64``; plain ``auto`` is ``auto:32``); None where there is no half
    that trains on the same data."""
    rule, _, number = ("auto:32" if batch_size == "auto" else batch_size).partition(":")
    half = int(number) // 2 if number.isdigit() else 0
    return f"{rule}:{half}" if half and rule in ("auto", "max") else None


class _Diverged(Exception):
    def __init__(self, step: int) -> None:
        self.step = step


class _State:
    """What must survive a kill: the factor on the learning rate and how often training was resumed."""

    def __init__(self, rate_scale: float = 1.0, resumed: int = 0) -> None:
        self.rate_scale, self.resumed = rate_scale, resumed

    @classmethod
    def load(cls, folder: Path) -> _State:
        path = folder / "state.json"
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def save(self, folder: Path) -> None:
        part = folder / "state.json.part"
        part.write_text(json.dumps({"rate_scale": self.rate_scale, "resumed": self.resumed}))
        part.replace(folder / "state.json")

    def restart(self, folder: Path) -> None:
        """Begin again with a lower rate: the checkpoints of the diverged run must not be found."""
        for path in (*folder.glob("model.ckpt*"), folder / "lcurve.out", folder / "checkpoint"):
            path.unlink(missing_ok=True)
        self.rate_scale *= _RATE_AFTER_DIVERGENCE
        self.save(folder)


def read_splits(folder: Path) -> dict[str, StructureArrays]:
    """The dataset from a job's folder (:func:`dataset_files`): frames of ``train``, ``validation`` and ``test``."""
    manifest = parse_manifest((folder / "dataset.json").read_bytes())
    parts = [StructureArrays.from_parquet((folder / f"part-{i:03d}.parquet").read_bytes()) for i in range(len(manifest["parts"]))]
    return split_frames(manifest, StructureArrays.concatenate(parts))


@dataclass(frozen=True)
class _Start:
    """The checkpoint that a training starts from, and which of its models where it holds several."""

    path: Path
    branch: str | None

    def params(self) -> dict[str, Any]:
        return read_checkpoint(self.path, self.branch)[1]

    def model(self) -> LamModel:
        return LamModel.load(self.path, head=self.branch)

    def check(self, model: Model, train: StructureArrays) -> str | None:
        """``new elements`` when the data have elements that the checkpoint was not trained on.

        Raises :class:`EngineFailure` for a checkpoint of another type map, or one whose model is not of energies.
        """
        from ase.data import chemical_symbols

        try:
            params = self.params()
        except DataError as error:
            raise EngineFailure(FailureCode.bad_input, f"the checkpoint to start from cannot be used: {error}") from error
        if params.get("fitting_net", {}).get("type", "ener") != "ener":
            raise EngineFailure(FailureCode.bad_input, f"the model {self.branch} of the checkpoint to start from does not give "
                                "energies; name an energy model as model.pretrained_branch")
        elements = {chemical_symbols[int(z)] for z in np.unique(train.numbers)}
        if params["type_map"] != list(model.type_map):
            raise EngineFailure(
                FailureCode.bad_input, f"the checkpoint to start from has the type map {' '.join(params['type_map'])}, the "
                f"campaign {' '.join(model.type_map)}; set model.type_map to the checkpoint's, or start without it")
        observed = params.get("info", {}).get("observed_type")
        return "new elements" if observed is not None and not elements <= set(observed) else None


def _run(model: Model, inputs: Mapping[str, Any], splits: Mapping[str, StructureArrays], start: _Start | None, kind: str,
         state: _State, folder: Path) -> list[Path]:
    """Train to the end, from the last checkpoint where there is one; returns the checkpoints, oldest first."""
    scale = state.rate_scale * (_WARM_RATE if start is not None and kind == "warm" else 1.0)
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    train = write_training_systems(splits["train"], data / "train", model.type_map, _PAD_ATOMS)
    held_out = splits["validation"] if len(splits["validation"]) else splits["test"]
    validation = write_training_systems(held_out, data / "validation", model.type_map, _PAD_ATOMS)
    relative = [[str(Path(s).relative_to(folder)) for s in group] for group in (train, validation)]
    config = training_input(model, relative[0], relative[1], inputs["steps"], inputs["seed"], scale)
    if start is not None:
        # The network is the parent's, whatever this version of hydroflow would choose.
        parent = start.params()
        config["model"] |= {k: parent[k] for k in ("descriptor", "fitting_net")}
    (folder / "input.json").write_text(json.dumps(config, indent=1))
    command = [sys.executable, "-m", "hydroflow.lam.backend", "--pt", "train", "input.json", "--skip-neighbor-stat"]
    found = checkpoints(folder)
    if found:
        command += ["--restart", found[-1].name]
        state.resumed += 1
        state.save(folder)
    elif start is not None:
        command += ["--finetune", start.path.name, *(["--model-branch", start.branch] if start.branch else [])]
    if not found or _step(found[-1]) < inputs["steps"]:
        try:
            _deepmd(command, folder)
        except EngineFailure as failure:
            failure.details["batch_size"] = model.batch_size
            raise
    found = checkpoints(folder)
    if not found or _step(found[-1]) < inputs["steps"]:
        raise EngineFailure(FailureCode.missing_output, f"training ended before step {inputs['steps']}: {_last_error(folder)}")
    return found


def _deepmd(command: list[str], folder: Path) -> None:
    """Run deepmd-kit; it dies with this process, so that a killed job never leaves a trainer behind that writes on."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    environment = os.environ | {"OMP_NUM_THREADS": threads, "DP_INTRA_OP_PARALLELISM_THREADS": threads,
                                "DP_INTER_OP_PARALLELISM_THREADS": "1", "NUM_WORKERS": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    with open(folder / "train.log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                   preexec_fn=_die_with_parent if sys.platform == "linux" else None)
        try:
            while True:
                try:
                    code = process.wait(timeout=5)
                    break
                except subprocess.TimeoutExpired:
                    step = first_nonfinite(folder / "lcurve.out")
                    if step is not None:
                        raise _Diverged(step) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    step = first_nonfinite(folder / "lcurve.out")
    text = _last_error(folder)
    if step is not None or (code != 0 and any(w in text.lower() for w in ("non-finite", "nan detected"))):
        raise _Diverged(step or 0)
    if code < 0:
        raise EngineFailure(FailureCode.killed, f"deepmd-kit was ended by signal {-code}")
    if code != 0:
        lowered = text.lower()
        verdict = FailureCode.out_of_memory if "out of memory" in lowered or "memoryerror" in lowered else \
            FailureCode.disk_full if "no space left" in lowered else FailureCode.bad_input
        raise EngineFailure(verdict, f"dp train ended with code {code}: {text}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _last_error(folder: Path) -> str:
    path = folder / "train.log"
    lines = [x.strip() for x in path.read_text(errors="replace").splitlines() if x.strip()] if path.exists() else []
    named = [x for x in lines if "Error" in x or "error:" in x]
    return (named or lines or ["no output"])[-1][:300]


# ---- checkpoints and curves -----------------------------------------------------------------------------------------
def _step(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a training folder, oldest first; one that was cut off while it was written is removed."""
    out = []
    for path in sorted(folder.glob("model.ckpt-*.pt"), key=_step):
        try:
            read_checkpoint(path)
        except DataError:
            path.unlink()
        else:
            out.append(path)
    return out


def _sample(frames: StructureArrays) -> StructureArrays:
    """At most :data:`TRAIN_SAMPLE` of them, the same every time: enough for the error on what was trained on."""
    if len(frames) <= TRAIN_SAMPLE:
        return frames
    return frames[np.sort(np.random.default_rng(0).choice(len(frames), TRAIN_SAMPLE, replace=False))]


def _slim(source: Path, target: Path) -> None:
    """The checkpoint without the optimizer's state, which two thirds of the file are."""
    import torch

    data = torch.load(source, map_location="cpu", weights_only=True)
    torch.save({"model": data["model"], "optimizer": {}}, target)
    source.unlink()


def _rows(path: Path) -> tuple[list[str], list[list[float]]]:
    """Column names and whole rows of deepmd-kit's learning curve."""
    names: list[str] = []
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        words = line.split()
        if line.startswith("#"):
            names = words[1:] if words[1:2] == ["step"] else names
        elif len(words) == len(names):
            try:
                rows.append([float(w) for w in words])
            except ValueError:
                continue
    return names, rows


def first_nonfinite(path: Path) -> int | None:
    """Step at which the training loss stopped being finite; None while it is. Columns without data (validation of a
    quantity that is not there) are NaN from the first row and do not count."""
    names, rows = _rows(path)
    columns = [i for i, n in enumerate(names) if n in ("rmse_trn", "rmse", "rmse_e_trn", "rmse_f_trn", "rmse_e", "rmse_f")]
    for row in rows:
        if any(not math.isfinite(row[i]) for i in columns):
            return int(row[0])
    return None


def read_learning_curve(path: Path) -> dict[str, list[float]]:
    """deepmd-kit's ``lcurve.out``, thinned to at most 60 points: column name → values."""
    names, rows = _rows(path)
    if not rows:
        return {}
    picked = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _CURVE_POINTS)).round().astype(int))
    return {name: [rows[i][c] if math.isfinite(rows[i][c]) else -1.0 for i in picked] for c, name in enumerate(names)}
