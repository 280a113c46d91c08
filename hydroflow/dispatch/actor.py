"""One actor per cluster: it alone holds the connection, claims, stages, submits, polls, collects, backs off.

A tick is one pass over everything; nothing in it depends on an earlier tick having succeeded, so an actor that was
killed or whose cluster was away goes on from the ledger and from what it finds on the cluster.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pymongo.errors import PyMongoError

from hydroflow.campaign import Cluster
from hydroflow.dispatch.collector import Collector
from hydroflow.dispatch.ledger import AgentLedger, Change
from hydroflow.dispatch.placement import Placement
from hydroflow.dispatch.reconcile import clear, compare
from hydroflow.dispatch.scheduler import Queue
from hydroflow.dispatch.site import Site
from hydroflow.dispatch.staging import refusal, stage
from hydroflow.dispatch.states import State
from hydroflow.dispatch.tracked import Health, Tracked
from hydroflow.dispatch.transport import Refused
from hydroflow.errors import ServiceError, TransportError
from hydroflow.store import Store

log = logging.getLogger(__name__)
FIRST_BACKOFF_S, LAST_BACKOFF_S = 5.0, 300.0
LOST_AFTER_S = 6 * 3600.0
"""A cluster may be away so long before its jobs are given up and run elsewhere."""
CLEAR_EVERY_S = 86_400.0
"""How often a cluster is looked over for what nobody wants, beside whenever it connects."""
SILENCE_S, SHELL_SILENCE_S = 20.0, 2.0
"""Wait so long for the exit code of a job that has left the queue before it counts as lost."""
SLOW_TICK_S = 20.0
SUBMIT_TOGETHER = 50
"""Scheduler jobs sent and handed in with one call."""
COLLECT_TOGETHER = 200
"""Jobs whose verdicts are written at once."""


class Actor(threading.Thread):
    """Runs one cluster until told to stop.

    Parameters
    ----------
    dead_owners
        Pattern of owners known to be dead (earlier agents of the same home), whose jobs are taken over at once.
    """

    def __init__(self, store: Store, ledger: AgentLedger, name: str, cluster: Cluster, staging: Path,
                 dead_owners: str, stop: threading.Event) -> None:
        super().__init__(name=f"cluster-{name}", daemon=True)
        self.store, self.ledger, self.cluster_name, self.cluster = store, ledger, name, cluster
        self.staging, self.dead_owners, self.stopping = staging, dead_owners, stop
        self.placement = Placement(name, cluster)
        self.collector = Collector(ledger, store.objects, name, cluster, self._elsewhere)
        self.site: Site | None = None
        self.tracked: dict[str, Tracked] = {}
        self.health = Health()
        self.idle_since = time.monotonic()
        self.replaced = threading.Event()
        self.reconcile = threading.Event()
        """Set: compare ledger and cluster at the next tick, as on every fresh connection."""
        self.reconcile.set()
        self.peers: Mapping[str, Actor] = {}
        """All actors of the agent; those of higher priority are filled first."""
        self.away_since: float | None = None
        self._took_over = 0.0
        self._cleared = 0.0
        self.period_s = 0.2 if cluster.batch == "Shell" and cluster.context == "local" else 2.0

    def run(self) -> None:
        while not self.stopping.is_set() and not self.replaced.is_set():
            try:
                wait = self.step()
            except Exception:  # an actor never dies of a surprise: it says so and goes on
                log.exception("[%s] unexpected error", self.cluster_name)
                wait = 10.0
            self.stopping.wait(wait)
        if self.site is not None:
            self.site.close()

    def step(self) -> float:
        """One tick with its back-off; returns how long to wait until the next."""
        if time.monotonic() < self.health.until:
            return min(1.0, self.health.until - time.monotonic())
        start = time.monotonic()
        try:
            busy = self.tick()
            if time.monotonic() - start > SLOW_TICK_S:
                log.warning("[%s] one pass took %.0f s: the cluster or MongoDB answers slowly", self.cluster_name,
                            time.monotonic() - start)
            doubt = self.placement.suspicion.text()
            self.health.state, self.health.reason, self.health.failures = "suspected" if doubt else "healthy", doubt, 0
            self.away_since = None
            return self.period_s if busy else max(self.period_s, 0.5)
        except (TransportError, ServiceError, PyMongoError, OSError) as error:
            self._bench(error)
            return 1.0

    def _bench(self, error: Exception) -> None:
        self.health.failures += 1
        self.placement.room = None
        pause = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (self.health.failures - 1))
        if isinstance(error, (PyMongoError, ServiceError)):
            pause = min(pause, 10.0)  # our own services: everything waits for them
        self.health.state, self.health.reason = "benched", " ".join(str(error).split())[:500]
        self.health.until = time.monotonic() + pause
        log.warning("[%s] %s; next try in %.0f s", self.cluster_name, self.health.reason, pause)
        if not isinstance(error, TransportError):
            return
        if self.site is not None and not self.site.local:
            self.site.close()
            self.site = None
        self.away_since = self.away_since or time.monotonic()
        try:  # what was surely never handed to the scheduler may go elsewhere
            self._give_back_unsubmitted()
            if time.monotonic() - self.away_since > LOST_AFTER_S:
                lost = self.ledger.release_lost(self.cluster_name, self.cluster.context == "local", self.dead_owners,
                                                f"{self.cluster_name} has been away for {LOST_AFTER_S / 3600:.2g} h")
                self.tracked.clear()
                if lost:
                    log.warning("[%s] away too long: %d jobs may run elsewhere", self.cluster_name, lost)
        except PyMongoError as second:
            log.warning("[%s] %s", self.cluster_name, second)

    # ---- one tick ----
    def tick(self) -> bool:
        """True when there is something to look after."""
        if self.site is None:
            self.site = Site(self.cluster_name, self.cluster, self.staging)
            if self.cluster.batch == "Shell" and self.cluster.max_cores is None:
                self.placement.max_cores = self.site.cores()
            self.reconcile.set()
        if self.reconcile.is_set() or time.monotonic() - self._cleared > CLEAR_EVERY_S:
            self._clear_unwanted()
            self.reconcile.clear()
            self._cleared = time.monotonic()
        self._take_over()
        self._cancel()
        if self.tracked:
            queue = self.site.queue([t.ident for t in self.tracked.values() if t.ident])
            self._look(queue)
            self._mark_running(queue)
            self._collect()
        claimed = self._claim()
        if self.tracked or claimed:
            self.idle_since = time.monotonic()
        self.health.jobs = {"batches": len(self.tracked), "jobs": sum(len(t.jobs) for t in self.tracked.values())}
        return bool(self.tracked)

    def _clear_unwanted(self) -> None:
        """Stop and remove what an earlier agent left and nobody waits for."""
        assert self.site is not None
        comparison = compare(self.site, self.ledger)
        if comparison.unwanted_jobs or comparison.unwanted_folders:
            log.info("[%s] clearing %d unwanted jobs and %d folders", self.cluster_name, len(comparison.unwanted_jobs),
                     len(comparison.unwanted_folders))
        clear(self.site, comparison)

    def _take_over(self) -> None:
        """Jobs of this cluster whose agent is gone, looked for every 10 s."""
        assert self.site is not None
        if time.monotonic() - self._took_over < 10:
            return
        found = self.ledger.take_over(self.cluster_name, self.site.local, self.dead_owners)
        self._took_over = time.monotonic()
        for job in found:
            known = self.tracked.setdefault(job["batch"], Tracked(job["batch"], {}, offered=True))
            if job["_id"] not in known.jobs:
                known.jobs[job["_id"]] = job
                known.ident = known.ident or job.get("scheduler_id") or ""
                known.seen_running = known.seen_running or job["state"] != State.submitted.value
                log.info("[%s] took over %s (%s)", self.cluster_name, job["_id"], job["state"])

    def _cancel(self) -> None:
        assert self.site is not None
        wishes = self.ledger.cancel_wishes(self.cluster_name) if self.tracked else {}
        for tracked in self.tracked.values():
            # not by the document: one that was taken over may carry the wish already, and nobody has acted on it
            keys = [key for key in tracked.jobs if key in wishes and key not in tracked.stopped]
            if keys:
                self.site.stop(tracked.name, tracked.ident, keys, whole=len(keys) == len(tracked.jobs))
                tracked.stopped.update(keys)
            for key in tracked.stopped & tracked.jobs.keys():
                # wanted again before its end was seen: it goes on, as one that the machine has lost
                tracked.jobs[key] |= wishes.get(key) or {"cancel": None, "reprieved": True}

    def _look(self, queue: Queue) -> None:
        """Where each batch stands; those that certainly were never submitted are submitted."""
        assert self.site is not None
        unclear = []
        for tracked in self.tracked.values():
            # by name first: after a submission that raced there may be two, and the batch is over only when both are
            present = queue.names.get(tracked.name)
            if present is not None and not tracked.ident:
                tracked.ident = present
                self.ledger.submitted_to_scheduler({key: present for key in tracked.jobs},
                                                   {key: self.site.folder(tracked.name) for key in tracked.jobs})
            if present is not None or tracked.ident in queue.running:
                continue
            if tracked.ident:
                tracked.ended = True
            else:
                unclear.append(tracked)
        traces = self.site.traces([t.name for t in unclear if t.offered])
        for tracked in unclear:
            tracked.ident, started = traces.get(tracked.name, ("", False))
            tracked.ended = bool(tracked.ident) or started
        self._submit([t for t in unclear if not t.ended])

    def _mark_running(self, queue: Queue) -> None:
        keys = []
        for tracked in self.tracked.values():
            if not tracked.seen_running and not tracked.ended and queue.running.get(tracked.ident):
                tracked.seen_running = True
                keys += list(tracked.jobs)
        if keys:
            self.ledger.running(keys, f"on {self.cluster_name}")

    def _collect(self) -> None:
        """Fetch and judge every batch that has ended."""
        assert self.site is not None
        ended = [t for t in self.tracked.values() if t.ended]
        if not ended:
            return
        self.ledger.collecting([key for t in ended if not t.silent_since for key in t.jobs])
        self.site.fetch([t.batch() for t in ended])
        pairs = [(t, key) for t in ended if self._settled(t) for key in t.jobs]
        for start in range(0, len(pairs), COLLECT_TOGETHER):
            self._judge(pairs[start:start + COLLECT_TOGETHER])

    def _settled(self, tracked: Tracked) -> bool:
        """Every job has left its exit code, or has had time to: a shared file system may show it late."""
        assert self.site is not None
        folder = self.site.staged(tracked.name)
        if all((folder / key / "exit_code").exists() or job.get("cancel") for key, job in tracked.jobs.items()):
            return True
        tracked.silent_since = tracked.silent_since or time.monotonic()
        return time.monotonic() - tracked.silent_since > (SILENCE_S if self.cluster.batch != "Shell" else SHELL_SILENCE_S)

    def _judge(self, ended: list[tuple[Tracked, str]]) -> None:
        """The verdicts on ended jobs; they are forgotten here, and folders that nobody needs any more are removed."""
        assert self.site is not None
        rubbish: list[str] = []
        jobs = [{**t.jobs[key], "folder": self.site.folder(t.name)} for t, key in ended]
        verdicts = self.collector.collect(
            [(job, self.site.staged(t.name) / key) for job, (t, key) in zip(jobs, ended, strict=True)])
        for (tracked, key), job, verdict in zip(ended, jobs, verdicts, strict=True):
            change = verdict.change
            log.info("[%s] %s is %s", self.cluster_name, key, change.target.value)
            if self.placement.suspicion.told(job["kind"], key, verdict.failure):
                log.warning("[%s] %s", self.cluster_name, self.placement.suspicion.text())
            del tracked.jobs[key]
            if not tracked.jobs:
                del self.tracked[tracked.name]
            if not verdict.keep_folder:
                rubbish.append(f"{job['folder']}/{key}")
            again = change.target in (State.prepared, State.cancelled, State.failed)
            still = again and "restart_from" not in {*change.values, *change.unset}
            if job.get("restart_from") and not still:
                rubbish.append(job["restart_from"])
        self._clean(rubbish)

    def _elsewhere(self, job: Mapping[str, Any]) -> bool:
        return any(a.placement.takes(job) for a in self.peers.values() if a is not self and a.health.state != "benched")

    def _clean(self, folders: list[str]) -> None:
        assert self.site is not None
        try:
            self.site.clean(folders)
        except TransportError as error:
            log.warning("[%s] %d folders were not removed: %s", self.cluster_name, len(folders), error)

    # ---- new work ----
    def _claim(self) -> int:
        assert self.site is not None
        placement = self.placement
        room_jobs = self.cluster.max_jobs - len(self.tracked)
        cores = None if placement.max_cores is None else placement.max_cores - sum(t.cores for t in self.tracked.values())
        gpus = self.cluster.max_gpus - sum(t.gpus for t in self.tracked.values())
        if room_jobs <= 0 or self.stopping.is_set() or (cores is not None and cores <= 0):
            placement.room = None
            return 0
        kinds = {job["kind"] for t in self.tracked.values() for job in t.jobs.values()}
        match = placement.match(cores, gpus, kinds, [a.placement for a in self.peers.values() if a is not self])
        waiting = self.ledger.prepared(match, room_jobs * self.cluster.group_size)
        # nothing is left for it to take: it has room for what comes (until now what it had before is told: no gap in which
        # a cluster of lower priority would think it full)
        placement.room = None if waiting else (cores, gpus)
        claimed = self.ledger.claim(self.cluster_name, placement.group(waiting, room_jobs, cores, gpus))
        fresh: dict[str, Tracked] = {}
        for job in claimed:
            fresh.setdefault(job["batch"], Tracked(job["batch"], {})).jobs[job["_id"]] = job
        self.tracked |= fresh
        self._submit(list(fresh.values()))
        return len(claimed)

    def _submit(self, batches: list[Tracked]) -> None:
        """Stage claimed batches and hand them to the scheduler, many per call."""
        assert self.site is not None
        for start in range(0, len(batches), SUBMIT_TOGETHER):
            ready = [t for t in batches[start:start + SUBMIT_TOGETHER] if self._prepare(t)]
            if not ready:
                continue
            for tracked in ready:
                tracked.offered = True
            try:
                taken = self.site.submit([t.batch() for t in ready])
            except Refused:
                for tracked in ready:
                    tracked.offered = False
                raise
            for tracked in ready:
                tracked.ident = taken.get(tracked.name, "")
                tracked.offered = bool(tracked.ident)
            self.ledger.submitted_to_scheduler({key: t.ident for t in ready if t.ident for key in t.jobs},
                                               {key: self.site.folder(t.name) for t in ready for key in t.jobs})
            if len(taken) < len(ready):
                raise Refused(f"{self.cluster_name}: the scheduler took {len(taken)} of {len(ready)} jobs")

    def _prepare(self, tracked: Tracked) -> bool:
        """Stage one batch; jobs that cannot be staged leave it. False when none is left."""
        assert self.site is not None
        folder = self.site.staged(tracked.name)
        shutil.rmtree(folder, ignore_errors=True)
        for key, job in list(tracked.jobs.items()):
            if job.get("cancel"):
                self.ledger.change([Change(key, State.cancelled, job["cancel"])])
                del tracked.jobs[key]
                continue
            try:
                stage(job, folder / key, self.site, self.store.objects)
            except (ServiceError, PyMongoError):
                raise
            except Exception as error:  # a bad input or engine: this job's own trouble, never the batch's
                shutil.rmtree(folder / key, ignore_errors=True)
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise ServiceError(f"the disk of {folder} is full while staging jobs; free some space") from error
                log.warning("[%s] %s cannot be prepared: %s", self.cluster_name, key, error)
                failure = refusal(error)
                self.ledger.change([Change(key, State.failed, f"its input could not be prepared: {failure['message']}",
                                           {"failure": failure})])
                del tracked.jobs[key]
        if not tracked.jobs:
            self.tracked.pop(tracked.name, None)
        return bool(tracked.jobs)

    def _give_back_unsubmitted(self) -> None:
        """Claims whose batch was never handed over (nothing was even staged completely) go back to the pool."""
        for tracked in list(self.tracked.values()):
            if not tracked.ident and not tracked.seen_running and not tracked.ended and not tracked.offered:
                self.ledger.give_back(list(tracked.jobs), f"{self.cluster_name} could not be reached")
                del self.tracked[tracked.name]
