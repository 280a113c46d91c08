"""What several commands need."""

from __future__ import annotations

from pathlib import Path


def campaign_name(argument: str) -> str:
    """The campaign's name from a campaign file, a folder with one, or the name itself."""
    from hydroflow.campaign import load

    path = Path(argument)
    return load(path).name if path.exists() or argument.endswith(".toml") else argument
