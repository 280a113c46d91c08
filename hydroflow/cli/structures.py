"""`hydroflow chemspace`, `hydroflow generate` and `hydroflow structures`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hydroflow.arrays import StructureArrays
    from hydroflow.campaign import Campaign
    from hydroflow.structures import Request


@click.command()
@click.argument("campaign", type=click.Path(path_type=Path))
@click.option("--ids", is_flag=True, help="Print the composition ids, one a line, instead of the summary.")
@click.option("--start", type=click.IntRange(0), default=0, help="First index of --ids.")
@click.option("--stop", type=click.IntRange(0), default=None, help="Index after the last of --ids.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def chemspace(campaign: Path, ids: bool, start: int, stop: int | None, as_json: bool) -> None:
    """Enumerate the compositions of CAMPAIGN (a file, or a folder with campaign.toml)."""
    from hydroflow.campaign import load
    from hydroflow.structures import compositions

    loaded = load(campaign)
    space = compositions(loaded.space)
    if ids:
        for i in range(*slice(start, stop).indices(len(space))):
            click.echo(space[i].id)
        return
    sizes = [sum(t) for t in space.triples]
    figures = {
        "elements": len(space.elements), "pairs": len(space.pairs), "triples_per_pair": len(space.triples),
        "ternaries": space.ternaries, "distinct_ternary_formulas": space.distinct_formulas(),
        "references": space.references, "compositions": len(space), "smallest_formula_unit_atoms": min(sizes, default=0),
        "largest_formula_unit_atoms": max(sizes, default=0), "mean_formula_unit_atoms": sum(sizes) / max(len(sizes), 1),
    }
    if as_json:
        click.echo(json.dumps({"campaign": loaded.name, **figures}))
        return
    click.echo(f"{figures['compositions']} compositions: {figures['ternaries']} ternaries A_mB_nH_x "
               f"({figures['pairs']} pairs of {figures['elements']} elements × {figures['triples_per_pair']} (m, n, x), "
               f"{figures['distinct_ternary_formulas']} distinct formulas) and {figures['references']} references for the hull")
    click.echo(f"{figures['smallest_formula_unit_atoms']} to {figures['largest_formula_unit_atoms']} atoms per formula unit, "
               f"mean {figures['mean_formula_unit_atoms']:.2f}")


@click.command()
@click.argument("campaign", type=click.Path(path_type=Path))
@click.option("-n", "--number", type=click.IntRange(1), default=1000, show_default=True, help="How many structures.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Parquet file to write.")
@click.option("--composition", "wanted", multiple=True, metavar="FORMULA",
              help="Formula unit such as CaYH12 (may be repeated); default: drawn from the campaign's space.")
@click.option("--pressure", type=click.FloatRange(0, 1000), default=None, help="GPa; default: the campaign's.")
@click.option("--seed", type=int, default=None, help="Default: the campaign's.")
def generate(campaign: Path, number: int, output: Path, wanted: tuple[str, ...], pressure: float | None,
             seed: int | None) -> None:
    """Generate structures of CAMPAIGN's mix of generators into a Parquet shard."""
    from hydroflow.campaign import load
    from hydroflow.errors import GenerationFailed, SettingsError
    from hydroflow.structures import Failure
    from hydroflow.structures import generate as make

    loaded = load(campaign)
    seed = loaded.seed if seed is None else seed
    if not output.parent.is_dir():
        raise SettingsError(f"{output}: the folder {output.parent} does not exist; create it or choose another output")
    failures: list[Failure] = []
    requests = _requests(loaded, number, wanted, seed)
    start = time.perf_counter()
    made = make(loaded, requests, loaded.pressure.campaign_gpa if pressure is None else pressure, seed,
                on_failure=failures.append)
    seconds = time.perf_counter() - start
    for failure in failures[:10]:
        click.echo(f"not made: {failure}", err=True)
    if len(failures) > 10:
        click.echo(f"not made: … and {len(failures) - 10} more requests", err=True)
    if not len(made):
        raise GenerationFailed("no structure could be made; see the reasons above")
    part = output.with_name(output.name + ".part")
    part.write_bytes(made.to_parquet())
    part.replace(output)
    click.echo(f"{len(made)} structures of {len(requests)} cell compositions in {seconds:.1f} s → {output}")


