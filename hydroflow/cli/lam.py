"""`hydroflow datasets` and `hydroflow models`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

_FORMATS = click.Choice(["deepmd/npy/mixed", "deepmd/npy", "extxyz"])


def _one(document: Any, digest: str, what: str) -> Any:
    """The record whose digest begins with `digest` (``sha256:`` may be left out)."""
    from hydroflow.errors import UserError

    prefix = digest if digest.startswith("sha256:") else f"sha256:{digest}"
    found = list(document.objects(digest__startswith=prefix).limit(2))
    if len(found) != 1:
        raise UserError(f"{'several' if found else 'no'} {what}s begin with {digest}; `hydroflow {what}s list` names them")
    return found[0]


def _print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    if not rows:
        click.echo("none yet")
        return
    table = Table()
    for name in rows[0]:
        # digests are what other commands want: never cut short
        table.add_column(name.replace("_", " "), no_wrap=name in ("digest", "dataset"), overflow="fold")
    for row in rows:
        table.add_row(*["" if v is None else f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()])
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _by_number(name: str) -> tuple[int, str]:
    """Sorts ``50-100 GPa`` before ``150-200 GPa``, and names without a number first."""
    number = re.match(r"-?\d+", name)
    return (int(number.group()) if number else -1, name)


# ---- datasets -------------------------------------------------------------------------------------------------------
@click.group()
def datasets() -> None:
    """Versions of the labelled frames."""


def _medians(frames: Any) -> str:
    """What shows a wrong unit at a glance."""
    import numpy as np

    force = np.linalg.norm(frames.atom_columns["forces_ev_a"], axis=1)
    per_atom = {"energy (eV/atom)": frames.columns["energy_ev"] / frames.counts, "force (eV/Å)": force,
                "pressure (GPa)": frames.columns["pressure_gpa"], "volume (Å³/atom)": frames.volumes / frames.counts}
    return ", ".join(f"{name} {float(np.median(values)):.4g}" for name, values in per_atom.items())


@datasets.command("list")
@click.option("--campaign", help="of this campaign only")
@click.option("--json", "as_json", is_flag=True)
def list_datasets(campaign: str | None, as_json: bool) -> None:
    """List datasets, newest first."""
    from hydroflow.cli.common import campaign_name
    from hydroflow.store import open_store
    from hydroflow.store.documents import Dataset

    with open_store():
        where = {"campaign": campaign_name(campaign)} if campaign else {}
        _print_table([
            {"digest": d.digest if as_json else d.digest[7:19], "campaign": d.campaign, "frames": d.frames,
             **{s: d.split.get(s, 0) for s in ("train", "validation", "test")}, "compositions": len(d.counts["composition"]),
             "label_settings": d.label_settings, "created": f"{d.created:%Y-%m-%d %H:%M}"}
            for d in Dataset.objects(**where).order_by("-created")], as_json)


@datasets.command("show")
@click.argument("digest")
@click.option("--json", "as_json", is_flag=True)
def show_dataset(digest: str, as_json: bool) -> None:
    """Counts by composition, pressure, iteration and element, and the split of each composition."""
    from hydroflow.lam.datasets import read_manifest
    from hydroflow.store import open_store
    from hydroflow.store.documents import Dataset

    with open_store() as store:
        record = _one(Dataset, digest, "dataset")
        manifest = read_manifest(store.objects, record.digest)
    if as_json:
        click.echo(json.dumps({"digest": record.digest, "campaign": record.campaign, **manifest}))
        return
    click.echo(f"{record.digest}\ncampaign {record.campaign}, {manifest['frames']} frames")
    click.echo(f"labelled with {manifest['label_settings']}")
    click.echo(f"parent {manifest['parent'] or '–'}")
    click.echo("split " + ", ".join(f"{s} {n}" for s, n in manifest["split"].items()))
    if "frames" in manifest["splits"].values():
        click.echo("a single composition, split frame by frame: errors on held-out frames are those of interpolation")
    for title in ("source", "pressure", "element"):
        counts = sorted(manifest["counts"][title].items(), key=lambda item: _by_number(item[0]))
        click.echo(f"by {title}: " + ", ".join(f"{k} {n}" for k, n in counts))
    click.echo("by composition:")
    for name, count in sorted(manifest["counts"]["composition"].items()):
        click.echo(f"  {name:<14}{count:>6}  {manifest['splits'][name]}")


@datasets.command("export")
@click.argument("digest")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", "fmt", type=_FORMATS, default="deepmd/npy/mixed", show_default=True)
@click.option("--split", type=click.Choice(["train", "validation", "test", "all"]), default="all", show_default=True)
def export_dataset(digest: str, path: Path, fmt: str, split: str) -> None:
    """Write a dataset's frames to PATH (a folder, or one file for extxyz)."""
    from hydroflow.arrays import StructureArrays
    from hydroflow.lam.datasets import load_dataset
    from hydroflow.lam.formats import element_order, export_frames
    from hydroflow.store import open_store
    from hydroflow.store.documents import Dataset

    with open_store() as store:
        splits = load_dataset(store, _one(Dataset, digest, "dataset").digest)
    frames = StructureArrays.concatenate(splits.values() if split == "all" else [splits[split]])
    export_frames(frames, path, fmt, element_order(frames))
    click.echo(f"{len(frames)} frames written to {path} as {fmt}")


