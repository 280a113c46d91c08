"""ph.x couplings: weights, acoustic modes, and files that are incomplete or do not belong together."""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydroflow.epc.modes import combine, read_folder
from hydroflow.epc.qe_files import exact_broadenings, numbers, read_couplings, read_dynamical, read_q_list
from hydroflow.epc.readers import read_a2f
from hydroflow.errors import DataError, EngineFailure, FailureCode, HydroflowError
from hydroflow.units import K_PER_RYDBERG, K_PER_THZ

DATA = Path(__file__).parent / "data"


@pytest.fixture
def h3s(tmp_path) -> Path:
    return Path(shutil.copytree(DATA / "h3s", tmp_path / "h3s"))


def failure(code: FailureCode, match: str = ""):
    """Expect an EngineFailure of this code."""
    return pytest.raises(EngineFailure, match=f"(?s){code.value}.*{match}")


def test_h3s_chain():
    modes = read_folder(DATA / "h3s")
    assert modes.weights.tolist() == [1, 6, 1]
    coupling = modes.coupling(3)
    assert modes.sigma_ry[3] == pytest.approx(0.02)
    # matdyn.x interpolated λ = 1.842 on a denser mesh
    assert coupling.lambda_ == pytest.approx(1.859, abs=2e-3)
    assert coupling.omega_log_k == pytest.approx(1469, abs=1)


def test_tetrahedra_leave_gamma_to_the_other_q():
    modes = read_folder(DATA / "al_tetrahedra")
    assert modes.sigma_ry.tolist() == [0] and modes.weights.tolist() == [0, 4, 3]
    assert modes.dos[0] == pytest.approx(2.599, abs=1e-3)
    # printed: 0.0754 twice and 0.1284 at L, 0.0789 twice and 0.0973 at X
    assert modes.coupling(0).lambda_ == pytest.approx((4 * 0.2792 + 3 * 0.2551) / 7, abs=2e-4)


def test_files_by_tetrahedra_and_by_broadenings_do_not_mix():
    files = [DATA / "al_tetrahedra" / f"x.dyn{q}.elph.{q}" for q in (1, 2)]
    couplings = [read_couplings(f) for f in files]
    dynamicals = [read_dynamical(DATA / "al_tetrahedra" / f"x.dyn{q}") for q in (1, 2)]
    with failure(FailureCode.bad_input, "tetrahedra"):
        combine([couplings[0], replace(couplings[1], tetrahedra=False)], dynamicals)


@pytest.mark.parametrize(("first", "count"), [
    (0.005, 10), (0.0025, 20), (0.01, 5), (0.002, 25), (0.0075, 6), (0.02, 1), (0.0035, 5), (0.0045, 5), (0.0075, 5)])
def test_broadenings_are_told_from_their_three_decimals(first, count):
    exact = first * np.arange(1, count + 1)
    for nudge in (-1e-6, 1e-6):  # which way ph.x rounds a half
        assert exact_broadenings(np.round(exact + nudge, 3)) == pytest.approx(exact, abs=1e-12)


@given(st.floats(0.0006, 0.05), st.integers(1, 30))
def test_told_broadenings_print_as_they_were_printed(first, count):
    printed = np.round(first * np.arange(1, count + 1), 3)
    told = exact_broadenings(printed)
    assert np.abs(told - printed).max() <= 0.0005 + 1e-6 and (np.diff(told) > 0).all()


def test_broadenings_that_are_no_multiples_stay_as_printed():
    printed = np.array([0.01, 0.02, 0.05])
    assert exact_broadenings(printed) is printed


def test_acoustic_modes_at_gamma_are_left_out():
    modes = read_folder(DATA / "h3s")
    assert modes.acoustic_gamma.sum() == 3 and modes.acoustic_gamma[0, :3].all()
    assert modes.acoustic_thz.max() < 1.0 < modes.lowest_thz
    with_them = replace(modes, acoustic_gamma=np.zeros_like(modes.acoustic_gamma))
    # what lambda.x does: 2.35 instead of 1.86
    assert with_them.coupling(3).lambda_ == pytest.approx(2.347, abs=5e-3)


