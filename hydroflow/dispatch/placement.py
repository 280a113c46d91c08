"""Which waiting jobs a cluster takes: what it can run, what it has room for, what others should run instead, and how jobs are
put together."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydroflow.campaign import Cluster
from hydroflow.dispatch.job import Resources
from hydroflow.dispatch.ledger import now
from hydroflow.dispatch.scheduler import batch_name, wall_time_each
from hydroflow.dispatch.suspicion import Suspicion


class Placement:
    """What one cluster may take.

    Attributes
    ----------
    max_cores
        Cores in use at once; None: any number.
    room
        Cores and GPUs still free after the last claim; None when full, not connected or benched.
    """

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name, self.cluster = name, cluster
        self.max_cores = cluster.max_cores
        self.room: tuple[int | None, int] | None = None
        self.suspicion = Suspicion()

    def capable(self, cores: int | None, gpus: int) -> dict[str, Any]:
        """MongoDB filter of the jobs this cluster can run with so many cores (None: any number) and GPUs."""
        kinds = [fnmatch.translate(pattern) for pattern in self.cluster.kinds]
        match: dict[str, Any] = {
            "kind": {"$regex": "|".join(f"(?:{k})" for k in kinds)} if "*" not in self.cluster.kinds else {"$exists": True},
            "resources.gpus": {"$lte": max(0, gpus)},
            "avoid": {"$ne": self.name},
        }
        if cores is not None:
            match["resources.cores"] = {"$lte": cores}
        if self.cluster.max_wall_time_s is not None:
            match["resources.wall_time_s"] = {"$lte": wall_time_each(self.cluster, 1)}
        return match

    def takes(self, job: Mapping[str, Any]) -> bool:
        """Whether this cluster may ever run a job and is not suspected of failing its kind: :meth:`capable` for one
        document."""
        r = Resources(**job.get("resources", {}))
        return (any(fnmatch.fnmatchcase(job["kind"], pattern) for pattern in self.cluster.kinds)
                and self.name not in job.get("avoid", []) and not self.suspicion.suspected(job["kind"])
                and r.gpus <= self.cluster.max_gpus and (self.max_cores is None or r.cores <= self.max_cores)
                and wall_time_each(self.cluster, 1) >= r.wall_time_s)

    def match(self, cores: int | None, gpus: int, under_way: Iterable[str], others: Iterable[Placement]) -> dict[str, Any]:
        """Filter of the waiting jobs to take now.

        Parameters
        ----------
        under_way
            kinds of the jobs the cluster has already: of a kind on trial there is one at a time.
        others
            the other clusters; those of higher priority that have room are filled first.
        """
        due = [{"not_before": {"$exists": False}}, {"not_before": {"$lte": now()}}]
        # its checkpoints are where it ran
        here = [{"restart_from": None}, {"cluster": self.name}]
        closed = [*self.suspicion.resting(), *set(self.suspicion.on_trial()).intersection(under_way)]
        match = {**self.capable(cores, gpus), "$and": [{"$or": due}, {"$or": here}]}
        match["kind"] = {**match["kind"], "$nin": closed}
        better = [a._trusted() for a in others if a.room is not None and a.cluster.priority > self.cluster.priority]
        if better:  # but what goes on from checkpoints here can go on nowhere else
            match["$and"].append({"$or": [{"restart_from": {"$type": "string"}}, {"$nor": better}]})
        return match

    def _trusted(self) -> dict[str, Any]:
        """Filter of what this cluster has room for and is not suspected of failing."""
        assert self.room is not None
        match = self.capable(*self.room)
        match["kind"] = {**match["kind"], "$nin": [*self.suspicion.resting(), *self.suspicion.on_trial()]}
        return match

    def group(self, waiting: Sequence[dict[str, Any]], room_jobs: int, room_cores: int | None,
              room_gpus: int) -> list[tuple[str, str, dict[str, Any]]]:
        """Put waiting jobs of one kind and size together and stop where the cluster is full; (key, batch, other values) per
        job, as :meth:`~hydroflow.dispatch.ledger.AgentLedger.claim` takes them."""
        groups: list[list[dict[str, Any]]] = []
        open_groups: dict[tuple, list[dict[str, Any]]] = {}
        trial = {kind: False for kind in self.suspicion.on_trial()}
        for job in waiting:
            r = Resources(**job.get("resources", {}))
            if trial.get(job["kind"]):
                continue
            alike = (job["kind"], r)
            group = open_groups.get(alike)
            if group is None or len(group) >= self._group_size(r):
                if len(groups) >= room_jobs or (room_cores is not None and r.cores > room_cores) or r.gpus > max(0, room_gpus):
                    continue
                group = open_groups[alike] = []
                groups.append(group)
                room_cores = room_cores - r.cores if room_cores is not None else None
                room_gpus -= r.gpus
            group.append(job)
            if job["kind"] in trial:
                trial[job["kind"]] = True
        return [(job["_id"], batch_name([(j["_id"], j.get("attempt", 0) + 1) for j in group]), {})
                for group in groups for job in group]

    def _group_size(self, r: Resources) -> int:
        """Jobs of this size that one scheduler job may hold within its wall time."""
        size = self.cluster.group_size
        while size > 1 and wall_time_each(self.cluster, size) < r.wall_time_s:
            size -= 1
        return size
