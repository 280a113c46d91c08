"""`hydroflow campaign check`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def campaign() -> None:
    """Check a campaign file and say what it would do."""


@campaign.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def check(file: Path, as_json: bool) -> None:
    """Validate FILE (or a folder with campaign.toml) and print what it would do, without doing it.

    Exit code 2 and one line when the file is wrong. What this machine lacks to run it (a campaign may be meant for another)
    is the table's last row. Core-hours are rough: those of typical jobs, if every loop runs to its last
    iteration.
    """
    from hydroflow.campaign import load
    from hydroflow.learning.estimate import estimate
    from hydroflow.learning.preflight import check_names, missing_here

    loaded = load(file)
    check_names(loaded)
    plan, missing = estimate(loaded), missing_here(loaded)
    if as_json:
        click.echo(json.dumps({"campaign": loaded.name, "digest": loaded.digest(), **plan.to_dict(), "missing_here": missing}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Campaign {loaded.name}", show_header=False)
    low, high = loaded.space.hydrogen_ratio
    rows = [
        ("elements beside H", f"{plan.elements}: {' '.join(loaded.space.elements)}"),
        ("pairs", f"{plan.pairs}"),
        (
            "compositions",
            f"{plan.ternary_compositions} ternary, {plan.reference_compositions} references for the hull "
            f"(m {_span(loaded.space.m)}, n {_span(loaded.space.n)}, x = {low}…{high}·(m+n))",
        ),
        (
            "pressures",
            f"{loaded.pressure.campaign_gpa:g} GPa; exploration at "
            + ", ".join(f"{p:g}" for p in loaded.pressure.explore_gpa)
            + " GPa",
        ),
        ("explored structures", f"≤ {plan.explored_structures}"),
        ("labels", f"≤ {plan.labels} with {loaded.labels.engine}, protocol {loaded.labels.protocol}"),
        (
            "trainings",
            f"≤ {plan.trainings} of {loaded.model.descriptor} ({loaded.model.size}), {plan.training_steps} steps in all",
        ),
        ("searched structures", f"{plan.search_structures}"),
        ("EPC", f"≤ {plan.epc_candidates} candidates, protocol {loaded.epc.protocol}"
                + (f", as far as {loaded.epc.max_core_hours:g} core-hours go" if loaded.epc.max_core_hours else "")),
        ("clusters", ", ".join(f"{k} ({c.batch})" for k, c in loaded.clusters.items())),
        (
            "core-hours, rough",
            ", ".join(f"{k} {_round(v)}" for k, v in plan.core_hours.items())
            + f"; sum {_round(sum(plan.core_hours.values()))}",
        ),
        ("on this machine", f"cannot run yet: {missing}" if missing else "label engine and pseudopotentials are here"),
    ]
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _span(limits: tuple[int, int]) -> str:
    return f"{limits[0]}…{limits[1]}"


def _round(hours: float) -> str:
    return f"{hours:.2g}" if hours < 100 else f"{hours:.0f}"
