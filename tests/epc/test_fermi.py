"""N(E_F) from the eigenvalues that pw.x leaves for the double delta."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hydroflow.epc.fermi import dense_dos, phonon_dos, read_dense_bands
from hydroflow.errors import EngineFailure
from hydroflow.units import RYDBERG_EV

ALAT = 3.0
CELL = ALAT / 2 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
FERMI_RY = 0.7
FERMI_EV = FERMI_RY * RYDBERG_EV
WIDTH_RY = 0.15


def band(fractional: np.ndarray) -> np.ndarray:
    """(k, 1) a tight-binding band in Ry, of the periodicity of the reciprocal lattice."""
    return 0.7 + 0.3 * np.cos(2 * np.pi * fractional).sum(axis=1, keepdims=True) / 3


def mesh(n: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) / n] * 3, indexing="ij"), -1).reshape(-1, 3)


def write(path: Path, n: int) -> Path:
    """As pw.x with la2F: k points Cartesian, in units of 2π over the length of the first vector; weights of any sum."""
    fractional = mesh(n)
    points = fractional @ np.linalg.inv(CELL).T * np.linalg.norm(CELL[0])
    numbers = [*band(fractional).ravel(), *points.ravel(), *np.full(len(points), 2 / len(points))]
    path.write_text(f"1 {len(points)}\n" + "\n".join(f"{x:.12f}" for x in numbers) + "\n")
    return path


def smeared(n: int, sigma: float) -> float:
    x = (band(mesh(n)) - FERMI_RY) / sigma
    return float(((1.5 - x**2) * np.exp(-x**2)).mean() / sigma / np.sqrt(np.pi))


@pytest.mark.parametrize("coarse", [2, 4, 6])
def test_the_coarse_mesh_is_found_in_the_dense_one(tmp_path, coarse):
    bands = read_dense_bands(write(tmp_path / "x.a2Fsave", 12))
    for sigma in (0.02, WIDTH_RY):
        dense, own = phonon_dos(bands, (FERMI_EV, FERMI_EV), sigma, CELL, [coarse] * 3)
        assert dense == pytest.approx(smeared(12, sigma), rel=1e-6) and own == pytest.approx(smeared(coarse, sigma), rel=1e-6)


def test_a_wide_smearing_brings_the_meshes_together_and_both_to_the_band(tmp_path):
    bands = read_dense_bands(write(tmp_path / "x.a2Fsave", 24))
    dense, coarse = phonon_dos(bands, (FERMI_EV, FERMI_EV), WIDTH_RY, CELL, [12] * 3)
    assert coarse == pytest.approx(dense, rel=0.01)
    narrow = phonon_dos(bands, (FERMI_EV, FERMI_EV), 0.01, CELL, [12] * 3)
    assert abs(narrow[1] / narrow[0] - 1) > 0.1
    # the electrons of a coarse mesh fill to a level of their own
    own = phonon_dos(bands, (FERMI_EV, FERMI_EV + 0.05 * RYDBERG_EV), WIDTH_RY, CELL, [12] * 3)
    assert own[0] == dense and own[1] == pytest.approx(
        phonon_dos(bands, (0.0, FERMI_EV + 0.05 * RYDBERG_EV), WIDTH_RY, CELL, [12] * 3)[1]) != coarse
    # the band holds one state per spin: its density of states integrates to one
    energies = np.linspace(-0.5, 2.0, 400)
    total = sum(dense_dos(bands, e * RYDBERG_EV, [WIDTH_RY])[0] for e in energies) * (energies[1] - energies[0])
    assert total == pytest.approx(1.0, rel=1e-3)


def test_a_cut_file_is_told_from_a_missing_one(tmp_path):
    path = write(tmp_path / "x.a2Fsave", 4)
    path.write_text(path.read_text()[:-400])
    with pytest.raises(EngineFailure, match="ends after"):
        read_dense_bands(path)
    with pytest.raises(EngineFailure, match="missing or empty"):
        read_dense_bands(tmp_path / "none")
