"""`hydroflow run` and `hydroflow status`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--no-agent", is_flag=True, help="do not start the job agent; one runs elsewhere (`hydroflow agent`)")
def run(file: Path, no_agent: bool) -> None:
    """Run the campaign FILE (or a folder with campaign.toml), or go on with it after any interruption.

    Needs the services (`hydroflow services up`, or your own through HYDROFLOW_MONGODB_URI, HYDROFLOW_S3_… and
    PREFECT_API_URL). Starts the job agent when none is alive. Finished jobs are never computed again.
    """
    from hydroflow.campaign import load
    from hydroflow.cli.agent_watch import AgentWatch
    from hydroflow.dispatch.agent import start_agent
    from hydroflow.learning.preflight import check_disk, check_here, check_names
    from hydroflow.settings import ServiceSettings
    from hydroflow.store import open_store
    from hydroflow.store.runs import open_run
    from hydroflow.store.services import prefect_api_url

    campaign = load(file)
    check_names(campaign)
    settings = ServiceSettings.from_environment()
    open_store(settings)
    api = prefect_api_url(settings)
    check_here(campaign)
    check_disk(settings.home)
    open_run(campaign)
    if not no_agent:
        start_agent(settings, file)
    AgentWatch(settings, None if no_agent else file).start()

    # Before Prefect is imported: it reads its settings once.
    os.environ["PREFECT_API_URL"] = api
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    # What goes wrong is in Prefect's page with its traceback; here the command ends with one line about it.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    _show_progress()
    from prefect.exceptions import CancelledRun

    from flows.discovery import discovery
    from flows.reconcile import close_abandoned, marked_with_process

    started = time.monotonic()
    click.echo(f"campaign {campaign.name}; flow runs: {api.removesuffix('/api')}", err=True)
    close_abandoned(campaign.name)
    try:
        with marked_with_process():
            counts: Any = discovery(campaign)  # a state of Prefect is raised, not returned
    except CancelledRun as told:
        click.echo(f"campaign {campaign.name} was cancelled in Prefect: its open jobs are cancelled; the same command goes on "
                   f"({told})", err=True)
        sys.exit(130)
    click.echo(
        f"campaign {campaign.name} finished after {_clock(time.monotonic() - started)}: "
        + ", ".join(f"{k} {v}" for k, v in counts.items()),
        err=True,
    )


@click.command()
@click.argument("campaign")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def status(campaign: str, as_json: bool) -> None:
    """Where CAMPAIGN (name or file) stands: stage, progress, time per stage, jobs by kind and state."""
    from hydroflow.cli.common import campaign_name
    from hydroflow.store import open_store
    from hydroflow.store.documents import Job
    from hydroflow.store.runs import get_run

    open_store()
    record = get_run(campaign_name(campaign))
    counts: dict[str, dict[str, int]] = {}
    pipeline = [{"$match": {"campaigns": record.campaign}}, {"$group": {"_id": ["$kind", "$state"], "n": {"$sum": 1}}}]
    for row in Job.objects.aggregate(pipeline):
        kind, state = row["_id"]
        counts.setdefault(kind, {})[state] = row["n"]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "campaign": record.campaign,
                    "stage": record.stage,
                    "message": record.message,
                    "timings_s": dict(record.timings_s),
                    "jobs": counts,
                }
            )
        )
        return
    click.echo(f"{record.campaign}: {record.stage}{' – ' + record.message if record.message else ''}")
    for stage, seconds in record.timings_s.items():
        click.echo(f"  {stage:<12} {_clock(seconds)}")
    for kind, states in sorted(counts.items()):
        click.echo(f"  {kind:<18} " + ", ".join(f"{n} {s}" for s, n in sorted(states.items())))


class _Terminal(logging.Handler):
    """One live line on a terminal; elsewhere a line whenever something is new, at most one in ten seconds per step."""

    def __init__(self) -> None:
        super().__init__()
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        self.what, self.printed, self.open_line = "", 0.0, False

    def emit(self, record: logging.LogRecord) -> None:
        what, done, total = getattr(record, "what", None), getattr(record, "done", 0), getattr(record, "total", 0)
        now = time.monotonic()
        if what is None:
            sys.stderr.write(f"{chr(10) if self.open_line else ''}{_clock(now - self.started):>8}  {record.getMessage()}\n")
            sys.stderr.flush()
            self.open_line = False
            return
        ended, new = done >= total, what != self.what
        if not (new or ended or now - self.printed > (0.2 if self.live else 10)):
            return
        if ended and not new and self.printed < 0:
            return
        figures = getattr(record, "figures", "")
        line = f"{_clock(now - self.started):>8}  {what}: {done} of {total}" + (f" ({figures})" if figures else "")
        if self.live:
            if new and self.open_line:
                sys.stderr.write("\n")
            sys.stderr.write(f"\r{line}\x1b[K" + ("\n" if ended else ""))
            self.open_line = not ended
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()
        # A finished step may be reported more than once; it is printed once.
        self.what, self.printed = what, (-1.0 if ended else now)


def _show_progress() -> None:
    log = logging.getLogger("hydroflow.progress")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(_Terminal())


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
