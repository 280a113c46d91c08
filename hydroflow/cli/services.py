"""`hydroflow services`: the embedded MongoDB, object directory and Prefect server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from hydroflow.settings import ServiceSettings
from hydroflow.store import services as embedded


@click.group()
def services() -> None:
    """Start, stop and show the embedded services.

    Data live under --home, else HYDROFLOW_HOME, else ./.hydroflow. A service whose address is set (HYDROFLOW_MONGODB_URI,
    HYDROFLOW_S3_BUCKET, PREFECT_API_URL) is yours and is left alone.
    """


_home = click.option("--home", type=click.Path(file_okay=False, path_type=Path), help="data directory")
_json = click.option("--json", "as_json", is_flag=True, help="one JSON list")


@services.command()
@_home
@_json
@click.option("--prefect/--no-prefect", default=True, help="also Prefect's server")
def up(home: Path | None, as_json: bool, prefect: bool) -> None:
    """Start what is not running."""
    _print(embedded.up(ServiceSettings.from_environment(home=home), prefect), as_json)


@services.command()
@_home
@_json
def status(home: Path | None, as_json: bool) -> None:
    """Show what runs, where, and where its data are."""
    _print(embedded.status(ServiceSettings.from_environment(home=home)), as_json)


@services.command()
@_home
@_json
def down(home: Path | None, as_json: bool) -> None:
    """Stop the embedded services and the agent that watches this home's jobs; data stay.

    Jobs that run are left running: `hydroflow run` collects them later.
    """
    from hydroflow.dispatch.agent import stop_agent

    settings = ServiceSettings.from_environment(home=home)
    if any(s.name == "mongodb" and s.state == "running" for s in embedded.status(settings)) and stop_agent(settings):
        click.echo("agent stopped; jobs that run are left running", err=True)
    _print(embedded.down(settings), as_json)


def _print(states: list[embedded.ServiceStatus], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(s) for s in states]))
        return
    for s in states:
        pid = f"  pid {s.pid}" if s.pid else ""
        click.echo(f"{s.name:<8} {s.state:<8} {s.address}{pid}")
