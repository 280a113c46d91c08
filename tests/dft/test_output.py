"""Reading pw.x: XML and text say the same; versions 6.7 and 7.x."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydroflow.dft import pw_output
from hydroflow.errors import EngineFailure, FailureCode
from tests.dft.qe_cases import CASES, FOLDER
from tests.dft.xml_damage import verdicts

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def xml() -> str:
    return gzip.decompress((FOLDER / "ok_scf_cah6.xml.gz").read_bytes()).decode()


def read(tmp_path, text: str) -> pw_output.PwResult:
    (tmp_path / "x.xml").write_text(text)
    return pw_output.read_xml(tmp_path / "x.xml")


def test_xml_and_text_agree(tmp_path, xml):
    a, b = read(tmp_path, xml), pw_output.read_text(BY_NAME["ok_scf_cah6"].read("out"))
    assert a.version == b.version == "6.7" and a.scf_converged and b.scf_converged
    assert a.energy_ev == pytest.approx(b.energy_ev, abs=1e-6)
    assert a.electrons == b.electrons == 16 and a.k_points == b.k_points == 16 and a.n_scf == b.n_scf == 6
    np.testing.assert_allclose(a.stress_gpa, b.stress_gpa, atol=1e-3)
    np.testing.assert_allclose(a.forces_ev_a, b.forces_ev_a, atol=1e-6)
    np.testing.assert_allclose(a.cell, b.cell, atol=1e-4)
    np.testing.assert_array_equal(a.numbers, b.numbers)
    # the text's own line: P= 2007.82 kbar
    assert np.trace(a.stress_gpa) / 3 == pytest.approx(200.782, abs=1e-2)


def test_quantum_espresso_7(tmp_path):
    text = gzip.decompress((FOLDER / "ok_h3s_qe72.xml.gz").read_bytes()).decode()
    result, from_text = read(tmp_path, text), pw_output.read_text(BY_NAME["ok_h3s_qe72"].read("out"))
    assert result.version == from_text.version == "7.2" and result.exit_status == 0 and result.scf_converged
    assert result.energy_ev == pytest.approx(from_text.energy_ev, abs=1e-6)
    np.testing.assert_allclose(result.stress_gpa, from_text.stress_gpa, atol=1e-3)
    assert read(tmp_path, text.replace("<exit_status>0<", "<exit_status>255<")).exit_status == 255


def test_relaxation_from_text():
    result = pw_output.read_text(BY_NAME["ok_vcrelax_h3s"].read("out"))
    assert result.ions_converged and result.n_ionic == 4
    assert result.cell[0, 1] == pytest.approx(1.49142, abs=1e-4)  # the relaxed cell, not the starting one
    assert result.energy_ev == pytest.approx(-23.43147044 * 13.605693122994)  # of the final run
    assert np.trace(result.stress_gpa) / 3 == pytest.approx(199.788, abs=0.01)


def test_the_last_whole_step_of_a_cut_relaxation():
    text = BY_NAME["ok_vcrelax_h3s"].read("out")
    ends = [i for i in range(len(text)) if text.startswith("CELL_PARAMETERS", i)]
    cut = text[:ends[2] + 60]  # in the middle of the third step's cell
    numbers, cell, _ = pw_output.last_structure(cut)
    expected = pw_output.last_structure(text[:ends[2]])[1]
    np.testing.assert_array_equal(cell, expected)
    assert len(numbers) == 4
    assert pw_output.last_structure(text[:ends[0]]) is None


def test_overflowed_fields_are_nan_not_a_crash():
    result = pw_output.read_text(BY_NAME["atoms_too_close"].read("out"))
    assert np.isnan(result.forces_ev_a[1]).all()
    assert result.forces_ev_a[2, 0] == pytest.approx(12104.63839313 * 25.71104309541616, rel=1e-6)  # glued fields


def test_forces_between_steps_are_not_mixed():
    result = pw_output.read_text(BY_NAME["ok_relax_labeh8"].read("out"))
    assert len(result.forces_ev_a) == 10 and np.abs(result.forces_ev_a).max() == pytest.approx(7.1e-4, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 0.999))
def test_a_cut_xml_is_never_read(xml, share):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder, pytest.raises(EngineFailure) as raised:
        read(Path(folder), xml[:int(share * len(xml.rstrip()))])
    assert raised.value.code is FailureCode.truncated_output


@pytest.mark.parametrize("name", ["ok_scf_cah6", "ok_h3s_qe72"])
def test_an_xml_that_lacks_a_node_is_a_typed_failure_or_lacks_that_value(tmp_path, name):
    text = gzip.decompress((FOLDER / f"{name}.xml.gz").read_bytes()).decode()
    sections = ("general_info", "output", "exit_status", "status", "timing_info")
    found = verdicts(pw_output.read_xml, text, sections, tmp_path / "x.xml")
    assert len(found) > 200
    assert all(words.startswith(("corrupted_output: x.xml of pw.x", "truncated_output: x.xml of pw.x"))
               for words in found.values() if words)
    assert found["output taken out"].startswith("truncated_output")
    for what, words in {
        "output/atomic_structure taken out": "<output> has no atomic_structure",
        "output/atomic_structure/cell/a2 taken out": "has no cell/a2",
        "output/atomic_structure/cell/a2 emptied": "<a2> has 0 numbers",
        "output/atomic_structure/atomic_positions emptied": "no atom",
        "output/atomic_structure/atomic_positions/atom without a number": "<atom name=",
        "output/total_energy/etot taken out": "<output> has no total_energy/etot",
        "output/forces overflowed": "<forces",
        "output/stress emptied": "has 0 numbers, which do not make (3, 3)",
        "output/band_structure/nks without a number": "nks",
    }.items():
        assert words in found[what], (what, found[what])
    # what a label needs and is not there is told by the checks
    (tmp_path / "x.xml").write_text(text.replace("forces", "farces"))
    with pytest.raises(EngineFailure, match="missing_output: the output has no forces"):
        pw_output.read_xml(tmp_path / "x.xml").values()


def test_a_foreign_xml_and_none(tmp_path):
    (tmp_path / "pw.xml").write_text("<?xml version='1.0'?><modeling><calculation/></modeling>")
    with pytest.raises(EngineFailure, match=r"corrupted_output: pw.xml of pw.x .*<modeling> instead of <espresso>"):
        pw_output.read_xml(tmp_path / "pw.xml")
    with pytest.raises(EngineFailure, match=r"missing_output: pw.x left no other.xml"):
        pw_output.read_xml(tmp_path / "other.xml")


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_cut_or_mangled_text_is_read_without_a_crash(data):
    text = BY_NAME[data.draw(st.sampled_from(["ok_scf_cah6", "ok_vcrelax_h3s", "atoms_too_close"]))].read("out")
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    junk = data.draw(st.text("0123456789.*-+ EeD\n", max_size=30))
    result = pw_output.read_text(text[:start] + junk + text[end:])
    assert result.forces_ev_a is None or result.forces_ev_a.shape == (len(result.numbers), 3)
