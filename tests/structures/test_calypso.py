"""The CALYPSO driver against a simulator of the executable's file protocol."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hydroflow.campaign import Campaign
from hydroflow.errors import CampaignError, DataError
from hydroflow.structures import Request
from hydroflow.structures.calypso import CalypsoGenerator
from hydroflow.structures.calypso_files import FAILED_ENTHALPY_EV
from hydroflow.testing.generator_kit import GeneratorContract

SIMULATOR = f"{sys.executable} {Path(__file__).with_name('calypso_simulator.py')}"
CELL = {"Ca": 1, "Y": 1, "H": 12}
FOLDER = "Ca1Y1H12-200gpa-7"


def campaign(command: str | None = SIMULATOR) -> Campaign:
    return Campaign(name="test", space={"elements": ["Ca", "Y"]},
                    generator={"mix": {"calypso": 1.0}, "calypso_command": command})


class TestContract(GeneratorContract):
    """As any generator; the simulator's positions are random, so short distances are allowed."""

    campaign = campaign()
    distance_factor = 0.0

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.root = tmp_path

    def make(self):
        return CalypsoGenerator(self.root)


def ask(root, first=0, relaxed=None, count=6, cell=None):
    return CalypsoGenerator(root).generate(campaign(), [Request(cell or CELL, count, first)], 200.0, 7, relaxed)


def relaxed_of(made):
    made.columns["enthalpy_ev"] = 0.5 * np.arange(len(made), dtype=float) - 3
    return made


def test_input_dat_says_what_was_asked_for(tmp_path):
    ask(tmp_path)
    text = (tmp_path / FOLDER / "input.dat").read_text()
    for line in ("NameOfAtoms = Ca Y H", "NumberOfAtoms = 1 1 12", "PopSize = 6", "PSTRESS = 2000.0000", "Split = T",
                 "SpeSpaceGroup = 2 230"):
        assert line in text
    table = text.split("@DistanceOfIon\n")[1].split("\n@End")[0].splitlines()
    assert [len(row.split()) for row in table] == [3, 3, 3] and table[2].split()[2] == "0.8000"


def test_generation_after_generation(tmp_path):
    first = ask(tmp_path).structures
    assert first.formulas() == ["CaYH12"] * 6
    assert list(first.columns["id"])[-1] == "Ca1Y1H12-200gpa-7-calypso-5"
    second = ask(tmp_path, 6, relaxed_of(first)).structures
    assert (tmp_path / FOLDER / "step").read_text().strip() == "3"
    assert second.columns["id"][0] == "Ca1Y1H12-200gpa-7-calypso-6"
    # the simulator saw the enthalpies per atom, and its even children descend from the best one
    seen = np.loadtxt(tmp_path / FOLDER / "results" / "pso_opt_1")
    assert np.allclose(seen, (0.5 * np.arange(6) - 3) / 14, atol=1e-6)
    near = (second[1].fractional - first[0].fractional + 0.5) % 1 - 0.5
    assert np.abs(near).max() < 0.12
    third = ask(tmp_path, 12, relaxed_of(second)).structures
    assert len(third) == 6
    assert not list((tmp_path / FOLDER).glob("CONTCAR_*"))


def test_asking_again_gives_the_same_generation(tmp_path):
    assert ask(tmp_path).structures.digests() == ask(tmp_path).structures.digests()


def test_structures_that_did_not_relax_are_handed_back_as_failed(tmp_path):
    first = relaxed_of(ask(tmp_path).structures)
    first.columns["enthalpy_ev"][2] = np.nan
    ask(tmp_path, 6, first[:4])
    seen = np.loadtxt(tmp_path / FOLDER / "results" / "pso_opt_1")
    assert (seen > 1e6).tolist() == [False, False, True, False, True, True]
    assert seen[2] * 14 == pytest.approx(FAILED_ENTHALPY_EV, rel=1e-6)


@pytest.mark.parametrize("first", [0, 6])
def test_a_run_killed_while_calypso_wrote_goes_on(tmp_path, monkeypatch, first):
    before = relaxed_of(ask(tmp_path).structures) if first else None
    monkeypatch.setenv("SIMULATE", "die")
    died = ask(tmp_path, first, before)
    assert not len(died.structures) and "exit code 137" in died.failures[0].reason
    monkeypatch.delenv("SIMULATE")
    made = ask(tmp_path, first, before).structures
    assert len(made) == 6
    assert (tmp_path / FOLDER / "step").read_text().strip() == ("3" if first else "2")
    fresh = CalypsoGenerator(tmp_path / "fresh")
    again = fresh.generate(campaign(), [Request(CELL, 6)], 200.0, 7).structures
    if first:
        again = fresh.generate(campaign(), [Request(CELL, 6, 6)], 200.0, 7, relaxed_of(again)).structures
    assert made.digests() == again.digests()


def test_a_failing_executable_costs_only_its_request(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMULATE", "fail")
    made = ask(tmp_path)
    assert len(made.structures) == 0
    assert made.failures[0].composition == "Ca1Y1H12" and "forrtl" in made.failures[0].reason


def test_half_written_folders_name_the_file(tmp_path):
    ask(tmp_path)
    (tmp_path / FOLDER / "POSCAR_3").write_text("cut\n1.0\n3 0")
    with pytest.raises(DataError, match="POSCAR_3"):
        ask(tmp_path)
    (tmp_path / FOLDER / "POSCAR_3").unlink()
    with pytest.raises(DataError, match="POSCAR_3"):
        ask(tmp_path)
    (tmp_path / FOLDER / "hydroflow.json").unlink()
    with pytest.raises(DataError, match=r"hydroflow\.json"):
        ask(tmp_path)


def test_a_calypso_that_stops_early_without_an_error_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMULATE", "die")
    monkeypatch.setenv("QUIETLY", "1")
    with pytest.raises(DataError, match="step"):
        ask(tmp_path)


def test_generations_cannot_be_skipped(tmp_path):
    first = relaxed_of(ask(tmp_path).structures)
    assert "generation 1" in ask(tmp_path, 18, first).failures[0].reason
    assert "handed back" in ask(tmp_path, 6).failures[0].reason
    assert "first = 0" in ask(tmp_path, 6, first, cell={"Ca": 1, "H": 6}).failures[0].reason


def test_the_command_must_be_set_and_start():
    with pytest.raises(CampaignError, match="calypso_command"):
        CalypsoGenerator().generate(campaign(None), [Request(CELL, 1)], 200.0, 1)


def test_a_command_that_is_not_there(tmp_path):
    with pytest.raises(CampaignError, match="nowhere"):
        CalypsoGenerator(tmp_path).generate(campaign("/nowhere/calypso.x"), [Request(CELL, 1)], 200.0, 1)
