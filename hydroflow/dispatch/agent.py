"""The agent: a long-lived process outside the flows that runs jobs on the clusters.

One per home (a lock that dies with the process); one thread per cluster; a heartbeat that keeps the leases. Kill it in
any way: the next one takes its jobs over, adopts what still runs and collects what has finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from pymongo.errors import PyMongoError

from hydroflow.campaign import Cluster, load
from hydroflow.dispatch.actor import Actor
from hydroflow.dispatch.clusters import load_clusters
from hydroflow.dispatch.ledger import AgentLedger, host, now
from hydroflow.errors import HydroflowError, ServiceError
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store, open_store
from hydroflow.store.process import ProcessIdentity

log = logging.getLogger("hydroflow.dispatch")
HEARTBEAT_S = 15.0


class Agent:
    """Runs actors for a set of clusters until stopped."""

    def __init__(self, store: Store, clusters: Mapping[str, Cluster]) -> None:
        self.store = store
        home = str(store.settings.home)
        family = f"{host()}/{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}/"
        self.ledger = AgentLedger(store, f"{family}{os.getpid()}-{os.urandom(3).hex()}")
        self.dead_owners = f"^{re.escape(family)}"  # the home's lock is ours, so earlier owners are dead
        self.record_id = family.rstrip("/")
        self.stop = threading.Event()
        self.actors: dict[str, Actor] = {}
        for name, cluster in clusters.items():
            self.add(name, cluster)

    def add(self, name: str, cluster: Cluster) -> None:
        """Serve a cluster; a new definition of a known one replaces its actor, which adopts the jobs."""
        old = self.actors.get(name)
        if old is not None:
            if old.cluster == cluster:
                return
            old.replaced.set()
            if old.is_alive():
                old.join()
        actor = Actor(self.store, self.ledger, name, cluster, self.store.settings.home / "jobs" / name, self.dead_owners,
                      self.stop)
        if old is not None:
            actor.tracked = old.tracked
        self.actors = {**self.actors, name: actor}  # a new mapping: other threads go through the old one
        for known in self.actors.values():
            known.peers = self.actors
        if self.running:
            actor.start()

    @property
    def running(self) -> bool:
        return any(a.is_alive() for a in self.actors.values())

    def run(self, until_idle_s: float | None = None) -> None:
        """Work until :attr:`stop` is set, or nothing has been to do for `until_idle_s`."""
        for actor in self.actors.values():
            actor.start()
        beat, born = 0.0, time.monotonic()
        while not self.stop.is_set():
            if time.monotonic() - beat > HEARTBEAT_S:
                try:
                    self._heartbeat()
                    beat = time.monotonic()
                except (PyMongoError, HydroflowError) as error:
                    log.warning("heartbeat failed, MongoDB is away: %s", str(error)[:200])
            if until_idle_s is not None and time.monotonic() - born > until_idle_s and all(
                    not a.tracked and time.monotonic() - a.idle_since > until_idle_s for a in self.actors.values()):
                log.info("idle for %g s: leaving", until_idle_s)
                break
            self.stop.wait(0.2)
        self.stop.set()
        for actor in self.actors.values():
            actor.join(timeout=30)
        with contextlib.suppress(PyMongoError):
            self._records.update_one({"_id": self.record_id}, {"$set": {"stopped": now()}})

    def look_once(self, wait_s: float = 60.0) -> None:
        """One pass over all clusters that takes no new jobs: adopt what runs, collect what has ended, submit what never was,
        stop what nobody wants. For a process that is not to stay; the next agent of the home takes over from it."""
        self.stop.set()  # actors claim nothing then
        for actor in self.actors.values():
            deadline = time.monotonic() + wait_s
            actor.step()
            while any(t.ended for t in actor.tracked.values()) and time.monotonic() < deadline:
                time.sleep(actor.period_s)
                actor.step()
            if actor.site is not None:
                actor.site.close()

    def _fail_unplaceable(self) -> None:
        """Jobs that no cluster can ever run must not wait for ever; another live agent may have other clusters."""
        others = self._records.count_documents({"_id": {"$ne": self.record_id}, "stopped": {"$exists": False},
                                                "heartbeat": {"$gt": now() - timedelta(seconds=4 * HEARTBEAT_S)}})
        # a shell cluster that was not reached yet has not told how many cores it has
        placements = [actor.placement for actor in self.actors.values()]
        known = all(p.max_cores is not None or p.cluster.batch != "Shell" for p in placements)
        if not others and known:
            count = self.ledger.unplaceable({p.name: p.capable(p.max_cores, p.cluster.max_gpus) for p in placements})
            if count:
                log.warning("%d jobs can run on no cluster: failed", count)

    @property
    def _records(self) -> Any:
        return self.store.database["agents"]

    def _heartbeat(self) -> None:
        self.ledger.heartbeat()
        identity = ProcessIdentity.of(os.getpid())
        clusters = {name: {"state": a.health.state, "reason": a.health.reason, **a.health.jobs}
                    for name, a in self.actors.items()}
        values = {"host": host(), "home": str(self.store.settings.home), "process": identity.to_dict() if identity else {},
                  "heartbeat": now(), "clusters": clusters, "owner": self.ledger.owner}
        self._records.update_one({"_id": self.record_id}, {"$set": values, "$unset": {"stopped": ""}}, upsert=True)
        self._fail_unplaceable()
        record = self._records.find_one_and_update({"_id": self.record_id}, {"$unset": {"reconcile": ""}},
                                                   {"campaigns": 1, "reconcile": 1}) or {}
        if record.get("reconcile"):
            for actor in self.actors.values():
                actor.reconcile.set()
        for path in record.get("campaigns", []):
            try:
                for name, cluster in load(path).clusters.items():
                    self.add(name, cluster)
            except HydroflowError as error:
                log.warning("campaign file %s is not used: %s", path, error)


@contextlib.contextmanager
def _home_lock(settings: ServiceSettings) -> Iterator[IO[str] | None]:
    """The lock of the one agent of a home; None when another holds it. The kernel frees it when the process dies."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with open(settings.home / "agent.lock", "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield handle


