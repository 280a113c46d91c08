"""Real jobs of a ground state and of one q: kills, limits and failures."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from ase.build import bulk

from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.epc.chain import scf_spec
from hydroflow.epc.ground_state import EpcScf
from hydroflow.epc.linear_response import IRREPS, EpcIrreps, EpcQ
from hydroflow.epc.protocols import Meshes, meshes, primitive, protocol
from hydroflow.epc.qe_files import read_couplings
from hydroflow.epc.scripts import SAVE
from hydroflow.errors import EngineFailure
from tests.dft.driver import FolderStore, Objects, attempt, run
from tests.engines.epc_driver import CUTOFFS, ENGINE, EXECUTABLES, h3s, kill_when, pseudos

pytestmark = pytest.mark.engine


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


def _converged(folder: Path, words: str = "Convergence has been achieved") -> int:
    path = folder / "phonons.out"
    return path.read_text(errors="replace").count(words) if path.exists() else 0


@pytest.mark.parametrize(("program", "running", "kept"), [
    ("pw.x", "dense.out", []), ("pw.x", "coarse.out", ["dense.out"]), ("ph.x", "list.out", ["dense.out", "coarse.out"])])
def test_killed_in_the_ground_state_repeats_no_finished_run(ground, tmp_path, program, running, kept):
    # denser than `ground`, so that each run lasts long enough to be hit
    store = ground[0]
    spec, _ = _ground_state(store, k_spacing=0.8)
    watcher = kill_when(tmp_path / "attempt1", lambda f: (f / running).exists() and (f / running).stat().st_size > 0, program)
    done = run(EpcScf(), spec, store, tmp_path, executables=EXECUTABLES)
    watcher.join()
    assert done.failures == ["killed"], "the run was over before it could be killed" if not done.failures else done.failures
    for name in kept:
        assert (tmp_path / "attempt2" / name).read_text() == (tmp_path / "attempt1" / name).read_text(), f"{name} was repeated"
    assert (tmp_path / "attempt2" / running).read_text() != (tmp_path / "attempt1" / running).read_text()
    assert len(done.result["q_points"]) == 3 and done.result["dos"][-1] > 0


def test_killed_in_the_phonons_goes_on_with_what_converged(ground, undisturbed, tmp_path):
    store, spec = ground
    watcher = kill_when(tmp_path / "attempt1", lambda f: _converged(f) >= 2)
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
        watcher = kill_when(folder / "attempt1", lambda f: _converged(f) >= 1) if n == 2 else None
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
    watcher = kill_when(tmp_path / "attempt1", lambda f: (f / "couplings.out").exists())
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