def test_a_soft_optical_mode_below_the_acoustic_noise_is_not_taken_for_acoustic():
    """H3S with its lowest optical triplet softened to 0.3i THz, below the acoustic noise of 0.7 THz: found by eigenvector."""
    d, c = read_dynamical(DATA / "h3s" / "x.dyn1"), read_couplings(DATA / "h3s" / "elph_dir" / "elph.inp_lambda.1")
    root = np.repeat(np.sqrt(d.masses), 3)
    omega2, vectors = np.linalg.eigh(d.matrix / np.outer(root, root))
    assert d.rigid_translations()[:3] == pytest.approx(1.0, abs=1e-3)
    assert d.rigid_translations()[3:] == pytest.approx(0.0, abs=1e-3)
    soft = -(0.3 * K_PER_THZ / K_PER_RYDBERG) ** 2
    values = omega2.copy()
    values[3:6] = soft
    # ph.x orders by ω²: the soft triplet comes first now
    order = [3, 4, 5, 0, 1, 2, *range(6, 12)]
    matrix = (vectors * values) @ vectors.conj().T * np.outer(root, root)
    shape = np.where(np.arange(12) < 3, soft, c.omega2_ry2[order])
    modes = combine([replace(c, omega2_ry2=shape, gamma_ghz=c.gamma_ghz[:, order])], [replace(
        d, matrix=matrix, frequencies_thz=np.sign(shape) * np.sqrt(np.abs(shape)) * K_PER_RYDBERG / K_PER_THZ)])
    assert modes.acoustic_gamma[0].tolist() == [False] * 3 + [True] * 3 + [False] * 6
    assert modes.lowest_thz == pytest.approx(-0.3, abs=1e-3) and len(modes.imaginary(0.2)) == 3
    assert modes.acoustic_thz == pytest.approx(np.sqrt(c.omega2_ry2[:3]) * K_PER_RYDBERG / K_PER_THZ)
    # the noise modes, whose λ ∝ 1/ω², are not in the sum
    assert modes.coupling(3).frequencies_k.min() > 10 * K_PER_THZ


def test_linewidths_and_printed_lambdas_agree():
    couplings = read_couplings(DATA / "h3s" / "elph_dir" / "elph.inp_lambda.2")
    assert couplings.precise_lambdas() == pytest.approx(couplings.lambdas, abs=6e-5)


def test_frequencies_of_both_files_agree():
    for q in (1, 2, 3):
        dynamical = read_dynamical(DATA / "h3s" / f"x.dyn{q}")
        couplings = read_couplings(DATA / "h3s" / "elph_dir" / f"elph.inp_lambda.{q}")
        assert couplings.frequencies_k / 47.992430733 == pytest.approx(dynamical.frequencies_thz, abs=2e-3)


def test_dynamical_matrix_gives_its_own_frequencies():
    d = read_dynamical(DATA / "h3s" / "x.dyn2")
    m = np.repeat(np.sqrt(d.masses), 3)
    omega2 = np.linalg.eigvalsh((d.matrix + d.matrix.conj().T) / 2 / np.outer(m, m))
    thz = np.sign(omega2) * np.sqrt(np.abs(omega2)) * 3289.8419602508
    assert np.sort(thz) == pytest.approx(np.sort(d.frequencies_thz), abs=5e-3)


def test_simple_couplings_of_one_q():
    couplings = read_couplings(DATA / "al_nan" / "x.dyn2.elph.2")
    assert couplings.lambdas.shape == (10, 3)
    assert couplings.lambdas[3] == pytest.approx([0.0514, 0.0514, 0.6687])


def test_imaginary_modes_are_reported():
    couplings = read_couplings(DATA / "cah6" / "elph.inp_lambda.1")
    modes = combine([couplings], [read_dynamical(DATA / "cah6" / "x.dyn1")])
    found = modes.imaginary(0.5)
    assert found[0]["q"] == 1 and found[0]["frequency_thz"] == pytest.approx(-56.18, abs=0.02)
    assert all(a["frequency_thz"] <= b["frequency_thz"] for a, b in pairwise(found))


