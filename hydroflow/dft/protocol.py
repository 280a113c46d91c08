"""Named, versioned settings of the label engines: the TOML files of ``hydroflow/dft/protocols/``, validated on reading."""

from __future__ import annotations

import sys
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hydroflow.dft.pseudos import FamilyName
from hydroflow.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Positive = Annotated[float, Field(gt=0)]
Steps = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cutoffs(_Table):
    """Plane-wave cutoffs of one pseudopotential family; `elements` need more than the family's `ecutwfc_ry`."""

    ecutwfc_ry: Positive
    dual: Positive = 4.0
    dual_augmented: Positive | None = None
    elements: dict[str, Positive] = {}

    def for_elements(self, elements: set[str], augmented: bool, least_wave_ry: float = 0.0,
                     least_density_ry: float = 0.0) -> tuple[float, float]:
        """(ecutwfc, ecutrho) in Ry that all these elements are computed with: the most demanding one decides."""
        wave = max([self.ecutwfc_ry, least_wave_ry, *(v for e, v in self.elements.items() if e in elements)])
        dual = self.dual_augmented if augmented and self.dual_augmented else self.dual
        return float(wave), float(max(wave * dual, least_density_ry))


class QeRelax(_Table):
    """Cutoffs, k-spacing and smearing are those of the labels: one level of theory for a data set and its hull."""

    force_threshold_ry_bohr: Positive
    energy_threshold_ry_per_atom: Positive
    pressure_threshold_gpa: Positive
    max_ionic_steps: Steps


class QeDos(_Table):
    """Mesh of the density of states (optimised tetrahedra: broadened levels need far denser meshes to settle)."""

    k_spacing_per_a: Positive


class Qe(_Table):
    """Quantum ESPRESSO. `k_spacing_per_a` is the largest distance of k-points in Å⁻¹, 2π included."""

    k_spacing_per_a: Positive
    smearing: Literal["mp", "mv", "gaussian"]
    degauss_ry: Positive
    conv_thr_ry_per_atom: Positive
    mixing_beta: Positive
    electron_maxstep: Steps
    relax: QeRelax
    dos: QeDos
    cutoffs: dict[FamilyName, Cutoffs]


class VaspRelax(_Table):
    force_threshold_ev_a: Positive
    max_ionic_steps: Steps


class Vasp(_Table):
    """VASP. `smearing` is ISMEAR."""

    encut_ev: Positive
    k_spacing_per_a: Positive
    smearing: Literal[-1, 0, 1, 2]
    sigma_ev: Positive
    ediff_ev_per_atom: Positive
    precision: Literal["Accurate", "Normal"]
    relax: VaspRelax


class Checks(_Table):
    """Limits beyond which a finished calculation is not a label."""

    max_abs_pressure_gpa: Positive
    max_force_ev_a: Positive
    max_negative_charge_per_atom: Positive
    max_negative_charge_per_atom_augmented: Positive
    max_sphere_overlap: Annotated[float, Field(gt=0, le=1)]


class Protocol(_Table):
    """One protocol file."""

    name: str
    version: Steps
    description: str
    qe: Qe
    vasp: Vasp
    checks: Checks


def protocol_names() -> list[str]:
    """Names of the protocols, cheapest first."""
    found = {p.name.removesuffix(".toml") for p in files("hydroflow.dft").joinpath("protocols").iterdir()
             if p.name.endswith(".toml")}
    return sorted(found, key=lambda name: -load_protocol(name).qe.k_spacing_per_a)


@cache
def load_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises
    ------
    SettingsError
        when there is none of that name (the message lists those there are) or its file is invalid.
    """
    folder = files("hydroflow.dft").joinpath("protocols")
    path = folder.joinpath(f"{name}.toml")
    if "/" in name or not path.is_file():
        known = ", ".join(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))
        raise SettingsError(f"labels.protocol = {name!r}: no such DFT protocol (known: {known})")
    try:
        return Protocol.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise SettingsError(f"DFT protocol {name!r} is invalid: {error}") from error
