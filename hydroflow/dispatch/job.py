"""What a job is: a kind, the inputs that define its answer, and a name made of that content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydroflow.errors import DataError


@dataclass(frozen=True)
class Resources:
    """What one job needs of a machine. Not part of the job's key."""

    cores: int = 1
    gpus: int = 0
    wall_time_s: int = 3600
    memory_mb: int = 0


@dataclass(frozen=True)
class JobSpec:
    """One expensive computation.

    Attributes
    ----------
    kind
        Which engine runs it, e.g. ``dft.label`` (entry point of group ``hydroflow.engines``).
    inputs
        Canonical JSON values that define the answer: settings, seeds, structure digest, checksums.
    engine
        Engine and version that the answer depends on, e.g. ``quantum-espresso 6.7``.
    files
        Name in the job's folder → object digest (``sha256:…``) of bulky input, already in the object store.
    resources, label, priority
        How and in which order it is run and what people read; not part of the key.
    """

    kind: str
    inputs: Mapping[str, Any]
    engine: str
    files: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = Resources()
    label: str = ""
    priority: int = 0

    @cached_property
    def key(self) -> str:
        """Content key: 32 hex digits of the SHA-256 of kind, inputs, engine and the digests of the files."""
        try:
            text = json.dumps(
                [self.kind, self.inputs, self.engine, dict(self.files)],
                sort_keys=True,
                separators=(",", ":"),
                allow_nan=False,
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"inputs of a {self.kind} job are not plain finite JSON values: {error}") from error
        return hashlib.sha256(text.encode()).hexdigest()[:32]