def test_a_missing_q_is_named(h3s):
    (h3s / "elph_dir" / "elph.inp_lambda.2").unlink()
    with failure(FailureCode.missing_q, "q 2 of 3"):
        read_folder(h3s)
    # the list of q points is not needed to see a gap
    (h3s / "x.dyn0").unlink()
    with failure(FailureCode.missing_q, "q 2 of 3"):
        read_folder(h3s)


def test_without_the_list_of_q_points_a_lost_last_q_is_doubted(h3s):
    (h3s / "x.dyn0").unlink()
    assert not any("whether a q is missing" in w for w in read_a2f(DATA / "h3s").warnings)
    (h3s / "elph_dir" / "elph.inp_lambda.3").unlink()
    assert any("the 2 q found stand for 7 points" in w for w in read_a2f(h3s).warnings)


def test_a_broadening_at_which_nothing_couples_does_not_spoil_the_others(h3s):
    for path in (h3s / "elph_dir").iterdir():
        head, first, rest = path.read_text().partition("     Gaussian Broadening:   0.010")
        path.write_text(re.sub(r"gamma=\s*[\d.]+", "gamma=    0.00", head) + first + rest)
    found = read_a2f(h3s)
    assert [s.sigma_ry for s in found.spectra] == pytest.approx(np.arange(2, 11) * 0.005)
    assert any("0.005 Ry" in w for w in found.warnings)


def test_a_missing_dynamical_matrix_is_named(h3s):
    (h3s / "x.dyn3").unlink()
    with failure(FailureCode.missing_output, "dyn3"):
        read_folder(h3s)


def test_stars_must_fill_the_mesh(h3s):
    (h3s / "elph_dir" / "elph.inp_lambda.2").unlink()
    (h3s / "x.dyn0").write_text("2 2 2\n2\n 0 0 0\n 0 0 0\n")
    (h3s / "elph_dir" / "elph.inp_lambda.3").rename(h3s / "elph_dir" / "elph.inp_lambda.2")
    (h3s / "x.dyn3").rename(h3s / "x.dyn2")
    with failure(FailureCode.missing_q, "2 of the mesh's 8"):
        read_folder(h3s)


def test_stars_that_reach_beyond_the_mesh_are_those_of_a_shifted_one(h3s):
    (h3s / "x.dyn0").write_text((h3s / "x.dyn0").read_text().replace("2   2   2", "1   1   2", 1))
    with failure(FailureCode.bad_input, "lshift_q"):
        read_folder(h3s)


def test_files_of_two_calculations_are_refused(h3s):
    shutil.copy(h3s / "x.dyn2", h3s / "y.dyn2")
    with failure(FailureCode.bad_input, "x.dyn2, y.dyn2"):
        read_folder(h3s)
    (h3s / "y.dyn2").unlink()
    lines = (h3s / "elph_dir" / "elph.inp_lambda.2").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if i and len(numbers(line)) >= 5)
    lines[at] = "  ".join(f"{4 * x:.6e}" for x in numbers(lines[at]))
    (h3s / "elph_dir" / "elph.inp_lambda.2").write_text("\n".join(lines) + "\n")
    with failure(FailureCode.other_structure, "THz apart"):
        read_folder(h3s)


def test_dynamical_matrices_of_another_crystal_are_refused(h3s):
    shutil.copy(DATA / "cah6" / "x.dyn1", h3s / "x.dyn3")
    with failure(FailureCode.other_structure, "another crystal"):
        read_folder(h3s)


def test_couplings_of_another_q_are_refused(h3s):
    shutil.copy(h3s / "elph_dir" / "elph.inp_lambda.2", h3s / "elph_dir" / "elph.inp_lambda.3")
    with failure(FailureCode.bad_input, "q = "):
        read_folder(h3s)


def test_couplings_of_another_crystal_are_refused(h3s):
    shutil.copy(DATA / "cah6" / "elph.inp_lambda.1", h3s / "elph_dir" / "elph.inp_lambda.1")
    with failure(FailureCode.other_structure, "different crystals"):
        read_folder(h3s)


