"""VASP by its files: inputs against pymatgen's own readers, real outputs, and an executable that speaks VASP's files."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
import sys
import warnings
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import ase
import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import TYPE_MAP, Labels, parse
from hydroflow.dft.batch import label_specs, labelled_frames, relax_specs, relaxed_structures
from hydroflow.dft.files import read_labels
from hydroflow.dft.settings import campaign_settings, epc_settings, label_settings
from hydroflow.dft.vasp_input import incar, kpoints, poscar
from hydroflow.dft.vasp_jobs import VaspLabel, VaspRelax
from hydroflow.dft.vasp_output import diagnose, read_outcar, read_vasprun
from hydroflow.dft.vasp_potcar import potcar_symbols
from hydroflow.errors import DataError, EngineFailure, FailureCode, SettingsError
from tests.dft.driver import FolderStore, Objects, attempt, run
from tests.dft.xml_damage import verdicts

REAL = Path(str(files(ase))) / "test" / "testdata" / "vasp"
SIMULATOR = {"vasp_std": f"{sys.executable} {Path(__file__).with_name('vasp_simulator.py')}"}

POTCAR = """  PAW_PBE {symbol} made by hand
   {valence}
 parameters from PSCTR are:
   VRHFIN ={element}: no real potential
   LEXCH  = PE
   RCORE  =    2.300    outmost cutoff radius
   ENMAX  =  320.000; ENMIN  =  240.000 eV
   POMASS =   10.000; ZVAL   =   {valence}    mass and valenz
 End of Dataset
