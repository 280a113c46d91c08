"""The job ledger in MongoDB: what is wanted, who works on it, what came out. Nothing else writes job documents.

Every change of state is one atomic update that names the expected state (:mod:`hydroflow.dispatch.states`) and appends
time, host and reason to the job's history. Many changes of one kind travel in one bulk write.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import bson
from pymongo import UpdateOne
from pymongo.collection import Collection

from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.states import ACTIVE, TERMINAL, State, sources
from hydroflow.dispatch.suspicion import UNEXPLAINED
from hydroflow.errors import DataError, FailureCode, RunCancelled
from hydroflow.store import Store
from hydroflow.store.documents import Job

HISTORY = 100
"""Lines of history kept per job: documents must stay far below MongoDB's 16 MB."""
MAX_INPUT_BYTES = 1 << 20
CHUNK = 1000
LEASE_S = 60.0
CHECKPOINTS_KEPT = timedelta(days=7)
"""How long the files of a job that could go on from them stay on its cluster, when it was cancelled, or given up because it ran
out of wall time or was lost."""

KEPT_FOR_A_WHILE = [State.cancelled.value, State.failed.value, State.quarantined.value]
"""States of jobs that may be put back and then go on from what they left."""
_PENDING = [s.value for s in State if s not in TERMINAL]


def host() -> str:
    return socket.gethostname()


def now() -> datetime:
    return datetime.now(timezone.utc)


