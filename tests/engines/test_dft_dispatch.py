"""DFT jobs through the ledger, the agent and dpdispatcher: VASP's files by the simulator, pw.x for real."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Cluster, Labels
from hydroflow.dft.batch import held_for_review, label_specs, labelled_frames
from hydroflow.dft.settings import label_settings
from hydroflow.dispatch.ledger import Ledger
from tests.dft.test_vasp import POTCAR, mixed

pytestmark = pytest.mark.service

SIMULATOR = f"{sys.executable} {Path(__file__).parents[1] / 'dft' / 'vasp_simulator.py'}"


def test_vasp_labels_through_the_agent(store, agent, tmp_path, monkeypatch):
    for element, symbol, valence in (("H", "H", 1.0), ("Ca", "Ca_sv", 10.0), ("Y", "Y_sv", 11.0)):
        folder = tmp_path / "library" / "potpaw_PBE.54" / symbol
        folder.mkdir(parents=True)
        (folder / "POTCAR").write_text(POTCAR.format(element=element, symbol=symbol, valence=valence))
    monkeypatch.setenv("PMG_VASP_PSP_DIR", str(tmp_path / "library"))
    settings = label_settings(Labels(engine="vasp", protocol="standard"), ["H", "Ca", "Y"])
    overlapping = mixed()
    overlapping.fractional[1] = overlapping.fractional[3] + 0.01
    agent({"local": Cluster(executables={"vasp_std": SIMULATOR})})
    ledger = Ledger(store)
    jobs = ledger.wait(ledger.submit(label_specs(store, StructureArrays.concatenate([mixed(), overlapping]), settings), "test"))
    assert [job.state == "done" for job in jobs] == [True, False]
    assert "apart" in jobs[1].failure["message"]
    frames = labelled_frames(store, jobs, "stage1/0")
    assert len(frames) == 1 and frames.columns["label_settings"][0] == settings.text
    assert {"OUTCAR.gz", "vasprun.xml.gz"} <= set(jobs[0].outputs)


@pytest.mark.engine
def test_pw_x_labels_through_the_agent(store, agent):
    settings = label_settings(Labels(protocol="fast"), ["H", "Ca"])
    rng = np.random.default_rng(0)
    cells = [np.diag([2.2, 2.2, 2.2 + 0.1 * k]) for k in range(3)]
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5]]) + rng.random(3)
    batch = StructureArrays.from_lists([np.array([20, 1])] * 3, [sites] * 3, cells)
    agent()
    ledger = Ledger(store)
    keys = ledger.submit(label_specs(store, batch, settings), "test")
    jobs = ledger.wait(keys)
    frames = labelled_frames(store, jobs, "bootstrap")
    assert len(frames) == 3 and not held_for_review(jobs)
    assert np.all(np.diff(frames.columns["pressure_gpa"]) < 0)  # larger cells, lower pressures
    assert ledger.submit(label_specs(store, batch, settings), "another") == keys  # the same questions
    assert all(job.attempt == 1 for job in ledger.wait(keys))
