"""The Tc model's data, input and job, without deepmd-kit; training itself is in tests/engines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Space, Tc
from hydroflow.errors import DataError
from hydroflow.store.objects import DirectoryObjects
from hydroflow.tc.data import padded, type_indices, write_property_systems
from hydroflow.tc.finetune import multitask_input
from hydroflow.tc.model import fold_of, tc_spec

TYPE_MAP = ["H", "Be", "Ca"]


def hydrides(n: int, seed: int = 0) -> StructureArrays:
    rng = np.random.default_rng(seed)
    numbers = [np.array([20, 4] + [1] * int(rng.integers(3, 9))) for _ in range(n)]
    out = StructureArrays.from_lists(numbers, [rng.random((len(z), 3)) for z in numbers], [np.eye(3) * 3.5] * n)
    out.columns["id"] = np.array([f"s{i}" for i in range(n)], dtype=object)
    return out


@pytest.fixture
def objects(tmp_path) -> DirectoryObjects:
    return DirectoryObjects(tmp_path / "objects")


@pytest.fixture
def make(objects):
    campaign = Campaign(name="t", space=Space(elements=["Ca", "Be"]), tc=Tc(folds=4, steps=10))
    dataset = objects.put(json.dumps({"format": "hydroflow dataset/1", "parts": [objects.put(b"part")]}).encode())

    def spec(values, **changes):
        known = hydrides(len(values))
        known.columns["tc_k"] = np.array(values, float)
        known.columns["extra"] = np.zeros(len(values))
        known.columns |= changes.pop("columns", {})
        return tc_spec(campaign, objects, "sha256:" + "0" * 64, dataset, known, hydrides(3, 1), "deepmd-kit 3.2.0", **changes)

    return spec


def test_folds_are_even_and_reproducible():
    folds = fold_of(10, 4, 1)
    assert sorted(np.bincount(folds)) == [2, 2, 3, 3]
    assert (folds == fold_of(10, 4, 1)).all()


def test_the_job_knows_its_answer_by_content(make):
    spec = make([10.0, 20, 30, 40, 50])
    assert spec.key == make([10.0, 20, 30, 40, 50], columns={"extra": np.ones(5)}).key
    assert spec.key != make([10.0, 20, 30, 40, 51]).key
    assert spec.key != make([10.0, 20, 30, 40, 50], scope="plumbing").key
    assert spec.inputs["folds"] == 4 and make([1.0, 2, 3]).inputs["folds"] == 3
    assert set(spec.files) == {"lam.pt", "dataset.json", "known.parquet", "rest.parquet", "frames0.parquet"}


@pytest.mark.parametrize(("values", "words"), [
    ([100.0, 200.0], "too few"), ([100.0, 100.0, 100.0], "nothing to learn"), ([100.0, np.nan, 50.0], "not finite"),
    ([100.0, -1.0, 50.0], "negative")])
def test_values_that_cannot_train_are_refused(make, values, words):
    with pytest.raises(DataError, match=words):
        make(values)


def test_unknown_scope_is_refused(make):
    with pytest.raises(DataError, match="plumbing"):
        make([1.0, 2.0, 3.0], scope="paper")


def test_padding_keeps_every_atom():
    structures = hydrides(5)
    coordinates, cells, types = padded(structures, TYPE_MAP, 12)
    assert ((types >= 0).sum(axis=1) == structures.counts).all() and (types < 0).any()
    rows = slice(structures.offsets[2], structures.offsets[3])
    assert np.allclose(coordinates.reshape(5, 12, 3)[2, :structures.counts[2]], structures.positions[rows])
    assert np.allclose(cells[0].reshape(3, 3), structures.cells[0])


def test_written_systems_hold_every_value_beside_its_structure(tmp_path):
    structures, values = hydrides(6), np.arange(6) * 10.0
    folders = write_property_systems(structures, values, tmp_path, TYPE_MAP, pad=4)
    found = {}
    for folder in folders:
        labels = np.load(f"{folder}/set.000/tc.npy")
        kinds = np.load(f"{folder}/set.000/real_atom_types.npy")
        assert labels.shape == (len(kinds), 1)
        for label, types in zip(labels[:, 0], kinds, strict=True):
            found[float(label)] = int((types >= 0).sum())
    assert found == {float(v): int(c) for v, c in zip(values, structures.counts, strict=True)}


def test_an_element_the_model_does_not_know_is_named():
    with pytest.raises(DataError, match="Ca"):
        type_indices(np.array([1, 20]), ["H", "Be"])


def test_both_heads_share_the_descriptor_and_only_tc_is_new():
    lam = {"type_map": TYPE_MAP, "descriptor": {"type": "dpa1", "seed": 5}, "fitting_net": {"neuron": [8, 8], "type": "ener"}}
    config = multitask_input(lam, ["e"], ["t"], steps=100, energy_share=0.3, seed=2)
    heads = config["model"]["model_dict"]
    assert {h["descriptor"] for h in heads.values()} == {"descriptor"}
    assert heads["energy"]["finetune_head"] == "Default" and heads["tc"]["finetune_head"] == "RANDOM"
    assert heads["energy"]["fitting_net"] == lam["fitting_net"]
    assert config["training"]["model_prob"] == {"energy": 0.3, "tc": 0.7}