def _requests(campaign: Campaign, number: int, wanted: tuple[str, ...], seed: int) -> list[Request]:
    """Requests that add up to `number`: of the given formulas in turn, or drawn from the space."""
    import numpy as np

    from hydroflow.errors import SettingsError
    from hydroflow.structures import Composition, Request, compositions, formula_units

    rng = np.random.default_rng(seed)
    space = compositions(campaign.space)
    if wanted:
        chosen = [Composition.from_id(text) for text in wanted]
        for composition in chosen:
            foreign = sorted(set(composition.symbols) - {*campaign.space.elements, "H"})
            if foreign:
                raise SettingsError(f"{composition.formula}: {', '.join(foreign)} not among space.elements of campaign "
                                    f"{campaign.name} ({', '.join(campaign.space.elements)}); add it there or leave it out")
        shares = [number // len(chosen) + (i < number % len(chosen)) for i in range(len(chosen))]
    else:
        # few structures each of many compositions, unless there are fewer compositions than structures
        picked, times = np.unique(rng.integers(0, len(space), number), return_counts=True)
        chosen, shares = [space[int(i)] for i in picked], times.tolist()
    out = []
    for composition, share in zip(chosen, shares, strict=True):
        units = formula_units(campaign.space, composition)
        if not units:
            raise SettingsError(f"{composition.id}: one formula unit has {composition.atoms} atoms, above space.max_atoms = "
                                f"{campaign.space.max_atoms}; raise it in the campaign file")
        split = rng.multinomial(share, [1 / len(units)] * len(units)).tolist()
        out += [Request(composition.cell(k), n) for k, n in zip(units, split, strict=True) if n]
    return out


@click.group()
def structures() -> None:
    """Statistics of and queries over structures."""


@structures.command()
@click.argument("shard", type=click.Path(path_type=Path))
@click.option("--symprec", type=float, default=0.05, show_default=True, help="Tolerance of the symmetry search, Å.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def stats(shard: Path, symprec: float, as_json: bool) -> None:
    """What is in SHARD (Parquet): sizes, volumes, shortest distances, space groups."""
    from hydroflow.structures.statistics import statistics

    figures = statistics(_read(shard), symprec)
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"{figures['structures']} structures, {figures['formulas']} formulas, {figures['atoms']['least']} to "
               f"{figures['atoms']['most']} atoms (mean {figures['atoms']['mean']:.1f}), "
               f"{figures['volume_per_atom_a3']['mean']:.2f} Å³ per atom")
    _line("shortest distances (Å)", {k: f"{v:.2f}" for k, v in figures["shortest_distances_a"].items()})
    _line("crystal systems", figures["crystal_systems"])
    _line(f"{len(figures['spacegroups'])} space groups, most frequent", dict(list(figures["spacegroups"].items())[:12]))
    if "requested_found" in figures:
        click.echo(f"requested space group found: {figures['requested_found']:.1%} (the rest are supergroups)")


@structures.command()
@click.argument("shard", type=click.Path(path_type=Path))
@click.argument("which")
@click.option("--standard", is_flag=True, help="Symmetrised, in the conventional standard cell, with its space group.")
@click.option("--symprec", type=float, default=0.05, show_default=True, help="Tolerance of the symmetry search, Å.")
def cif(shard: Path, which: str, standard: bool, symprec: float) -> None:
    """Print structure WHICH (its id, or its row number) of SHARD as a CIF."""
    from pymatgen.io.cif import CifWriter

    from hydroflow.errors import DataError
    from hydroflow.structures.symmetry import standardised

    arrays = _read(shard)
    ids = [str(x) for x in arrays.columns.get("id", [])]
    if which in ids:
        row = ids.index(which)
    elif which.isdigit() and int(which) < len(arrays):
        row = int(which)
    else:
        raise DataError(f"{shard} has no structure {which!r}; give an id or a row from 0 to {len(arrays) - 1}")
    one = arrays[row]
    if standard:
        click.echo(str(CifWriter(standardised(one, symprec).structure(), symprec=symprec)), nl=False)
    else:
        click.echo(str(CifWriter(one.structure())), nl=False)


@structures.command()
@click.argument("source")
@click.option("--pressure", type=click.FloatRange(0, 1000), default=200.0, show_default=True, help="GPa.")
@click.option("--window", type=click.FloatRange(0, min_open=True), default=50.0, show_default=True,
              help="Use frames within so many GPa of the pressure.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def volumes(source: str, pressure: float, window: float, as_json: bool) -> None:
    """Fit the volume per atom of each element to SOURCE: a shard (Parquet), or the digest of a labelled dataset.

    Prints the line for the campaign's [generator] section.
    """
    from hydroflow.structures.volumes import atomic_volume, fit_volumes

    frames = _read(Path(source)) if Path(source).exists() else _dataset(source)
    fitted = fit_volumes(frames, pressure, window)
    if as_json:
        click.echo(json.dumps({"pressure_gpa": pressure, "atomic_volumes_a3": fitted}))
        return
    click.echo("atomic_volumes_a3 = { " + ", ".join(f"{s} = {v:.2f}" for s, v in fitted.items()) + " }")
    _line(f"built-in values at {pressure:g} GPa", {s: f"{atomic_volume(s, pressure):.2f}" for s in fitted})


@structures.command()
@click.argument("where")
@click.option("-c", "--campaign", help="Campaign (name or file); default: the one touched last.")
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many rows.")
@click.option("--all", "everything", is_flag=True, help="No limit.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV on standard output.")
def query(where: str, campaign: str | None, limit: int, everything: bool, as_json: bool, as_csv: bool) -> None:
    """Structures of a campaign's search that meet WHERE, e.g. "formula = 'CaYH12' and spacegroup > 75".

    Looks at every structure that was searched (the shards in the object store) and at what the funnel and electron-phonon
    coupling added to candidates (MongoDB). "" asks for everything; a wrong field is answered with the list of fields.
    """
    import csv
    import sys

    from hydroflow.cli.common import campaign_name
    from hydroflow.errors import UserError
    from hydroflow.search.query import FIELDS
    from hydroflow.search.query import query as ask
    from hydroflow.store import open_store
    from hydroflow.store.documents import Run
    from hydroflow.store.runs import get_run

    store = open_store()
    if campaign is None:
        last = Run.objects.order_by("-updated").first()
        if last is None:
            raise UserError("no campaign was ever started here; start one with `hydroflow run FILE`")
        name = str(last.campaign)
    else:
        name = str(get_run(campaign_name(campaign)).campaign)
    rows = ask(store, where, name, None if everything else limit)
    if as_json:
        click.echo(json.dumps({"campaign": name, "structures": rows}))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, [*FIELDS, "shard", "row"])
        writer.writeheader()
        writer.writerows(rows)
    else:
        _query_table(name, rows, cut=not everything and len(rows) == limit)


def _query_table(campaign: str, rows: list[dict[str, Any]], cut: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Structures of {campaign}: {len(rows)}" + (" (there may be more: --all)" if cut else ""),
                  caption="enthalpy in eV/atom, E_hull by the model in meV/atom, Tc in K")
    for name in ("id", "formula", "space group", "atoms", "enthalpy", "E_hull", "Tc", "stands at"):
        table.add_column(name, justify="left" if name in ("id", "formula", "stands at") else "right", no_wrap=True)
    for r in rows:
        table.add_row(r["id"], r["formula"], _shown(r["spacegroup"], 0), _shown(r["natoms"], 0),
                      _shown(r["enthalpy_ev_atom"], 4), _shown(r["ehull_lam_ev"], 0, 1000), _shown(r["tc_k"], 0),
                      r["stage"] or "")
    Console(width=160).print(table)


def _shown(value: float | None, decimals: int, scale: float = 1.0) -> str:
    return "–" if value is None else f"{scale * value:.{decimals}f}"


def _dataset(digest: str) -> StructureArrays:
    from hydroflow.arrays import StructureArrays
    from hydroflow.cli.lam import _one as one_record
    from hydroflow.lam.datasets import load_dataset
    from hydroflow.store import open_store
    from hydroflow.store.documents import Dataset

    with open_store() as store:
        return StructureArrays.concatenate(load_dataset(store, one_record(Dataset, digest, "dataset").digest).values())


def _read(shard: Path) -> StructureArrays:
    from hydroflow.arrays import StructureArrays
    from hydroflow.errors import DataError

    try:
        return StructureArrays.from_parquet(shard.read_bytes())
    except OSError as error:
        raise DataError(f"{shard}: cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{shard}: {error}") from error


def _line(title: str, values: dict[str, Any]) -> None:
    click.echo(f"{title}: " + ", ".join(f"{k} {v}" for k, v in values.items()))
