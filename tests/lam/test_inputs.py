"""The deepmd-kit inputs: accepted by deepmd-kit, and dimensioned for compressed solids."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Model
from hydroflow.lam.inputs import learning_rate_config, neighbour_limit, training_input
from hydroflow.lam.neighbours import closest_contacts, edges
from tests.lam.labelled import frames as labelled


@pytest.mark.parametrize("cutoff", [4.0, 4.5, 6.0])
def test_no_neighbour_of_a_compressed_hydride_is_dropped(cutoff: float) -> None:
    frames = labelled()
    squeezed = frames.cells * (150 / 250) ** (1 / 9)  # towards 250 GPa
    pointers, *_ = edges(frames.offsets, frames.fractional, squeezed, cutoff)
    assert np.diff(pointers).max() < neighbour_limit(cutoff)


@pytest.mark.parametrize("descriptor", ["dpa1", "dpa2", "dpa3"])
@pytest.mark.parametrize("size", ["tiny", "small", "standard"])
def test_deepmd_kit_accepts_every_descriptor_and_size(descriptor: str, size: str) -> None:
    from hydroflow.lam.backend import import_deepmd

    normalize = import_deepmd("deepmd.utils.argcheck").normalize
    config = training_input(Model(descriptor=descriptor, size=size), ["train"], ["validation"], steps=1000, seed=1)
    assert normalize(config)["training"]["numb_steps"] == 1000


def test_a_lower_rate_lowers_both_ends() -> None:
    model = Model(start_lr=1e-3, stop_lr=1e-6)
    assert learning_rate_config(model, 1000, 1 / 3)["start_lr"] == pytest.approx(1e-3 / 3)
    assert learning_rate_config(model, 10)["decay_steps"] == 1


def test_neighbours_are_those_of_ase_for_skewed_and_tiny_cells() -> None:
    from ase.neighborlist import neighbor_list

    rng = np.random.default_rng(3)
    cells = [np.diag([2.1, 2.3, 9.0]) + rng.normal(0, 0.4, (3, 3)) for _ in range(6)]
    frames = StructureArrays.from_lists([np.ones(k, int) for k in (1, 2, 3, 4, 5, 6)],
                                        [rng.uniform(-2, 3, (k, 3)) for k in (1, 2, 3, 4, 5, 6)], cells)
    pointers, neighbour, vector, sound = edges(frames.offsets, frames.fractional, frames.cells, 5.0)
    assert sound.all()
    for i in range(6):
        centre, other, distance = neighbor_list("ijd", frames.atoms(i), 5.0)
        first, last = pointers[frames.offsets[i]], pointers[frames.offsets[i + 1]]
        assert last - first == len(centre)
        np.testing.assert_allclose(np.sort(np.linalg.norm(vector[first:last], axis=1)), np.sort(distance), atol=1e-9)
        assert np.bincount(neighbour[first:last] - frames.offsets[i]).tolist() == np.bincount(other).tolist()


def test_contacts_tell_overlap_from_a_molecule() -> None:
    def pair(numbers: list[int], distance: float) -> StructureArrays:
        return StructureArrays.from_lists([np.array(numbers)], [np.array([[0, 0, 0], [0, 0, distance / 6]])], [np.eye(3) * 6])

    molecule, merged = closest_contacts(pair([1, 1], 0.74))[0], closest_contacts(pair([1, 1], 0.4))[0]
    lanthanum = closest_contacts(pair([57, 1], 1.33))[0]
    assert molecule > 1 and lanthanum > 1 and merged < 1
