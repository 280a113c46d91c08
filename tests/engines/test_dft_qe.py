"""Real pw.x: labels, relaxations, densities of states, and real failures with their recoveries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.spacegroup import crystal as ase_crystal

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Labels
from hydroflow.dft.jobs import (
    Dos,
    Label,
    Relax,
    dos_specs,
    label_specs,
    labelled_frames,
    relax_specs,
    relaxed_structures,
)
from hydroflow.dft.settings import LabelSettings, label_settings
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.errors import EngineFailure
from tests.dft.driver import FolderStore, Objects, attempt, run

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def settings() -> LabelSettings:
    return label_settings(Labels(protocol="fast"), ["H", "S", "La"])


@pytest.fixture(scope="module")
def folder_store(tmp_path_factory) -> FolderStore:
    return FolderStore(Objects(tmp_path_factory.mktemp("objects")))


def h3s(a: float = 2.984, shift: float = 0.0) -> Atoms:
    atoms = ase_crystal(["S", "H"], [(0, 0, 0), (0, 0.5, 0.5)], spacegroup=229, cellpar=[a, a, a, 90, 90, 90],
                        primitive_cell=True)
    atoms.positions[1] += [shift, 0.5 * shift, 0]
    return atoms


def lah10() -> Atoms:
    return ase_crystal(["La", "H", "H"], [(0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.1207, 0.1207, 0.1207)], spacegroup=225,
                       cellpar=[4.94, 4.94, 4.94, 90, 90, 90], primitive_cell=True)


@pytest.fixture
def spec(folder_store, settings):
    def make(atoms: Atoms, **changes) -> JobSpec:
        changed = replace(settings, values={**settings.values, **changes})
        return label_specs(folder_store, StructureArrays.from_atoms([atoms]), changed)[0]
    return make


@pytest.fixture
def failing(folder_store, tmp_path):
    def code(engine, job, adjustments=None, executables=None) -> str:
        with pytest.raises(EngineFailure) as raised:
            attempt(engine, job, folder_store, tmp_path / f"failing{time.monotonic_ns()}", adjustments, executables)
        return raised.value.code.value
    return code


def test_label_of_h3s(spec, folder_store, settings, tmp_path):
    jobs = [run(Label(), spec(h3s(shift=s)), folder_store, tmp_path / name) for s, name in ((0.0, "a"), (0.05, "b"))]
    frames = labelled_frames(folder_store, jobs, "bootstrap")
    assert len(frames) == 2 and set(frames.columns["label_settings"]) == {settings.text}
    # PBE gives 199.8 GPa at this lattice constant; the fast protocol is within some GPa of it
    assert frames.columns["pressure_gpa"][0] == pytest.approx(200, abs=15)
    forces = frames.atom_columns["forces_ev_a"].reshape(2, 4, 3)
    assert np.abs(forces[0]).max() < 1e-3
    assert forces[1][1, 0] < -0.05  # pushed back towards its site
    np.testing.assert_allclose(forces[1].sum(axis=0), 0, atol=1e-3)
    trace = np.trace(frames.columns["virial_ev"][0]) / 3 / frames.volumes[0] / 6.241509074e-3
    assert trace == pytest.approx(frames.columns["pressure_gpa"][0], rel=1e-6)
    assert json.loads(json.dumps(jobs[0].result)) == jobs[0].result  # plain values only
    assert not (tmp_path / "a" / "attempt1" / "out").exists()  # no wave functions are left


def test_serial_runs_share_no_session_directory_of_open_mpi(spec, folder_store, tmp_path, monkeypatch):
    """The one in TMPDIR goes when any of them ends, and a pw.x that begins just then fails (13 of 600 starts)."""
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no folder"))
    done = run(Label(), spec(h3s()), folder_store, tmp_path / "with a space")
    assert done.failures == []


def test_virial_is_the_derivative_of_the_energy(spec, folder_store, tmp_path):
    """−dE/dV by two labels at neighbouring volumes is the pressure in between (same plane waves: small strain)."""
    energies, volumes, pressures = [], [], []
    for i, a in enumerate((2.974, 2.994)):
        job = run(Label(), spec(h3s(a), k_spacing_per_a=0.6), folder_store, tmp_path / str(i))
        energies.append(job.result["energy_ev"])
        volumes.append(job.result["volume_a3"])
        pressures.append(job.result["pressure_gpa"])
    slope = -(energies[1] - energies[0]) / (volumes[1] - volumes[0]) * 160.2176634
    # differs by the Pulay stress of the 50 Ry cutoff
    assert slope == pytest.approx(np.mean(pressures), abs=8)


def test_scf_that_does_not_converge_is_recovered_by_slower_mixing(spec, failing, folder_store, tmp_path):
    job = spec(h3s(shift=0.03), electron_maxstep=3)
    assert failing(Label(), job) == "scf_not_converged"
    found = run(Label(), job, folder_store, tmp_path / "again")
    assert found.failures == ["scf_not_converged"] and "mixing_beta 0.2" in found.actions[0]
    direct = run(Label(), spec(h3s(shift=0.03)), folder_store, tmp_path / "direct")
    assert found.result["energy_ev"] == pytest.approx(direct.result["energy_ev"], abs=1e-4)


def test_too_few_bands(spec, folder_store, tmp_path):
    found = run(Label(), spec(h3s()), folder_store, tmp_path, {"system": {"nbnd": 3}})
    assert found.failures == ["too_few_bands"] and found.result["energy_ev"] < -300


def test_wall_time_stops_cleanly_and_goes_on(spec, folder_store, tmp_path):
    job, engine = spec(lah10(), conv_thr_ry_per_atom=1e-10), Label()
    with pytest.raises(EngineFailure) as raised:
        attempt(engine, replace(job, resources=Resources(wall_time_s=2)), folder_store, tmp_path / "first")
    recovery = engine.recover(job, raised.value, 1)
    assert raised.value.code.value == "walltime" and recovery.keep_folder
    found = attempt(engine, job, folder_store, tmp_path / "second", recovery.adjustments, before=tmp_path / "first")
    direct = attempt(engine, job, folder_store, tmp_path / "direct")
    assert found.result["energy_ev"] == pytest.approx(direct.result["energy_ev"], abs=1e-5)
    assert not (tmp_path / "second" / "out").exists()


def test_killed_in_the_middle(spec, folder_store, tmp_path):
    def kill() -> None:
        path = tmp_path / "attempt1" / "pw.out"
        for _ in range(600):
            if path.exists() and "iteration #" in path.read_text():
                break
            time.sleep(0.05)
        out = subprocess.run(["pgrep", "-x", "pw.x"], capture_output=True, text=True).stdout.split()
        for pid in map(int, out):
            if os.readlink(f"/proc/{pid}/cwd") == str(tmp_path / "attempt1"):
                os.kill(pid, signal.SIGKILL)

    watcher = threading.Thread(target=kill)
    watcher.start()
    found = run(Label(), spec(lah10()), folder_store, tmp_path)
    watcher.join()
    assert found.failures == ["killed"] and found.actions == ["started again"]


def test_out_of_memory_of_a_real_limit(spec, failing):
    limited = {"pw.x": "bash -c 'ulimit -v 140000; exec pw.x \"$@\"' --"}
    assert failing(Label(), spec(lah10()), executables=limited) == "out_of_memory"


def test_damaged_outputs(spec, folder_store, tmp_path):
    """A full disk leaves an empty XML, exit code 0 and JOB DONE (seen): the text then counts, if it is whole."""
    job, engine, folder = spec(h3s(shift=0.05)), Label(), tmp_path / "run"
    whole = attempt(engine, job, folder_store, folder).result
    xml = (folder / "pw.xml").read_text()
    for damaged in ("", xml[:len(xml) // 2]):
        (folder / "pw.xml").write_text(damaged)
        from_text = engine.collect(job, folder).result
        assert from_text["source"] == "text" and whole["source"] == "xml"
        assert from_text["energy_ev"] == pytest.approx(whole["energy_ev"], abs=1e-6)
        np.testing.assert_allclose(from_text["forces_ev_a"], whole["forces_ev_a"], atol=1e-6)
        np.testing.assert_allclose(from_text["virial_ev"], whole["virial_ev"], atol=1e-5)
    (folder / "pw.xml").write_text(xml.replace("<etot>-", "<etot>-1"))  # a digit more
    text = (folder / "pw.out").read_text()
    for content, code in ((text, "corrupted_output"), (text[:-2000], "truncated_output")):
        (folder / "pw.out").write_text(content)
        with pytest.raises(EngineFailure) as raised:
            engine.collect(job, folder)
        assert raised.value.code.value == code


def test_no_pw_x(spec, failing):
    assert failing(Label(), spec(h3s()), executables={"pw.x": "no-such-pw.x"}) == "executable_missing"


def test_another_version_than_the_settings_say(spec, failing):
    job = spec(h3s())
    assert failing(Label(), replace(job, engine="quantum-espresso 7.9")) == "executable_missing"


def test_overlapping_atoms_never_reach_pw_x(spec, failing):
    atoms = h3s()
    atoms.positions[2] = atoms.positions[1] + [0.2, 0, 0]
    assert failing(Label(), spec(atoms)) == "atoms_too_close"


def test_the_wrong_elements_pseudopotential(spec, failing, settings):
    job = spec(h3s())
    swapped = {**job.files, settings.pseudos["S"].file: job.files[settings.pseudos["H"].file]}
    assert failing(Label(), replace(job, files=swapped)) == "bad_pseudopotential"


@pytest.fixture
def at_cutoff(spec):
    def make(atoms: Atoms, ecutwfc_ry: float) -> JobSpec:
        job = spec(atoms)
        low = {**job.inputs["settings"], "ecutwfc_ry": ecutwfc_ry, "ecutrho_ry": 4 * ecutwfc_ry}
        return replace(job, inputs={**job.inputs, "settings": low})
    return make


def test_a_grid_too_small_for_the_sticks_of_plane_waves(at_cutoff, failing):
    assert failing(Label(), at_cutoff(h3s(2.3), 4.0)) == "parallel_limits"


def test_inputs_that_no_correction_can_mend(spec, at_cutoff, folder_store, tmp_path):
    """Fewer plane waves than bands, a keyword that is none, a metal without smearing: one attempt, then quarantine."""
    cases = {"waves": (at_cutoff(lah10(), 2.0), {}, "bad_input"),
             "keyword": (spec(h3s()), {"system": {"no_such_keyword": 1}}, "bad_input"),
             "metal": (spec(h3s()), {"system": {"occupations": "fixed"}}, "needs_smearing")}
    for name, (job, adjustments, code) in cases.items():
        with pytest.raises(EngineFailure) as raised:
            run(Label(), job, folder_store, tmp_path / name, adjustments)
        assert raised.value.code.value == code
        assert [p.name for p in (tmp_path / name).iterdir()] == ["attempt1"]


@pytest.mark.skipif(not Path("/usr/bin/mpirun").exists(), reason="pw.x of this machine has no mpirun beside it")
def test_two_processes_in_pools_give_the_same_label(spec, folder_store, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    job = replace(spec(h3s()), resources=Resources(cores=2))
    parallel = {"pw.x": "/usr/bin/mpirun --oversubscribe -np 2 pw.x"}
    found = run(Label(), job, folder_store, tmp_path / "two", executables=parallel)
    assert "npool     =       2" in (tmp_path / "two" / "attempt1" / "pw.out").read_text()
    alone = run(Label(), job, folder_store, tmp_path / "one")  # a serial pw.x must not be given pools
    assert found.result["energy_ev"] == pytest.approx(alone.result["energy_ev"], abs=1e-5)


def test_relaxation_at_pressure(folder_store, settings, tmp_path):
    start = StructureArrays.from_atoms([h3s(3.03)])
    spec = relax_specs(folder_store, start, settings, 200.0)[0]
    job = run(Relax(), spec, folder_store, tmp_path)
    relaxed = relaxed_structures(folder_store, [job])
    assert relaxed.volumes[0] == pytest.approx(2.984**3 / 2, rel=0.03)
    assert abs(job.result["pressure_error_gpa"]) < 2
    assert relaxed.columns["enthalpy_ev"][0] == pytest.approx(relaxed.enthalpies_ev(200.0)[0])
    # the energy is that of a label of the same structure: one level of theory
    label = run(Label(), label_specs(folder_store, relaxed, settings)[0], folder_store, tmp_path / "label")
    assert label.result["energy_ev"] == pytest.approx(job.result["energy_ev"], abs=2e-3)


def test_relaxation_out_of_steps_goes_on_from_its_last_structure(folder_store, settings, tmp_path):
    short = replace(settings, values={**settings.values, "relax": {**settings.values["relax"], "max_ionic_steps": 2}})
    spec = relax_specs(folder_store, StructureArrays.from_atoms([h3s(3.03)]), short, 200.0)[0]
    job = run(Relax(), spec, folder_store, tmp_path)
    assert job.failures and set(job.failures) == {"relaxation_not_converged"}
    assert "last structure" in job.actions[0]
    assert job.result["restarts"] == len(job.failures)
    assert job.result["volume_a3"] == pytest.approx(2.984**3 / 2, rel=0.03)


def test_a_relaxation_ends_on_a_mesh_that_its_cell_asks_for_and_never_goes_back(folder_store, settings, tmp_path):
    def relaxed(a: float, spacing: float, folder: str):
        level = replace(settings, values={**settings.values, "k_spacing_per_a": spacing})
        spec = relax_specs(folder_store, StructureArrays.from_atoms([h3s(a)]), level, 200.0)[0]
        return run(Relax(), spec, folder_store, tmp_path / folder)

    # a cell that shrinks asks for 5³ in the end, having begun with 4³
    shrunk = relaxed(3.10, 0.725, "shrinks")
    asked = [i for i, a in enumerate(shrunk.actions, start=1) if "last structure" in a]
    assert asked and "5 5 5" in " ".join((tmp_path / "shrinks" / f"attempt{asked[-1] + 1}" / "pw.in").read_text().split())
    assert not shrunk.result["review"]
    # one that grows would do with 4³; the 5³ it has is as good
    grown = relaxed(2.90, 0.76, "grows")
    last = tmp_path / "grows" / f"attempt{len(grown.failures) + 1}"
    assert "5 5 5" in " ".join((last / "pw.in").read_text().split())
    assert not grown.result["review"]
    assert grown.result["volume_a3"] == pytest.approx(shrunk.result["volume_a3"], rel=0.01)


def test_hydrogen_share_of_the_fermi_level(folder_store, settings, tmp_path):
    spec = dos_specs(folder_store, StructureArrays.from_atoms([h3s()]), settings)[0]
    result = run(Dos(), spec, folder_store, tmp_path).result
    assert 0.3 < result["hydrogen_dos_share"] < 0.7
    assert result["shares"]["H"] + result["shares"]["S"] == pytest.approx(1)
    assert 0.2 < result["dos_at_fermi_per_ev"] < 1.5