@pytest.mark.parametrize("name", ["x.dyn2", "elph_dir/elph.inp_lambda.2"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.95])
def test_truncated_files_are_refused(h3s, name, share):
    text = (h3s / name).read_text()
    (h3s / name).write_text(text[:int(share * len(text))])
    with failure(FailureCode.truncated_output, "incomplete"):
        read_folder(h3s)


def test_a_dynamical_matrix_that_is_not_where_its_heading_is(h3s):
    heading = "     Dynamical  Matrix in cartesian axes\n"
    (h3s / "x.dyn1").write_text((h3s / "x.dyn1").read_text().replace(heading, "") + heading)
    with failure(FailureCode.truncated_output, "its q cannot be read"):
        read_folder(h3s)


@pytest.mark.parametrize("name", ["x.dyn0", "x.dyn1", "elph_dir/elph.inp_lambda.1"])
def test_a_file_cut_anywhere_is_a_typed_error(h3s, name):
    """At two hundred places all over and at each of the last eighty bytes: a typed error, or read as it was."""
    data = (h3s / name).read_bytes()
    for n in {*range(0, len(data), len(data) // 200), *range(len(data) - 80, len(data))}:
        (h3s / name).write_bytes(data[:n])
        with contextlib.suppress(HydroflowError):
            assert read_folder(h3s).coupling(3).lambda_ == pytest.approx(1.859, abs=2e-3)


def test_a_linewidth_that_overflows_its_field_is_known_from_the_printed_lambda(h3s):
    """ph.x prints γ with eight characters: at Γ and a small broadening a hydride can exceed 99999.99 GHz."""
    before = read_folder(h3s)
    path = h3s / "elph_dir" / "elph.inp_lambda.2"
    text = path.read_text()
    line = next(line for line in text.splitlines() if "gamma=  106.15 GHz" in line)
    path.write_text(text.replace(line, line.replace("  106.15", "********"), 1))
    # λ has four decimals where γ has five digits
    assert read_folder(h3s).lambdas == pytest.approx(before.lambdas, abs=1e-4)
    path.write_text(text.replace(line, "     lambda(    1)=********   gamma=******** GHz", 1))
    with failure(FailureCode.corrupted_output, "q 2"):
        read_folder(h3s)


def test_acoustic_modes_at_gamma_may_overflow(h3s):
    path = h3s / "elph_dir" / "elph.inp_lambda.1"
    lines = path.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "lambda(    1)" in line)
    before = read_folder(h3s)
    lines[at] = "     lambda(    1)=********   gamma=******** GHz\n"
    path.write_text("".join(lines))
    assert read_folder(h3s).coupling(0).lambda_ == pytest.approx(before.coupling(0).lambda_)


def test_an_insulator_has_nothing_to_couple_to(h3s):
    for path in (h3s / "elph_dir").iterdir():
        lines = path.read_text().splitlines()
        path.write_text("\n".join(("     DOS =  0.000001 states/spin/Ry/Unit Cell at Ef= 17.6 eV" if "DOS" in line else line)
                                  for line in lines))
    with failure(FailureCode.no_fermi_surface):
        read_folder(h3s)


def test_a_folder_without_couplings_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"elph\.inp_lambda"):
        read_folder(tmp_path)


def test_q_list():
    listed = read_q_list(DATA / "h3s" / "x.dyn0")
    assert listed.grid == (2, 2, 2) and listed.points.shape == (3, 3)


@given(st.lists(st.floats(-9999, 9999).map(lambda x: round(x, 6)), min_size=1, max_size=6))
def test_glued_fortran_numbers_are_read(values):
    # F11.6 leaves no space before a minus sign
    text = "".join(f"{v:12.6f}" if v >= 0 else f"{v:.6f}" for v in values)
    assert numbers(text) == pytest.approx([float(f"{v:.6f}") for v in values])


def test_fortran_exponents_and_overflow():
    assert numbers(" 1.0D-03 0.5E+01 ")[:2] == pytest.approx([1e-3, 5.0])
    assert np.isnan(numbers("****")[0]) and np.isnan(numbers("NaN")[0])
