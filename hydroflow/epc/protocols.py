"""Named settings of the EPC chain, and the meshes they give for a crystal."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import spglib
from spglib.error import SpglibError

from hydroflow.errors import DataError, SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Protocol:
    """Settings of one EPC calculation; see ``protocols.toml`` for units and meaning.

    ``dataclasses.replace`` makes a variant; a variant keeps the name of the protocol it came from unless it is given another.
    """

    name: str
    description: str
    q_spacing: float
    k_spacing: float
    dense_factor: int
    min_q_divisions: int
    degauss_ry: float
    conv_thr_ry: float
    tr2_ph: float
    alpha_mix: float
    sigma_first_ry: float
    sigma_count: int
    q_path_points: int
    tetrahedra: bool
    dos_spacing: float

    def settings(self) -> dict[str, Any]:
        """What goes into a job's key: everything but the description, and tetrahedra only where they are wanted."""
        return {k: v for k, v in asdict(self).items() if k != "description" and (k, v) != ("tetrahedra", False)}


def sigmas_ry(settings: Mapping[str, Any]) -> list[float]:
    """The broadenings of the double delta, in Ry: multiples of the first (``sigma_first_ry``, ``sigma_count``)."""
    return [round(settings["sigma_first_ry"] * i, 9) for i in range(1, settings["sigma_count"] + 1)]


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return tomllib.loads(files("hydroflow.epc").joinpath("protocols.toml").read_text())


def names() -> list[str]:
    return [k for k in _file() if k != "verdict"]


def protocol(name: str | Protocol) -> Protocol:
    """The protocol of that name; a :class:`Protocol` is returned as it is.

    Raises
    ------
    SettingsError
        when there is none.
    """
    if isinstance(name, Protocol):
        return name
    if name not in names():
        raise SettingsError(f"unknown EPC protocol {name!r}; known: {', '.join(names())}")
    return Protocol(name=name, **_file()[name])


def limits() -> dict[str, float]:
    """The limits of the verdict."""
    return dict(_file()["verdict"])


@dataclass(frozen=True)
class Crystal:
    """One primitive, symmetrised cell: what the chain computes.

    Attributes
    ----------
    numbers : (N,) atomic numbers.
    cell : (3, 3) lattice vectors as rows, Å.
    fractional : (N, 3).
    """

    numbers: tuple[int, ...]
    cell: np.ndarray
    fractional: np.ndarray

    def to_inputs(self) -> dict[str, Any]:
        """As plain JSON, rounded so that the same crystal has the same job key on every machine."""
        return {"numbers": list(self.numbers), "cell": (np.round(self.cell, 9) + 0.0).tolist(),
                "fractional": (np.round(self.fractional, 9) + 0.0).tolist()}

    @classmethod
    def from_inputs(cls, data: Mapping[str, Any]) -> Crystal:
        return cls(tuple(data["numbers"]), np.array(data["cell"], float), np.array(data["fractional"], float))


def primitive(numbers: np.ndarray, cell: np.ndarray, fractional: np.ndarray, symprec: float = 0.02) -> Crystal:
    """The primitive cell with positions symmetrised within `symprec` (Å).

    ph.x uses a symmetry only when atoms obey it to 1e-5; a relaxed structure that is off by 0.001 Å would cost many times
    the q points and representations.

    Raises
    ------
    DataError
        when spglib finds no symmetry at all (overlapping atoms), or a number is not finite.
    """
    if not (np.isfinite(cell).all() and np.isfinite(fractional).all()):  # spglib would end the process
        raise DataError("NaN or infinity in the structure: there is nothing to compute")
    try:
        found = spglib.standardize_cell((cell, fractional, numbers), to_primitive=True, no_idealize=False, symprec=symprec)
    except SpglibError:  # raised instead of None where another library asked spglib for exceptions
        found = None
    if found is None:
        raise DataError("spglib cannot analyse the structure for EPC: atoms overlap or the cell is degenerate")
    lattice, positions, kinds = found
    order = np.argsort(kinds, kind="stable")
    return Crystal(tuple(int(z) for z in kinds[order]), np.asarray(lattice), np.mod(positions[order], 1.0))


def symmetries(numbers: np.ndarray, cell: np.ndarray, fractional: np.ndarray) -> int:
    """How many symmetry operations the cell as given has, centring included; 0 where spglib cannot tell."""
    try:
        found = spglib.get_symmetry((cell, fractional, numbers), symprec=1e-3)
    except SpglibError:
        return 0
    return 0 if found is None else len(found["rotations"])


@dataclass(frozen=True)
class Meshes:
    """Divisions of the q mesh, the coarse and the dense k mesh."""

    q: tuple[int, int, int]
    coarse: tuple[int, int, int]
    dense: tuple[int, int, int]


def meshes(crystal: Crystal, settings: Protocol) -> Meshes:
    """Meshes of a protocol for a crystal.

    Axes that a symmetry operation mixes get the same divisions (ph.x refuses a q mesh that breaks the symmetry), and every
    mesh is commensurate with the one before it: q must be a difference of dense k points.
    """
    # a monatomic crystal has only acoustic modes at Γ, which carry no coupling: it needs another q
    least = max(settings.min_q_divisions, 2 if len(crystal.numbers) == 1 else 1)
    q = _divisions(crystal, settings.q_spacing, least=least)
    coarse = _divisions(crystal, settings.k_spacing, q)
    dense = tuple(settings.dense_factor * n for n in coarse)
    return Meshes(q, coarse, dense)  # type: ignore[arg-type]


def dos_meshes(crystal: Crystal, settings: Protocol) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The k mesh of a protocol for N(E) by tetrahedra, and one of two thirds of its divisions that shows how far N(E_F) has
    converged."""
    fine = _divisions(crystal, settings.dos_spacing, (3, 3, 3))
    return fine, tuple(2 * n // 3 for n in fine)  # type: ignore[return-value]


def _divisions(
    crystal: Crystal, spacing: float, multiple_of: tuple[int, int, int] = (1, 1, 1), least: int = 1,
) -> tuple[int, int, int]:
    """Of a mesh no coarser than `spacing`, the same along axes that a symmetry operation mixes."""
    own = [max(least, m * max(1, math.ceil(length / spacing / m - 1e-6)))
           for length, m in zip(reciprocal_lengths(crystal), multiple_of, strict=True)]
    groups = _mixed_axes(crystal)
    return tuple(max(own[j] for j in range(3) if groups[j] == groups[i]) for i in range(3))  # type: ignore[return-value]


def reciprocal_lengths(crystal: Crystal) -> np.ndarray:
    """(3,) lengths of the reciprocal lattice vectors in 1/Å, 2π included."""
    return np.linalg.norm(2 * np.pi * np.linalg.inv(crystal.cell).T, axis=1)


def _mixed_axes(crystal: Crystal) -> list[int]:
    """Group number of each axis: axes that a rotation maps into one another share one."""
    data = spglib.get_symmetry((crystal.cell, crystal.fractional, crystal.numbers), symprec=1e-4)
    group = [0, 1, 2]
    for rotation in data["rotations"] if data is not None else []:
        for i in range(3):
            for j in range(3):
                if rotation[i, j] and group[i] != group[j]:
                    old, new = max(group[i], group[j]), min(group[i], group[j])
                    group = [new if g == old else g for g in group]
    return group
