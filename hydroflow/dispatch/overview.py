"""Looking at the ledger: which jobs, what happened to one in words, what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from hydroflow.dispatch.ledger import Ledger
from hydroflow.dispatch.states import State
from hydroflow.errors import DataError, UserError
from hydroflow.store.documents import Candidate, Job


def match(state: str | None = None, kind: str | None = None, cluster: str | None = None,
          campaign: str | None = None) -> dict[str, Any]:
    """MongoDB filter; `kind` may end in ``*``."""
    query: dict[str, Any] = {}
    if state:
        if state not in {s.value for s in State}:
            raise UserError(f"unknown state {state!r} (allowed: {', '.join(s.value for s in State)})")
        query["state"] = state
    if kind:
        query["kind"] = {"$regex": "^" + kind[:-1].replace(".", r"\.")} if kind.endswith("*") else kind
    if cluster:
        query["cluster"] = cluster
    if campaign:
        query["campaigns"] = campaign
    return query


def find(ledger: Ledger, query: Mapping[str, Any], limit: int = 0) -> list[dict[str, Any]]:
    """Jobs, the latest first, without their bulky fields."""
    bulky = {"inputs": 0, "result": 0, "files": 0}
    return list(ledger.collection.find(dict(query), bulky).sort([("created", -1), ("_id", 1)]).limit(limit))


def one(ledger: Ledger, prefix: str) -> Job:
    """The job whose key starts with `prefix`.

    Raises
    ------
    DataError
        when there is none or more than one.
    """
    if not prefix or any(c not in "0123456789abcdef" for c in prefix):
        raise DataError(f"{prefix!r} is not the beginning of a job key (hexadecimal digits)")
    keys = [row["_id"] for row in ledger.collection.find({"_id": {"$regex": f"^{prefix}"}}, {"_id": 1}).limit(2)]
    if len(keys) != 1:
        found = f"several jobs' keys start with {prefix}; give more digits" if keys else f"no job's key starts with {prefix}"
        raise DataError(found)
    return ledger.jobs(keys)[0]


def story(job: Job) -> list[str]:
    """What happened to a job, in words, one line per event."""
    lines = [f"{job.kind} {job.label or ''}".rstrip() + f" — {job.state}", f"key {job.key}", f"engine {job.engine}"]
    if job.campaigns:
        lines.append("wanted by " + ", ".join(job.campaigns))
    if job.cluster:
        where = f"on {job.cluster}" + (f", scheduler job {job.scheduler_id}" if job.scheduler_id else "")
        lines.append(where + (f", folder {job.folder}/{job.key}" if job.folder else ""))
    for entry in job.history:
        lines.append(f"  {_clock(entry.time)}  {entry.state:<11} {entry.reason}  [{entry.host}]")
    if job.failure:
        lines.append(f"last failure: {job.failure.get('code')}: {job.failure.get('message')}")
    if job.cancel:
        lines.append(f"to be cancelled: {job.cancel}")
    if job.cost:
        lines.append(f"cost: {job.cost.get('core_hours', 0):.4f} core-hours, {job.cost.get('gpu_hours', 0):.4f} GPU-hours, "
                     f"{job.cost.get('money', 0):.2f} in money")
    lines += [f"kept: {name}  {digest}" for name, digest in sorted((job.outputs or {}).items())]
    return lines


def _clock(time: datetime | None) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else "-"


GROUPS = {"kind": "$kind", "cluster": "$cluster", "state": "$state", "campaign": "$campaigns"}


def cost(ledger: Ledger, by: str = "kind", campaign: str | None = None) -> list[dict[str, Any]]:
    """Core-hours, GPU-hours and money per group, all attempts included, the dearest first. A job that several campaigns
    want counts in each when grouped by campaign."""
    pipeline: list[dict[str, Any]] = [{"$match": {"cost": {"$exists": True}, **match(campaign=campaign)}}]
    if by == "campaign":
        pipeline.append({"$unwind": "$campaigns"})
    pipeline.append({"$group": {
        "_id": GROUPS[by], "jobs": {"$sum": 1}, "attempts": {"$sum": "$attempt"}, "core_hours": {"$sum": "$cost.core_hours"},
        "gpu_hours": {"$sum": "$cost.gpu_hours"}, "money": {"$sum": "$cost.money"}}})
    rows = [{by: row.pop("_id"), **row} for row in ledger.collection.aggregate(pipeline)]
    return sorted(rows, key=lambda row: -row["core_hours"])


def cost_per_candidate(ledger: Ledger, campaign: str) -> dict[str, Any]:
    """What the campaign spent per candidate that passed the funnel."""
    accepted = Candidate.objects(campaign=campaign, stage__in=["passed", "epc"]).count()
    rows = cost(ledger, "campaign", campaign)
    total = next((row for row in rows if row["campaign"] == campaign), {"core_hours": 0.0, "gpu_hours": 0.0, "money": 0.0})
    out: dict[str, Any] = {"campaign": campaign, "accepted": accepted}
    for name in ("core_hours", "gpu_hours", "money"):
        out[name] = total[name]
        out[f"{name}_per_candidate"] = total[name] / accepted if accepted else None
    return out
