"""`hydroflow agent | jobs | clusters`: run jobs, look at them, mend them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from hydroflow.errors import UserError
from hydroflow.settings import ServiceSettings

_file = click.Path(exists=True, path_type=Path)
_home = click.option("--home", type=click.Path(file_okay=False, path_type=Path), help="data directory")
_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table")
_campaign_file = click.option("--campaign-file", type=_file, help="campaign file whose [clusters] are meant")
_clusters_file = click.option("--clusters", "clusters_file", type=_file, help="clusters.toml, one table per cluster")


def _filters(command: Any) -> Any:
    for option in (click.option("--state", help="prepared, submitted, running, collecting, done, failed, quarantined, cancelled"),
                   click.option("--kind", help="e.g. dft.label or dft.*"), click.option("--cluster", help="name of the cluster"),
                   click.option("--campaign", help="name of the campaign")):
        command = option(command)
    return command


@contextmanager
def _ledger(home: Path | None) -> Iterator[Any]:
    from hydroflow.dispatch.ledger import Ledger
    from hydroflow.store import open_store

    with open_store(ServiceSettings.from_environment(home=home)) as store:
        yield Ledger(store)


@click.command()
@click.option("--campaign", type=_file, help="campaign file whose [clusters] are served")
@_clusters_file
@click.option("--until-idle", type=float, metavar="SECONDS", help="leave when nothing was to do for so long")
@_home
def agent(campaign: Path | None, clusters_file: Path | None, until_idle: float | None, home: Path | None) -> None:
    """Run jobs on the clusters until stopped (SIGTERM or Ctrl-C leave the jobs running; the next agent goes on)."""
    from hydroflow.dispatch.agent import configure_logging, serve
    from hydroflow.dispatch.clusters import load_clusters

    configure_logging()
    serve(ServiceSettings.from_environment(home=home), load_clusters(campaign, clusters_file), until_idle)


# ---- jobs ----
@click.group()
def jobs() -> None:
    """List, show, retry and cancel jobs; what they cost. A KEY may be shortened to its first digits."""


@jobs.command("list")
@_filters
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="0 shows all")
@_json
@_home
def list_jobs(state: str | None, kind: str | None, cluster: str | None, campaign: str | None, limit: int, as_json: bool,
              home: Path | None) -> None:
    """Jobs, the latest first."""
    from hydroflow.dispatch import overview

    with _ledger(home) as ledger:
        rows = overview.find(ledger, overview.match(state, kind, cluster, campaign), limit)
        total = ledger.collection.count_documents(overview.match(state, kind, cluster, campaign))
    if as_json:
        click.echo(json.dumps([{"key": r.pop("_id"), **r} for r in rows], default=str))
        return
    for r in rows:
        failure = (r.get("failure") or {}).get("code", "")
        click.echo(f"{r['_id'][:12]}  {r['state']:<11} {r['kind']:<16} {r.get('cluster') or '-':<10} "
                   f"{r.get('attempt', 0):>2}  {failure:<20} {r.get('label') or ''}".rstrip())
    if total > len(rows):
        click.echo(f"… {total - len(rows)} more (--limit 0 shows all)")


@jobs.command()
@click.argument("key")
@_json
@_home
def show(key: str, as_json: bool, home: Path | None) -> None:
    """What happened to one job, in words."""
    from hydroflow.dispatch import overview

    with _ledger(home) as ledger:
        job = overview.one(ledger, key)
        if as_json:
            click.echo(json.dumps(job.to_mongo().to_dict(), default=str))
            return
        click.echo("\n".join(overview.story(job)))


@jobs.command()
@click.argument("keys", nargs=-1)
@_filters
@click.option("--redo", is_flag=True, help="also jobs that are done: give their answers up and compute again")
@click.option("--wall-time", "wall_time_s", type=click.IntRange(min=1), metavar="SECONDS", help="with so much wall time")
@click.option("--cores", type=click.IntRange(min=1), help="on so many cores")
@_home
def retry(keys: tuple[str, ...], state: str | None, kind: str | None, cluster: str | None, campaign: str | None, redo: bool,
          wall_time_s: int | None, cores: int | None, home: Path | None) -> None:
    """Put failed, quarantined or cancelled jobs back, by KEYS or filters. Those that ran out of wall time or were lost with their
    machine go on from what they left, for a week; the others begin again."""
    with _ledger(home) as ledger:
        chosen = _chosen(ledger, keys, state, kind, cluster, campaign)
        click.echo(f"{ledger.retry(chosen, redo=redo, wall_time_s=wall_time_s, cores=cores)} of {len(chosen)} jobs put back")


@jobs.command()
@click.argument("keys", nargs=-1)
@_filters
@_home
def cancel(keys: tuple[str, ...], state: str | None, kind: str | None, cluster: str | None, campaign: str | None,
           home: Path | None) -> None:
    """Cancel jobs, by KEYS or filters; an agent stops those that run."""
    with _ledger(home) as ledger:
        chosen = _chosen(ledger, keys, state, kind, cluster, campaign)
        click.echo(f"{ledger.cancel(chosen)} of {len(chosen)} jobs cancelled")


def _chosen(ledger: Any, keys: tuple[str, ...], state: str | None, kind: str | None, cluster: str | None,
            campaign: str | None) -> list[str]:
    from hydroflow.dispatch import overview

    if keys:
        return [overview.one(ledger, key).key for key in keys]
    query = overview.match(state, kind, cluster, campaign)
    if not query:
        raise UserError("name the jobs: KEYS, or a filter such as --state failed or --campaign NAME")
    return [row["_id"] for row in ledger.collection.find(query, {"_id": 1})]


@jobs.command()
@click.argument("key")
@click.option("--lines", type=click.IntRange(min=1), default=60, show_default=True)
@_campaign_file
@_clusters_file
@_home
def logs(key: str, lines: int, campaign_file: Path | None, clusters_file: Path | None, home: Path | None) -> None:
    """The end of a job's output: from its folder while it runs, else what was kept."""
    from hydroflow.dispatch import overview
    from hydroflow.dispatch.clusters import load_clusters
    from hydroflow.dispatch.logs import live_logs, stored_logs

    settings = ServiceSettings.from_environment(home=home)
    with _ledger(home) as ledger:
        job = overview.one(ledger, key)
        texts = stored_logs(ledger.store.objects, job)
    if not texts:
        cluster = load_clusters(campaign_file, clusters_file).get(job.cluster)
        texts = live_logs(job, cluster, settings.home / "jobs" / str(job.cluster))
    if not texts:
        click.echo(f"no output of {job.key} is kept ({job.state})")
    for name, text in texts.items():
        click.echo(f"==> {name} <==")
        click.echo("\n".join(text.splitlines()[-lines:]))


