"""Deviations between two levels of theory on the same structures, whatever order their files have the atoms in."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from hydroflow.arrays import StructureArrays
from hydroflow.dft.compare import deviation
from hydroflow.dft.files import read_structures
from hydroflow.errors import DataError


def labelled(order: list[int], shift: dict[int, float] | None = None) -> StructureArrays:
    """Four frames with forces made of the places, so that a wrong match of atoms shows; `shift` is eV per atom of an element."""
    rng = np.random.default_rng(3)
    numbers = np.array([1, 20, 1, 39, 1])
    fractional = [rng.random((5, 3)) for _ in range(4)]
    out = StructureArrays.from_lists([numbers[order]] * 4, [f[order] + np.arange(5)[:, None] for f in fractional],
                                     [np.diag([3.6, 3.7, 3.9 + 0.1 * i]) for i in range(4)])
    energy = np.arange(4) * 0.1 + sum((shift or {}).get(int(z), 0.0) for z in numbers)
    out.columns = {"energy_ev": energy, "pressure_gpa": np.full(4, 200.0 if shift is None else 202.0)}
    out.atom_columns = {"forces_ev_a": np.concatenate([f[order] for f in fractional])}
    return out


def test_atoms_grouped_by_element_are_matched():
    found = deviation(labelled([0, 1, 2, 3, 4]), labelled([1, 0, 4, 2, 3], {1: 0.5, 20: 1.0}))
    assert found.force_max_ev_a == pytest.approx(0, abs=1e-12)
    assert found.pressure_gpa == pytest.approx(2.0)
    assert found.shifts_ev["H"] == pytest.approx(2.5 / 5)  # one composition: only the mean is known


def test_other_structures_are_refused():
    a, b = labelled([0, 1, 2, 3, 4]), labelled([0, 1, 2, 3, 4])
    b.fractional[7] += 0.1
    with pytest.raises(DataError, match="places of their atoms differ"):
        deviation(a, b)
    c = labelled([0, 1, 2, 3, 4])
    c.numbers[1] = 38
    with pytest.raises(DataError, match="elements or places"):
        deviation(a, c)


def test_structures_of_a_file(tmp_path):
    cell = bulk("Ca", "bcc", a=3.5)
    write(tmp_path / "ca.cif", cell)
    write(tmp_path / "molecule.xyz", cell.__class__("H2", positions=[[0, 0, 0], [0, 0, 0.74]]))
    (tmp_path / "noise.cif").write_text("no crystal")
    assert read_structures(tmp_path / "ca.cif").formulas() == ["Ca"]
    for name, words in (("molecule.xyz", "without a cell"), ("noise.cif", "noise.cif")):
        with pytest.raises(DataError, match=words):
            read_structures(tmp_path / name)
