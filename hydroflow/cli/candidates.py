"""`hydroflow candidates`."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("campaign")
@click.option("--system", help="chemical system, e.g. Ca-Y-H")
@click.option("--formula", help="reduced formula, e.g. CaYH12")
@click.option("--element", "elements", multiple=True, help="contains this element; may be repeated")
@click.option("--stage", help="searched, waiting, passed, epc, or the filter that rejected it")
@click.option("--rejected-by", metavar="FILTER", help="rejected by this filter of the funnel")
@click.option("--within", type=float, metavar="SHARE", help="with --rejected-by: missed its threshold by at most this share")
@click.option("--epc-status", type=click.Choice(["queued", "done", "failed"]))
@click.option("--min-tc", type=float, metavar="K", help="computed Tc of at least this")
@click.option("--max-ehull", type=float, metavar="EV", help="hull distance by the model at most this, eV/atom")
@click.option("--max-ehull-dft", type=float, metavar="EV", help="hull distance by DFT at most this, eV/atom")
@click.option("--min-spacegroup", type=int, metavar="N")
@click.option("--prototype", help="structural prototype label")
@click.option("--sort", metavar="KEY", help="tc, tc-predicted, ehull, ehull-dft, formula, spacegroup, lambda, frequency, atoms")
@click.option("--reverse", is_flag=True, help="reverse the order of --sort")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--all", "everything", is_flag=True, help="no limit")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.option("--csv", "as_csv", is_flag=True, help="print CSV")
@click.option("--export-cif", type=click.Path(path_type=Path), metavar="DIR", help="write one CIF file per candidate")
@click.option("--export-poscar", type=click.Path(path_type=Path), metavar="DIR", help="write one POSCAR file per candidate")
def candidates(
    campaign: str, rejected_by: str | None, within: float | None, elements: tuple[str, ...], min_tc: float | None,
    max_ehull: float | None, max_ehull_dft: float | None, sort: str | None, reverse: bool, limit: int, everything: bool,
    as_json: bool, as_csv: bool, export_cif: Path | None, export_poscar: Path | None, **conditions: Any,
) -> None:
    """List candidate hydrides of CAMPAIGN (name or file): those that got furthest first, or as --sort says."""
    from hydroflow.campaign import Campaign
    from hydroflow.cli.common import campaign_name
    from hydroflow.errors import UserError
    from hydroflow.screening import listing
    from hydroflow.store import open_store
    from hydroflow.store.runs import get_run

    store = open_store()
    run = get_run(campaign_name(campaign))
    if within is not None and not rejected_by:
        raise UserError("--within needs --rejected-by FILTER")
    found = listing.find(
        run.campaign, elements=elements, rejected_by=rejected_by, min_tc_k=min_tc, max_ehull_lam_ev=max_ehull,
        max_ehull_dft_ev=max_ehull_dft, **conditions)
    if rejected_by and within is not None:
        found = listing.narrowly_rejected(found, rejected_by, Campaign.from_json(run.text).funnel, within)
    total = found.count()
    most = total if everything else limit
    chosen = list(listing.sorted_by(found, sort, reverse).limit(most)) if sort else listing.furthest(found, most)
    rows = [listing.row(c) for c in chosen]
    if export_cif:
        _export(store, chosen, export_cif, "cif")
    if export_poscar:
        _export(store, chosen, export_poscar, "vasp")
    if as_json:
        click.echo(json.dumps({"campaign": run.campaign, "total": total, "candidates": rows}))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, listing.FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    else:
        _table(run.campaign, rows, total)


def _export(store: Any, chosen: list[Any], folder: Path, suffix: str) -> None:
    """One file per candidate, named by formula, space group and rank; the DFT-relaxed structure where there is one."""
    from pymatgen.io.cif import CifWriter
    from pymatgen.io.vasp import Poscar

    from hydroflow.errors import UserError
    from hydroflow.screening.records import structure_of
    from hydroflow.store.documents import Candidate

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {error.strerror}") from error
    for rank, candidate in enumerate(chosen):
        full = Candidate.objects(pk=candidate.pk).only("structure_id", "structure", "structure_dft", "shard", "row").first()
        structure = structure_of(store, full).structure()
        path = folder / f"{rank + 1:04d}_{candidate.formula}_{candidate.spacegroup or 0}.{suffix}"
        if suffix == "cif":
            CifWriter(structure, symprec=0.05).write_file(path)
        else:
            Poscar(structure, comment=f"{candidate.formula} {candidate.structure_id}").write_file(path)
    click.echo(f"{len(chosen)} structures written to {folder}", err=True)


def _table(campaign: str, rows: list[dict[str, Any]], total: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Candidates of {campaign}: {len(rows)} of {total}", caption="E_hull in meV/atom, phonon minimum in THz; "
                  "Tc (K) by Allen–Dynes at the first μ*, in brackets where a check says that it does not count")
    table.add_column("formula", no_wrap=True)
    table.add_column("space group", no_wrap=True)
    for name in ("E_hull LAM", "E_hull DFT", "phonons", "λ", "ω_log (K)", "Tc (K)", "predicted"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("stands at")
    for r in rows:
        tc = _number(r["tc_k"], 0)
        table.add_row(
            r["formula"], f"{r['spacegroup_symbol'] or '–'} ({r['spacegroup'] or 0})",
            _number(r["ehull_lam_ev"], 0, 1000) + (f" ± {1000 * r['ehull_lam_error_ev']:.0f}" if r["ehull_lam_error_ev"] else ""),
            _number(r["ehull_dft_ev"], 0, 1000), _number(r["min_frequency_thz"], 1), _number(r["lambda"], 2),
            _number(r["omega_log_k"], 0), tc if r["usable"] or r["tc_k"] is None else f"({tc})",
            _number(r["tc_predicted_k"], 0), f"{r['stage']}: {r['reason']}" if r["reason"] else r["stage"])
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _number(value: float | None, decimals: int, scale: float = 1.0) -> str:
    return "–" if value is None else f"{scale * value:.{decimals}f}"
