"""A real model trained by deepmd-kit: its errors, its evaluation, its uncertainty."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Model, Relaxation
from hydroflow.errors import DataError
from hydroflow.lam import LamModel, relax
from hydroflow.lam.backend import import_deepmd
from hydroflow.lam.dpa1_cpu import Dpa1Cpu
from hydroflow.lam.ensemble import Ensemble
from hydroflow.lam.graph import GraphKernel, Kernel, ListKernel, as_graph, rebuilt
from hydroflow.lam.inputs import training_input
from hydroflow.lam.metrics import errors
from hydroflow.lam.model import read_checkpoint
from tests.lam.labelled import frames as labelled
from tests.lam.trained import STORED, trained

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def model() -> LamModel:
    return LamModel.load(trained()[0] / "model.pt", device="cpu")


def test_training_learns_forces_and_energies_of_compositions_it_never_saw() -> None:
    result = trained()[1]
    test = result["metrics"]["splits"]["test"]
    frames = labelled()
    assert test["frames"] >= 5
    assert test["force_mev_a"] < 0.6 * 1e3 * np.sqrt((frames.atom_columns["forces_ev_a"] ** 2).mean())
    # 0.37 eV/atom is what a sum of atomic energies leaves
    assert test["energy_mev_atom"] < 250
    curve = result["learning_curve"]
    assert len(curve["step"]) > 10 and curve["rmse_trn"][-1] < curve["rmse_trn"][0]


def test_the_fused_kernels_agree_with_deepmd_kit(model: LamModel) -> None:
    assert isinstance(model.kernel, Dpa1Cpu)
    frames = labelled()[::9]
    mine = model.evaluate(frames)
    import_deepmd()
    from deepmd.infer import DeepPot

    reference = DeepPot(str(trained()[0] / "model.pt"))
    for i, one in enumerate(frames):
        e, f, v = reference.eval(one.positions.reshape(1, -1), one.cells.reshape(1, 9), model.types(one.numbers))
        rows = slice(frames.offsets[i], frames.offsets[i + 1])
        assert mine.energy_ev[i] == pytest.approx(float(e[0, 0]), abs=2e-4)
        np.testing.assert_allclose(mine.forces_ev_a[rows], f[0], atol=2e-3)
        np.testing.assert_allclose(mine.virial_ev[i], v[0].reshape(3, 3), atol=5e-3)


def by_graph(path: Path) -> Kernel:
    state, params = read_checkpoint(path)
    return GraphKernel(as_graph(rebuilt(params, state)), "cpu")


def by_lists(path: Path) -> Kernel:
    state, params = read_checkpoint(path)
    return ListKernel(rebuilt(params, state), "cpu")


@pytest.mark.parametrize("kernel", [by_graph, by_lists])
def test_deepmd_kits_networks_agree_on_a_ragged_batch(kernel: Callable[[Path], Kernel], model: LamModel) -> None:
    frames = labelled()[:50]
    a, b = model.evaluate(frames), LamModel(kernel(trained()[0] / "model.pt"), model.type_map).evaluate(frames)
    np.testing.assert_allclose(a.energy_ev, b.energy_ev, atol=2e-4)
    np.testing.assert_allclose(a.forces_ev_a, b.forces_ev_a, atol=2e-3)
    np.testing.assert_allclose(a.virial_ev, b.virial_ev, atol=5e-3)


def test_attention_is_evaluated_within_a_bounded_memory(tmp_path: Path) -> None:
    """DPA-1 of the default size: on deepmd-kit's graph a hundred atoms ask for more than 14 GB."""
    import_deepmd()
    from deepmd.infer import DeepPot
    from deepmd.pt.model.model import get_model
    from deepmd.utils.argcheck import normalize

    settings = Model(type_map=["H", "Mg", "Ca"])
    assert (settings.descriptor, settings.size) == ("dpa1", "standard"), "no longer the default"
    params = normalize(training_input(settings, ["none"], [], 10, 1))["model"]
    state = {f"model.Default.{k}": v for k, v in get_model(dict(params)).state_dict().items() if k != "_extra_state"}
    extra = {"model_params": params, "train_infos": {}}
    torch.save({"model": {**state, "_extra_state": extra}, "optimizer": {}}, tmp_path / "m.pt")
    lam, frames = LamModel.load(tmp_path / "m.pt", device="cpu"), labelled()[:6]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = lam.evaluate(frames)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4e6, "kB for 50 atoms"
    energy, forces, virial = DeepPot(str(tmp_path / "m.pt")).eval(
        frames[:1].positions.reshape(1, -1), frames.cells[:1].reshape(1, 9), lam.types(frames[:1].numbers))
    assert found.energy_ev[0] == pytest.approx(energy[0, 0], abs=1e-4)
    np.testing.assert_allclose(found.forces_ev_a[:frames.counts[0]], forces[0], atol=1e-4)
    np.testing.assert_allclose(found.virial_ev[0], virial[0].reshape(3, 3), atol=1e-3)


