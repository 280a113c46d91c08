"""One structure through pw.x and, by files, through VASP or a program that speaks its files, compared from the command line."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

import ase
import pytest
from ase.io import write
from click.testing import CliRunner

from hydroflow.cli.dft import dft
from tests.dft.test_vasp import POTCAR
from tests.engines.test_dft_qe import h3s

pytestmark = pytest.mark.engine

SIMULATOR = f"{sys.executable} {Path(__file__).parents[1] / 'dft' / 'vasp_simulator.py'}"


def call(*words: object) -> str:
    done = CliRunner().invoke(dft, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_label_and_compare(tmp_path, monkeypatch):
    for element, valence in (("H", 1.0), ("S", 6.0)):
        folder = tmp_path / "library" / "potpaw_PBE.54" / element
        folder.mkdir(parents=True)
        (folder / "POTCAR").write_text(POTCAR.format(element=element, symbol=element, valence=valence))
    monkeypatch.setenv("PMG_VASP_PSP_DIR", str(tmp_path / "library"))
    structure, qe, vasp = tmp_path / "h3s.extxyz", tmp_path / "qe.parquet", tmp_path / "vasp.parquet"
    write(structure, h3s(shift=0.05)[[1, 0, 2, 3]])  # H, S, H, H: not the order that VASP's files have
    text = call("label", structure, "--protocol", "fast", "--out", qe)
    assert "quantum-espresso" in text and "1 of 1 labels" in text
    assert "vasp 6" in call("label", structure, "--protocol", "fast", "--engine", "vasp", "--pseudos", "PBE_54",
                            "--command", SIMULATOR, "--out", vasp)
    assert json.loads(call("compare", qe, qe, "--json"))["force_max_ev_a"] == 0
    found = json.loads(call("compare", qe, vasp, "--json"))
    assert found["frames"] == 1 and found["pressure_gpa"] > 10  # a pair repulsion is no H3S
    assert set(found["shifts_ev"]) == {"H", "S"}


def test_a_real_run_of_vasp_beside_pw_x(tmp_path):
    """NaCl of a vasprun.xml that VASP 6.3.2 wrote (PBE, 400 eV, 3×3×3 k-points; out of ASE's test data), labelled by pw.x."""
    vasp = Path(str(files(ase))) / "test" / "testdata" / "vasp" / "vasprun_dfpt.xml"
    call("label", vasp, "--protocol", "fast", "--out", tmp_path / "qe.parquet")
    found = json.loads(call("compare", tmp_path / "qe.parquet", vasp, "--json"))
    assert found["pressure_max_gpa"] < 0.5  # VASP has 3.61 GPa, pw.x 3.84
    assert found["force_max_ev_a"] < 1e-3
    assert found["shifts_ev"]["Na"] > 100  # other electrons in the core, another zero of energy
