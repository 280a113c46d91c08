"""Batched relaxation and phonons with a real model, against sequential ASE and phonopy's own symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Relaxation
from hydroflow.errors import DataError
from hydroflow.lam import LamModel, relax
from hydroflow.lam.neighbours import closest_contacts
from hydroflow.lam.phonons import Phonons, minimum_frequencies
from hydroflow.structures import Request, generate
from hydroflow.units import EV_A3_GPA, GPA_A3_EV
from tests.lam.labelled import frames as labelled
from tests.lam.trained import STORED, trained

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]
PRESSURE = 200.0


@pytest.fixture(scope="module")
def model() -> LamModel:
    return LamModel.load(trained()[0] / "model.pt", device="cpu")


class _Sequential(Calculator):
    """The same model, one structure at a time, for ASE."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, model: LamModel) -> None:
        super().__init__()
        self.model = model

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        found = self.model.evaluate(StructureArrays.from_atoms([atoms]))
        stress = -found.virial_ev[0] / atoms.get_volume()
        self.results = {"energy": found.energy_ev[0], "forces": found.forces_ev_a,
                        "stress": ((stress + stress.T) / 2)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]}


def test_the_path_is_that_of_ase_lbfgs_with_the_frechet_filter(model: LamModel) -> None:
    start = labelled()[0]
    atoms = start.atoms()
    atoms.calc = _Sequential(model)
    energies = []
    optimizer = LBFGS(FrechetCellFilter(atoms, scalar_pressure=PRESSURE * GPA_A3_EV), logfile=None)
    optimizer.attach(lambda: energies.append(atoms.get_potential_energy()))
    optimizer.run(fmax=1e-9, steps=12)
    frames = relax(model, start, PRESSURE, Relaxation(max_steps=12, fmax_ev_a=1e-9), record="all").frames
    np.testing.assert_allclose(frames.columns["energy_ev"][:12], energies[:12], atol=2e-3)
    assert frames.columns["step"].tolist() == list(range(13))


def test_enthalpies_are_those_of_sequential_ase(model: LamModel) -> None:
    starts = labelled()[:8]
    batch = relax(model, starts, PRESSURE, Relaxation(max_steps=400)).relaxed
    off = []
    for i in np.flatnonzero(batch.columns["converged"]):
        atoms = starts.atoms(int(i))
        atoms.calc = _Sequential(model)
        optimizer = LBFGS(FrechetCellFilter(atoms, scalar_pressure=PRESSURE * GPA_A3_EV), logfile=None)
        for _ in optimizer.irun(fmax=0.03, steps=400):
            if closest_contacts(StructureArrays.from_atoms([atoms]))[0] < 1:
                off.append(np.inf)  # ASE would follow a collapsing crystal to the end
                break
        else:
            if optimizer.nsteps < 400:
                enthalpy = atoms.get_potential_energy() + PRESSURE * GPA_A3_EV * atoms.get_volume()
                off.append(abs(enthalpy - batch.columns["enthalpy_ev"][i]) / len(atoms))
    assert len(off) >= 4
    # Single-precision noise sends a few paths of random crystals into another basin.
    assert np.median(off) < 1e-3 and np.mean(np.array(off) < 2e-3) >= 0.7


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_a_converged_structure_is_at_the_pressure_asked_for(model: LamModel, optimizer: str) -> None:
    pressures = np.where(np.arange(30) % 2, 150.0, 250.0)
    out = relax(model, labelled()[:30], pressures, Relaxation(optimizer=optimizer, max_steps=500, fmax_ev_a=0.02)).relaxed
    done = out[out.columns["converged"]]
    assert len(done) >= 10
    found = model.evaluate(done)
    pressure = np.trace(found.virial_ev, axis1=1, axis2=2) / (3 * done.volumes) * EV_A3_GPA
    np.testing.assert_allclose(pressure, done.columns["pressure_gpa"], atol=3.0)
    np.testing.assert_allclose(found.energy_ev, done.columns["energy_ev"], atol=1e-3)
    assert (np.abs(found.forces_ev_a).max() < 0.03) and (done.columns["fmax_ev_a"] < 0.02).all()


def test_the_size_of_the_batch_changes_nothing_but_speed(model: LamModel) -> None:
    starts = labelled()[:12]
    starts.columns["id"] = np.array([f"s{i}" for i in range(12)])
    few = relax(model, starts, PRESSURE, Relaxation(max_steps=25), record=5, slots=3)
    many = relax(model, starts, PRESSURE, Relaxation(max_steps=25), record=5, slots=12)
    assert few.relaxed.columns["id"].tolist() == starts.columns["id"].tolist()
    assert few.relaxed.columns["steps"].tolist() == many.relaxed.columns["steps"].tolist()
    np.testing.assert_allclose(few.relaxed.columns["enthalpy_ev"], many.relaxed.columns["enthalpy_ev"], atol=5e-3)
    assert few.frames.columns["step"].tolist() == many.frames.columns["step"].tolist()
    assert (few.frames.columns["id"] == starts.columns["id"][few.frames.columns["parent"]]).all()