class _SmallMemory(GraphKernel):
    """Runs out of memory, as PyTorch reports it, for batches of more than a few structures."""

    structures = 6
    atoms = 10**6

    def _evaluate(self, offsets, *edges):
        self.sizes.append(len(offsets) - 1)
        if len(offsets) - 1 > self.structures or offsets[-1] > self.atoms:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super()._evaluate(offsets, *edges)


class TestOutOfMemory:
    @pytest.fixture
    def small(self) -> LamModel:
        state, params = read_checkpoint(STORED)
        kernel = _SmallMemory(as_graph(rebuilt(params, state)), "cpu")
        kernel.sizes = []
        return LamModel(kernel, params["type_map"])

    def test_the_batch_is_halved_and_goes_on(self, small: LamModel) -> None:
        frames = labelled()[:21]
        found = small.evaluate(frames)
        assert small.kernel.sizes[0] == 21 and sum(n for n in small.kernel.sizes if n <= 6) == 21
        whole = LamModel.load(STORED, device="cpu").evaluate(frames)
        np.testing.assert_allclose(found.energy_ev, whole.energy_ev, atol=2e-4)
        np.testing.assert_allclose(found.forces_ev_a, whole.forces_ev_a, atol=2e-3)
        np.testing.assert_allclose(found.virial_ev, whole.virial_ev, atol=5e-3)

    def test_a_relaxation_goes_on_too(self, small: LamModel) -> None:
        settings, frames = Relaxation(max_steps=3), labelled()[:9]
        halved = relax(small, frames, 200.0, settings).relaxed
        whole = relax(LamModel.load(STORED, device="cpu"), frames, 200.0, settings).relaxed
        np.testing.assert_allclose(halved.columns["enthalpy_ev"], whole.columns["enthalpy_ev"], atol=5e-3)

    def test_the_size_that_fits_is_remembered(self, small: LamModel) -> None:
        small.evaluate(labelled()[:21])
        small.kernel.sizes.clear()
        small.evaluate(labelled()[:21])
        assert max(small.kernel.sizes) < 12

    def test_nothing_fits_is_an_error(self, small: LamModel) -> None:
        small.kernel.structures = 0
        with pytest.raises(torch.OutOfMemoryError):
            small.evaluate(labelled()[:3])

    def test_memory_that_is_taken_away_is_an_error(self, small: LamModel) -> None:
        small.evaluate(labelled()[:3])
        small.kernel.structures = 0
        with pytest.raises(torch.OutOfMemoryError):
            small.evaluate(labelled()[:3])

    def test_one_structure_that_is_too_large_costs_no_other(self, small: LamModel) -> None:
        frames = labelled()[:5]
        large = StructureArrays.from_atoms([frames.atoms(2).repeat((3, 3, 3))])
        small.kernel.atoms = len(large.numbers) - 1
        for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
            batch = StructureArrays.concatenate([frames[0], frames[1], frames[3], large])[order]
            energy = small.evaluate(batch).energy_ev
            assert np.isnan(energy[order.index(3)]) and np.isfinite(np.delete(energy, order.index(3))).all()


