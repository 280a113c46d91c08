"""Every stored run of pw.x gets the verdict it deserves; neither its exit code nor ``JOB DONE`` decides."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from hydroflow.dft import crystal, pw_output, recovery, verdict
from hydroflow.errors import EngineFailure, FailureCode
from tests.dft.qe_cases import CASES, Case

IDS = [case.name for case in CASES]


def judge(case: Case, level) -> None:
    """What the engines do with a finished run, from its text."""
    text = case.read("out")
    if failure := verdict.diagnose(text, case.exit_code):
        raise failure
    result = pw_output.read_text(text)
    structure = case.structure()
    if result.ions_converged:
        structure = crystal.from_arrays(result.numbers, result.cell, result.fractional)
    assert verdict.check_result(result, structure, level, pw_output.negative_charge(text)) == []


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_output_and_exit_code_alone(case):
    failure = verdict.diagnose(case.read("out"), case.exit_code)
    assert (failure.code.value if failure else None) == case.said


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_all_checks_together(case, level):
    if case.code is None:
        judge(case, level)
    else:
        with pytest.raises(EngineFailure) as raised:
            judge(case, level)
        assert raised.value.code.value == case.code


@pytest.mark.parametrize("case", [c for c in CASES if c.code is None], ids=lambda c: c.name)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85, 0.97])
def test_a_good_output_cut_anywhere_is_no_label(case, share, level):
    text = case.read("out")
    failure = verdict.diagnose(text[:int(share * len(text))], 0)
    assert failure is not None and failure.code in (FailureCode.truncated_output, FailureCode.executable_missing)


def test_the_message_names_the_routine_and_what_it_said():
    case = next(c for c in CASES if c.name == "nbnd_few")
    assert "setup: too few bands" in str(verdict.diagnose(case.read("out"), 1))


def test_an_error_that_only_the_crash_file_has():
    crash = next(c for c in CASES if c.name == "pseudo_missing").read("crash")
    start = "\n     Program PWSCF v.6.7MaX starts on\n"
    assert verdict.diagnose(start, 1, crash=crash).code is FailureCode.bad_pseudopotential
    assert verdict.diagnose(start, 1).code is FailureCode.truncated_output


def test_open_mpi_that_gave_up_at_the_start_is_tried_again():
    failure = verdict.diagnose("", 1, stderr="[node:06727] Local abort before MPI_INIT completed completed successfully, but am "
                               "not able to aggregate error messages, and not able to guarantee that all others were killed!")
    assert failure.code is FailureCode.killed


def test_a_program_that_never_started():
    failure = verdict.diagnose("", 127, stderr="bash: line 1: pw.x: command not found")
    assert failure.code is FailureCode.executable_missing


@pytest.fixture()
def good(level):
    case = next(c for c in CASES if c.name == "ok_scf_cah6")
    return pw_output.read_text(case.read("out")), case.structure(), level


def test_wrong_numbers_in_a_run_that_ended_well(good):
    result, structure, level = good

    def code(**changes):
        wrong = copy.deepcopy(result)
        for name, value in changes.items():
            setattr(wrong, name, value)
        with pytest.raises(EngineFailure) as raised:
            verdict.check_result(wrong, structure, level)
        return raised.value.code.value

    forces = np.zeros((7, 3))
    assert code(scf_converged=False) == "scf_not_converged"
    assert code(stress_gpa=None) == "missing_output"
    assert code(forces_ev_a=None) == "missing_output"
    assert code(forces_ev_a=forces[:5]) == "corrupted_output"
    assert code(forces_ev_a=np.full((7, 3), np.nan)) == "unphysical_result"
    assert code(forces_ev_a=forces + 0.1) == "corrupted_output"  # they do not sum to zero
    assert code(stress_gpa=np.eye(3) * 5000) == "unphysical_result"
    assert code(energy_ev=float("inf")) == "unphysical_result"
    assert code(electrons=17.0) == "bad_pseudopotential"
    assert code(cell=result.cell * 1.01) == "corrupted_output"
    assert code(cell=result.cell * np.nan) == "corrupted_output"
    assert code(fractional=result.fractional * np.nan) == "corrupted_output"


def test_negative_density_beyond_what_the_kind_of_pseudopotential_has(good, level):
    result, structure, level = good
    augmented = replace(level, pseudos={e: replace(p, kind="US") for e, p in level.pseudos.items()})
    assert verdict.check_result(result, structure, level, 1e-4) == []
    assert verdict.check_result(result, structure, augmented, 0.05) == []
    for settings, electrons in ((level, 0.05), (augmented, 0.5), (level, float("nan"))):
        with pytest.raises(EngineFailure) as raised:
            verdict.check_result(result, structure, settings, electrons)
        assert raised.value.code is FailureCode.charge_density
        assert recovery.correction(raised.value, 1) is None  # no correction keeps the level of theory


def test_forces_that_break_the_symmetry_are_held_for_review(good):
    result, structure, level = good
    wrong = copy.deepcopy(result)
    wrong.forces_ev_a = np.zeros((7, 3))
    wrong.forces_ev_a[1], wrong.forces_ev_a[2] = (0.4, 0, 0), (-0.4, 0, 0)
    assert any("symmetry" in reason for reason in verdict.check_result(wrong, structure, level))


def test_overlapping_core_spheres_are_held_for_review(good, level):
    result, structure, level = good
    wide = replace(level, pseudos={e: replace(p, core_radius_a=2.6) for e, p in level.pseudos.items()})
    assert any("core spheres" in reason for reason in verdict.check_result(result, structure, wide))
