"""Ragged structure batches keep what they were given through slicing, joining and Parquet."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydroflow.arrays import StructureArrays, formula, numbers_of
from hydroflow.errors import DataError


def random_batch(rng: np.random.Generator, n: int) -> StructureArrays:
    counts = rng.integers(1, 9, n)
    batch = StructureArrays.from_lists(
        [rng.choice([1, 4, 20], k) for k in counts],
        [rng.random((k, 3)) for k in counts],
        np.eye(3) * 3 + rng.normal(0, 0.2, (n, 3, 3)),
        {
            "energy_ev": rng.normal(size=n),
            "virial_ev": rng.normal(size=(n, 3, 3)),
            "id": np.array([f"s{i}" for i in range(n)], object),
        },
    )
    batch.atom_columns["forces_ev_a"] = rng.normal(size=(len(batch.numbers), 3))
    return batch


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_parquet_and_pieces_give_back_the_batch(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    batch = random_batch(rng, n)
    order = rng.permutation(n)
    joined = StructureArrays.concatenate([batch[int(i)] for i in order])
    again = StructureArrays.from_parquet(joined.to_parquet())[np.argsort(order)]
    assert again.digests() == batch.digests()
    np.testing.assert_array_equal(again.offsets, batch.offsets)
    for key in batch.columns:
        np.testing.assert_array_equal(again.columns[key], batch.columns[key])
    np.testing.assert_array_equal(again.atom_columns["forces_ev_a"], batch.atom_columns["forces_ev_a"])


def test_edges_agree_with_ase_and_pymatgen() -> None:
    batch = random_batch(np.random.default_rng(1), 5)
    np.testing.assert_allclose(batch.positions, np.concatenate([batch.atoms(i).positions for i in range(5)]))
    np.testing.assert_allclose(batch.volumes, [abs(batch.structure(i).volume) for i in range(5)])
    back = StructureArrays.from_atoms([batch.atoms(i) for i in range(5)])
    np.testing.assert_allclose(back.fractional, batch.fractional, atol=1e-12)


def test_digest_sees_any_change_but_not_minus_zero() -> None:
    one = StructureArrays.from_lists([np.array([1, 1])], [np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])], [np.eye(3)])
    minus = StructureArrays.from_lists([np.array([1, 1])], [np.array([[-0.0, 0, 0], [0.5, 0.5, 0.5]])], [np.eye(3)])
    moved = StructureArrays.from_lists([np.array([1, 1])], [np.array([[1e-6, 0, 0], [0.5, 0.5, 0.5]])], [np.eye(3)])
    assert one.digests() == minus.digests() != moved.digests()


def test_empty_batch_travels() -> None:
    assert len(StructureArrays.from_parquet(StructureArrays.empty().to_parquet())) == 0
    assert len(StructureArrays.concatenate([])) == 0


def test_unusable_parquet_is_one_clear_error() -> None:
    good = random_batch(np.random.default_rng(0), 3).to_parquet()
    with pytest.raises(DataError, match="half-written"):
        StructureArrays.from_parquet(good[: len(good) // 2])
    with pytest.raises(DataError, match="does not hold hydroflow structures"):
        StructureArrays.from_table(pa.table({"a": [1]}))


@pytest.mark.parametrize(
    ("composition", "expected"),
    [
        ({"H": 24, "Y": 2, "Ca": 2}, "CaYH12"),
        ({"H": 3, "S": 1}, "SH3"),
        ({"Be": 1, "La": 1, "H": 8}, "LaBeH8"),
        ({"H": 2}, "H"),
    ],
)
def test_formula(composition: dict[str, int], expected: str) -> None:
    assert formula(composition) == expected


def test_unknown_element_is_named() -> None:
    with pytest.raises(DataError, match="'Xx'"):
        numbers_of(["H", "Xx"])
