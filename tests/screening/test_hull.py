"""The enthalpy hull against pymatgen and against its own invariants."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.screening.entries import Entries, entries, entries_of
from hydroflow.screening.hull import build, energy_above_hull, hull_distances, lowest_per_composition
from tests.screening.systems import ELEMENTS, random_entries


def pymatgen_entries(given: Entries) -> list[PDEntry]:
    return [PDEntry(Composition(dict(zip(given.elements, map(int, row), strict=True))), float(h), name=str(i))
            for row, h, i in zip(given.counts, given.enthalpies_ev, given.ids, strict=True)]


@pytest.mark.parametrize("seed", range(81))
def test_equals_pymatgen(seed: int) -> None:
    """Distance of every entry within 1e-9 eV/atom, and decomposition into the same phases, on binaries to quaternaries."""
    given = random_entries(seed, 2 + seed % 3, 20 + 2 * seed)
    ehull, hull = energy_above_hull(given)
    peers = pymatgen_entries(given)
    diagram = PhaseDiagram(peers)
    assert np.abs(ehull - [diagram.get_e_above_hull(e) for e in peers]).max() < 1e-9
    for i in range(len(given.elements), len(peers), 5):
        ours = hull.decomposition(given.counts[i])
        assert sum(ours.values()) == pytest.approx(1)
        energy = sum(share * hull.enthalpies[list(hull.ids.astype(str)).index(name)] for name, share in ours.items())
        theirs = diagram.get_decomposition(peers[i].composition)
        assert energy == pytest.approx(sum(e.energy_per_atom * x for e, x in theirs.items()), abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_incremental_hull_equals_the_hull_of_everything(seed: int) -> None:
    given = random_entries(seed, 2 + seed % 3, 60)
    first = np.arange(len(given)) < 30
    early = Entries(given.elements, given.counts[first], given.enthalpies_ev[first], 200.0, "model", given.ids[first])
    late = Entries(given.elements, given.counts[~first], given.enthalpies_ev[~first], 200.0, "model", given.ids[~first])
    grown = build(early).with_entries(late)
    whole = build(given)
    assert grown.at(given.counts) == pytest.approx(whole.at(given.counts), abs=1e-10)
    assert grown.with_entries(late) is grown, "entries that change nothing must not rebuild the hull"


def test_shift_of_the_references_changes_no_distance() -> None:
    given = random_entries(5, 3, 100)
    shifted = Entries(given.elements, given.counts, given.enthalpies_ev + given.counts @ [10.0, -20.0, 7.0], 200.0, "model",
                      given.ids)
    assert energy_above_hull(given)[0] == pytest.approx(energy_above_hull(shifted)[0], abs=1e-9)


def test_nothing_below_the_elements_decomposes_into_them() -> None:
    counts = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 6]])
    ehull, hull = energy_above_hull(entries(ELEMENTS[:3], counts, [-2.0, -6.0, -1.0, -13.2], 200, "model"))
    assert ehull == pytest.approx([0, 0, 0, 0.8 / 8])
    assert hull.reaction(counts[3]) == pytest.approx({"Ca": 1 / 8, "Y": 1 / 8, "H": 6 / 8})
    assert hull.error_ev(counts[3:], 0.04) == pytest.approx(0.04 * np.sqrt(1 + 1 / 64 + 1 / 64 + 36 / 64))


def test_lowest_of_a_composition_counts_supercells_as_one() -> None:
    given = entries(("Ca", "H"), np.array([[1, 0], [0, 1], [1, 6], [2, 12], [4, 24], [1, 4]]),
                    [0, 0, -1.0, -2.2, -4.0, -1.0], 200, "m")
    assert lowest_per_composition(given).tolist() == [0, 1, 3, 5]


def batch(formulas: list[str], per_atom: list[float]) -> StructureArrays:
    compositions = [Composition(f) for f in formulas]
    numbers = [np.repeat([e.Z for e in c], [int(n) for n in c.values()]) for c in compositions]
    out = StructureArrays.from_lists(numbers, [np.zeros((len(z), 3)) for z in numbers], [np.eye(3) * 5] * len(numbers))
    out.columns["enthalpy_ev"] = np.array(per_atom) * out.counts
    out.columns["pressure_gpa"] = np.full(len(out), 200.0)
    out.columns["id"] = np.array([f"s{i}" for i in range(len(out))], dtype=object)
    return out


def test_distances_in_a_mixed_batch() -> None:
    """Each structure is measured in its own system, with that system's binaries; a system without an element has no hull."""
    mixed = batch(["Ca", "Y", "H2", "CaH6", "Ca2H12", "CaYH12", "CaLaH12"], [0, 0, 0, -0.5, -0.4, -0.25, -1.0])
    found = hull_distances(mixed, mixed.columns["enthalpy_ev"] / mixed.counts)
    # CaYH12 against CaH6 + Y + H: 7/14 of the atoms are CaH6
    assert found[:6] == pytest.approx([0, 0, 0, 0, 0.1, 0.0])
    assert np.isinf(found[6])


@pytest.mark.parametrize(("change", "words"), [
    ({"enthalpies_ev": [0, 0, np.nan]}, "s2.*not a finite"),
    ({"pressure_gpa": np.array([200.0, 200.0, 150.0])}, "mix pressures.*s2"),
    ({"level": np.array(["model-a", "model-b", "model-a"])}, "levels of theory.*s1"),
    ({"counts": [[1, 0], [0, 0], [1, 6]]}, "s1.*no atom"),
    ({"counts": [[1, 0], [0, -1], [1, 6]]}, "s1.*atom counts"),
])
def test_bad_entries_are_refused_by_id(change: dict, words: str) -> None:
    good = {"counts": [[1, 0], [0, 1], [1, 6]], "enthalpies_ev": [0.0, 0.0, -1.0], "pressure_gpa": 200.0, "level": "m",
            "ids": ["s0", "s1", "s2"]}
    build(entries(("Ca", "H"), **good))
    with pytest.raises(DataError, match=words):
        entries(("Ca", "H"), **{**good, **change})


def test_a_system_without_an_element_is_refused() -> None:
    with pytest.raises(DataError, match="no entry of the element Ca"):
        build(entries(("Ca", "H"), [[0, 1], [1, 6]], [0.0, -1.0], 200, "m"))


def test_atoms_outside_the_system_and_other_levels_are_refused() -> None:
    mixed = batch(["Ca", "H", "YH6"], [0, 0, -1])
    with pytest.raises(DataError, match="s2: atoms outside"):
        entries_of(mixed, ("Ca", "H"), "m")
    hull = build(entries(("Ca", "H"), [[1, 0], [0, 1]], [0.0, 0.0], 200, "m"))
    with pytest.raises(DataError, match=r"entries x .*do not\s+belong"):
        hull.with_entries(entries(("Ca", "H"), [[1, 6]], [-1.0], 150, "m", ["x"]))
