"""`hydroflow screen`."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.argument("campaign")
@click.option("--what-if", "changes", multiple=True, metavar="FILTER=VALUE",
              help="recount with another threshold, e.g. ehull_lam=0.08; may be repeated")
@click.option("--run", "again", is_flag=True,
              help="screen the finished search again; finished phonons and DFT relaxations are not computed again")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def screen(campaign: str, changes: tuple[str, ...], again: bool, as_json: bool) -> None:
    """The screening funnel of CAMPAIGN (name or file): how many candidates each filter left.

    Filters: ehull_lam (eV/atom), spacegroup, atomic_hydrogen (fraction), phonons (THz), ehull_dft (eV/atom), and those that
    the campaign adds from other packages (funnel.filters). With --what-if the stored values are counted again at other
    thresholds: "to compute" are candidates that would reach a filter whose value nobody has computed yet.
    """
    from hydroflow.campaign import Campaign
    from hydroflow.cli.common import campaign_name
    from hydroflow.screening.what_if import recount
    from hydroflow.store import open_store
    from hydroflow.store.runs import get_run

    store = open_store()
    run = get_run(campaign_name(campaign))
    settings = Campaign.from_json(run.text)
    changed = dict(_change(text) for text in changes)
    if again:
        _run_again(store, settings)
    counts = recount(store, settings, changed)
    recorded = (get_run(run.campaign).summary or {}).get("funnel", [])
    searched = next((s["count"] for s in recorded if s["name"] == "searched"), None)
    if as_json:
        click.echo(json.dumps({"campaign": run.campaign, "searched": searched, "what_if": changed,
                               "steps": [vars(c) for c in counts]}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Funnel of {run.campaign}" + (f", if {', '.join(changes)}" if changes else ""))
    for name in ("filter", "threshold", "left", "to compute", "failed"):
        table.add_column(name, justify="left" if name == "filter" else "right")
    table.add_row("searched", "", "–" if searched is None else str(searched), "", "")
    for c in counts:
        table.add_row(c.name, f"{c.threshold:g}", str(c.count), str(c.unknown or ""), str(c.failed or ""))
    Console().print(table)


def _change(text: str) -> tuple[str, float]:
    from hydroflow.errors import UserError
    from hydroflow.screening.filters import by_name

    name, _, value = text.partition("=")
    try:
        return by_name(name.strip()).name, float(value)
    except ValueError:
        raise UserError(f"--what-if {text!r}: write FILTER=VALUE with a number, e.g. ehull_lam=0.08") from None


def _run_again(store: Any, campaign: Any) -> None:
    """The funnel over the finished shards of the newest model."""
    from hydroflow.dispatch.ledger import Ledger
    from hydroflow.errors import UserError
    from hydroflow.screening.funnel import screen as run_funnel
    from hydroflow.search.collect import collect_search
    from hydroflow.store.documents import Job
    from hydroflow.store.runs import summarise

    jobs = list(Job.objects(campaigns=campaign.name, kind="search.shard", state="done").order_by("-created"))
    if not jobs:
        raise UserError(f"campaign {campaign.name} has no finished search to screen; run it with `hydroflow run`")
    model = jobs[0].files["model.pt"]
    jobs = [j for j in jobs if j.files["model.pt"] == model]
    found = collect_search(store, jobs, campaign.search.keep_ehull_ev)
    counts = run_funnel(campaign, store, Ledger(store), found.structures, model,
                        lambda what, done, total: click.echo(f"{what}: {done} of {total}", err=True), found.ternaries)
    summarise(campaign.name, funnel=[vars(s) for s in counts.steps], hull=counts.hull)
