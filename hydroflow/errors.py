"""All errors of hydroflow, under one root.

Three families: what the user can mend (:class:`UserError` and below: one line, exit code 2), what an engine did wrong
(:class:`EngineFailure`: a typed, serialisable verdict with a declared recovery), and trouble on the way to a machine
(:class:`TransportError`: backed off and retried elsewhere, never a verdict on the job).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class HydroflowError(Exception):
    """Root of every error raised on purpose by hydroflow."""


class UserError(HydroflowError):
    """Something the user can mend; the message names it and says what to do. Command line: one line, exit code 2."""


class CampaignError(UserError):
    """The campaign file is missing, malformed, or was changed under a running campaign."""


class SettingsError(UserError):
    """A setting outside the campaign file (environment, protocol, pseudopotentials, executables) is unusable."""


class ServiceError(UserError):
    """MongoDB, the object store or Prefect cannot be reached or refuses to work (full disk, wrong credentials)."""


class DataError(UserError):
    """Input data are unusable: NaN labels, wrong units, mixed levels of theory, a truncated file."""


class GenerationFailed(HydroflowError):
    """No structure could be made for a composition within bounded work; the message names composition and reason."""


class RunCancelled(HydroflowError):
    """Somebody cancelled the run that waited for jobs."""


class TransportError(HydroflowError):
    """A cluster could not be reached or its scheduler did not answer. Not a verdict on any job."""


class FailureCode(str, Enum):
    """What an engine can do wrong. The value is what is stored and queried."""

    scf_not_converged = "scf_not_converged"
    phonon_not_converged = "phonon_not_converged"
    relaxation_not_converged = "relaxation_not_converged"
    diagonalisation = "diagonalisation"
    charge_density = "charge_density"
    too_few_bands = "too_few_bands"
    needs_smearing = "needs_smearing"
    parallel_limits = "parallel_limits"
    walltime = "walltime"
    killed = "killed"
    out_of_memory = "out_of_memory"
    disk_full = "disk_full"
    atoms_too_close = "atoms_too_close"
    bad_pseudopotential = "bad_pseudopotential"
    bad_input = "bad_input"
    missing_restart_data = "missing_restart_data"
    symmetry_mismatch = "symmetry_mismatch"
    other_structure = "other_structure"
    imaginary_modes = "imaginary_modes"
    no_fermi_surface = "no_fermi_surface"
    coarse_k_mesh = "coarse_k_mesh"
    truncated_output = "truncated_output"
    missing_output = "missing_output"
    missing_q = "missing_q"
    corrupted_output = "corrupted_output"
    unphysical_result = "unphysical_result"
    training_diverged = "training_diverged"
    executable_missing = "executable_missing"
    lost = "lost"
    unknown = "unknown"


class EngineFailure(HydroflowError):
    """A typed verdict on one job: what the engine did wrong.

    Parameters
    ----------
    code
        One of :class:`FailureCode`.
    message
        In words, with the numbers that matter.
    details
        JSON-able extras (file, line, values).
    """

    def __init__(self, code: FailureCode | str, message: str, details: Mapping[str, Any] | None = None) -> None:
        self.code = FailureCode(code)
        self.message = message
        self.details = dict(details or {})
        super().__init__(f"{self.code.value}: {message}")

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code.value, "message": self.message, "details": self.details}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineFailure:
        return cls(data["code"], data["message"], data.get("details"))
