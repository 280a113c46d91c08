"""The contract between the ledger and whatever computes: one small protocol, found by entry point.

An engine is registered under its job kind in the entry-point group ``hydroflow.engines``; the agent that runs jobs
knows nothing else about it. Engines hold no state: everything comes from the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydroflow.dispatch.job import JobSpec
from hydroflow.errors import EngineFailure, SettingsError


@dataclass(frozen=True)
class Collected:
    """The answer of a finished job.

    Attributes
    ----------
    result
        Small JSON-able values (≤ 100 kB), stored in the ledger.
    keep
        Files that other jobs or the report read, name → path: each an object of its own, under the digest of its content.
    proof
        Small files kept only for people who doubt the result, name → path: packed together with those of other jobs
        (:mod:`hydroflow.store.packs`).
    """

    result: dict[str, Any]
    keep: dict[str, Path] = field(default_factory=dict)
    proof: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Recovery:
    """A declared correction of a failure: what is changed, in words and as adjustments for the next attempt."""

    action: str
    adjustments: dict[str, Any] = field(default_factory=dict)
    keep_folder: bool = False
    """The next attempt starts in the same remote folder (restart from the engine's own checkpoint)."""


@runtime_checkable
class Engine(Protocol):
    """One that has ``cores_may_change = True`` goes on from its checkpoints on another number of cores too; the others begin
    again there, without their adjustments."""

    kind: str
    executables: tuple[str, ...]
    """Names that the cluster maps to command lines (`pw.x`, `python`); the name itself where it does not."""

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        """Write the input files into `folder`; the job's `files` are there already."""

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        """The shell line run in the job's folder; `executables` are resolved, `{cores}` filled in."""

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        """Files (names or globs) that come back; a missing one is not an error here, `collect` judges."""

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        """Read the outputs. Raises :class:`EngineFailure` when they are not a valid answer. The exit code is in
        ``folder/exit_code`` (text), standard output in ``stdout.txt``, standard error in ``stderr.txt``."""

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        """What to do after the job's `attempt`-th failure (1-based) with this code; None sends it to quarantine."""


@cache
def engine_for(kind: str) -> Engine:
    """The engine registered for a kind of job; a kind ``package.module:Class`` names an unregistered one.

    Raises
    ------
    SettingsError
        when no installed package registers it.
    """
    module, _, attribute = kind.partition(":")
    if attribute:
        try:
            return getattr(import_module(module), attribute)()
        except (ImportError, AttributeError) as error:
            raise SettingsError(f"the engine {kind} cannot be imported: {error}; install its package") from error
    found = entry_points(group="hydroflow.engines", name=kind)
    if not found:
        known = ", ".join(sorted(e.name for e in entry_points(group="hydroflow.engines"))) or "none"
        raise SettingsError(f"no engine is registered for jobs of kind {kind!r} (installed: {known}); reinstall hydroflow "
                            "or the package that provides it")
    return next(iter(found)).load()()
