"""`hydroflow report`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("campaign")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="where the page goes (default: report-NAME.html)")
@click.option("--json", "as_json", is_flag=True, help="print the numbers of the page as one JSON object; the page only with -o")
def report(campaign: str, output: Path | None, as_json: bool) -> None:
    """Write CAMPAIGN's report as one HTML page that opens without a network.

    CAMPAIGN is a campaign file, a folder with one, or a name. Works at any time of a campaign, running or not.
    """
    from hydroflow.cli.common import campaign_name
    from hydroflow.report import read, write_report
    from hydroflow.settings import ServiceSettings
    from hydroflow.store import open_store

    name = campaign_name(campaign)
    with open_store(ServiceSettings.from_environment()) as store:
        written = None
        if output is not None or not as_json:
            written = write_report(store, name, output or Path(f"report-{name}.html"))
        if as_json:
            click.echo(json.dumps(read(store, name).to_dict(), default=str))
        else:
            click.echo(f"report: {written}")
