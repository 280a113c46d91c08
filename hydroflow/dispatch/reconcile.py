"""The ledger compared with a scheduler and the folders on its cluster: what runs unwatched, what has ended unseen, what
nobody wants any more. An actor does this whenever it connects; `hydroflow jobs reconcile` shows and does it by hand.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from hydroflow.campaign import Cluster
from hydroflow.dispatch.ledger import CHECKPOINTS_KEPT, KEPT_FOR_A_WHILE, Ledger, now
from hydroflow.dispatch.site import Site
from hydroflow.dispatch.states import ACTIVE, State
from hydroflow.errors import TransportError

_OURS = re.compile(r"([0-9a-f]{32})-\d+(-and-\d+)?")


@dataclass
class Comparison:
    """Batches by name. Only batches whose key is in this ledger are ever touched: a cluster may serve several ledgers."""

    cluster: str
    in_queue: list[str] = field(default_factory=list)
    """Active in the ledger and in the queue."""
    ended: list[str] = field(default_factory=list)
    """Active in the ledger and no longer in the queue: to be collected, or submitted again if lost."""
    unwanted_jobs: dict[str, str] = field(default_factory=dict)
    """In the queue, but the ledger no longer waits for them: name → scheduler id."""
    unwanted_folders: list[str] = field(default_factory=list)
    """Left on the cluster, and no job refers to them."""
    error: str = ""
    """Why the cluster could not be asked; then nothing is known about it."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(site: Site, ledger: Ledger) -> Comparison:
    # the cluster first: what it has was in the ledger before, so nothing new can look unwanted
    rows = ledger.collection.find(_active(site.name), {"scheduler_id": 1})
    queue = site.queue([row["scheduler_id"] for row in rows if row.get("scheduler_id")])
    folders = [name for name in site.call(f"ls -1 {shlex.quote(site.root)}").split() if _OURS.fullmatch(name)]
    known = _known(ledger, {*queue.names, *folders})
    active = {row["batch"]: row for row in ledger.collection.find(_active(site.name), {"batch": 1, "scheduler_id": 1})}
    going_on = [{"state": {"$nin": [State.done.value, *KEPT_FOR_A_WHILE]}},
                {"state": {"$in": KEPT_FOR_A_WHILE}, "finished": {"$gte": now() - CHECKPOINTS_KEPT}}]
    kept = {row["restart_from"].rsplit("/", 2)[-2] for row in ledger.collection.find(
        {"restart_from": {"$type": "string"}, "$or": going_on}, {"restart_from": 1})}
    out = Comparison(site.name)
    for name, row in active.items():
        present = name in queue.names or row.get("scheduler_id") in queue.running
        (out.in_queue if present else out.ended).append(name)
    out.unwanted_jobs = {name: ident for name, ident in queue.names.items() if name in known and name not in active}
    out.unwanted_folders = [name for name in folders if name in known and name not in active and name not in kept]
    return out


def examine(name: str, cluster: Cluster, ledger: Ledger) -> Comparison:
    """:func:`compare` over a connection of its own; a cluster that cannot be asked says why."""
    try:
        site = Site(name, cluster, ledger.store.settings.home / "jobs" / name)
    except (TransportError, OSError) as error:
        return Comparison(name, error=str(error))
    try:
        return compare(site, ledger)
    except TransportError as error:
        return Comparison(name, error=str(error))
    finally:
        site.close()


def clear(site: Site, comparison: Comparison) -> None:
    """Stop and remove what nobody wants."""
    for name, ident in comparison.unwanted_jobs.items():
        site.stop(name, ident, _keys_in(site, name), whole=True)
    for name in comparison.unwanted_folders:
        # a folder that holds no job is removed as well, through a name inside it
        site.clean([f"{site.folder(name)}/{key}" for key in _keys_in(site, name) or ["none"]])
    # archives of transfers that were cut; another agent may be sending one at this moment
    site.call(f"find {shlex.quote(site.root)} -maxdepth 1 -type f '(' -name '.send-*' -o -name '.fetch-*' ')' -mmin +60 -delete")


def _keys_in(site: Site, batch: str) -> list[str]:
    names = site.call(f"ls -1 {shlex.quote(site.folder(batch))} 2>/dev/null || true").split()
    return [name for name in names if re.fullmatch(r"[0-9a-f]{32}", name)]


def _active(cluster: str) -> dict[str, Any]:
    return {"cluster": cluster, "state": {"$in": [s.value for s in ACTIVE]}}


def _known(ledger: Ledger, names: set[str]) -> set[str]:
    keys = {name: found.group(1) for name in names if (found := _OURS.fullmatch(name))}
    there = {row["_id"] for row in ledger.collection.find({"_id": {"$in": list(keys.values())}}, {"_id": 1})}
    return {name for name, key in keys.items() if key in there}