@jobs.command()
@click.argument("key")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@_home
def fetch(key: str, folder: Path, home: Path | None) -> None:
    """Write the kept files of one job into FOLDER, verified."""
    from hydroflow.dispatch import overview
    from hydroflow.store.packs import read

    with _ledger(home) as ledger:
        job = overview.one(ledger, key)
        folder.mkdir(parents=True, exist_ok=True)
        for name, address in sorted((job.outputs or {}).items()):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read(ledger.store.objects, address))
            click.echo(str(path))
        if not job.outputs:
            click.echo(f"no files of {job.key} are kept ({job.state})")


@jobs.command()
@click.option("--by", type=click.Choice(["kind", "cluster", "campaign", "state"]), default="kind", show_default=True)
@click.option("--campaign", help="only this campaign, with its cost per accepted candidate")
@_json
@_home
def cost(by: str, campaign: str | None, as_json: bool, home: Path | None) -> None:
    """Core-hours, GPU-hours and money, all attempts included."""
    from hydroflow.dispatch import overview

    with _ledger(home) as ledger:
        rows = overview.cost(ledger, by, campaign)
        per = overview.cost_per_candidate(ledger, campaign) if campaign else None
    if as_json:
        click.echo(json.dumps({"groups": rows, "candidates": per}))
        return
    click.echo(f"{by:<20} {'jobs':>8} {'attempts':>8} {'core-h':>10} {'GPU-h':>10} {'money':>10}")
    for r in rows:
        click.echo(f"{r[by] or '-':<20} {r['jobs']:>8} {r['attempts']:>8} {r['core_hours']:>10.3f} {r['gpu_hours']:>10.3f} "
                   f"{r['money']:>10.2f}")
    if per:
        each = (f"{per['core_hours_per_candidate']:.3f} core-hours, {per['gpu_hours_per_candidate']:.3f} GPU-hours and "
                f"{per['money_per_candidate']:.2f} in money each" if per["accepted"] else "none yet")
        click.echo(f"accepted candidates: {per['accepted']}, {each}")


