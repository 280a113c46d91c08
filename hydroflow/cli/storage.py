"""`hydroflow storage`: verify and clean the object store."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from hydroflow.settings import ServiceSettings
from hydroflow.store import open_store
from hydroflow.store.maintenance import unreferenced
from hydroflow.store.maintenance import verify as verify_objects

_home = click.option("--home", type=click.Path(file_okay=False, path_type=Path), help="data directory")
_json = click.option("--json", "as_json", is_flag=True, help="one JSON object")


@click.group()
def storage() -> None:
    """Verify and clean the object store."""


@storage.command()
@_home
@_json
@click.option("--redo", is_flag=True, help="put the jobs whose files are gone back, to be computed again")
def verify(home: Path | None, as_json: bool, redo: bool) -> None:
    """Read every object; name what is missing or damaged and which jobs must be redone. Exit code 1 when something is."""
    from hydroflow.dispatch.ledger import Ledger

    with open_store(ServiceSettings.from_environment(home=home)) as store:
        found = verify_objects(store)
        if redo:
            for digest in found.damaged:
                store.objects.delete(digest)
            Ledger(store).retry(found.redo, "its stored files were lost", redo=True)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        click.echo(f"{found.checked} objects, {found.bytes / 1e6:.1f} MB: {len(found.missing)} missing, "
                   f"{len(found.damaged)} damaged")
        for word, digests in (("missing", found.missing), ("damaged", found.damaged), ("redo job", found.redo)):
            for digest in digests:
                click.echo(f"{word} {digest}")
        if found.redo and not redo:
            click.echo("run `hydroflow storage verify --redo` to compute those jobs again")
    if found.missing or found.damaged:
        sys.exit(1)


@storage.command()
@_home
@_json
@click.option("--delete", is_flag=True, help="remove them; without this nothing is touched")
@click.option("--older-than-hours", type=click.FloatRange(min=0), default=24.0, show_default=True, help="spare younger objects")
def gc(home: Path | None, as_json: bool, delete: bool, older_than_hours: float) -> None:
    """Objects that no record refers to."""
    with open_store(ServiceSettings.from_environment(home=home)) as store:
        rubbish = unreferenced(store, older_than_hours * 3600)
        if delete:
            for digest, _ in rubbish:
                store.objects.delete(digest)
    size = sum(size for _, size in rubbish)
    if as_json:
        click.echo(json.dumps({"deleted": delete, "bytes": size, "objects": [digest for digest, _ in rubbish]}))
        return
    click.echo(f"{len(rubbish)} objects, {size / 1e6:.1f} MB, " + ("removed" if delete else "would be removed with --delete"))