class Ledger:
    """What flows ask: submit, wait, look, retry, cancel. The agent's half is :class:`AgentLedger`.

    Parameters
    ----------
    cancelled
        Asked while waiting: once true, the wait ends with :class:`RunCancelled`.
    on_batch
        Told the documents of every batch that was waited for to its end.
    """

    def __init__(self, store: Store, cancelled: Callable[[], bool] = lambda: False,
                 on_batch: Callable[[list[Job]], None] = lambda jobs: None) -> None:
        self.store, self.cancelled, self.on_batch = store, cancelled, on_batch
        self.collection: Collection = store.database[Job._get_collection_name()]

    # ---- asking ----
    def submit(self, specs: Iterable[JobSpec], campaign: str) -> list[str]:
        """Want these jobs; returns their keys in order. A key that is there already keeps its state and its answer, but a
        cancelled one is wanted again, and so is one that ran out of its wall time where it now gets more (:meth:`puts_back`):
        both go on from their checkpoints where they left some within :data:`CHECKPOINTS_KEPT`. Resources are not part of a
        key: a job begins with those of the last who asked.

        Raises
        ------
        DataError
            inputs are not plain JSON or too large (bulky input belongs into `JobSpec.files`).
        """
        keys, updates = [], {}
        alike: dict[Resources, list[str]] = {}
        for spec in specs:
            keys.append(spec.key)
            if spec.key not in updates:
                updates[spec.key] = self._wanted(spec, campaign)
                alike.setdefault(spec.resources, []).append(spec.key)
        for chunk in _chunks(list(updates.values())):
            self.collection.bulk_write(chunk, ordered=False)
        for resources, same in alike.items():
            for chunk in _chunks(same):
                self._want_again(chunk, resources)
        return keys

    def puts_back(self, keys: Sequence[str], resources: Resources) -> set[str]:
        """Which of these jobs, given up for their wall time, :meth:`submit` would put back with these resources: more time or
        more cores, and less of neither."""
        match = {"_id": {"$in": list(keys)}, "state": State.quarantined.value, **_more_time(resources)}
        return {row["_id"] for row in self.collection.find(match, {"_id": 1})}

    def _want_again(self, keys: list[str], resources: Resources) -> None:
        """What those of some wanted jobs need that were there before. Those that have begun keep their resources: a person may
        have given them more, and what they left off is for as many processes."""
        # those that an agent was asked to stop, and has not yet
        self.collection.update_many({"_id": {"$in": keys}, "state": {"$in": _PENDING}, "cancel": {"$exists": True}},
                                    {"$unset": {"cancel": "", "discard": ""}})
        self._forget_old_checkpoints(keys)
        new = {"resources": asdict(resources)}
        self._move(keys, State.cancelled, State.prepared, "wanted again", new, ("cancel", "discard", "failure", "finished"))
        self._move(keys, State.quarantined, State.prepared,
                   f"wanted again, with {resources.wall_time_s} s on {resources.cores} cores",
                   {"failures": 0, "losses": 0, **new}, ("failure", "finished", "not_before", "avoid", "outputs"),
                   _more_time(resources))
        self.collection.update_many({"_id": {"$in": keys}, "state": State.prepared.value, "attempt": 0,
                                     "resources": {"$ne": new["resources"]}}, {"$set": new})

    def _forget_old_checkpoints(self, keys: list[str]) -> None:
        self.collection.update_many({"_id": {"$in": keys}, "state": {"$in": KEPT_FOR_A_WHILE},
                                     "finished": {"$lt": now() - CHECKPOINTS_KEPT}}, {"$unset": {"restart_from": ""}})

    def _wanted(self, spec: JobSpec, campaign: str) -> UpdateOne:
        insert = {
            "kind": spec.kind, "label": spec.label, "engine": spec.engine, "inputs": dict(spec.inputs),
            "files": dict(spec.files), "resources": asdict(spec.resources), "state": State.prepared.value, "attempt": 0,
            "created": now(), "history": [event(State.prepared, f"wanted by {campaign}")],
        }
        size = len(bson.encode(insert))
        if size > MAX_INPUT_BYTES:
            raise DataError(f"the inputs of a {spec.kind} job take {size / 1e6:.1f} MB; put bulky input into the object store "
                            "and its digest into JobSpec.files")
        # $max also sets the priority of a new document
        return UpdateOne({"_id": spec.key}, {"$setOnInsert": insert, "$addToSet": {"campaigns": campaign},
                                             "$max": {"priority": spec.priority}}, upsert=True)

    def wait(self, keys: Sequence[str], on_progress: Callable[[dict[str, int]], None] | None = None,
             poll_s: float = 0.5) -> list[Job]:
        """Wait until all jobs are terminal and return their documents in order.

        Parameters
        ----------
        on_progress
            called with the number of jobs per state, at first and whenever it changes.

        Raises
        ------
        RunCancelled
            once the ledger's `cancelled` says so; the jobs go on until :meth:`cancel` is called.
        """
        unique = list(dict.fromkeys(keys))
        finished: Counter[str] = Counter()
        pending, shown = unique, None
        while True:
            counts, open_keys = Counter(finished), []
            for chunk in _chunks(pending, 10_000):
                for row in self.collection.find({"_id": {"$in": chunk}}, {"state": 1}):
                    counts[row["state"]] += 1
                    if row["state"] in _PENDING:
                        open_keys.append(row["_id"])
                    else:
                        finished[row["state"]] += 1
            pending = open_keys
            if on_progress is not None and counts != shown:
                on_progress(dict(counts))
                shown = counts
            if not pending:
                jobs = self.jobs(keys)
                self.on_batch(jobs)
                return jobs
            self.check_cancelled(f"{len(pending)} of {len(unique)} jobs")
            # asking for 10 000 states takes tens of milliseconds: be modest
            time.sleep(max(poll_s, len(pending) * 2e-4))

    def check_cancelled(self, what: str) -> None:
        """For whoever waits in another way than :meth:`wait`: raises :class:`RunCancelled`, naming what is still open."""
        if self.cancelled():
            raise RunCancelled(f"cancelled while {what} were open")

    def jobs(self, keys: Sequence[str]) -> list[Job]:
        """Documents in the order of `keys`.

        Raises
        ------
        DataError
            names a key that is not in the ledger.
        """
        found: dict[str, Job] = {}
        for chunk in _chunks(list(dict.fromkeys(keys))):
            found |= {job.key: job for job in Job.objects(key__in=chunk)}
        missing = [key for key in keys if key not in found]
        if missing:
            raise DataError(f"{len(missing)} jobs are not in the ledger, the first is {missing[0]}")
        return [found[key] for key in keys]

    def retry(self, keys: Sequence[str], reason: str = "retried by hand", redo: bool = False,
              wall_time_s: int | None = None, cores: int | None = None) -> int:
        """Put failed, quarantined and cancelled jobs back, with fresh attempts; `redo` also those that are done (their
        stored answer is given up). Those that ran out of their wall time or were lost with their machine go on from what they
        left, the others begin again; `wall_time_s` and `cores` are what they get instead of what they had. Returns how many."""
        states = [State.failed, State.quarantined, State.cancelled, *([State.done] if redo else [])]
        wanted = {"resources.wall_time_s": wall_time_s, "resources.cores": cores}
        new = {name: value for name, value in wanted.items() if value is not None}
        unset = ("cancel", "discard", "failure", "finished", "not_before", "avoid", "result", "outputs")
        count = 0
        for chunk in _chunks(list(keys)):
            self._forget_old_checkpoints(chunk)
            count += self._move(chunk, (State.failed, State.quarantined), State.prepared, reason,
                                {"failures": 0, "losses": 0, **new}, unset, {"restart_from": {"$type": "string"}})
            count += self._move(chunk, states, State.prepared, reason, {"failures": 0, "losses": 0, "adjustments": {}, **new},
                                (*unset, "restart_from"))
        return count

    def cancel(self, keys: Sequence[str], campaign: str | None = None, reason: str = "cancelled by hand",
               keep: bool = True) -> int:
        """Nobody wants these any more. Waiting jobs are cancelled at once; an agent stops those on a cluster. With
        `campaign`, only that campaign's wish is taken back, and jobs that another one wants go on. Without `keep` their
        checkpoints go at once."""
        discard: dict[str, Any] = {} if keep else {"discard": True}
        count = 0
        for chunk in _chunks(list(keys)):
            match: dict[str, Any] = {"_id": {"$in": chunk}}
            if campaign is not None:  # what is over stays this campaign's, with its cost
                match["state"] = {"$in": _PENDING}
                self.collection.update_many(match, {"$pull": {"campaigns": campaign}})
                match["campaigns"] = []
            count += self.collection.update_many(
                {**match, "state": State.prepared.value},
                _update(State.cancelled, reason, {"finished": now()}, () if keep else ("restart_from",))).modified_count
            count += self.collection.update_many(
                {**match, "state": {"$in": [s.value for s in ACTIVE]}}, {"$set": {"cancel": reason, **discard}}).modified_count
        return count

    def counts(self, campaign: str | None = None) -> dict[str, dict[str, int]]:
        """kind → state → number of jobs."""
        out: dict[str, dict[str, int]] = {}
        pipeline: list[dict[str, Any]] = [{"$match": {"campaigns": campaign}}] if campaign else []
        for row in self.collection.aggregate([*pipeline, {"$group": {"_id": ["$kind", "$state"], "n": {"$sum": 1}}}]):
            out.setdefault(row["_id"][0], {})[row["_id"][1]] = row["n"]
        return out

    # ---- changing ----
    def _move(self, keys: Sequence[str], expected: State | Iterable[State], target: State, reason: str,
              values: Mapping[str, Any] | None = None, unset: Sequence[str] = (),
              also: Mapping[str, Any] | None = None) -> int:
        """One atomic change of state of many jobs; those that are not in an expected state stay. Returns how many moved."""
        states = [s.value for s in ([expected] if isinstance(expected, State) else expected)]
        illegal = set(states) - set(sources(target))
        if illegal:
            raise AssertionError(f"no job may go from {', '.join(illegal)} to {target.value}")
        return self.collection.update_many(
            {"_id": {"$in": list(keys)}, "state": {"$in": states}, **(also or {})},
            _update(target, reason, values, unset)).modified_count