@jobs.command()
@_campaign_file
@_clusters_file
@click.option("--apply", is_flag=True, help="act on it; without this nothing is touched")
@_json
@_home
def reconcile(campaign_file: Path | None, clusters_file: Path | None, apply: bool, as_json: bool, home: Path | None) -> None:
    """Compare the ledger with the schedulers and folders of the clusters.

    With --apply: what runs is adopted, what ended is collected, what was lost goes back to be run again, what nobody wants is
    stopped and removed; by the agent if one is alive, else by this command. Exit code 1 when a cluster cannot be asked.
    """
    from collections import Counter

    from hydroflow.dispatch.agent import alive, look_once
    from hydroflow.dispatch.clusters import load_clusters
    from hydroflow.dispatch.reconcile import examine

    with _ledger(home) as ledger:
        clusters = load_clusters(campaign_file, clusters_file)
        found = [examine(name, cluster, ledger) for name, cluster in clusters.items()]
        became: dict[str, int] = {}
        if apply:
            batches = [batch for c in found for batch in c.ended]
            ended = [row["_id"] for row in ledger.collection.find({"batch": {"$in": batches}}, {"_id": 1})]
            if look_once(ledger.store, clusters):
                became = dict(Counter(job.state for job in ledger.jobs(ended)))
        watched = alive(ledger.store) is not None
    if as_json:
        click.echo(json.dumps({"agent": watched, "clusters": [c.to_dict() for c in found], "ended_became": became}))
    else:
        for c in found:
            click.echo(f"{c.cluster}: " + (f"cannot be asked: {c.error}" if c.error else (
                f"{len(c.in_queue)} in the queue, {len(c.ended)} ended and not yet collected, {len(c.unwanted_jobs)} unwanted "
                f"jobs, {len(c.unwanted_folders)} unwanted folders")))
        if became:
            click.echo("those that had ended: " + ", ".join(f"{n} {state}" for state, n in sorted(became.items())))
        click.echo("an agent is at work" + (" and does it now" if apply else "") if watched
                   else "no agent is at work; start one with `hydroflow agent`")
    if any(c.error for c in found):
        sys.exit(1)


# ---- clusters ----
@click.group()
def clusters() -> None:
    """Check the clusters that jobs run on; how the agent finds them."""


@clusters.command()
@_json
@_home
def status(as_json: bool, home: Path | None) -> None:
    """How the agents find their clusters: healthy, benched or suspected, and why."""
    from hydroflow.dispatch.agent import HEARTBEAT_S
    from hydroflow.dispatch.ledger import now

    with _ledger(home) as ledger:
        rows = [{"home": r["home"], "host": r["host"], "seconds_ago": round((now() - r["heartbeat"]).total_seconds()),
                 "stopped": "stopped" in r, "clusters": r["clusters"]} for r in ledger.store.database["agents"].find()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        gone = row["stopped"] or row["seconds_ago"] > 4 * HEARTBEAT_S
        click.echo(f"agent on {row['host']} for {row['home']}: " + ("stopped" if gone else f"heard {row['seconds_ago']} s ago"))
        for name, c in row["clusters"].items():
            click.echo(f"  {name:<12} {c['state']:<10} {c.get('jobs', 0):>6} jobs  {c['reason']}".rstrip())
    if not rows:
        click.echo("no agent has been at work; start one with `hydroflow agent`")


@clusters.command()
@click.option("--campaign", type=_file, help="campaign file whose [clusters] are checked")
@_clusters_file
@click.option("--executable", multiple=True, help="also look for this executable")
@_json
@_home
def check(campaign: Path | None, clusters_file: Path | None, executable: tuple[str, ...], as_json: bool,
          home: Path | None) -> None:
    """Connection, scratch space, scheduler, engines and a real tiny job, for each cluster. Exit code 1 when one fails."""
    from dataclasses import asdict

    from hydroflow.dispatch.check import check as check_cluster
    from hydroflow.dispatch.clusters import load_clusters

    settings, findings = ServiceSettings.from_environment(home=home), []
    for name, cluster in load_clusters(campaign, clusters_file).items():
        for finding in check_cluster(name, cluster, settings.home / "jobs" / name, ("python", "pw.x", *executable)):
            findings.append(finding)
            if not as_json:
                click.echo(f"{finding.cluster:<12} {finding.what:<12} {'ok' if finding.ok else 'FAILED':<7} {finding.detail}")
    if as_json:
        click.echo(json.dumps([asdict(f) for f in findings]))
    if not all(f.ok for f in findings):
        sys.exit(1)
