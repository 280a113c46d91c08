"""The campaign file: everything a user decides about a hunt, validated before anything runs.

``load(path)`` returns a :class:`Campaign`; every error is one :class:`CampaignError` line that names the key, the value
and what is allowed. Unknown keys are refused. Defaults are the paper's where it publishes a value (thresholds, composition
limits, pressures) and ours otherwise (docs/campaign.md says which). The sections are in :mod:`hydroflow.campaign_sections`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from hydroflow.campaign_sections import (
    TYPE_MAP,
    Cluster,
    Epc,
    Funnel,
    Generator,
    Labels,
    Learning,
    Model,
    Pressure,
    Relaxation,
    Search,
    Section,
    Space,
    Stage1,
    Stage2,
    Tc,
)
from hydroflow.errors import CampaignError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "TYPE_MAP", "Campaign", "Cluster", "Epc", "Funnel", "Generator", "Labels", "Learning", "Model", "Pressure",
    "Relaxation", "Search", "Space", "Stage1", "Stage2", "Tc", "load", "parse",
]


class Campaign(Section):
    """A whole campaign file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="lower case, digits and '-'")]
    seed: int = 0
    space: Space
    pressure: Pressure = Pressure()
    generator: Generator = Generator()
    labels: Labels = Labels()
    model: Model = Model()
    relaxation: Relaxation = Relaxation()
    learning: Learning = Learning()
    search: Search = Search()
    funnel: Funnel = Funnel()
    epc: Epc = Epc()
    tc: Tc = Tc()
    clusters: dict[str, Cluster] = Field({"local": Cluster()}, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Campaign:
        missing = [e for e in ["H", *self.space.elements] if e not in self.model.type_map]
        if missing:
            raise ValueError(f"model.type_map lacks {', '.join(missing)}, which space.elements needs")
        if self.tc.include_plumbing and self.epc.protocol != "plumbing":
            raise ValueError("tc.include_plumbing is only for campaigns whose epc.protocol is 'plumbing'")
        return self

    @classmethod
    def from_json(cls, text: str) -> Campaign:
        """A campaign as recorded by :meth:`to_json`; :class:`CampaignError` when its schema is another version's."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise CampaignError(
                "the recorded campaign does not fit this version of hydroflow: "
                + "; ".join(_explain(e) for e in error.errors())
            ) from error

    def to_json(self) -> str:
        return self.model_dump_json()

    def digest(self) -> str:
        """Hash of everything that can change a result; clusters (where it runs) are left out."""
        data = self.model_dump(mode="json", exclude={"clusters"})
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def changes(self, other: Campaign) -> list[str]:
        """Dotted keys whose values differ from another campaign's, clusters left out."""

        def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
            out: dict[str, Any] = {}
            for k, v in data.items():
                out |= flatten(v, f"{prefix}{k}.") if isinstance(v, dict) and v else {f"{prefix}{k}": v}
            return out

        a, b = (flatten(c.model_dump(mode="json", exclude={"clusters"})) for c in (self, other))
        return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def load(path: str | Path) -> Campaign:
    """Read and validate a campaign file.

    Raises
    ------
    CampaignError
        one line: file, key, value and what is allowed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "campaign.toml"
    try:
        text = path.read_text()
    except OSError as error:
        raise CampaignError(f"{path}: cannot read the campaign file: {error.strerror}") from error
    return parse(text, str(path))


def parse(text: str, source: str = "campaign") -> Campaign:
    """Validate the text of a campaign file; `source` names it in errors."""
    try:
        return Campaign.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CampaignError(f"{source}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise CampaignError(f"{source}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _explain(error: Any) -> str:
    """One validation error as 'key = value: what is wrong (allowed: …)'."""
    key = ".".join(str(p) for p in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        section: Any = Campaign
        for part in error["loc"][:-1]:
            field = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, BaseModel) else None
            section = field.annotation if field else None
        known = f" (known keys: {', '.join(section.model_fields)})" if hasattr(section, "model_fields") else ""
        return f"{key}: unknown key{known}"
    if error["type"] == "missing":
        return f"{key}: this key is required"
    if not key:  # a rule between sections; its message names the keys
        return message
    value = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"
    return f"{key}{value}: {message}"