def _more_time(resources: Resources) -> dict[str, Any]:
    """Filter of the jobs that ran out of time where these resources are a longer one or more cores, and less of neither."""
    return {"failure.code": FailureCode.walltime.value,
            "resources.wall_time_s": {"$lte": resources.wall_time_s}, "resources.cores": {"$lte": resources.cores},
            "$or": [{"resources.wall_time_s": {"$lt": resources.wall_time_s}}, {"resources.cores": {"$lt": resources.cores}}]}


def spec_of(job: Mapping[str, Any] | Job) -> JobSpec:
    """The job as its engine sees it, from a document."""
    data = job.to_mongo() if isinstance(job, Job) else job
    return JobSpec(
        kind=data["kind"], inputs=data.get("inputs", {}), engine=data.get("engine", ""), files=data.get("files", {}),
        resources=Resources(**data.get("resources", {})), label=data.get("label", ""), priority=data.get("priority", 0))


def event(state: State, reason: str) -> dict[str, Any]:
    return {"time": now(), "state": state.value, "host": host(), "reason": reason[:2000]}


def _update(state: State, reason: str, values: Mapping[str, Any] | None = None, unset: Sequence[str] = ()) -> dict[str, Any]:
    update: dict[str, Any] = {
        "$set": {"state": state.value, **(values or {})},
        "$push": {"history": {"$each": [event(state, reason)], "$slice": -HISTORY}},
    }
    if unset:
        update["$unset"] = {name: "" for name in unset}
    return update