def test_forces_and_virial_are_derivatives_of_the_energy(model: LamModel) -> None:
    one = labelled()[0]
    found = model.evaluate(one)
    step = 2e-3

    def energy(positions: np.ndarray, cell: np.ndarray) -> float:
        moved = StructureArrays(one.offsets, one.numbers, positions @ np.linalg.inv(cell), cell[None])
        return float(model.evaluate(moved).energy_ev[0])

    cell, positions = one.cells[0], one.positions
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        up, down = positions.copy(), positions.copy()
        up[atom, axis] += step
        down[atom, axis] -= step
        numeric = -(energy(up, cell) - energy(down, cell)) / (2 * step)
        assert found.forces_ev_a[atom, axis] == pytest.approx(numeric, abs=0.03)
    for i, j in ((0, 0), (1, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] = step
        up, down = np.eye(3) + strain, np.eye(3) - strain
        numeric = (energy(positions @ down, cell @ down) - energy(positions @ up, cell @ up)) / (2 * step)
        assert found.virial_ev[0][i, j] == pytest.approx(numeric, abs=0.1)


def test_a_structure_does_not_feel_its_neighbours_in_the_batch(model: LamModel) -> None:
    frames = labelled()[:20]
    together = model.evaluate(frames)
    for i in (0, 7, 19):
        assert model.evaluate(frames[i]).energy_ev[0] == pytest.approx(together.energy_ev[i], abs=1e-4)


def test_broken_cells_give_nan_and_leave_the_others_alone(model: LamModel) -> None:
    frames = labelled()[:4]
    broken = StructureArrays(frames.offsets, frames.numbers, frames.fractional.copy(), frames.cells.copy())
    broken.cells[1, 2] = broken.cells[1, 1]  # flat
    broken.fractional[broken.offsets[2]] = np.nan
    found = model.evaluate(broken)
    assert np.isnan(found.energy_ev[[1, 2]]).all()
    np.testing.assert_allclose(found.energy_ev[[0, 3]], model.evaluate(frames).energy_ev[[0, 3]], atol=1e-4)


def test_an_unknown_element_is_named(model: LamModel) -> None:
    frames = labelled()[:1]
    frames.numbers[0] = 57
    with pytest.raises(DataError, match="does not know La"):
        model.evaluate(frames)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_what_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(DataError, match="not a deepmd-kit PyTorch checkpoint"):
        LamModel.load(tmp_path / "model.pt")


def test_a_head_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="single model"):
        LamModel.load(trained()[0] / "model.pt", head="tc")


class TestEnsemble:
    @pytest.fixture
    def ensemble(self) -> Ensemble:
        return Ensemble.load([trained()[0] / "model.pt", trained(seed=2, steps=200)[0] / "model.pt"])

    def test_disagreement_grows_away_from_the_data(self, ensemble: Ensemble) -> None:
        frames = labelled()
        squeezed = StructureArrays(frames.offsets, frames.numbers, frames.fractional, frames.cells * 0.9)
        near, far = ensemble.deviation(frames), ensemble.deviation(squeezed)
        assert np.median(far.max_force_ev_a) > 1.2 * np.median(near.max_force_ev_a)
        assert (near.mean_force_ev_a <= near.max_force_ev_a).all() and (near.enthalpy_ev_atom >= 0).all()

    def test_classes(self, ensemble: Ensemble) -> None:
        frames = labelled()[:6]
        frames = StructureArrays(frames.offsets, frames.numbers, frames.fractional.copy(), frames.cells.copy())
        frames.fractional[1] = frames.fractional[0] + 0.01  # two atoms on one another
        frames.cells[1] *= 3  # exploded
        deviation = ensemble.deviation(frames)
        labels = deviation.classify(0.0, 1e9)
        assert labels.tolist() == ["unphysical", "unphysical", *["candidate"] * 4]
        middle = np.sort(deviation.max_force_ev_a[2:])
        labels = deviation.classify(middle[1], middle[2])
        assert sorted(labels[2:]) == ["accurate", "candidate", "candidate", "unreliable"]

    def test_one_model_is_no_ensemble(self, ensemble: Ensemble) -> None:
        with pytest.raises(DataError, match="two models"):
            Ensemble(ensemble.models[:1])


def test_errors_are_reported_per_element_and_pressure(model: LamModel) -> None:
    frames = labelled()
    frames.columns["pressure_gpa"] = np.where(np.arange(len(frames)) % 2, 150.0, 200.0)
    found = errors(model, frames)
    assert set(found["per_element"]) == {"H", "Mg", "Ca"} and set(found["per_pressure"]) == {"150-200 GPa", "200-250 GPa"}
    assert sum(p["frames"] for p in found["per_pressure"].values()) == found["frames"] == len(frames)
    assert found["mae_energy_mev_atom"] <= found["energy_mev_atom"]