@datasets.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", "fmt", type=click.Choice(["deepmd/npy/mixed", "deepmd/npy", "extxyz", "vasp/outcar"]), required=True)
@click.option("--campaign", required=True, help="campaign (name or file) the dataset belongs to")
@click.option("--label-settings", help="level of theory of the labels, in words; never mixed with others. Needed where the file "
              "does not name it itself, as exported extxyz does")
@click.option("--pressure-gpa", type=float, help="the pressure the frames were made at, which their virials are compared with")
@click.option("--parent", help="digest of a dataset that the frames join")
@click.option("--source", default="import", show_default=True)
def import_dataset(path: Path, fmt: str, campaign: str, label_settings: str | None, pressure_gpa: float | None,
                   parent: str | None, source: str) -> None:
    """Make a dataset of your own labelled frames at PATH."""
    from hydroflow.cli.common import campaign_name
    from hydroflow.lam.datasets import build_dataset
    from hydroflow.lam.formats import import_frames
    from hydroflow.store import open_store
    from hydroflow.store.documents import Dataset

    frames = import_frames(path, fmt, label_settings, source)
    with open_store() as store:
        joined = _one(Dataset, parent, "dataset").digest if parent else None
        digest = build_dataset(store, campaign_name(campaign), frames, joined, pressure_gpa)
        before = Dataset.objects.get(digest=joined).frames if joined else 0
        new = Dataset.objects.get(digest=digest).frames - before
    click.echo(f"{len(frames)} frames read, {new} of them new; dataset {digest}\n"
               f"medians: {_medians(frames)}")


# ---- models ---------------------------------------------------------------------------------------------------------
@click.group()
def models() -> None:
    """Trained models."""


@models.command("list")
@click.option("--campaign", help="of this campaign only")
@click.option("--role", type=click.Choice(["lam", "tc"]))
@click.option("--json", "as_json", is_flag=True)
def list_models(campaign: str | None, role: str | None, as_json: bool) -> None:
    """List models, newest first, with their errors on the test split."""
    from hydroflow.cli.common import campaign_name
    from hydroflow.store import open_store
    from hydroflow.store.documents import ModelRecord

    with open_store():
        where = ({"campaign": campaign_name(campaign)} if campaign else {}) | ({"role": role} if role else {})
        _print_table([
            {"digest": m.digest if as_json else m.digest[7:19], "campaign": m.campaign, "role": m.role, "seed": m.seed,
             **{k: m.metrics.get(k) for k in ("energy_mev_atom", "force_mev_a", "virial_mev_atom")},
             "dataset": (m.dataset or "")[7:19], "engine": m.engine, "created": f"{m.created:%Y-%m-%d %H:%M}"}
            for m in ModelRecord.objects(**where).order_by("-created")], as_json)