def test_broken_structures_are_stopped_and_named(model: LamModel) -> None:
    starts = labelled()[:5]
    starts = StructureArrays(starts.offsets, starts.numbers, starts.fractional.copy(), starts.cells.copy())
    starts.fractional[1] = starts.fractional[0] + 0.003
    starts.cells[1, 2] = starts.cells[1, 1] * 1.0001
    starts.fractional[starts.offsets[2]] = np.nan
    out = relax(model, starts, PRESSURE, Relaxation(max_steps=60), record="all")
    status = out.relaxed.columns["status"]
    assert status[0] == "atoms_too_close" and status[2] in ("non_finite", "atoms_too_close")
    assert status[1] in ("atoms_too_close", "exploded", "non_finite")
    assert np.isnan(out.relaxed.columns["enthalpy_ev"][:3]).all() and not out.relaxed.columns["converged"][:3].any()
    assert np.isfinite(out.relaxed.columns["energy_ev"][3:]).all()
    assert np.isfinite(out.frames.columns["energy_ev"]).all()


def test_a_passing_overlap_costs_no_structure() -> None:
    """Many random crystals overshoot into an overlap in their first steps and come back; what stays in one is broken."""
    campaign = Campaign.model_validate({"name": "overlap", "space": {"elements": ["Mg", "Ca"], "max_metal_atoms": 2}})
    starts = generate(campaign, [Request({"Mg": 1, "Ca": 1, "H": n}, 12) for n in (6, 8, 12)], PRESSURE, seed=3)
    out = relax(LamModel.load(STORED, device="cpu"), starts, PRESSURE, Relaxation(max_steps=200), record="all")
    status = out.relaxed.columns["status"].astype(str)
    overlapped = np.unique(out.frames.columns["parent"][closest_contacts(out.frames) < 1])
    back = overlapped[status[overlapped] == "converged"]
    assert len(back) >= 3 and "atoms_too_close" in status[overlapped]
    assert (closest_contacts(out.relaxed[np.flatnonzero(np.isfinite(out.relaxed.columns["energy_ev"]))]) >= 1).all()


def test_no_structures_give_no_structures(model: LamModel) -> None:
    out = relax(model, StructureArrays.empty(), PRESSURE, Relaxation(), record="all")
    assert len(out.relaxed) == 0 and len(out.frames) == 0


def test_pressures_must_match(model: LamModel) -> None:
    with pytest.raises(DataError, match="3 pressures for 5 structures"):
        relax(model, labelled()[:5], np.full(3, 200.0), Relaxation())


class TestPhonons:
    @pytest.fixture(scope="class")
    def relaxed(self, model: LamModel) -> StructureArrays:
        frames = labelled()
        small = frames[np.flatnonzero(frames.counts <= 6)]
        out = relax(model, small, PRESSURE, Relaxation(max_steps=500, fmax_ev_a=0.003)).relaxed
        return out[out.columns["converged"]][:3]

    def test_the_answer_does_not_depend_on_the_choice_of_cell(self, model: LamModel, relaxed: StructureArrays) -> None:
        one = relaxed[0]
        atoms = one.atoms()
        doubled = atoms.repeat((1, 1, 2))
        doubled.translate([0.3, 0.1, 0.7])
        a = minimum_frequencies(model, one, 7.0)
        b = minimum_frequencies(model, StructureArrays.from_atoms([doubled]), 7.0)
        assert a[0] == pytest.approx(b[0], abs=0.15)

    def test_a_crystal_pulled_apart_is_unstable(self, model: LamModel, relaxed: StructureArrays) -> None:
        frequencies = minimum_frequencies(model, relaxed, 7.0)
        assert np.isfinite(frequencies).all()
        # pulled far apart along one axis the crystal is past its spinodal
        pulled = StructureArrays(relaxed.offsets, relaxed.numbers, relaxed.fractional, relaxed.cells * [1.0, 1.0, 1.35])
        assert (minimum_frequencies(model, pulled, 7.0) < frequencies - 0.5).any()

    def test_as_a_job_in_the_order_of_the_input(self, model: LamModel, relaxed: StructureArrays, tmp_path) -> None:
        (tmp_path / "model.pt").write_bytes((trained()[0] / "model.pt").read_bytes())
        (tmp_path / "structures.parquet").write_bytes(relaxed.to_parquet())
        result = Phonons().compute({"supercell_length_a": 6.0}, {}, tmp_path)
        np.testing.assert_allclose(result["min_frequency_thz"], minimum_frequencies(model, relaxed, 6.0), atol=0.05)
