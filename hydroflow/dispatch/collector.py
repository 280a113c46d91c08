"""From ended jobs' folders to their verdicts: the engine reads, files are kept, the ledger is told.

A job that left an exit code gets the verdict of its engine and, if that is a failure, the recovery the engine declares; a
job that left none was lost by the machine or the scheduler, which is no verdict and is run again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydroflow.campaign import Cluster
from hydroflow.dispatch.engine import Collected, Engine, Recovery, engine_for
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import AgentLedger, Change, now, spec_of
from hydroflow.dispatch.states import State
from hydroflow.dispatch.suspicion import UNEXPLAINED
from hydroflow.dispatch.wrapper import last_lines, read_exit_code, read_times
from hydroflow.errors import EngineFailure, FailureCode, ServiceError, SettingsError
from hydroflow.store.objects import ObjectStore
from hydroflow.store.packs import put_pack

MAX_LOSSES = 5
"""Attempts of one job that may vanish before a person is asked."""
MAX_RESULT_BYTES = 1 << 20
MAX_KEPT_BYTES = 64 << 20
"""Files of a quarantined job above this are left out of its archive."""
FULL_KB = 64
"""A disk with less than this when a job failed on it was full."""
_VANISHED = "vanished without an exit code (machine or scheduler killed it)"
_NEVER_STARTED = "left the queue without having been started"
_UNCLEAR = {FailureCode.killed, FailureCode.unknown, FailureCode.missing_output, FailureCode.truncated_output,
            FailureCode.corrupted_output}


@dataclass(frozen=True)
class Verdict:
    """What is to be told about one ended job.

    Attributes
    ----------
    failure
        Code of what went wrong in this attempt; None when nothing did.
    keep_folder
        Its folder on the cluster is needed for a restart.
    proof
        Files to be packed with those of the other jobs.
    """

    change: Change
    failure: FailureCode | None = None
    keep_folder: bool = False
    proof: Mapping[str, Path] = field(default_factory=dict)


class Collector:
    """Judges ended jobs of one cluster.

    Parameters
    ----------
    elsewhere
        Whether another cluster that is above suspicion could run a job.
    """

    def __init__(self, ledger: AgentLedger, objects: ObjectStore, name: str, cluster: Cluster,
                 elsewhere: Callable[[Mapping[str, Any]], bool] = lambda job: False) -> None:
        self.ledger, self.objects, self.name, self.cluster, self.elsewhere = ledger, objects, name, cluster, elsewhere

    def collect(self, ended: Sequence[tuple[Mapping[str, Any], Path]]) -> list[Verdict]:
        """Judge ended jobs (document, fetched folder), keep their files and tell the ledger, in one write.

        Raises
        ------
        ServiceError
            the object store does not work; the jobs stay in ``collecting`` and this can be called again.
        """
        verdicts = [self._judge(job, folder) for job, folder in ended]
        packed = put_pack(self.objects, {f"{v.change.key}/{name}": path for v in verdicts for name, path in v.proof.items()})
        changes = []
        for v in verdicts:
            values = dict(v.change.values)
            if v.proof:
                values["outputs"] = {**values.get("outputs", {}), **{n: packed[f"{v.change.key}/{n}"] for n in v.proof}}
            changes.append(replace(v.change, values=values))
        self.ledger.change(changes)
        return verdicts

    def _judge(self, job: Mapping[str, Any], folder: Path) -> Verdict:
        key, spec = job["_id"], spec_of(job)
        try:
            engine = engine_for(spec.kind)
            cost = self._cost(job, spec, folder)
            # not by .started: who stops a job that has not begun makes that too
            begun = read_times(folder).start is not None
            if job.get("cancel"):
                return self._stopped(job, spec, engine, cost, begun)
            code = read_exit_code(folder)
            if code is None or (code and job.get("reprieved")):
                return self._lost(job, spec, engine, cost, FailureCode.lost, _VANISHED if begun else _NEVER_STARTED)
            try:
                collected = self._read(engine, spec, folder, code)
            except EngineFailure as failure:
                return self._failure(job, spec, engine, failure, cost, folder)
        except SettingsError as error:  # no such engine here: not the job's fault, a person must look
            told = {"code": FailureCode.unknown.value, "message": str(error), "details": {}}
            return Verdict(Change(key, State.failed, str(error), {"failure": told}))
        outputs = {name: self.objects.put_file(path) for name, path in collected.keep.items()}
        return Verdict(Change(key, State.done, "collected", {"result": dict(collected.result), "outputs": outputs, "cost": cost},
                              ("failure", "restart_from")), proof=collected.proof)

    def _read(self, engine: Engine, spec: JobSpec, folder: Path, code: int) -> Collected:
        try:
            collected = engine.collect(spec, folder)
            size = len(json.dumps(collected.result, allow_nan=False))
        except EngineFailure as failure:
            raise self._clearer(failure, spec, folder, code) from failure
        except ServiceError:
            raise
        except Exception as error:  # an engine that chokes on an output must not stop the agent
            raise EngineFailure(FailureCode.corrupted_output, f"reading the outputs failed: {type(error).__name__}: "
                                f"{str(error)[:300]}") from error
        if size > MAX_RESULT_BYTES:
            raise EngineFailure(FailureCode.corrupted_output, f"the engine's result takes {size / 1e6:.1f} MB; results above "
                                f"{MAX_RESULT_BYTES / 1e6:.1f} MB belong into a kept file")
        absent = [name for name, path in [*collected.keep.items(), *collected.proof.items()] if not Path(path).is_file()]
        if absent:
            raise EngineFailure(FailureCode.missing_output, f"files to keep are not there: {', '.join(absent)}")
        return collected

    @staticmethod
    def _clearer(failure: EngineFailure, spec: JobSpec, folder: Path, code: int) -> EngineFailure:
        """What the exit code says where the engine could not tell."""
        if failure.code not in _UNCLEAR:
            return failure
        wall = read_times(folder).wall_s
        if code == 124 or (code == 137 and wall >= spec.resources.wall_time_s):
            return EngineFailure(FailureCode.walltime, f"stopped at its wall time of {spec.resources.wall_time_s} s; "
                                 f"{failure.message}", failure.details)
        if code in (126, 127):
            return EngineFailure(FailureCode.executable_missing, last_lines(folder, "stderr.txt", 300).strip()
                                 or f"exit code {code}", failure.details)
        free = read_times(folder).free_kb
        # what would have said so may not have fitted on the disk either
        if "No space left on device" in last_lines(folder, "stderr.txt") or (free is not None and free < FULL_KB and code):
            return EngineFailure(FailureCode.disk_full, f"the disk it ran on was full; {failure.message}", failure.details)
        return failure

    # ---- what did not work ----
    def _failure(self, job: Mapping[str, Any], spec: JobSpec, engine: Engine, failure: EngineFailure,
                 cost: Mapping[str, Any], folder: Path) -> Verdict:
        key, count, times = job["_id"], job.get("failures", 0) + 1, _times(job)
        told = {**failure.to_dict(), "attempt": job["attempt"], "cluster": self.name, "times": times}
        if failure.code is FailureCode.disk_full:
            return self._lost(job, spec, engine, cost, FailureCode.disk_full, failure.message)
        # a job that was killed before has not used up what is declared for other failures
        again = times.get(failure.code.value, 0) + 1
        recovery = self._recovery(engine, spec, failure, again)
        bound = recovery is not None and recovery.keep_folder
        if failure.code is FailureCode.executable_missing or (
                failure.code in UNEXPLAINED and not bound and self.elsewhere(job)):
            # perhaps the cluster, not the job, is at fault: another cluster takes it, and it is no failure of the job yet
            avoid = sorted({*job.get("avoid", []), self.name})
            return Verdict(Change(key, State.prepared, f"{failure}; to be run on another cluster than {self.name}",
                                  {"avoid": avoid, "failure": told, "cost": cost}, ("restart_from",)), failure.code)
        told["times"] = {**times, failure.code.value: again}
        if recovery is not None:
            return Verdict(Change(key, State.prepared, f"{failure}; {recovery.action}", {
                "failures": count, "failure": told, "cost": cost,
                "adjustments": {**job.get("adjustments", {}), **recovery.adjustments},
                "restart_from": f"{job['folder']}/{key}" if recovery.keep_folder else None}),
                failure.code, recovery.keep_folder)
        told["stdout"], told["stderr"] = last_lines(folder, "stdout.txt"), last_lines(folder, "stderr.txt")
        outputs = {"quarantine.tar.gz": self.objects.put(_archive(folder))}
        values = {"failures": count, "failure": told, "cost": cost, "outputs": outputs, "restart_from": None}
        if failure.code is FailureCode.walltime:  # with more time it can go on from here
            values |= self._left(job, spec, engine, EngineFailure(failure.code, failure.message), 1)
        kept = bool(values.get("restart_from"))
        return Verdict(Change(key, State.quarantined, f"{failure}; no recovery is left after {count} failures" + (
            f"; for a week it goes on from its checkpoints with more time: hydroflow jobs retry {key[:12]} --wall-time SECONDS"
            if kept else ""), values), failure.code, kept)

    def _lost(self, job: Mapping[str, Any], spec: JobSpec, engine: Engine, cost: Mapping[str, Any], code: FailureCode,
              what: str) -> Verdict:
        """The machine's fault: the job is run again after a pause, going on from its checkpoints where it started."""
        key, losses = job["_id"], job.get("losses", 0) + 1
        told = {"code": code.value, "message": what, "details": {}, "attempt": job["attempt"], "cluster": self.name,
                "times": _times(job)}
        values = {"losses": losses, "failure": told, "cost": cost}
        if what == _VANISHED:
            values |= self._left(job, spec, engine, EngineFailure(FailureCode.killed, what), losses)
        kept = bool(values.get("restart_from"))
        if losses >= MAX_LOSSES:
            return Verdict(Change(key, State.failed, f"{what}, {losses} times; look at the cluster, then `hydroflow jobs retry`",
                                  values), code, kept)
        values["not_before"] = now() + timedelta(seconds=2 ** losses)
        return Verdict(Change(key, State.prepared, f"{what}; run again", values), code, kept)

    def _stopped(self, job: Mapping[str, Any], spec: JobSpec, engine: Engine, cost: Mapping[str, Any], begun: bool) -> Verdict:
        """Nobody wants it any more, but somebody may again: what it had done stays on its cluster for a while, unless that is
        known to be for nothing."""
        key, reason = job["_id"], job["cancel"]
        if not begun and not job.get("discard"):  # where it was to go on from is still there
            return Verdict(Change(key, State.cancelled, reason, {"cost": cost}))
        values = {"restart_from": None, "cost": cost}
        if not job.get("discard"):
            values |= self._left(job, spec, engine, EngineFailure(FailureCode.killed, reason), 1)
        return Verdict(Change(key, State.cancelled, reason, values), keep_folder=bool(values["restart_from"]))

    def _left(self, job: Mapping[str, Any], spec: JobSpec, engine: Engine, failure: EngineFailure, count: int) -> dict[str, Any]:
        """How a job that was stopped from outside `count` times goes on from what it left, as the ledger notes it."""
        recovery = self._recovery(engine, spec, failure, count)
        if recovery is None:
            return {}
        return {"adjustments": {**job.get("adjustments", {}), **recovery.adjustments},
                "restart_from": f"{job['folder']}/{job['_id']}" if recovery.keep_folder else None}

    @staticmethod
    def _recovery(engine: Engine, spec: JobSpec, failure: EngineFailure, count: int) -> Recovery | None:
        try:
            return engine.recover(spec, failure, count)
        except Exception as error:
            raise SettingsError(f"the engine {spec.kind} failed while choosing a recovery: {error}") from error

    def _cost(self, job: Mapping[str, Any], spec: JobSpec, folder: Path) -> dict[str, Any]:
        """Cost so far, all attempts together; times are the cluster's, written from inside the job."""
        times, before = read_times(folder), job.get("cost", {})
        if times.start is not None and times.end is None:
            # killed: what its files say is all that is known about when it ended
            newest = max((p.stat().st_mtime for p in folder.glob("*") if p.is_file()), default=times.start)
            times = replace(times, end=max(times.start, newest))
        if before.get("attempt") == job["attempt"]:
            return dict(before)  # collected before, by an agent that was killed
        core_hours = times.wall_s * spec.resources.cores / 3600
        gpu_hours = times.wall_s * spec.resources.gpus / 3600
        money = core_hours * self.cluster.price_core_hour + gpu_hours * self.cluster.price_gpu_hour
        return {
            "start": times.start, "end": times.end, "host": times.host, "cores": spec.resources.cores,
            "gpus": spec.resources.gpus, "attempt": job["attempt"], "wall_s": times.wall_s + before.get("wall_s", 0.0),
            "core_hours": core_hours + before.get("core_hours", 0.0),
            "gpu_hours": gpu_hours + before.get("gpu_hours", 0.0), "money": money + before.get("money", 0.0)}


def _times(job: Mapping[str, Any]) -> dict[str, int]:
    """How often each code was a verdict against the job, since the last retry by hand; it travels with its last failure."""
    return dict((job.get("failure") or {}).get("times", {}))


def _archive(folder: Path) -> bytes:
    """The folder of a quarantined job for people to look at, without its largest files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < MAX_KEPT_BYTES:
                archive.add(path, arcname=str(path.relative_to(folder)), recursive=False)
    return buffer.getvalue()
