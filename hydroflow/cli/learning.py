"""`hydroflow learning show`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click


@click.group()
def learning() -> None:
    """Iterations of the concurrent learning."""


@learning.command()
@click.argument("campaign")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list of iterations")
def show(campaign: str, as_json: bool) -> None:
    """What each iteration of CAMPAIGN (name or file) explored, selected and labelled, and the errors it left."""
    from hydroflow.cli.common import campaign_name
    from hydroflow.store import open_store
    from hydroflow.store.documents import Iteration
    from hydroflow.store.runs import get_run

    with open_store():
        name = get_run(campaign_name(campaign)).campaign
        iterations = list(Iteration.objects(campaign=name).order_by("started"))
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "stage": i.stage,
                        "iteration": i.index,
                        "explored": dict(i.explored),
                        "selected": i.selected,
                        "labelled": i.labelled,
                        "quarantined": dict(i.quarantined),
                        "held": dict(i.held),
                        "errors": dict(i.errors),
                        "goal": dict(i.goal),
                        "reached": i.reached,
                        "dataset": i.dataset,
                        "models": list(i.models),
                    }
                    for i in iterations
                ]
            )
        )
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Concurrent learning of {name}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="accurate: of the physical frames; broken: frames with overlapping atoms or exploded cells, of all; lost: "
        "labels that failed or are held for review; E, F: errors on the held-out split, meV/atom and meV/Å, before → after "
        "training on the new labels; H: mean |H_LAM - H_DFT| of fresh relaxed structures before it, meV/atom (labels it rests on "
        "of those asked for); goal: share of accurate frames (stage1), H (stage2)",
    )
    for column in ("stage", "it.", "seen", "accurate", "broken", "labels", "lost", "E", "F", "H", "goal"):
        table.add_column(column, overflow="fold", justify="left" if column == "stage" else "right")
    for i in iterations:
        e, x, g = i.errors, i.explored, i.goal
        physical = sum(x.get(c, 0) for c in ("accurate", "candidate", "unreliable"))
        frames = physical + x.get("unphysical", 0)
        table.add_row(
            i.stage,
            str(i.index),
            str(x.get("structures", "–")),
            f"{x['accurate'] / physical:.0%}" if physical else "–",
            f"{x.get('unphysical', 0) / frames:.0%}" if frames else "–",
            f"{i.labelled}/{i.selected}",
            str(sum(i.quarantined.values())),
            _change(e, "energy_mev_atom"),
            _change(e, "force_mev_a"),
            _number(e.get("enthalpy_mev_atom")) + (f" ({g['assessed']}/{g['of']})" if "assessed" in g else ""),
            f"{_number(g['value'])} → {g['target']:g}{' ✓' if i.reached else ''}" if g else "–",
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for i in iterations:
        if trust := i.explored.get("trust"):
            c = i.explored.get("calibration")
            click.echo(
                f"{i.stage}/{i.index}: trust window {trust[0]:.3g}–{trust[1]:.3g} eV/Å; "
                + (
                    f"true force errors are {c['scale']:.2g} times the deviation, rank correlation "
                    f"{c['rank_correlation']:.2f} ({c['frames']} held-out frames)"
                    if c
                    else "too few held-out frames to calibrate the deviation"
                )
            )
    for i in iterations:
        for doubt in i.goal.get("doubts", []):
            click.echo(f"{i.stage}/{i.index}: the goal cannot be judged reached: {doubt}")
        if beyond := i.explored.get("labelled_beyond_trust"):
            click.echo(f"{i.stage}/{i.index}: too few frames in the trust window; {beyond} of {i.selected} labels went to the "
                       "least unreliable frames beyond it")
        if held := i.goal.get("held"):
            click.echo(f"{i.stage}/{i.index}: H leaves out {held} of {i.goal['of']} structures, whose labels are held for "
                       "review; with them it may be larger")
    for i in iterations:
        for key, reason in i.held.items():
            click.echo(f"held for review, {i.stage}/{i.index}, job {key[:12]}: {reason}")


def _change(errors: dict[str, Any], key: str) -> str:
    before, after = (errors.get("before") or {}).get(key), _number(errors.get(key))
    return after if before is None else f"{_number(before)} → {after}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