"""


@pytest.fixture
def library(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "library" / "potpaw_PBE.54"
    for element, symbol, valence in (("H", "H", 1.0), ("Ca", "Ca_sv", 10.0), ("Y", "Y_sv", 11.0)):
        (folder / symbol).mkdir(parents=True)
        (folder / symbol / "POTCAR").write_text(POTCAR.format(element=element, symbol=symbol, valence=valence))
    monkeypatch.setenv("PMG_VASP_PSP_DIR", str(folder.parent))
    return folder


@pytest.fixture
def settings(library):
    return label_settings(Labels(engine="vasp", protocol="paper"), ["H", "Ca", "Y"])


@pytest.fixture
def folder_store(tmp_path) -> FolderStore:
    return FolderStore(Objects(tmp_path / "objects"))


def mixed(left_handed: bool = False) -> StructureArrays:
    """H, Ca, H, Y, H in no order of elements."""
    cell = np.array([[3.6, 0, 0], [0.3, 3.7, 0], [0, 0.2, 3.9]])
    fractional = np.array([[0.5, 0.02, 0], [0, 0, 0.02], [0, 0.5, 0.5], [0.5, 0.5, 0.5], [0.52, 0, 0.5]])
    if left_handed:
        cell, fractional = cell[[1, 0, 2]], fractional[:, [1, 0, 2]]
    return StructureArrays.from_lists([np.array([1, 20, 1, 39, 1])], [fractional], [cell])


# ---- inputs -----------------------------------------------------------------------------------------------------
def test_one_word_of_the_campaign_file_switches_to_vasp(settings, folder_store):
    spec = label_specs(folder_store, mixed(), settings)[0]
    assert spec.kind == "vasp.label" and set(spec.files) == {"POTCAR.H", "POTCAR.Ca_sv", "POTCAR.Y_sv"}
    assert settings.text == "vasp 6; PBE; paper/1; PBE_54; ENCUT 850 eV; k 0.188 1/Å; ISMEAR 1 0.2 eV"
    assert settings.pseudos["Ca"].core_radius_a == pytest.approx(2.3 * 0.529177, abs=1e-3)


def test_inputs_read_back_by_pymatgen(settings, folder_store, tmp_path):
    from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar

    spec = label_specs(folder_store, mixed(), settings)[0]
    for name, digest in spec.files.items():
        (tmp_path / name).write_bytes(folder_store.objects.get(digest))
    VaspLabel().prepare(spec, {}, tmp_path)
    tags = Incar.from_file(tmp_path / "INCAR")
    assert tags["ENCUT"] == 850 and tags["ISIF"] == 2 and tags["NSW"] == 0 and "PSTRESS" not in tags
    assert tags["EDIFF"] == pytest.approx(5e-7) and tags["LREAL"] is False and tags["LASPH"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tags.check_params()  # pymatgen knows every tag and its kind of value
    found = Poscar.from_file(tmp_path / "POSCAR", check_for_potcar=False)
    assert found.site_symbols == ["Ca", "H", "Y"] and found.natoms == [1, 3, 1]
    potcar = (tmp_path / "POTCAR").read_text()
    assert [line.split()[1] for line in potcar.splitlines() if "PAW_PBE" in line] == ["Ca_sv", "H", "Y_sv"]
    mesh = Kpoints.from_file(tmp_path / "KPOINTS")
    # pymatgen's sets at the same KSPACING give the same subdivisions or, in its own rounding, one fewer
    expected = np.ceil(np.linalg.norm(found.structure.lattice.reciprocal_lattice.matrix, axis=1) / 0.188)
    assert mesh.style.name == "Gamma" and tuple(mesh.kpts[0]) == tuple(expected.astype(int))


def test_inputs_beside_pymatgens_own_sets(settings):
    """Where the sets of the Materials Project and ours differ, it is meant: cutoff, k mesh, smearing, no spin, nothing kept."""
    from pymatgen.io.vasp.sets import MatPESStaticSet, MPRelaxSet

    from hydroflow.dft import crystal

    made, _ = poscar(crystal.to_json(mixed()))
    static, relax = MatPESStaticSet(made.structure), MPRelaxSet(made.structure)
    for ours, theirs, meant in (
        (incar(settings, 5), static.incar, {"ENCUT", "ISMEAR", "SIGMA", "EDIFF", "NELM", "LCHARG", "LORBIT", "ISPIN"}),
        (incar(settings, 5, relax_to_gpa=200.0), relax.incar,
         {"ENCUT", "ISMEAR", "SIGMA", "EDIFF", "NELM", "LORBIT", "ISPIN", "NSW", "ALGO", "LREAL"}),
    ):
        differ = {tag for tag in set(ours) & set(theirs) if ours[tag] != theirs[tag]}
        assert differ <= meant, differ - meant
        assert set(theirs) - set(ours) <= {"KSPACING", "LAECHG", "LMIXTAU", "LMAXMIX", "MAGMOM"}
        assert ours["ENCUT"] > theirs["ENCUT"] and ours["EDIFF"] < theirs["EDIFF"]
    assert set(static.potcar_symbols) == {pseudo.file.removeprefix("POTCAR.") for pseudo in settings.pseudos.values()}


def test_every_element_of_a_campaign_has_a_potential_in_vasps_releases():
    table = json.loads(bz2.decompress((files("pymatgen.io.vasp") / "potcar-summary-stats.json.bz2").read_bytes()))
    for release in ("PBE_54", "PBE_64"):
        known = {entry["symbol"] for entries in table[release].values() for entry in entries}
        assert {potcar_symbols().get(e, e) for e in TYPE_MAP} | set(potcar_symbols().values()) <= known


def test_relaxation_has_pstress_and_its_single_point_has_not(settings):
    relax = incar(settings, 5, relax_to_gpa=200.0)
    assert relax["PSTRESS"] == 2000 and relax["ISIF"] == 3 and relax["EDIFFG"] == -0.001 and relax["IBRION"] == 2
    assert "PSTRESS" not in incar(settings, 5)
    assert incar(settings, 5, adjustments={"ALGO": "All"})["ALGO"] == "All"


def test_a_left_handed_cell_is_written_right_handed_with_the_same_distances(settings):
    from hydroflow.dft import crystal

    data = crystal.to_json(mixed(left_handed=True))
    made, order = poscar(data)
    assert np.linalg.det(made.structure.lattice.matrix) > 0 > np.linalg.det(np.array(data["cell"]))
    before = crystal.to_atoms(data).get_all_distances(mic=True)[np.ix_(order, order)]
    np.testing.assert_allclose(made.structure.distance_matrix, before, atol=1e-6)
    assert kpoints(data, settings).num_kpts == 0


@pytest.mark.parametrize(("change", "words"), [
    (lambda f: shutil.rmtree(f / "Y_sv"), "no POTCAR for Y_sv"),
    (lambda f: (f / "Y_sv" / "POTCAR").write_text(POTCAR.format(element="La", symbol="La", valence=11.0)), "for La, not Y"),
    (lambda f: (f / "Y_sv" / "POTCAR").write_text("  PAW_PBE Y_sv\n"), "not a complete POTCAR"),
    (lambda f: (f / "H" / "POTCAR").write_text((f / "H" / "POTCAR").read_text().replace("= PE", "= CA")), "functional CA"),
    (lambda f: shutil.rmtree(f), "labels.pseudos"),
])
def test_libraries_that_cannot_serve(library, change, words):
    change(library)
    with pytest.raises(SettingsError, match=words):
        label_settings(Labels(engine="vasp"), ["H", "Ca", "Y"])


def test_no_library(monkeypatch):
    from pymatgen.core import SETTINGS

    monkeypatch.delenv("PMG_VASP_PSP_DIR", raising=False)
    monkeypatch.setitem(SETTINGS, "PMG_VASP_PSP_DIR", None)
    with pytest.raises(SettingsError, match="PMG_VASP_PSP_DIR"):
        label_settings(Labels(engine="vasp"), ["H", "Ca"])


def test_a_folder_of_potcars_is_a_library(library, monkeypatch):
    before = label_settings(Labels(engine="vasp"), ["H", "Ca"])
    monkeypatch.delenv("PMG_VASP_PSP_DIR")
    assert label_settings(Labels(engine="vasp", pseudos=str(library)), ["H", "Ca"]).pseudos == before.pseudos
    for wrong in ("PBE_99", str(library / "no")):
        with pytest.raises(SettingsError, match="neither a release"):
            label_settings(Labels(engine="vasp", pseudos=wrong), ["H", "Ca"])


def test_epc_stays_with_quantum_espresso(library, monkeypatch):
    monkeypatch.setenv("HYDROFLOW_QE_VERSION", "6.7")
    campaign = 'name = "x"\n[space]\nelements = ["Ca", "Y"]\n[labels]\nengine = "vasp"\n'
    labels, epc = (settings(parse(campaign)) for settings in (campaign_settings, epc_settings))
    assert labels.code == "vasp" and epc.engine == "quantum-espresso 6.7" and epc.ecutwfc_ry > 0
    assert labels.pseudos["Ca"].file == "POTCAR.Ca_sv" and epc.pseudos["Ca"].file.lower().endswith(".upf")
    # chains are priced and inputs written from these
    assert epc.protocol == labels.protocol and "dos" in epc.values
    with pytest.raises(SettingsError, match=r"epc\.pseudos = '/no', for the electron–phonon coupling"):
        epc_settings(parse(campaign + '[epc]\npseudos = "/no"\n'))


def test_pymatgens_layout_of_a_library(library):
    flat = library.with_name("POT_PAW_PBE_54")
    flat.mkdir()
    for symbol in ("H", "Ca_sv"):
        (flat / f"POTCAR.{symbol}.gz").write_bytes(gzip.compress((library / symbol / "POTCAR").read_bytes()))
    before = label_settings(Labels(engine="vasp"), ["H", "Ca"])
    shutil.rmtree(library)
    assert label_settings(Labels(engine="vasp"), ["H", "Ca"]).pseudos == before.pseudos


# ---- real outputs -----------------------------------------------------------------------------------------------
def test_pv_is_taken_out_of_a_real_vasprun_under_pstress():
    result = read_vasprun(REAL / "vasprun_pstress.xml")
    assert result.energy_ev == pytest.approx(-20.24695937, abs=1e-6)  # its last electronic step, which has no P·V
    assert np.trace(result.stress_gpa) / 3 == pytest.approx(-16.59956, abs=1e-5)
    assert (result.version, result.electrons, result.n_scf, result.scf_converged) == ("6.3.0", 8.0, 9, True)


def test_real_outputs_agree_with_ase():
    from ase.io import read

    for name, form in (("vasprun_pstress.xml", "vasp-xml"), ("vasprun_dfpt.xml", "vasp-xml"), ("OUTCAR_example_1", "vasp-out")):
        ours = (read_vasprun if form == "vasp-xml" else read_outcar)(REAL / name)
        theirs = read(REAL / name, format=form)
        assert ours.energy_ev == pytest.approx(theirs.get_potential_energy(force_consistent=True), abs=1e-6)
        np.testing.assert_allclose(ours.forces_ev_a, theirs.get_forces(), atol=1e-6)
        np.testing.assert_allclose(ours.cell, theirs.cell.array, atol=1e-4)
        assert list(ours.numbers) == list(theirs.numbers)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_real_outputs_cut_in_half(tmp_path, share):
    for name, reader in (("vasprun_pstress.xml", read_vasprun), ("OUTCAR_example_1", read_outcar)):
        text = (REAL / name).read_text()
        (tmp_path / name).write_text(text[: int(share * len(text))])
        with pytest.raises(EngineFailure) as raised:
            reader(tmp_path / name)
        assert raised.value.code is FailureCode.truncated_output
        with pytest.raises(DataError, match="truncated_output"):
            read_labels(tmp_path / name)


def test_a_vasprun_that_lacks_a_node_is_a_typed_failure_or_lacks_that_value(tmp_path):
    text = (REAL / "vasprun_pstress.xml").read_text()
    sections = ("generator", "kpoints", "atominfo", "calculation")
    found = verdicts(read_vasprun, text, sections, tmp_path / "vasprun.xml", ("parameters",))
    assert len(found) > 100
    assert all(words.startswith(("corrupted_output: vasprun.xml of VASP", "truncated_output: vasprun.xml of VASP"))
               for words in found.values() if words)
    for what, words in {
        "calculation taken out": "no finished ionic step",
        "calculation/structure taken out": "<calculation> has no structure",
        "calculation/structure/crystal/varray[basis] taken out": "basis",
        "calculation/structure/crystal/varray[basis]/v taken out": "basis has 2 vectors",
        "calculation/varray[forces]/v emptied": "<v> has 0 numbers",
        "calculation/energy/i[e_fr_energy] without a number": "",
        "atominfo taken out": "atominfo names 0 atoms",
        "atominfo/array[atoms]/set/rc taken out": "1 atoms and there are 2 positions",
    }.items():
        assert words in found[what], (what, found[what])
    for old, new, words in (("-20.23985977", "************", "not finite"), ("parameters>", "arguments>", "has no parameters")):
        (tmp_path / "vasprun.xml").write_text(text.replace(old, new))
        with pytest.raises(DataError, match=words):
            read_labels(tmp_path / "vasprun.xml")


def test_an_outcar_that_never_converged(tmp_path):
    text = (REAL / "OUTCAR_example_1").read_text()
    assert read_outcar(REAL / "OUTCAR_example_1").scf_converged
    end = text.index("General timing")
    (tmp_path / "OUTCAR").write_text(text[:20000] + text[end:])
    with pytest.raises(EngineFailure) as raised:
        read_outcar(tmp_path / "OUTCAR")
    assert raised.value.code in (FailureCode.scf_not_converged, FailureCode.corrupted_output)


@pytest.mark.parametrize(("line", "code"), [
    ("WARNING: Sub-Space-Matrix is not hermitian in DAV            4", "diagonalisation"),
    (" LAPACK: Routine ZPOTRF failed!           1           0           0", "diagonalisation"),
    ("Error EDDDAV: Call to ZHEGV failed. Returncode =  15  2  16", "diagonalisation"),
    (" BRMIX: very serious problems\n the old and the new charge density differ", "charge_density"),
    (" ZBRENT: fatal error in bracketing", "relaxation_not_converged"),
    (" POSMAP internal error: symmetry equivalent atom not found,", "symmetry_mismatch"),
    (" TOO FEW BANDS", "too_few_bands"),
    (" VERY BAD NEWS! internal error in subroutine IBZKPT:\n Tetrahedron method fails for NKPT<4", "symmetry_mismatch"),
    ("bash: vasp_std: command not found", "executable_missing"),
])
def test_messages_of_vasp(line, code):
    assert diagnose(f" running on    4 total cores\n{line}\n").code.value == code
    assert diagnose(" running on    4 total cores\n DAV:   1    -0.1E+02\n") is None


# ---- the whole path, with an executable that speaks VASP's files --------------------------------------------------
@pytest.mark.parametrize("left_handed", [False, True])
def test_label_comes_back_in_the_jobs_own_order(settings, folder_store, tmp_path, left_handed):
    from tests.dft.vasp_simulator import Repulsion

    batch = mixed(left_handed)
    job = run(VaspLabel(), label_specs(folder_store, batch, settings)[0], folder_store, tmp_path / "run", executables=SIMULATOR)
    frames = labelled_frames(folder_store, [job], "stage1/1")
    atoms = batch.atoms()
    atoms.calc = Repulsion()
    assert frames.columns["energy_ev"][0] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(frames.atom_columns["forces_ev_a"], atoms.get_forces(), atol=1e-6)
    virial = -atoms.get_stress(voigt=False) * atoms.get_volume()
    np.testing.assert_allclose(frames.columns["virial_ev"][0], virial, atol=1e-5)
    assert list(frames.numbers) == list(batch.numbers) and frames.columns["label_settings"][0] == settings.text
    assert not (tmp_path / "run" / "attempt1" / "WAVECAR").exists()


def test_relaxation_reaches_its_pressure_without_pv_in_the_energy(settings, folder_store, tmp_path):
    job = run(VaspRelax(), relax_specs(folder_store, mixed(), settings, 150.0)[0], folder_store, tmp_path, executables=SIMULATOR)
    relaxed = relaxed_structures(folder_store, [job])
    from tests.dft.vasp_simulator import Repulsion

    atoms = relaxed.atoms()
    atoms.calc = Repulsion()
    assert abs(job.result["pressure_error_gpa"]) < 0.5
    assert relaxed.columns["energy_ev"][0] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    assert relaxed.columns["enthalpy_ev"][0] == pytest.approx(relaxed.enthalpies_ev(150.0)[0])


@pytest.mark.parametrize(("act", "engine", "code", "action"), [
    ("hermitian", "label", "diagonalisation", "ALGO Fast"),
    ("nelm", "label", "scf_not_converged", "ALGO All"),
    ("killed", "label", "killed", None),
    ("zbrent", "relax", "relaxation_not_converged", "IBRION 1"),
])
def test_failures_acted_out_and_recovered(settings, folder_store, tmp_path, monkeypatch, act, engine, code, action):
    monkeypatch.setenv("VASP_SIMULATOR", act)
    made = VaspLabel() if engine == "label" else VaspRelax()
    spec = (label_specs(folder_store, mixed(), settings) if engine == "label"
            else relax_specs(folder_store, mixed(), settings, 150.0))[0]
    if action is None:
        with pytest.raises(EngineFailure) as raised:
            run(made, spec, folder_store, tmp_path, executables=SIMULATOR)
        assert raised.value.code.value == code and len(list(tmp_path.glob("attempt*"))) == 3
        return
    job = run(made, spec, folder_store, tmp_path, executables=SIMULATOR)
    assert code in job.failures and any(action in a for a in job.actions)


def test_a_cut_vasprun_is_run_again(settings, folder_store, tmp_path, monkeypatch):
    monkeypatch.setenv("VASP_SIMULATOR", "truncated")
    spec = label_specs(folder_store, mixed(), settings)[0]
    with pytest.raises(EngineFailure) as raised:
        attempt(VaspLabel(), spec, folder_store, tmp_path / "one", executables=SIMULATOR)
    assert raised.value.code.value == "truncated_output"
    assert VaspLabel().recover(spec, raised.value, 1).action == "started again"


def test_wrong_version_and_missing_program(settings, folder_store, tmp_path):
    spec = label_specs(folder_store, mixed(), settings)[0]
    for n, (job, programs) in enumerate(((replace(spec, engine="vasp 5"), SIMULATOR), (spec, {"vasp_std": "no-such-vasp"}))):
        with pytest.raises(EngineFailure) as raised:
            attempt(VaspLabel(), job, folder_store, tmp_path / str(n), executables=programs)
        assert raised.value.code.value == "executable_missing"
