"""Whose unit it is that a comment names."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.epc.frequency_units import UNITS
from hydroflow.epc.readers import UnknownUnit, read_a2f
from hydroflow.units import K_PER_MEV, K_PER_RYDBERG
from tests.epc.spectrum import check


def test_a_header_of_many_columns_is_read_at_once(tmp_path):
    rows = "\n".join(" ".join([f"{10 + i}"] + ["0.1"] * 60) for i in range(20))
    (tmp_path / "wide.dat").write_text("# meV, " + ", ".join(f"a2f({i})" for i in range(59)) + ", total\n" + rows + "\n")
    with pytest.raises(UnknownUnit, match="--unit"):  # what "total" is a unit of cannot be known
        read_a2f(tmp_path / "wide.dat")
    (tmp_path / "wide.dat").write_text("# meV, " + ", ".join(f"a2f({i})" for i in range(60)) + "\n" + rows + "\n")
    assert read_a2f(tmp_path / "wide.dat").unit == "meV"


@pytest.mark.parametrize("unit", list(UNITS))
def test_text_in_each_unit(tmp_path, table, unit):
    np.savetxt(tmp_path / "a2f.txt", table * [K_PER_RYDBERG / UNITS[unit], 1])
    check(tmp_path / "a2f.txt", "text", unit)


@pytest.mark.parametrize(("header", "unit"), [
    ("omega[meV]   alpha^2F(omega)", "meV"), ("Frequency (THz) a2F", "THz"), ("w (cm^-1), a2F", "cm-1"), ("E (1/cm)", "cm-1"),
    ("omega/meV  a2F", "meV"), (r"$\omega$ (cm$^{-1}$)", "cm-1"), ("freq_THz,a2F", "THz"), ("omega [Hartree]", "Ha"),
    ("meV a2F", "meV"), ("unit: THz", "THz"), ("frequencies are in Rydberg", "Ry"), ("ecutwfc 80 Ry\nomega (THz)", "THz"),
    ("smearing 0.02 Ry, omega (THz)", "THz"), ("w (meV), lambda at 300 (K)", "meV"), ("kinetic energy (Ry), E (THz)", "THz")])
def test_text_names_its_unit(tmp_path, table, header, unit):
    np.savetxt(tmp_path / "a2f.dat", table * [K_PER_RYDBERG / UNITS[unit], 1], header=header)
    assert check(tmp_path / "a2f.dat", "text").unit == unit


def test_text_without_a_unit_is_refused(tmp_path, table):
    np.savetxt(tmp_path / "a2f.dat", table)
    with pytest.raises(UnknownUnit, match="--unit"):
        read_a2f(tmp_path / "a2f.dat")


@pytest.mark.parametrize("header", [
    "phonon smearing 0.5 meV", "degauss = 0.02 Ry", "DOS from 400 cm-1 grid", "T = 300 (K)", "smearing in meV",
    "Fermi energy (Ry)", "energy (Ry) = 80", "w(k), a2F in states/meV", "log average (K) and lambda"])
def test_unit_of_something_else_is_not_that_of_the_frequencies(tmp_path, table, header):
    np.savetxt(tmp_path / "a2f.dat", table, header=header)
    with pytest.raises(UnknownUnit, match=r"does not name the unit.*--unit"):
        read_a2f(tmp_path / "a2f.dat")


@pytest.mark.parametrize(("header", "unit"), [
    ("frequency (mRy), a2F; DOS in states/eV", "mRy"), ("omega [eV], smeared by 0.5 meV", "eV"), ("w (µeV)", "µeV"),
    ("omega (rad/ps), smearing 0.02 Ry", "rad/ps")])
def test_text_in_a_unit_that_is_not_known_is_refused(tmp_path, table, header, unit):
    np.savetxt(tmp_path / "a2f.dat", table, header=header, encoding="utf-8")
    with pytest.raises(UnknownUnit, match=rf"is in {unit},.*--unit"):
        read_a2f(tmp_path / "a2f.dat")


def test_name_of_elk_does_not_outweigh_a_unit(tmp_path, table):
    np.savetxt(tmp_path / "alpha2F.out", table * [K_PER_RYDBERG / K_PER_MEV, 1], header="omega (meV)")
    assert check(tmp_path / "alpha2F.out", "text").unit == "meV"


@pytest.mark.parametrize(("header", "named"), [
    ("omega (Ry), E (THz)", "Ry, THz"), ("meV THz", "meV, THz"), ("energies in Ry, frequencies in THz", "Ry, THz")])
def test_text_that_names_several_units_is_refused(tmp_path, table, header, named):
    np.savetxt(tmp_path / "a2f.dat", table, header=header)
    with pytest.raises(UnknownUnit, match=rf"several units \({named}\).*--unit"):
        read_a2f(tmp_path / "a2f.dat")
    check(tmp_path / "a2f.dat", "text", "Ry")


@pytest.mark.parametrize(("header", "unit"), [
    ("K-Ca-H at 200 GPa, w in meV", "meV"), ("K H10", None), ("omega [K], a2F", "K")])
def test_potassium_is_no_unit(tmp_path, table, header, unit):
    np.savetxt(tmp_path / "a2f.dat", table * [K_PER_RYDBERG / UNITS[unit or "K"], 1], header=header)
    if unit is None:
        with pytest.raises(UnknownUnit, match="does not name"):
            read_a2f(tmp_path / "a2f.dat")
    else:
        assert check(tmp_path / "a2f.dat", "text").unit == unit
