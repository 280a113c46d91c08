"""α²F of several codes: the λ and ω_log that each code prints, or those of one H3S spectrum written in each format."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from hydroflow.epc.formulas import mcmillan
from hydroflow.epc.readers import UnknownUnit, read_a2f
from hydroflow.errors import DataError, HydroflowError
from hydroflow.units import K_PER_HARTREE, K_PER_MEV, K_PER_RYDBERG, K_PER_THZ
from tests.epc.spectrum import OMEGA_LOG, check

DATA = Path(__file__).parent / "data"

def test_matdyn():
    assert check(DATA / "h3s" / "a2F.dos4", "matdyn.x a2F.dos").warnings == []


def test_matdyn_records_over_two_lines(tmp_path):
    # versions before 6 broke a record after six numbers
    lines = []
    for line in (DATA / "h3s" / "a2F.dos4").read_text().splitlines():
        words = line.split()
        if words and words[0][0].isdigit():
            lines += ["  ".join(words[:3]), "     " + "  ".join(words[3:])]
        else:
            lines.append(line)
    (tmp_path / "a2F.dos4").write_text("\n".join(lines) + "\n")
    check(tmp_path / "a2F.dos4", "matdyn.x a2F.dos")


def test_matdyn_truncated_file_is_refused(tmp_path):
    text = (DATA / "h3s" / "a2F.dos4").read_text()
    (tmp_path / "a2F.dos4").write_text(text[:len(text) // 2])
    with pytest.raises(DataError, match="truncated"):
        read_a2f(tmp_path / "a2F.dos4")


@pytest.mark.parametrize("line", [100, 101])
def test_matdyn_record_over_two_lines_that_lost_one_is_refused(tmp_path, line):
    lines = []
    for record in (DATA / "h3s" / "a2F.dos4").read_text().splitlines():
        words = record.split()
        lines += ["  ".join(words[:3]), "  ".join(words[3:])] if words and words[0][0].isdigit() else [record]
    del lines[line]
    (tmp_path / "a2F.dos4").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"line {line + 1} has \d number.*are due"):
        read_a2f(tmp_path / "a2F.dos4")


def test_stated_lambda_that_does_not_fit_is_a_warning(tmp_path):
    text = (DATA / "h3s" / "a2F.dos4").read_text().replace("lambda =   1.84", "lambda =   2.84")
    (tmp_path / "a2F.dos4").write_text(text)
    assert "states 2.84" in read_a2f(tmp_path / "a2F.dos4").warnings[0]


def test_lambda_x_alpha2f():
    found = read_a2f(DATA / "h3s" / "alpha2F.dat")
    assert found.format == "lambda.x alpha2F.dat" and found.unit == "THz"
    assert [s.sigma_ry for s in found.spectra] == pytest.approx(np.arange(1, 11) * 0.005)
    # lambda.x's own integrals over its table, from lambda.dat: they count the acoustic modes at Γ
    assert [s.coupling.lambda_ for s in found.spectra] == pytest.approx([7.458, 4.465, 3.570, 3.032, 2.604, 2.268, 2.025, 1.865,
                                                                          1.771, 1.723], rel=0.06)
    assert any("acoustic" in w for w in found.warnings)


def test_elk():
    found = read_a2f(DATA / "al_elk" / "ALPHA2F.OUT")
    assert found.format == "Elk ALPHA2F.OUT"
    assert [w for w in found.warnings if "at negative frequencies, down to -1.18 THz" in w] == found.warnings != []
    # λ, ω_log and ω̄₂ as Elk prints them, in Ha
    stated = [float(line.split(":")[1]) for line in (DATA / "al_elk" / "MCMILLAN.OUT").read_text().splitlines() if ":" in line]
    coupling = found.spectra[0].coupling
    assert coupling.lambda_ == pytest.approx(stated[0], rel=1e-6)
    assert coupling.omega_log_k == pytest.approx(stated[1] * K_PER_HARTREE, rel=1e-5)
    assert coupling.omega2_k == pytest.approx(stated[2] * K_PER_HARTREE, rel=1e-5)


@pytest.mark.parametrize("smearings", [1, 2])
def test_epw(tmp_path, table, smearings):
    mev = table[:, 0] * K_PER_RYDBERG / K_PER_MEV
    running = np.cumsum(2 * table[:, 1] / mev) * (mev[1] - mev[0])
    columns = [mev] + [table[:, 1]] * smearings + [running] * smearings
    body = "\n".join(" ".join(f"{x:12.7f}" for x in row) for row in np.array(columns).T)
    # EPW announces ten smearings also where it writes one
    announced = 10 if smearings == 1 else smearings
    (tmp_path / "h3s.a2f").write_text(
        f" w[meV] a2f and integrated 2*a2f/w for {announced:4d} smearing values\n{body}\n Integrated el-ph coupling\n"
        "  #         " + f"{running[-1]:12.7f}" * smearings + "\n Phonon smearing (meV)\n  #            0.5000000\n"
        "Electron smearing (eV)   0.1000000\n")
    assert len(check(tmp_path / "h3s.a2f", "EPW a2f").spectra) == smearings


EPW_PRINTED = {  # λ of each phonon smearing from the footer; ω_log and McMillan's Tc (μ* = 0.1) of the first, from EPW's output
    "al.a2f": ([0.3244572, 0.3245265, 0.3246307, 0.3247702, 0.3249451], 20.826717 * K_PER_MEV, 0.237981),
    "al12.a2f": ([0.3246968, 0.3248532, 0.3250461, 0.3252753, 0.3255415, 0.3258452, 0.3261871, 0.3265681, 0.3269891, 0.3274519,
                  0.3279584, 0.3285112], 20.801459 * K_PER_MEV, 0.239168),
    "al.a2f_iso": ([0.3244572], 20.826717 * K_PER_MEV, 0.237981),
    "al.a2f_proj": ([0.3244572], 20.826717 * K_PER_MEV, 0.237981),
    "al.a2f.01.10.000": ([0.3043681, 0.3044590, 0.3045960, 0.3047798, 0.3050113], 0.0014155 * K_PER_RYDBERG, 0.124188537914),
}


@pytest.mark.parametrize(("name", "lambdas", "omega_log", "tc"), [(k, *v) for k, v in EPW_PRINTED.items()], ids=EPW_PRINTED)
def test_real_epw_files_give_what_epw_printed(name, lambdas, omega_log, tc):
    found = read_a2f(DATA / "al_epw" / name)
    assert (found.format, found.unit, found.warnings) == ("EPW a2f", "meV", [])
    # EPW sums by rectangles: half a step at the last frequency, where a wide smearing is not yet zero
    assert [s.coupling.lambda_ for s in found.spectra] == pytest.approx(lambdas, rel=1e-4)
    assert all(s.sigma_ry is None for s in found.spectra)
    coupling = found.spectra[0].coupling
    assert coupling.omega_log_k == pytest.approx(omega_log, rel=1e-4)
    assert mcmillan(coupling.lambda_, coupling.omega_log_k, 0.1) == pytest.approx(tc, rel=1e-3)


def test_epw_spectrum_of_transport_is_refused_and_known_under_another_name(tmp_path):
    source = DATA / "al_epw" / "al.a2f_tr.01.10.000"
    with pytest.raises(DataError, match="transport"):
        read_a2f(source)
    shutil.copy(source, tmp_path / "al.dat")
    found = read_a2f(tmp_path / "al.dat")
    assert found.spectra[0].coupling.lambda_ == pytest.approx(0.9525, rel=1e-3)
    assert any("sum to 0.3043" in w and "transport" in w for w in found.warnings)


@pytest.mark.parametrize("name", ["al.phdos.01.10.000", "al.phdos", "other.dat"])
def test_epw_phonon_density_of_states_is_refused(tmp_path, name):
    header = "" if "01" in name else " w[meV] phdos[states/meV] for    1 smearing values\n"
    (tmp_path / name).write_text(header + "   1.0   0.1\n   2.0   0.2\n   3.0   0.1\n")
    with pytest.raises(DataError, match="density of states"):
        read_a2f(tmp_path / name)


@pytest.mark.parametrize("name", ["al.a2f", "al.a2f_proj", "al.a2f.01.10.000"])
def test_half_an_epw_file_is_refused(tmp_path, name):
    text = (DATA / "al_epw" / name).read_text()
    (tmp_path / name).write_text(text[:len(text) // 2])
    with pytest.raises(DataError, match="truncated"):
        read_a2f(tmp_path / name)


def test_epw_a2f_iso_that_ends_among_its_modes_is_a_warning(tmp_path):
    # it has no footer, but a whole one ends a tenth above the highest frequency
    lines = (DATA / "al_epw" / "al.a2f_iso").read_text().splitlines()
    (tmp_path / "al.a2f_iso").write_text("\n".join(lines[:50]) + "\n")
    assert any("not zero" in w for w in read_a2f(tmp_path / "al.a2f_iso").warnings)


def test_every_smearing_of_epw_is_compared_with_its_footer(tmp_path):
    text = (DATA / "al_epw" / "al12.a2f").read_text()
    assert text.count("   0.3285112\n Phonon") == 1
    (tmp_path / "al12.a2f").write_text(text.replace("   0.3285112\n Phonon", "   0.4285112\n Phonon"))
    assert any("states 0.4285" in w for w in read_a2f(tmp_path / "al12.a2f").warnings)


def test_epw_footer_that_does_not_fit_its_columns_is_refused(tmp_path):
    text = (DATA / "al_epw" / "al.a2f").read_text()
    stated = "0.3244572   0.3245265   0.3246307   0.3247702   0.3249451\n Phonon"
    assert stated in text
    (tmp_path / "al.a2f").write_text(text.replace(stated, "0.3244572   0.3245265\n Phonon"))
    with pytest.raises(DataError, match="11 columns do not fit the 2"):
        read_a2f(tmp_path / "al.a2f")


def test_epw_header_in_a_comment_is_a_text_with_its_unit(tmp_path, table):
    np.savetxt(tmp_path / "a2f.dat", table * [K_PER_RYDBERG / K_PER_MEV, 1], header="w[meV] a2f")
    assert check(tmp_path / "a2f.dat", "text").unit == "meV"


def test_epw_without_footer_is_refused(tmp_path):
    (tmp_path / "x.a2f").write_text(" w[meV] a2f and integrated 2*a2f/w for   10 smearing values\n 1.0 0.1 0.2\n")
    with pytest.raises(DataError, match="truncated"):
        read_a2f(tmp_path / "x.a2f")


def test_alpha2f_x(tmp_path, table):
    rows = np.column_stack([table, np.zeros((len(table), 3))])[table[:, 0] > 0]
    np.savetxt(tmp_path / "h3s.a2F.dat", rows, fmt="%25.15e", delimiter="", comments=" ",
               header="# Frequency[Ry], a2F, DOS[Ry], Partial DOS(Atom 1), PDOS(Atom 2), ..")
    assert check(tmp_path / "h3s.a2F.dat", "alpha2f.x a2F.dat").warnings == []


def test_real_alpha2f_x():
    found = read_a2f(DATA / "al_alpha2f" / "al.a2F.dat")
    assert (found.format, found.unit, found.warnings) == ("alpha2f.x a2F.dat", "Ry", [])
    coupling = found.spectra[0].coupling
    # from its table by rectangles: a2F is not zero at the last frequency, half a step of which makes 0.2 % of λ
    assert coupling.lambda_ == pytest.approx(0.336002159, rel=2.5e-3)
    assert coupling.omega_log_k == pytest.approx(1.897953815e-3 * K_PER_RYDBERG, rel=1e-3)
    # and from its λ_q, ω_q without a table
    assert coupling.lambda_ == pytest.approx(0.337825, rel=8e-3)
    assert coupling.omega_log_k == pytest.approx(299.47956, rel=1e-3)


def test_zeros_of_alpha2f_x_6_7_are_refused_with_the_reason():
    with pytest.raises(DataError, match=r"6\.7.*each q for the last"):
        read_a2f(DATA / "al_alpha2f" / "zeros.a2F.dat")


def test_abinit_a2fw_is_twice_alpha2f():
    found = read_a2f(DATA / "al_abinit" / "al_A2FW")
    assert found.format == "ABINIT A2FW" and found.warnings == []
    # "isotropic lambda" of ABINIT's log
    assert found.spectra[0].coupling.lambda_ == pytest.approx(0.3094247, rel=1e-4)


def test_abinit_a2fw_of_another_convention_is_a_warning(tmp_path):
    # a file whose running λ is 2∫a2F/ω
    lines = (DATA / "al_abinit" / "al_A2FW").read_text().splitlines()
    rows = [line if line.startswith("#") else f"{line.rsplit(None, 1)[0]} {2 * float(line.split()[2])}" for line in lines]
    (tmp_path / "al_A2FW").write_text("\n".join(rows) + "\n")
    assert "states 0.6188" in read_a2f(tmp_path / "al_A2FW").warnings[0]


@pytest.mark.parametrize(("name", "rows"), [("al_A2FW", 444), ("al_A2F", 400)])
def test_abinit_table_without_all_rows_of_its_header_is_refused(tmp_path, name, rows):
    lines = (DATA / "al_abinit" / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join(lines[:350]) + "\n")
    with pytest.raises(DataError, match=rf"announces {rows} frequencies, the table has 3\d\d: truncated"):
        read_a2f(tmp_path / name)


def test_alpha2f_x_without_all_modes_is_a_warning(tmp_path):
    lines = (DATA / "al_alpha2f" / "al.a2F.dat").read_text().splitlines()
    (tmp_path / "al.a2F.dat").write_text("\n".join(lines[:150]) + "\n")
    assert any("of 3 modes: truncated" in w for w in read_a2f(tmp_path / "al.a2F.dat").warnings)


@pytest.mark.parametrize(("name", "rows"), [("al_elk/ALPHA2F.OUT", 275), ("h3s/alpha2F.dat", 63)])
def test_table_that_ends_among_its_modes_is_a_warning(tmp_path, name, rows):
    lines = (DATA / name).read_text().splitlines()
    (tmp_path / Path(name).name).write_text("\n".join(lines[:rows]) + "\n")
    assert any("not zero at its last frequency" in w for w in read_a2f(tmp_path / Path(name).name).warnings)
    assert not any("last frequency" in w for w in read_a2f(DATA / name).warnings)


def test_anaddb():
    found = read_a2f(DATA / "al_abinit" / "al_A2F")
    assert found.format == "ABINIT A2F" and found.warnings == []
    # "mka2f: isotropic lambda" and "omegalog" of its output
    assert found.spectra[0].coupling.lambda_ == pytest.approx(0.1386272, rel=1e-5)
    assert found.spectra[0].coupling.omega_log_k == pytest.approx(287.6621, rel=1e-5)


def test_column_that_counts_the_rows_is_refused(tmp_path, table):
    np.savetxt(tmp_path / "a2f.dat", np.column_stack([np.arange(1, len(table) + 1), table]), header="n, omega (Ry), a2F")
    with pytest.raises(DataError, match="first column counts the rows"):
        read_a2f(tmp_path / "a2f.dat")


@pytest.mark.parametrize("name", ["a2f.dat", "ALPHA2F.OUT"])
def test_frequencies_out_of_order_are_refused_with_their_line(tmp_path, table, name):
    # an even number of rows: pairs of them, taken for records, would ascend
    rows = [f"{w * 500:.6f} {a:.6e}" for w, a in table]
    for wrong, words in ((rows[8], "line 10 has .* after the .* of line 9: leave one"),
                         (rows[7], "line 10 has .* after the .* of line 9: sort")):
        (tmp_path / name).write_text("\n".join([*rows[:9], wrong, *rows[10:]]) + "\n")
        with pytest.raises(DataError, match=words):
            read_a2f(tmp_path / name, "THz")


def test_frequencies_that_no_phonon_has_are_refused(tmp_path, table):
    np.savetxt(tmp_path / "a2f.dat", table * [K_PER_RYDBERG / K_PER_MEV, 1])
    with pytest.raises(UnknownUnit, match="where none can be"):
        read_a2f(tmp_path / "a2f.dat", "Ha")


def test_imaginary_modes_of_a_table_are_told(tmp_path, table):
    below = np.column_stack([-table[::-1, 0] - table[0, 0] - 1e-6, table[::-1, 1]])
    np.savetxt(tmp_path / "a2f.dat", np.vstack([below, table]), header="omega (Ry)")
    assert any("50 % of the integral of a2F lies at negative" in w for w in read_a2f(tmp_path / "a2f.dat").warnings)


def test_unit_against_the_format_is_a_warning():
    found = read_a2f(DATA / "h3s" / "a2F.dos4", "Ha")
    assert found.unit == "Ha" and "Ry" in found.warnings[-1]
    assert found.spectra[0].coupling.omega_log_k == pytest.approx(2 * OMEGA_LOG, rel=2e-3)


@pytest.mark.parametrize("name", ["a2F.dos4", "alpha2F.dat"])
def test_columns_of_nan_are_refused_with_the_way_out(name):
    with pytest.raises(DataError, match=r"elph\.inp_lambda"):
        read_a2f(DATA / "al_nan" / name)


def test_nan_in_a_text_is_refused_with_its_place_and_no_word_of_gamma(tmp_path):
    (tmp_path / "a2f.dat").write_text("# omega (THz)\n1 0\n2 1\n3 ****\n4 0\n")
    with pytest.raises(DataError, match="mend 1 of 4 rows, the first at 3 THz") as error:
        read_a2f(tmp_path / "a2f.dat")
    assert "Gamma" not in str(error.value)


def test_some_columns_of_nan_are_left_out(tmp_path, table):
    thz = table[:, 0] * K_PER_RYDBERG / K_PER_THZ
    rows = "\n".join(f"{w:9.4f}       NaN {a:9.5f}" for w, a in zip(thz, table[:, 1], strict=True))
    (tmp_path / "alpha2F.dat").write_text(f"# E(THz)     0.005     0.020\n{rows}\n")
    found = read_a2f(tmp_path / "alpha2F.dat")
    assert [s.sigma_ry for s in found.spectra] == [0.020]
    assert any("1 of 2" in w for w in found.warnings)


def test_gap_in_the_frequencies_is_a_warning(tmp_path, table):
    thz = table * [K_PER_RYDBERG / K_PER_THZ, 1]
    np.savetxt(tmp_path / "a2f.dat", np.delete(thz, np.s_[100:140], axis=0))
    warning = read_a2f(tmp_path / "a2f.dat", "THz").warnings[0]
    assert f"{thz[99, 0]:.6g} to {thz[140, 0]:.6g}" in warning


def test_a_cut_at_the_head_is_a_warning(tmp_path, table):
    thz = table * [K_PER_RYDBERG / K_PER_THZ, 1]
    peak = int(np.argmax(thz[:, 1]))
    np.savetxt(tmp_path / "a2f.dat", thz[peak:])
    np.savetxt(tmp_path / "whole.dat", thz)
    # a gap before the first mode is none
    empty = np.flatnonzero(thz[:, 1] > 1e-6 * thz[:, 1].max())[0]
    np.savetxt(tmp_path / "from.dat", thz[max(empty - 1, 0):])
    cut, whole, start = (read_a2f(tmp_path / name, "THz").warnings for name in ("a2f.dat", "whole.dat", "from.dat"))
    assert any(f"begin at {thz[peak, 0]:.6g} THz" in w and "cut at the head" in w for w in cut)
    assert not any("head" in w for w in [*whole, *start])


@pytest.mark.parametrize(("text", "words"), [
    ("", "no numbers"), ("hello\n", "no numbers"), ("1.0\n2.0\n3.0\n", "column"), ("3 1\n2 1\n1 1\n0.5 1\n", "ascend"),
    ("1 0\n2 1\n3\n", r"line 3 has 1 number\(s\) where 2 are due"), ("1 0\n*** 1\n3 0\n", "line 2 has no number"),
    ("# degauss   lambda    int alpha2F\n 0.005 0.7 0.1\n", "summary"), ("# E(THz)\n 0.0 0.1\n 0.1 0.2\n", "no broadening"),
    (" w[meV] a2f and integrated 2*a2f/w for 1 smearing values\n 1.0 0.1 0.2\n 2.0 0.1 0.3\n Integrated el-ph coupling",
     "footer")])
def test_what_is_no_spectrum_is_refused(tmp_path, text, words):
    (tmp_path / "f.dat").write_text(text)
    with pytest.raises(DataError, match=words):
        read_a2f(tmp_path / "f.dat", "THz")


REAL = ["h3s/a2F.dos4", "h3s/alpha2F.dat", "al_nan/a2F.dos4", "al_nan/alpha2F.dat", "al_elk/ALPHA2F.OUT", "al_abinit/al_A2FW",
        "al_abinit/al_A2F", *(f"al_epw/{name}" for name in EPW_PRINTED), "al_alpha2f/al.a2F.dat"]


@pytest.mark.parametrize("name", REAL)
def test_a_file_cut_anywhere_is_a_result_or_a_typed_error(tmp_path, name):
    """At a hundred places all over, and at every byte of its first two hundred and its last hundred."""
    data = (DATA / name).read_bytes()
    path = tmp_path / Path(name).name
    cuts = {*range(200), *range(200, len(data), len(data) // 100), *range(len(data) - 100, len(data))}
    for n in cuts:
        path.write_bytes(data[:n])
        with contextlib.suppress(HydroflowError):
            assert read_a2f(path).spectra


def test_overflow_in_a_dynamical_matrix_is_refused_without_a_warning_of_numpy(tmp_path):
    shutil.copytree(DATA / "h3s", tmp_path / "h3s")
    path = tmp_path / "h3s" / "x.dyn1"
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:2] == ["1", "1"])
    lines[first] = "    1    1  1e999  0.0  0.0"
    path.write_text("\n".join(lines) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(HydroflowError):
            read_a2f(tmp_path / "h3s")


def test_unknown_unit_and_missing_file_are_refused(tmp_path):
    with pytest.raises(UnknownUnit, match="always in Ry"):
        read_a2f(DATA / "h3s", "THz")
    assert read_a2f(DATA / "h3s", "Ry").unit == "Ry"
    with pytest.raises(UnknownUnit, match="THz"):
        read_a2f(DATA / "h3s" / "a2F.dos4", "eV")
    with pytest.raises(DataError, match="cannot be read"):
        read_a2f(tmp_path / "nothing.dat", "THz")
