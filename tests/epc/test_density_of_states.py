"""N(E) by tetrahedra from dos.x's table: a real one of H3S (QE 6.7, 30 Ry, k 12³), and what makes one unusable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hydroflow.dispatch.job import JobSpec
from hydroflow.epc.density_of_states import EpcDos, states_near_fermi
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import RYDBERG_EV

TABLE = Path(__file__).parent / "data" / "h3s" / "dos.dat"


@pytest.fixture
def table(tmp_path) -> Path:
    return Path(shutil.copy(TABLE, tmp_path))


def test_a_table_of_dos_x_gives_states_per_spin_and_rydberg_around_the_fermi_level(table):
    fermi, dos = states_near_fermi(table, 9.0)
    both_spins = [float(line.split()[1]) for line in TABLE.read_text().splitlines()[1:]]
    assert fermi == 17.797 and dos == pytest.approx([n / 2 * RYDBERG_EV for n in both_spins], abs=1e-5)
    assert 0.4472 < both_spins[2] < 0.4517, "as between 17.79 and 17.80 eV in a finer table"


def test_eigenvalues_of_another_run_are_told_by_their_electrons(table):
    """dos.x reads whatever pw.x saved last: with disk_io = 'nowf' that is the run before."""
    with pytest.raises(EngineFailure, match=r"9\.000 states below E_F for 10 electrons") as caught:
        states_near_fermi(table, 10.0)
    assert caught.value.code is FailureCode.unphysical_result


@pytest.mark.parametrize(("old", "new", "code", "words"), [
    ("EFermi =   17.797 eV", "EFermi =   17.794 eV", FailureCode.corrupted_output, "other energies"),
    ("EFermi =   17.797 eV", "", FailureCode.corrupted_output, "not the table"),
    ("0.9000E+01", "*********", FailureCode.corrupted_output, "not the table")])
def test_a_damaged_table_is_typed(table, old, new, code, words):
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(EngineFailure, match=words) as caught:
        states_near_fermi(table, 9.0)
    assert caught.value.code is code


def test_an_empty_and_a_missing_table_are_told_apart(table):
    table.write_text("")
    with pytest.raises(EngineFailure) as caught:
        states_near_fermi(table, 9.0)
    assert caught.value.code is FailureCode.corrupted_output
    table.unlink()
    with pytest.raises(EngineFailure, match="left no") as caught:
        states_near_fermi(table, 9.0)
    assert caught.value.code is FailureCode.missing_output


def test_a_run_that_did_not_fit_into_its_wall_time_is_not_begun_again():
    job = JobSpec("epc.dos", {}, "qe")
    tried = {code: EpcDos().recover(job, EngineFailure(code, "x"), 1) for code in FailureCode}
    assert tried[FailureCode.walltime] is None and tried[FailureCode.unphysical_result] is None
    assert tried[FailureCode.killed] is not None and tried[FailureCode.missing_output] is not None
    assert tried[FailureCode.parallel_limits].adjustments == {"pools": 1}
    assert tried[FailureCode.diagonalisation].adjustments == {"diagonalization": "cg"}
