"""Phonons of several structures: one that cannot be treated costs no other its answer, and is named with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.lam import phonons
from hydroflow.lam.phonons import Phonons
from tests.lam.labelled import frames as labelled
from tests.lam.trained import STORED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job of three small crystals, the second with two atoms in one place."""
    frames = labelled()
    three = frames[np.flatnonzero(frames.counts <= 5)[:3]]
    broken = StructureArrays(three.offsets, three.numbers, three.fractional.copy(), three.cells.copy())
    first = broken.offsets[1]
    broken.fractional[first + 1] = broken.fractional[first]
    (tmp_path / "structures.parquet").write_bytes(broken.to_parquet())
    (tmp_path / "model.pt").write_bytes(STORED.read_bytes())
    return tmp_path


def test_one_that_cannot_be_treated_costs_no_other(folder: Path) -> None:
    result = Phonons().compute({"supercell_length_a": 4.0}, {}, folder)
    first, second, third = result["min_frequency_thz"]
    assert second is None and np.isfinite([first, third]).all()
    assert list(result["reasons"]) == ["1"] and len(result["reasons"]["1"]) > 20


def test_an_error_of_the_program_is_not_taken_for_a_bad_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> float:
        raise TypeError("a mistake in the code")

    monkeypatch.setattr(phonons, "_lowest", wrong)
    with pytest.raises(TypeError, match="a mistake"):
        Phonons().compute({"supercell_length_a": 4.0}, {}, folder)
