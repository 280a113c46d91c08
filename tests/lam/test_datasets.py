"""Datasets: what is refused, what is shared between versions, and that the split never leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.lam.datasets import (
    SPLITS,
    assign_splits,
    build_dataset,
    load_dataset,
    pressure_bins,
    read_manifest,
)
from hydroflow.lam.formats import element_order, export_frames, import_frames
from hydroflow.lam.label_checks import check_frames, check_work
from hydroflow.store import Store
from hydroflow.store.documents import Dataset
from hydroflow.units import EV_A3_GPA
from tests.fixtures_store import ROOT
from tests.lam.labelled import frames as labelled


def _changed(**columns: np.ndarray) -> StructureArrays:
    frames = labelled()
    for name, values in columns.items():
        (frames.atom_columns if name == "forces_ev_a" else frames.columns)[name] = values
    return frames


def _with_nan(name: str) -> StructureArrays:
    frames = labelled()
    values = (frames.atom_columns if name == "forces_ev_a" else frames.columns)[name].copy()
    values.reshape(len(values), -1)[7, 0] = np.nan
    return _changed(**{name: values})


def _without(name: str) -> StructureArrays:
    frames = labelled()
    frames.columns.pop(name, None)
    frames.atom_columns.pop(name, None)
    return frames


@pytest.mark.parametrize(("frames", "message"), [
    (StructureArrays.empty(), "no labelled frames"),
    (_without("virial_ev"), "lack virial_ev"),
    (_without("forces_ev_a"), "lack forces_ev_a"),
    (_with_nan("energy_ev"), "energy_ev of frame 7 is not finite"),
    (_with_nan("forces_ev_a"), "forces_ev_a of frame 0 are not finite"),
    (_with_nan("virial_ev"), "virial_ev of frame 7"),
    (_changed(virial_ev=-labelled().columns["virial_ev"]), "sign is reversed"),
    (_changed(virial_ev=labelled().columns["virial_ev"] / labelled().volumes[:, None, None]), "units"),
    (_changed(virial_ev=labelled().columns["virial_ev"] / labelled().volumes[:, None, None] * 1602.18), "not a stress"),
    (_changed(forces_ev_a=labelled().atom_columns["forces_ev_a"] * 1e3), "units"),
    (_changed(label_settings=np.array(["a"] * 60 + ["b"] * 70)), "2 label settings are mixed"),
    (_changed(label_settings=np.array(["a"] * 60 + ["b"] * 70), energy_ev=labelled().columns["energy_ev"]
              + np.repeat([0.0, 1e5], [60, 70])), "2 label settings are mixed"),
])
def test_unusable_frames_are_refused_with_the_reason(frames: StructureArrays, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_frames(frames)


@pytest.fixture
def bare(tmp_path: Path) -> Callable[[float], Path]:
    """Writes frames as a user has them: with a stress, scaled by a factor, and no word of a pressure beside it."""
    def write(factor: float) -> Path:
        frames = labelled()
        frames.columns = {"energy_ev": frames.columns["energy_ev"], "virial_ev": frames.columns["virial_ev"] * factor}
        export_frames(frames, tmp_path / "user.xyz", "extxyz", element_order(frames))
        return tmp_path / "user.xyz"

    return write


@pytest.mark.parametrize(("factor", "expected", "message"), [
    (-1.0, None, "sign is reversed"),
    (-1.0, 200.0, "sign is reversed"),
    (0.1, 200.0, "200 GPa is expected"),
    (10.0, 200.0, "200 GPa is expected"),
    (1.0, 0.0, "0 GPa is expected"),
])
def test_a_wrong_virial_of_an_import_is_refused(bare: Callable[[float], Path], factor: float, expected: float | None,
                                                message: str) -> None:
    """The pressure of an import is that of its virial, so that the two never contradict each other."""
    frames = import_frames(bare(factor), "extxyz", "pbe")
    with pytest.raises(DataError, match=message):
        check_frames(frames, expected)


@pytest.mark.parametrize("expected", [None, 150.0, 200.0, 250.0])
def test_a_sound_import_passes(bare: Callable[[float], Path], expected: float | None) -> None:
    assert check_frames(import_frames(bare(1.0), "extxyz", "pbe"), expected) == "pbe"


def test_pressures_are_counted_in_wide_bins() -> None:
    """Every label has a pressure of its own, to the digits that DFT gives."""
    assert pressure_bins(np.array([149.98, 150.0, 199.93, 203.41, 41.7, -3.2])).tolist() == [
        "100-150 GPa", "150-200 GPa", "150-200 GPa", "200-250 GPa", "0-50 GPa", "below 0 GPa"]


def test_an_energy_in_other_units_is_refused() -> None:
    frames = labelled()
    frames.columns["energy_ev"] = frames.columns["energy_ev"].copy()
    frames.columns["energy_ev"][11] /= 13.6057
    with pytest.raises(DataError, match="frame 11"):
        check_frames(frames)


def _path(along: str) -> StructureArrays:
    """Ten frames of an argon crystal on its way: atoms displaced ever further, or the cell compressed."""
    start = bulk("Ar", "fcc", a=4.6, cubic=True)
    shift, images = np.random.default_rng(2).normal(0, 0.04, (4, 3)), []
    for i in range(10):
        atoms = start.copy()
        atoms.positions += i * shift if along == "forces" else shift
        if along == "virials":
            atoms.set_cell(atoms.cell * (1 - 0.01 * i), scale_atoms=True)
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.3, rc=8, smooth=True)
        images.append(atoms)
    stress = np.array([a.get_stress(voigt=False) for a in images])
    volumes = np.array([a.get_volume() for a in images])
    frames = StructureArrays.from_atoms(images, {
        "energy_ev": np.array([a.get_potential_energy() for a in images]), "virial_ev": -volumes[:, None, None] * stress,
        "pressure_gpa": -np.trace(stress, axis1=1, axis2=2) / 3 * EV_A3_GPA, "label_settings": np.array(["lj"] * 10),
        "source": np.array(["path"] * 10)})
    frames.atom_columns["forces_ev_a"] = np.concatenate([a.get_forces() for a in images])
    return frames


@pytest.mark.parametrize("along", ["forces", "virials"])
def test_units_that_contradict_each_other_are_seen_between_the_frames_of_a_path(along: str) -> None:
    check_frames(_path(along))
    in_rydberg = _path(along)
    in_rydberg.columns["energy_ev"] = in_rydberg.columns["energy_ev"] / 13.6057
    with pytest.raises(DataError, match=rf"0\.07\d+ times what their {along} say \(\d pairs\)"):
        check_frames(in_rydberg)


@pytest.mark.parametrize(("factor", "told"), [(-1.0, "by -"), (1 / 1.8897, "1.8")])
def test_forces_of_the_wrong_sign_or_per_bohr_are_seen(factor: float, told: str) -> None:
    frames = _path("forces")
    frames.atom_columns["forces_ev_a"] = frames.atom_columns["forces_ev_a"] * factor
    with pytest.raises(DataError, match=f"{told}.* times what their forces say"):
        check_frames(frames)


def test_real_labels_change_by_the_work_of_their_forces() -> None:
    """490 frames of pw.x, 20 pairs of which are neighbours; in Ry they would be refused."""
    frames = StructureArrays.from_parquet((ROOT / "benchmarks" / "data" / "learning_pool.parquet").read_bytes())
    check_work(frames)
    frames.columns["energy_ev"] = frames.columns["energy_ev"] / 13.6057
    with pytest.raises(DataError, match=r"0\.07\d+ times what their forces say \(20 pairs\)"):
        check_work(frames)


def test_sound_frames_pass() -> None:
    assert "quantum-espresso" in check_frames(labelled())


def test_groups_are_never_split_and_no_side_is_empty() -> None:
    sizes = {"CaMgH6": 10, "CaMgH8": 10, "CaH6": 5, "MgH4": 5, "Ca": 3, "Mg": 3}
    splits = assign_splits(sizes, {})
    assert set(splits.values()) == set(SPLITS)
    assert splits["Ca"] == splits["Mg"] == "train"


def test_a_group_keeps_its_side_when_the_dataset_grows() -> None:
    first = assign_splits({f"CaMgH{i}": 3 for i in range(5, 12)}, {})
    second = assign_splits({f"CaMgH{i}": 9 for i in range(3, 40)}, first)
    assert {g: second[g] for g in first} == first
    held_out = sum(s != "train" for s in second.values())
    assert 0.05 < held_out / len(second) < 0.4


@pytest.mark.service
class TestVersions:
    def test_frames_come_back_as_they_were(self, store: Store) -> None:
        frames = labelled()
        splits = load_dataset(store, build_dataset(store, "mgca", frames))
        back = StructureArrays.concatenate(splits.values())
        order, wanted = np.argsort(back.digests()), np.argsort(frames.digests())
        assert len(back) == len(frames)
        np.testing.assert_allclose(back.columns["energy_ev"][order], frames.columns["energy_ev"][wanted], atol=0)
        np.testing.assert_allclose(back[order].atom_columns["forces_ev_a"], frames[wanted].atom_columns["forces_ev_a"])

    def test_no_composition_is_on_two_sides(self, store: Store) -> None:
        splits = load_dataset(store, build_dataset(store, "mgca", labelled()))
        groups = [set(splits[s].formulas()) for s in SPLITS]
        assert all(groups)
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]

    def test_a_lone_composition_is_split_by_frame_until_others_join(self, store: Store) -> None:
        """There is no group to hold out; without validation its training could not be judged at all."""
        frames = labelled()
        most = Counter(frames.formulas()).most_common(1)[0][0]
        one = frames[np.array(frames.formulas()) == most]
        lone = build_dataset(store, "mgca", one)
        splits = load_dataset(store, lone)
        assert len(splits["train"]) > len(splits["validation"]) > 0
        grown = read_manifest(store.objects, build_dataset(store, "mgca", frames, parent=lone))["splits"]
        assert [g for g, s in grown.items() if s == "frames"] == [most] and set(grown.values()) > {"train", "frames"}

    def test_content_names_it_and_growth_shares_the_parts(self, store: Store) -> None:
        frames = labelled()
        first = build_dataset(store, "mgca", frames[:80])
        assert build_dataset(store, "mgca", frames[:80]) == first
        second = build_dataset(store, "mgca", frames[70:], parent=first)
        a, b = read_manifest(store.objects, first), read_manifest(store.objects, second)
        assert b["frames"] == len(frames)
        assert b["parts"][0] == a["parts"][0] and len(b["parts"]) == 2
        assert {g: b["splits"][g] for g in a["splits"]} == a["splits"]
        record = Dataset.objects(digest=second).get()
        assert record.parent == first and record.parts == b["parts"] and sum(record.split.values()) == len(frames)

    def test_another_label_of_a_known_geometry_is_refused(self, store: Store) -> None:
        first = build_dataset(store, "mgca", labelled()[:20])
        again = labelled()[:20]
        again.columns["energy_ev"] = again.columns["energy_ev"] + 1e-6  # another run of the same calculation
        assert build_dataset(store, "mgca", again, parent=first)
        again.columns["energy_ev"][3] += 1.0
        with pytest.raises(DataError, match=r"frame 3 .* is there already with another label"):
            build_dataset(store, "mgca", again, parent=first)
        with pytest.raises(DataError, match="another label"):
            build_dataset(store, "mgca", StructureArrays.concatenate([labelled()[:20], again]))

    def test_frames_are_counted_by_the_pressure_of_their_label(self, store: Store) -> None:
        frames = labelled()
        own = np.trace(frames.columns["virial_ev"], axis1=1, axis2=2) / (3 * frames.volumes) * EV_A3_GPA
        frames.columns["pressure_gpa"] = own  # as dft.batch.labelled_frames has it
        counts = read_manifest(store.objects, build_dataset(store, "mgca", frames))["counts"]["pressure"]
        assert len(np.unique(own)) == len(frames) and len(counts) < 15 and sum(counts.values()) == len(frames)
        assert counts["150-200 GPa"] == ((own >= 150) & (own < 200)).sum() > 5

    def test_another_level_of_theory_is_never_joined(self, store: Store) -> None:
        frames = labelled()
        first = build_dataset(store, "mgca", frames[:50])
        other = frames[50:]
        other.columns["label_settings"] = np.array(["VASP PBE 850 eV"] * len(other))
        with pytest.raises(DataError, match="never mix levels of theory"):
            build_dataset(store, "mgca", other, parent=first)

    def test_other_pseudopotentials_under_the_same_name_are_noticed(self, store: Store) -> None:
        frames = labelled()
        first = build_dataset(store, "mgca", frames[:80])
        other = frames[80:]
        other.columns["energy_ev"] = other.columns["energy_ev"] + 40.0 * other.count_of(20)
        with pytest.raises(DataError, match="pseudopotentials"):
            build_dataset(store, "mgca", other, parent=first)
