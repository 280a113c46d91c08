"""The `standard` protocol reproduces published pressures of known hydrides at their lattice constants (about 2 CPU minutes)."""

from __future__ import annotations

import pytest
from ase.spacegroup import crystal

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Labels
from hydroflow.dft.batch import label_specs
from hydroflow.dft.jobs import Label
from hydroflow.dft.settings import label_settings
from tests.dft.driver import FolderStore, Objects, run

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# lattice constants and pressures: PBE relaxations of the literature (sources in docs/dft.md)
SYSTEMS = {
    "H3S": (200, 229, 2.984, ["S", "H"], [(0, 0, 0), (0, 0.5, 0.5)]),
    "CaH6": (170, 229, 3.4565, ["Ca", "H"], [(0, 0, 0), (0.25, 0.5, 0)]),
    "YH6": (166, 229, 3.5750, ["Y", "H"], [(0, 0, 0), (0.25, 0.5, 0)]),
    "LaH10": (250, 225, 4.8441, ["La", "H", "H"], [(0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.1207, 0.1207, 0.1207)]),
    "LaBeH8": (200, 225, 5.017, ["La", "Be", "H"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.335, 0.335, 0.335)]),
    "CaYH12": (200, 221, 3.464, ["Ca", "Y", "H"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.25, 0.5, 0)]),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_pressure_at_the_published_lattice_constant(name, tmp_path):
    pressure, group, a, symbols, sites = SYSTEMS[name]
    atoms = crystal(symbols, sites, spacegroup=group, cellpar=[a, a, a, 90, 90, 90], primitive_cell=True)
    settings = label_settings(Labels(protocol="standard"), sorted(set(symbols)))
    store = FolderStore(Objects(tmp_path / "objects"))
    spec = label_specs(store, StructureArrays.from_atoms([atoms]), settings)[0]
    result = run(Label(), spec, store, tmp_path / "run").result
    assert result["pressure_gpa"] == pytest.approx(pressure, rel=0.03)
    assert result["review"] == []
