"""Verdicts on real outputs of failed runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydroflow.campaign import Cluster
from hydroflow.dispatch.collector import Collector
from hydroflow.dispatch.engine import Collected
from hydroflow.dispatch.job import JobSpec
from hydroflow.epc.failures import judge, timings
from hydroflow.epc.ground_state import EpcScf
from hydroflow.epc.inputs import coupling_input, phonon_input
from hydroflow.epc.linear_response import ELPH, EpcQ
from hydroflow.errors import EngineFailure, FailureCode

OUTPUTS = Path(__file__).parent / "data" / "outputs"
C = FailureCode


@pytest.mark.parametrize(("name", "program", "code", "exit_code"), [
    ("scf_not_converged", "PWSCF", C.scf_not_converged, "2"),
    ("s_matrix_not_posdef", "PWSCF", C.diagonalisation, "98"),
    ("walltime_max_seconds", "PWSCF", C.walltime, "255"),
    ("killed_sigkill", "PWSCF", C.killed, "137"),
    ("oom_250", "PWSCF", C.out_of_memory, "1"),
    ("pseudo_missing", "PWSCF", C.bad_pseudopotential, "1"),
    ("ph_not_converged", "PHONON", C.phonon_not_converged, "1"),
    ("ph_walltime", "PHONON", C.walltime, "1"),
    ("ph_killed", "PHONON", C.killed, "137"),
    ("ph_no_a2fsave", "PHONON", C.missing_restart_data, "2"),
    ("ph_elph_no_dvscf", "PHONON", C.missing_restart_data, "1"),
    ("ph_truncated_save_xml", "PHONON", C.missing_restart_data, "134"),
    ("ph_incommensurate_q", "PHONON", C.bad_input, "1"),
    ("ph_qmesh_breaks_symmetry", "PHONON", C.symmetry_mismatch, "1"),
    ("ph_bad_key", "PHONON", C.bad_input, "1"),
    ("ph_images_elph", "PHONON", C.bad_input, "1"),
    ("ph_no_scf_data", "PHONON", C.missing_restart_data, "1"),
    ("ph_recover_truncated_xml", "PHONON", C.missing_restart_data, "2"),
    ("ph_elph_recover_fails", "PHONON", C.missing_restart_data, "2"),
    # ended with exit code 0 and JOB DONE
    ("ph_recovered_without_smearing", "PHONON", C.missing_restart_data, "0"),
    ("atoms_too_close", "PWSCF", C.unphysical_result, "0"),
    ("low_cutoff", "PWSCF", C.bad_input, "1"),
    ("fft_sticks", "PWSCF", C.parallel_limits, "7"),
])
def test_real_failures_get_their_code(name, program, code, exit_code):
    with pytest.raises(EngineFailure) as caught:
        judge(OUTPUTS / f"{name}.out", program, exit_code)
    assert caught.value.code is code


ABORTED = ("[node:06727] Local abort before MPI_INIT completed completed successfully, but am not able to aggregate error "
           "messages, and not able to guarantee that all other processes were killed!\n")


def test_open_mpi_that_gave_up_at_the_start_is_tried_again(tmp_path):
    (tmp_path / "coarse.out").write_text(ABORTED)
    with pytest.raises(EngineFailure, match="gave up before PWSCF began") as caught:
        judge(tmp_path / "coarse.out", "PWSCF", "1")
    assert EpcScf().recover(JobSpec("epc.scf", {}, "qe"), caught.value, 1) is not None


def test_a_good_run_passes():
    judge(OUTPUTS / "ok_ph.out", "PHONON", "0")


def test_an_earlier_job_done_does_not_count(tmp_path):
    # appended: a good run, then one that was cut off
    good, cut = (OUTPUTS / "ok_ph.out").read_text(), (OUTPUTS / "ph_killed.out").read_text()
    assert "JOB DONE" in good
    (tmp_path / "ph.out").write_text(good + cut)
    with pytest.raises(EngineFailure) as caught:
        judge(tmp_path / "ph.out", "PHONON", "1")
    assert caught.value.code is C.truncated_output


def test_an_earlier_failure_does_not_count(tmp_path):
    bad, good = (OUTPUTS / "ph_walltime.out").read_text(), (OUTPUTS / "ok_ph.out").read_text()
    (tmp_path / "ph.out").write_text(bad + good)
    judge(tmp_path / "ph.out", "PHONON", "0")


def test_a_program_that_never_started(tmp_path):
    with pytest.raises(EngineFailure) as caught:
        judge(tmp_path / "ph.out", "PHONON", "127")
    assert caught.value.code is C.missing_output


def test_timings(tmp_path):
    (tmp_path / "ph.out").write_text("     PHONON       :   1h 2m CPU   1h10m WALL\n"
                                      "     PHONON       :  3m 4.50s CPU     4m 0.10s WALL\n")
    assert timings(tmp_path / "ph.out") == {"cpu_s": 184.5, "wall_s": 240.1}
    assert timings(OUTPUTS / "killed_sigkill.out") == {}


def test_declared_recoveries():
    job = JobSpec("epc.q", {"tr2_ph": 1e-12}, "qe")
    def recover(code: FailureCode, attempt: int):
        return EpcQ().recover(job, EngineFailure(code, "x"), attempt)

    walltime = recover(C.walltime, 1)
    assert walltime is not None and walltime.keep_folder
    mixing = [recover(C.phonon_not_converged, n) for n in (1, 2, 3)]
    assert [m.adjustments["alpha_mix"] for m in mixing] == [0.3, 0.15, 0.1]
    assert all(m.keep_folder for m in mixing)
    assert mixing[2].adjustments["tr2_ph"] == pytest.approx(1e-10)
    assert recover(C.phonon_not_converged, 4) is None
    assert not recover(C.missing_restart_data, 1).keep_folder
    assert recover(C.symmetry_mismatch, 1) is None
    gradients = recover(C.diagonalisation, 1)
    values = {"q": 1, "q_mesh": [1, 1, 1], "tr2_ph": 1e-12, "alpha_mix": 0.7}
    assert "diagonalization = 'cg'" in phonon_input(values, max_seconds=9, adjustments=gradients.adjustments, recover=False)
    assert "diagonalization" not in phonon_input(values, max_seconds=9, adjustments={}, recover=False)
    # the couplings compute the same bands again
    values |= {"sigma_first_ry": 0.01, "sigma_count": 5}
    assert "diagonalization = 'cg'" in coupling_input(values, max_seconds=9, adjustments=gradients.adjustments)
    assert EpcScf().recover(job, EngineFailure(C.scf_not_converged, "x"), 1).adjustments["mixing_beta"] == 0.3
    assert EpcScf().recover(job, EngineFailure(C.bad_pseudopotential, "x"), 1) is None
    assert EpcScf().recover(job, EngineFailure(C.parallel_limits, "x"), 1).adjustments == {"pools": 1}
    assert EpcScf().recover(job, EngineFailure(C.truncated_output, "x"), 1) is not None
    assert EpcScf().recover(job, EngineFailure(C.truncated_output, "x"), 2) is None
    # pw.x begins its run again: where that does not fit into the wall time, it never will
    assert [EpcScf().recover(job, EngineFailure(C.walltime, "x"), n) is not None for n in (1, 2)] == [True, False]
    assert EpcScf().recover(job, EngineFailure(C.killed, "x"), 6).keep_folder


@pytest.mark.parametrize(("q", "finished", "couplings", "attempt", "goes_on"), [
    (2, 1, False, 11, True), (2, 0, False, 1, True), (2, 0, False, 2, False),
    (1, 0, False, 5, True),  # at Γ ph.x goes on within a representation
    (2, 3, True, 2, False)])  # couplings that had all the time start again
def test_a_wall_time_in_which_nothing_is_finished_is_not_spent_again(tmp_path, q, finished, couplings, attempt, goes_on):
    stopped = f"     Program PHONON v.6.7\n{'     Convergence has been achieved' * finished}\n     Maximum CPU time exceeded\n"
    job = JobSpec("epc.q", {"q": q, "tr2_ph": 1e-12}, "qe")
    if couplings:
        shutil.copy(OUTPUTS / "ok_ph.out", tmp_path / "phonons.out")
        (tmp_path / "couplings.alone").touch()
    (tmp_path / ("couplings.out" if couplings else "phonons.out")).write_text(stopped)
    with pytest.raises(EngineFailure) as raised:
        EpcQ().collect(job, tmp_path)
    assert raised.value.code is C.walltime
    assert (EpcQ().recover(job, raised.value, attempt) is not None) == goes_on
    assert goes_on or "nothing to go on from" in str(raised.value)


def test_noise_of_the_acoustic_modes_at_gamma_is_no_instability(tmp_path):
    """H3S at Γ with an acoustic mode at −0.8 THz and a linewidth of an optical one that does not fit into its field."""
    data = OUTPUTS.parent / "h3s"
    shutil.copy(OUTPUTS / "ok_ph.out", tmp_path / "phonons.out")
    shutil.copy(OUTPUTS / "ok_ph.out", tmp_path / "couplings.out")
    (tmp_path / ELPH).write_bytes(b"")
    job = JobSpec("epc.q", {"q": 1, "q_cartesian": [0.0, 0.0, 0.0], "sigma_count": 10}, "qe")

    def collect(first: str, optical: str) -> Collected:
        (tmp_path / "x.dyn1").write_text((data / "x.dyn1").read_text().replace(
            "freq (    1) =       0.682838", f"freq (    1) = {first}").replace(
            "freq (    4) =      14.432856", f"freq (    4) = {optical}"))
        (tmp_path / "couplings.dat").write_text((data / "elph_dir" / "elph.inp_lambda.1").read_text().replace(
            "gamma=  103.12 GHz", "gamma=******** GHz"))
        return EpcQ().collect(job, tmp_path)

    assert collect("     -0.800000", "     14.432856").result["frequencies_thz"][0] == -0.8
    with pytest.raises(EngineFailure, match=r"the lowest mode at q 1 is imaginary, -0\.8 THz"):
        collect("      0.682838", "     -0.800000")


class _Scripted(EpcQ):
    """ph.x whose runs end one after the other as the script says."""

    def __init__(self, *codes: FailureCode) -> None:
        self.codes = list(codes)

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        raise EngineFailure(self.codes.pop(0), "as the script says")


def _attempts(monkeypatch: pytest.MonkeyPatch, folder: Path, *codes: FailureCode) -> dict[str, Any]:
    """The job's document after attempts that failed like that, judged one by one by the agent's collector."""
    engine = _Scripted(*codes)
    monkeypatch.setattr("hydroflow.dispatch.collector.engine_for", lambda kind: engine)
    ledger = SimpleNamespace(change=lambda changes: told.extend(changes))
    objects = SimpleNamespace(put=lambda data: "sha256:0", put_file=lambda path: "sha256:0")
    told: list[Any] = []
    collector = Collector(ledger, objects, "here", Cluster())
    job = {"_id": "k", "kind": "epc.q", "inputs": {"tr2_ph": 1e-12}, "engine": "qe", "folder": "f"}
    (folder / "exit_code").write_text("1\n")
    for attempt in range(1, len(codes) + 1):
        collector.collect([({**job, "attempt": attempt}, folder)])
        job = {k: v for k, v in job.items() if k not in told[-1].unset} | told[-1].values | {"state": told[-1].target.value}
    return job


def test_a_kill_does_not_use_up_the_recovery_of_lost_smearing(monkeypatch, tmp_path):
    job = _attempts(monkeypatch, tmp_path, C.killed, C.missing_restart_data)
    assert job["state"] == "prepared" and job["restart_from"] is None
    assert job["failures"] == 2
    again = _attempts(monkeypatch, tmp_path, C.killed, C.missing_restart_data, C.walltime, C.missing_restart_data)
    assert again["state"] == "quarantined", "afresh once only"


def test_wall_times_do_not_use_up_the_mixing(monkeypatch, tmp_path):
    job = _attempts(monkeypatch, tmp_path, C.walltime, C.walltime, C.walltime, C.phonon_not_converged)
    assert job["state"] == "prepared" and job["restart_from"] == "f/k"
    assert job["adjustments"]["alpha_mix"] == 0.3
    assert job["failure"]["times"] == {"walltime": 3, "phonon_not_converged": 1}