def serve(settings: ServiceSettings, clusters: Mapping[str, Cluster], until_idle_s: float | None = None) -> None:
    """Run an agent in this process until SIGTERM or SIGINT.

    Raises
    ------
    ServiceError
        another agent of this home is alive, or a service is not.
    """
    with _home_lock(settings) as lock:
        if lock is None:
            raise ServiceError(f"an agent for {settings.home} is running already; `hydroflow jobs list` shows what it does")
        with open_store(settings) as store:
            agent = Agent(store, clusters)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: agent.stop.set())
            log.info("agent %s serves %s", agent.ledger.owner, ", ".join(clusters))
            agent.run(until_idle_s)


def look_once(store: Store, clusters: Mapping[str, Cluster]) -> bool:
    """:meth:`Agent.look_once` where no agent of this home is alive; a live one is asked to do it. True when it was done
    here."""
    with _home_lock(store.settings) as lock:
        if lock is not None:
            Agent(store, clusters).look_once()
            return True
    record = alive(store)
    if record is not None:
        store.database["agents"].update_one({"_id": record["_id"]}, {"$set": {"reconcile": True}})
    return False


def alive(store: Store) -> dict[str, Any] | None:
    """The record of the live agent of this home, None when there is none."""
    for record in store.database["agents"].find({"home": str(store.settings.home)}):
        if record["host"] == host():
            identity = ProcessIdentity.from_dict(record.get("process"))
            if identity is not None and identity.alive():
                return record
        elif record["heartbeat"] > now() - timedelta(seconds=4 * HEARTBEAT_S) and "stopped" not in record:
            return record
    return None


def stop_agent(settings: ServiceSettings) -> bool:
    """Stop the agent of this home on this machine; jobs that run are left running, the next agent collects them. True when
    there was one.

    Raises
    ------
    ServiceError
        it is still there after 30 s.
    """
    with open_store(settings) as store:
        record = alive(store)
    identity = ProcessIdentity.from_dict(record.get("process")) if record is not None and record["host"] == host() else None
    if identity is None:
        return False
    if not identity.stop(30):
        raise ServiceError(f"the agent (pid {identity.pid}) does not end; `kill -9 {identity.pid}` is safe")
    return True


def start_agent(settings: ServiceSettings, campaign_path: str | Path | None = None) -> int:
    """Start an agent for a campaign's clusters, detached from this process, unless the home has a live one; returns its
    pid. A live one learns of the campaign's clusters, and compares the ledger with all of its own, at its next heartbeat.

    Raises
    ------
    ServiceError
        it does not come up; the message ends with its last words.
    """
    with open_store(settings) as store:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            record = alive(store)
            if record is not None:
                learn = {"$addToSet": {"campaigns": str(Path(campaign_path).absolute())}} if campaign_path is not None else {}
                store.database["agents"].update_one({"_id": record["_id"]}, {"$set": {"reconcile": True}, **learn})
                return int(record["process"]["pid"])
            process = _spawn(settings, campaign_path)
            while process.poll() is None and time.monotonic() < deadline:
                record = alive(store)
                if record is not None and record["process"]["pid"] == process.pid:
                    return process.pid
                time.sleep(0.1)
            # it left: another one may have been faster
            time.sleep(0.2)
            if alive(store) is None:
                break
        lines = (settings.home / "logs" / "agent.log").read_text(errors="replace").strip().splitlines()
        raise ServiceError(f"the agent did not start: {lines[-1][:300] if lines else 'it left no log'} "
                           f"(log: {settings.home / 'logs' / 'agent.log'})")


def _spawn(settings: ServiceSettings, campaign_path: str | Path | None) -> subprocess.Popen:
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "hydroflow.dispatch.agent"]
    if campaign_path is not None:
        command.append(str(Path(campaign_path).absolute()))
    with open(logs / "agent.log", "ab") as output:
        return subprocess.Popen(command, env={**os.environ, **settings.to_environment()}, stdin=subprocess.DEVNULL,
                                stdout=output, stderr=output, start_new_session=True)


def configure_logging(verbose: bool = True) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s",
                        stream=sys.stderr)
    logging.getLogger("paramiko").setLevel(logging.ERROR)


def main(arguments: list[str]) -> int:
    """Entry point of the detached process: ``python -m hydroflow.dispatch.agent [CAMPAIGN]``."""
    configure_logging()
    try:
        serve(ServiceSettings.from_environment(), load_clusters(campaign=arguments[0] if arguments else None))
    except HydroflowError as error:
        print(f"hydroflow: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
