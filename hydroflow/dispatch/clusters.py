"""Where clusters are defined: a campaign file, or a ``clusters.toml`` with one table per cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import ValidationError

from hydroflow.campaign import Cluster, load
from hydroflow.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_clusters(campaign: str | Path | None = None, clusters: str | Path | None = None) -> dict[str, Cluster]:
    """Clusters of a campaign file or of a clusters file; with neither, this machine.

    Raises
    ------
    SettingsError, CampaignError
        one line naming file, cluster, key and what is allowed.
    """
    if clusters is not None:
        return _read(Path(clusters))
    if campaign is not None:
        return dict(load(campaign).clusters)
    return {"local": Cluster()}


def _read(path: Path) -> dict[str, Cluster]:
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the clusters file: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    tables = tables.get("clusters", tables)
    out = {}
    for name, table in tables.items():
        try:
            out[name] = Cluster.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join([name, *(str(p) for p in first["loc"])])
            known = f" (known keys: {', '.join(Cluster.model_fields)})" if first["type"] == "extra_forbidden" else ""
            raise SettingsError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}{known}") from error
    if not out:
        raise SettingsError(f"{path}: no cluster is defined; write at least one table, e.g. [local]")
    return out
