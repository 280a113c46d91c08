"""Writes the tables of docs/campaign.md from the campaign schema: `python docs/make_campaign_reference.py`.

The text around the tables is kept; a test fails when the tables are not what the schema says.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hydroflow.campaign import TYPE_MAP, Campaign

PAGE = Path(__file__).with_name("campaign.md")
BEGIN, END = "<!-- tables: written by docs/make_campaign_reference.py -->", "<!-- end of tables -->"

PAPER = {
    "space.m", "space.n", "space.hydrogen_ratio", "pressure.campaign_gpa", "pressure.explore_gpa", "relaxation.optimizer",
    "search.structures_per_composition", "funnel.ehull_lam_ev", "funnel.min_spacegroup", "funnel.atomic_h_distance_a",
    "funnel.min_atomic_h", "funnel.min_frequency_thz", "funnel.ehull_dft_ev", "epc.initial", "tc.folds", "tc.acquire",
    "tc.rounds",
}
"""Keys whose default is a value that the paper publishes; every other default is ours."""

NOTES = {
    "seed": "seed of every random choice; another seed is another campaign",
    "generator.mix": "shares of `random`, `swarm`, `prototypes`, `calypso`, or a generator that another package registers",
    "generator.space_groups": "first and last space group that random structures are made in",
    "labels.engine": "Quantum ESPRESSO (`qe`) or `vasp`",
    "labels.cores": "cores of one label",
    "labels.wall_time_s": "time limit of one label",
    "model.descriptor": "DPA-1 (`se_atten`), DPA-2 or DPA-3 of deepmd-kit",
    "model.cutoff_a": "cutoff radius, Å",
    "model.ensemble": "models that differ by their seed; their spread is the deviation",
    "model.batch_size": "deepmd-kit's batch size; `auto:128` means about 128 atoms a batch",
    "model.start_lr": "first learning rate",
    "model.stop_lr": "last learning rate",
    "model.cores": "cores of one training",
    "model.gpus": "GPUs of one training",
    "model.wall_time_s": "time limit of one training",
    "relaxation.optimizer": "how structures are relaxed by the model, cell and positions together",
    "relaxation.max_steps": "steps after which a structure counts as not converged",
    "learning.stage1.max_iterations": "iterations after which stage 1 ends, goal or not",
    "learning.stage2.max_iterations": "iterations after which stage 2 ends, goal or not",
    "learning.stage2.structures": "structures relaxed per iteration",
    "search.structures_per_composition": "structures generated per composition",
    "epc.mu_star": "μ* that Tc is given for; the first is the one that ranks",
    "epc.cores": "cores of one job",
    "epc.wall_time_s": "time limit of one job; a ph.x that runs out goes on from its checkpoint, a pw.x begins again, once",
    "tc.folds": "folds of the cross-validation",
    "tc.steps": "training steps of the Tc model",
    "clusters.*.batch": "scheduler; `Shell` runs jobs directly",
    "clusters.*.context": "this machine or over ssh",
    "clusters.*.host": "for ssh",
    "clusters.*.user": "for ssh",
    "clusters.*.port": "for ssh",
    "clusters.*.key_file": "private key for ssh; default: what ssh itself would use",
    "clusters.*.queue": "partition or queue",
    "clusters.*.max_gpus": "GPUs in use at once; 0 takes no job that wants one",
    "clusters.*.price_core_hour": "for the cost tables, in any currency",
    "clusters.*.price_gpu_hour": "for the cost tables, in any currency",
}
"""Meanings of keys whose name alone says it to those who wrote the schema."""


def tables() -> str:
    """All sections as Markdown."""
    return "\n".join(_section(Campaign, "")).strip() + "\n"


def keys() -> list[str]:
    """Every dotted key of the campaign file."""
    return re.findall(r"^\| `([^`]+)`", tables(), flags=re.MULTILINE)


def _section(model: type[BaseModel], prefix: str) -> list[str]:
    rows, below = [], []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        inner = _submodel(field.annotation)
        if inner is None:
            cells = [f"`{key}`", _allowed(model, name), _default(field), _origin(key, field), _meaning(key, field)]
            rows.append(f"| {' | '.join(cells)} |")
        else:
            below += _section(inner, f"{key}.*." if get_origin(field.annotation) is dict else f"{key}.")
    title = f"### `[{prefix.rstrip('.').replace('*', 'NAME')}]`" if prefix else "### Top level"
    words = (model.__doc__ or "").strip().split("\n")[0]
    head = [title, "", *([words, ""] if prefix and not words.startswith("!!!") and words else []),
            "| key | allowed | default | from | meaning |", "|---|---|---|---|---|"] if rows else []
    return [*head, *rows, *([""] if rows else []), *below]


def _submodel(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _allowed(model: type[BaseModel], name: str) -> str:
    schema = model.model_json_schema()
    return _words(schema["properties"][name], schema.get("$defs", {})).replace("|", "\\|")


def _words(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """What a JSON schema allows, in few words."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rsplit("/", 1)[-1]]
    if "anyOf" in schema:
        return " or ".join(_words(s, defs) for s in schema["anyOf"] if s.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{v}`" for v in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        inner = schema.get("prefixItems")
        if inner:
            return f"two: {_words(inner[0], defs)}"
        return f"list of {_words(schema.get('items', {}), defs)}"
    if kind == "object":
        return f"table of {_words(schema.get('additionalProperties') or {}, defs)}"
    words = {"integer": "integer", "number": "number", "boolean": "true, false", "string": "text"}.get(str(kind), "")
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None and high is not None:
        return f"{words} {low:g} … {high:g}"
    if low is not None:
        return f"{words} {'≥' if 'minimum' in schema else '>'} {low:g}"
    return f"`{schema['pattern']}`" if "pattern" in schema else words


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    if value == TYPE_MAP:
        return f"{len(TYPE_MAP)} elements: {' '.join(TYPE_MAP)}"
    if isinstance(value, (list, tuple)):
        return f"`{json.dumps(list(value))}`"
    if isinstance(value, dict):
        inside = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items())
        return f"`{{ {inside} }}`" if inside else "`{}`"
    return f"`{json.dumps(value)}`"


def _origin(key: str, field: FieldInfo) -> str:
    if key in PAPER:
        return "paper"
    return "" if field.is_required() or key.startswith("clusters.") else "ours"


def _meaning(key: str, field: FieldInfo) -> str:
    return (field.description or NOTES.get(key, "")).replace("|", "\\|")


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
