"""N(E_F) from the eigenvalues of the dense k mesh, before any phonon is computed; and how well the phonons' own mesh has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import RYDBERG_EV


def fermi_level_ev(pw_output: Path) -> float:
    """Fermi energy that pw.x printed last, in eV."""
    found = re.findall(r"the Fermi energy is\s+([-\d.]+)\s*ev", pw_output.read_text(errors="replace"), re.IGNORECASE)
    if not found:
        raise EngineFailure(FailureCode.truncated_output, f"{pw_output.name} has no Fermi energy")
    return float(found[-1])


@dataclass(frozen=True)
class DenseBands:
    """Eigenvalues on the dense k mesh.

    Attributes
    ----------
    energies_ry : (k, bands).
    k_points : (k, 3), Cartesian, 2π/alat.
    weights : (k,), of sum 1.
    """

    energies_ry: np.ndarray
    k_points: np.ndarray
    weights: np.ndarray


def read_dense_bands(a2f_save: Path) -> DenseBands:
    """Read ``x.a2Fsave``.

    The file (list-directed): number of bands and of k points; eigenvalues in Ry, band fastest; k points; their weights.

    Raises
    ------
    EngineFailure
        ``missing_output`` when there is none, ``truncated_output`` when it ends early.
    """
    words = a2f_save.read_text().split() if a2f_save.exists() else []
    if len(words) < 2:
        raise EngineFailure(FailureCode.missing_output, f"{a2f_save.name} is missing or empty: was la2F set?")
    bands, k_points = int(words[0]), int(words[1])
    need = 2 + bands * k_points + 3 * k_points + k_points
    data = np.array(words[:need], float)
    if data.size < need:
        raise EngineFailure(FailureCode.truncated_output, f"{a2f_save.name} ends after {data.size} of {need} numbers")
    energies, points, weights = np.split(data[2:], np.cumsum([bands * k_points, 3 * k_points]))
    return DenseBands(energies.reshape(k_points, bands), points.reshape(k_points, 3), weights / weights.sum())


def dense_dos(bands: DenseBands, fermi_ev: float, sigmas_ry: list[float]) -> list[float]:
    """N(E_F) at each Gaussian broadening, in states/spin/Ry/cell."""
    out = []
    for sigma in sigmas_ry:
        x = (bands.energies_ry - fermi_ev / RYDBERG_EV) / sigma
        delta = np.exp(-x**2) / (sigma * np.sqrt(np.pi))
        out.append(float(delta.sum(axis=1) @ bands.weights))
    return out


def phonon_dos(
    bands: DenseBands, fermi_ev: tuple[float, float], smearing_ry: float, cell: np.ndarray, coarse: Sequence[int],
) -> list[float]:
    """N(E_F) as the electrons under the phonons have it, in states/spin/Ry/cell: with their smearing (Methfessel and Paxton,
    Phys. Rev. B 40, 3616, first order), on the dense mesh and on the coarse one alone, whose points are among the dense one's.

    A k mesh is fine enough for a smearing when the two agree. N(E_F) screens the phonons and stands before λ.

    Parameters
    ----------
    fermi_ev : Fermi levels of the dense and of the coarse run: a coarse mesh has its electrons fill to a level of its own.
    cell : (3, 3) Å, lattice vectors as rows; the first is as long as alat.
    coarse : divisions of the coarse mesh.
    """
    fractional = bands.k_points @ (cell / np.linalg.norm(cell[0])).T * np.asarray(coarse)
    inside = (np.abs(fractional - np.round(fractional)) < 1e-4).all(axis=1)
    out = []
    for level, chosen in zip(fermi_ev, (np.ones_like(inside), inside), strict=True):
        x = (bands.energies_ry[chosen] - level / RYDBERG_EV) / smearing_ry
        delta = ((1.5 - x**2) * np.exp(-x**2)).sum(axis=1) / (smearing_ry * np.sqrt(np.pi))
        out.append(float(np.average(delta, weights=bands.weights[chosen])))
    return out