def _chunks(items: list, size: int = CHUNK) -> Iterable[list]:
    return (items[i:i + size] for i in range(0, len(items), size))


_ON_CLUSTER = ("owner", "lease_until")


@dataclass(frozen=True)
class Change:
    """What an agent reports about one of its jobs: the state it goes to, why, and the values that come with it."""

    key: str
    target: State
    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)
    unset: tuple[str, ...] = ()


class AgentLedger(Ledger):
    """What an agent does to jobs: claim, keep the lease, report.

    Parameters
    ----------
    owner
        ``host/home/process``; the first two parts say whose dead agents' jobs may be taken over at once.
    """

    def __init__(self, store: Store, owner: str) -> None:
        super().__init__(store)
        self.owner = owner

    def claim(self, cluster: str, candidates: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """Take prepared jobs for a cluster, recording the intent to submit them before any scheduler is asked.

        Parameters
        ----------
        candidates
            (key, batch, other values) per job.

        Returns
        -------
        list of dict
            Documents of the jobs that were still free.
        """
        lease = now() + timedelta(seconds=LEASE_S)
        updates = []
        for key, batch, values in candidates:
            update = _update(State.submitted, f"for {cluster}, batch {batch}", {
                "owner": self.owner, "lease_until": lease, "cluster": cluster, "batch": batch, **values}, ("scheduler_id",))
            updates.append(UpdateOne({"_id": key, "state": State.prepared.value}, {**update, "$inc": {"attempt": 1}}))
        if not updates:
            return []
        self.collection.bulk_write(updates, ordered=False)
        batches = {batch for _, batch, _ in candidates}
        # the clusters of one agent are one owner, and give the same jobs the same batch
        return list(self.collection.find({"_id": {"$in": [key for key, _, _ in candidates]}, "owner": self.owner,
                                          "cluster": cluster, "batch": {"$in": list(batches)}, "state": State.submitted.value}))

    def prepared(self, match: Mapping[str, Any], limit: int) -> list[dict[str, Any]]:
        """The most urgent waiting jobs that match, with what placing them needs."""
        query = {"state": State.prepared.value, **match}
        fields = {"kind": 1, "resources": 1, "attempt": 1, "restart_from": 1}
        return list(self.collection.find(query, fields).sort([("priority", -1), ("created", 1)]).limit(limit))

    def heartbeat(self) -> None:
        """Renew the lease on everything this agent owns."""
        self.collection.update_many({"owner": self.owner, "state": {"$in": [s.value for s in ACTIVE]}},
                                    {"$set": {"lease_until": now() + timedelta(seconds=LEASE_S)}})

    def take_over(self, cluster: str, here_only: bool, dead_owners: str) -> list[dict[str, Any]]:
        """Jobs on a cluster whose agent is gone: their lease ran out, or the owner matches `dead_owners` (a pattern of
        owners known to be dead). `here_only` is for clusters that only this host can see."""
        stale: list[dict[str, Any]] = [{"owner": {"$regex": dead_owners}}]
        expired: dict[str, Any] = {"lease_until": {"$lt": now()}}
        if here_only:
            expired["owner"] = {"$regex": "^" + self.owner.split("/")[0] + "/"}
        stale.append(expired)
        match = {"cluster": cluster, "state": {"$in": [s.value for s in ACTIVE]},
                 "$and": [{"owner": {"$ne": self.owner}}, {"$or": stale}]}
        if self.collection.count_documents(match, limit=1) == 0:
            return []
        # one update, so that of two agents that see an orphan only one gets it
        self.collection.update_many(match, {"$set": {"owner": self.owner, "lease_until": now() + timedelta(seconds=LEASE_S)}})
        return self.owned(cluster)

    def owned(self, cluster: str) -> list[dict[str, Any]]:
        return list(self.collection.find({"cluster": cluster, "owner": self.owner, "state": {"$in": [s.value for s in ACTIVE]}}))

    def submitted_to_scheduler(self, idents: Mapping[str, str], folders: Mapping[str, str]) -> None:
        """Record key → scheduler id and key → folder of the batch on the cluster, in one write."""
        updates = [UpdateOne({"_id": key, "owner": self.owner}, {"$set": {"scheduler_id": ident, "folder": folders[key]}})
                   for key, ident in idents.items()]
        if updates:
            self.collection.bulk_write(updates, ordered=False)

    def running(self, keys: Sequence[str], reason: str) -> None:
        self._move(keys, State.submitted, State.running, reason, also={"owner": self.owner})

    def collecting(self, keys: Sequence[str]) -> None:
        self._move(keys, (State.submitted, State.running), State.collecting, "its process has ended", also={"owner": self.owner})

    def change(self, changes: Sequence[Change]) -> None:
        """Report ends of attempts, in one write. A job that is no longer this agent's, or in no state from which it may go
        there, stays as it is."""
        updates = []
        for c in changes:
            expected = [s.value for s in ACTIVE if s.value in sources(c.target)]
            values = {**c.values, "finished": now()} if c.target in TERMINAL else c.values
            updates.append(UpdateOne({"_id": c.key, "owner": self.owner, "state": {"$in": expected}},
                                     _update(c.target, c.reason, values, (*_ON_CLUSTER, *c.unset))))
        if updates:
            self.collection.bulk_write(updates, ordered=False)

    def release_lost(self, cluster: str, here_only: bool, dead_owners: str, reason: str) -> int:
        """Give up every job and checkpoint on a cluster that has been away too long: any cluster may run them again. Should
        the cluster come back, what it still has of them is unwanted and is stopped (:mod:`hydroflow.dispatch.reconcile`)."""
        self.take_over(cluster, here_only, dead_owners)
        self._forget_checkpoints({"cluster": cluster})
        # jobs that were to be tried here after they had failed elsewhere for no known reason
        self.collection.update_many({"state": State.prepared.value, "avoid.0": {"$exists": True},
                                     "failure.code": {"$in": [code.value for code in UNEXPLAINED]}}, {"$unset": {"avoid": ""}})
        update = _update(State.prepared, reason, unset=(*_ON_CLUSTER, "cluster", "batch", "scheduler_id", "restart_from"))
        return self.collection.update_many(
            {"cluster": cluster, "owner": self.owner, "state": {"$in": [s.value for s in ACTIVE]}},
            {**update, "$inc": {"losses": 1}}).modified_count

    def _forget_checkpoints(self, match: Mapping[str, Any]) -> None:
        self.collection.update_many({"state": State.prepared.value, "restart_from": {"$type": "string"}, **match},
                                    {"$unset": {"restart_from": ""}})

    def unplaceable(self, clusters: Mapping[str, Mapping[str, Any]]) -> int:
        """Fail waiting jobs that none of these clusters can ever run; `clusters` gives each one's MongoDB filter. Returns
        how many. Checkpoints on any other cluster are given up."""
        self._forget_checkpoints({"cluster": {"$nin": list(clusters)}})
        rows = self.collection.find({"state": State.prepared.value, "$nor": list(clusters.values())},
                                    {"kind": 1, "resources": 1, "avoid": 1, "failure": 1})
        count = 0
        for row in rows:
            told = row.get("failure") or {}
            if row.get("avoid"):
                reason = f"no cluster can run it ({', '.join(row['avoid'])}: {told.get('message', 'cannot')})"
            else:
                r = row.get("resources", {})
                reason = (f"no cluster takes {row['kind']} with {r.get('cores', 1)} cores and {r.get('gpus', 0)} GPUs "
                          f"(clusters: {', '.join(clusters)}); change its resources or the clusters' kinds and limits")
            failure = told or {"code": "bad_input", "message": reason, "details": {}}
            count += self._move([row["_id"]], State.prepared, State.failed, reason, {"failure": failure, "finished": now()})
        for name, takes in clusters.items():  # what has become too large for the cluster of its checkpoints
            self._forget_checkpoints({"cluster": name, "$nor": [takes]})
        return count

    def give_back(self, keys: Sequence[str], reason: str) -> int:
        """Not submitted after all: any cluster may take them, except where checkpoints bind them to this one."""
        return self._move(keys, State.submitted, State.prepared, reason, unset=(*_ON_CLUSTER, "batch"),
                          also={"owner": self.owner})

    def cancel_wishes(self, cluster: str) -> dict[str, dict[str, Any]]:
        """key → ``cancel`` (the reason) and ``discard`` of this agent's jobs on a cluster that nobody wants any more."""
        rows = self.collection.find({"cluster": cluster, "owner": self.owner, "cancel": {"$exists": True},
                                     "state": {"$in": [s.value for s in ACTIVE]}}, {"cancel": 1, "discard": 1})
        return {row["_id"]: {"cancel": row["cancel"], "discard": row.get("discard", False)} for row in rows}