@models.command("show")
@click.argument("digest")
@click.option("--json", "as_json", is_flag=True)
def show_model(digest: str, as_json: bool) -> None:
    """A model's parents, dataset, input and errors by element and pressure."""
    from hydroflow.store import open_store
    from hydroflow.store.documents import ModelRecord

    with open_store():
        m = _one(ModelRecord, digest, "model")
    if as_json:
        click.echo(m.to_json())
        return
    click.echo(f"{m.digest}\n{m.role} model of campaign {m.campaign}, {m.engine}, seed {m.seed}, job {m.job}")
    click.echo(f"dataset {m.dataset}\nparents {', '.join(m.parents) or '–'}")
    for split, values in (m.metrics.get("splits") or {}).items():
        if values.get("frames"):
            click.echo(f"{split}: {values['frames']} frames, energy {values['energy_mev_atom']:.1f} meV/atom, force "
                       f"{values['force_mev_a']:.0f} meV/Å, virial {values['virial_mev_atom']:.1f} meV/atom")
    for title, unit in (("per_element", "force, meV/Å"), ("per_pressure", "")):
        for name, value in sorted((m.metrics.get(title) or {}).items(), key=lambda item: _by_number(item[0])):
            shown = f"{value:.0f}" if not isinstance(value, dict) else \
                f"energy {value['energy_mev_atom']:.1f} meV/atom, force {value['force_mev_a']:.0f} meV/Å"
            click.echo(f"  {name:<12}{shown} {unit}".rstrip())
    if m.input:
        kind = m.input["model"].get("descriptor", {}).get("type", "–")
        click.echo(f"descriptor {kind}, {m.input['training']['numb_steps']} steps")


@models.command("test")
@click.argument("digest")
@click.option("--dataset", help="digest of a dataset; default: the one it was trained on")
@click.option("--split", type=click.Choice(["train", "validation", "test", "all"]), default="test", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def test_model(digest: str, dataset: str | None, split: str, as_json: bool) -> None:
    """Errors of a model against labelled frames."""
    import tempfile

    from hydroflow.arrays import StructureArrays
    from hydroflow.errors import UserError
    from hydroflow.lam.datasets import load_dataset
    from hydroflow.lam.metrics import errors
    from hydroflow.lam.model import LamModel
    from hydroflow.store import open_store
    from hydroflow.store.documents import Dataset, ModelRecord

    with open_store() as store, tempfile.TemporaryDirectory() as folder:
        record = _one(ModelRecord, digest, "model")
        splits = load_dataset(store, _one(Dataset, dataset, "dataset").digest if dataset else record.dataset)
        frames = StructureArrays.concatenate(splits.values() if split == "all" else [splits[split]])
        if not len(frames):
            raise UserError(f"the {split} split of this dataset is empty; choose another with --split")
        store.objects.fetch(record.digest, Path(folder) / "model.pt")
        found = errors(LamModel.load(Path(folder) / "model.pt"), frames)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{found['frames']} frames: energy {found['energy_mev_atom']:.1f} meV/atom, force {found['force_mev_a']:.0f} "
               f"meV/Å, virial {found['virial_mev_atom']:.1f} meV/atom (root mean square)")
    for name, value in found["per_element"].items():
        click.echo(f"  force on {name}: {value:.0f} meV/Å")


@models.command("export")
@click.argument("digest")
@click.argument("path", type=click.Path(path_type=Path))
def export_model(digest: str, path: Path) -> None:
    """Write a model's checkpoint to PATH, to be used with `dp` or as model.pretrained."""
    from hydroflow.errors import UserError
    from hydroflow.store import open_store
    from hydroflow.store.documents import ModelRecord

    if path.exists():
        raise UserError(f"{path} exists already; choose another path or remove it")
    with open_store() as store:
        record = _one(ModelRecord, digest, "model")
        path.parent.mkdir(parents=True, exist_ok=True)
        store.objects.fetch(record.digest, path)
    click.echo(f"model {record.digest} written to {path}")
