"""The verdict on a whole chain: real H3S files, and what makes them unusable."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydroflow.epc.analysis import find_plateau, mu_key
from hydroflow.epc.protocols import protocol
from hydroflow.epc.verdict import summarise
from hydroflow.errors import EngineFailure, FailureCode

DATA = Path(__file__).parent / "data"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a collection job of H3S, as ph.x and matdyn.x left it."""
    for q in (1, 2, 3):
        shutil.copy(DATA / "h3s" / f"x.dyn{q}", tmp_path)
        shutil.copy(DATA / "h3s" / "elph_dir" / f"elph.inp_lambda.{q}", tmp_path / f"couplings{q}")
    shutil.copy(DATA / "h3s" / "x.dyn0", tmp_path)
    ground_state(tmp_path)
    return tmp_path


def ground_state(folder: Path, force: float = 0.0, pressure_gpa: float = 200.0, shear: float = 0.0) -> None:
    """What pw.x prints of forces (Ry/bohr) and stress (GPa)."""
    (folder / "coarse.out").write_text(f"""
     Forces acting on atoms (cartesian axes, Ry/au):

     atom    1 type  1   force =     0.00000000    0.00000000   -0.00000000
     atom    2 type  2   force =     0.00000000    0.00000000    {force:.8f}

     Total force =     {force:.6f}     Total SCF correction =     0.000000

          total   stress  (Ry/bohr**3)                   (kbar)     P=  {10 * pressure_gpa:10.2f}
   0.01360000   0.00000000   0.00000000  {10 * (pressure_gpa + shear):12.2f}        0.00        0.00
   0.00000000   0.01360000   0.00000000          0.00  {10 * (pressure_gpa + shear):12.2f}        0.00
   0.00000000   0.00000000   0.01360000          0.00        0.00  {10 * (pressure_gpa - 2 * shear):12.2f}
""")


def inputs(name: str = "screening", **changes: Any) -> dict[str, Any]:
    half = 2.984 / 2
    crystal = {"numbers": [16, 1, 1, 1], "cell": [[-half, half, half], [half, -half, half], [half, half, -half]],
               "fractional": [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]}
    return {"protocol": protocol(name).settings(), "crystal": crystal, "coarse": [8, 8, 8], "n_q": 3,
            "q_mesh": [2, 2, 2], "mu_stars": [0.1, 0.15],
            "hydrogen_dos_share": None, "phonon_dos": [3.47, 3.42], "fermi_dos": tetrahedra(4.28), **changes}


def tetrahedra(dos: float, near: list[float] | None = None) -> dict[str, Any]:
    """N(E_F) of ``epc.dos``; `near` is N(E) around it."""
    return {"mesh": [45] * 3, "rough_mesh": [30] * 3, "offsets_ev": [-0.1, -0.05, 0, 0.05, 0.1], "dos": near or [dos] * 5,
            "rough_dos": [4.1] * 5}


def failed(result: dict[str, Any]) -> set[str]:
    return {c["name"] for c in result["checks"] if not c["passed"]}


def with_interpolation(folder: Path) -> Path:
    for i in range(1, 11):
        shutil.copy(DATA / "h3s" / "a2F.dos4", folder / f"a2F.dos{i}")
    frequencies(folder, [0.0, 300.0, 900.0], [120.0, 310.0, 880.0])
    return folder


def frequencies(folder: Path, *rows: list[float], name: str = "x.freq") -> None:
    """As matdyn.x writes them, in 1/cm, at q = (0.1 i, 0, 0)."""
    text = f" &plot nbnd={len(rows[0]):4d}, nks={len(rows):4d} /\n"
    for i, row in enumerate(rows):
        text += f"{' ' * 10}{i / 10:10.6f}{0:10.6f}{0:10.6f}\n" + "".join(f"{x:10.4f}" for x in row) + "\n"
    (folder / name).write_text(text)


def test_a_good_chain_is_usable_and_says_on_what(folder):
    # one interpolated spectrum (σ = 0.02 Ry) stands for all; λ of this coarse chain falls all the way
    result, _ = summarise(inputs(), with_interpolation(folder))
    assert failed(result) == {"interpolation", "mesh_density", "plateau"}
    result, _ = summarise(inputs(limits=LENIENT), folder)
    assert not failed(result) and result["usable"]
    assert result["lambda"] == pytest.approx(1.328, abs=1e-3)
    assert result["plateau"] == {"sigma": 0.035, "first": 0.025, "last": 0.05, "spread": pytest.approx(0.384, abs=2e-3),
                                 "flat": True}
    low, high = result["tc_range_k"]["allen_dynes"]
    assert low < result["tc_k"]["0.15"]["allen_dynes"] < result["tc_k"]["0.10"]["allen_dynes"] < high
    assert result["n_q"] == 3 and result["lowest_thz"] > 0
    assert "harmonic phonons" in result["limitations"]
    json.dumps(result, allow_nan=False)


def test_every_check_says_why(folder):
    result, _ = summarise(inputs(), folder)
    assert {c["name"] for c in result["checks"]} == {
        "protocol", "mesh_density", "k_sampling", "q_points", "self_consistency", "imaginary_modes", "acoustic_sum_rule",
        "plateau", "negative_weight", "lambda", "interpolation", "interpolated_modes", "relaxed", "settings"}
    assert all(c["text"] for c in result["checks"])


@pytest.mark.parametrize(("dense", "coarse", "passes"), [(3.47, 3.42, True), (4.17, 5.65, False), (2.0, -0.4, False),
                                                         (-0.1, -0.1, False)])
def test_phonons_on_a_k_mesh_too_coarse_for_their_smearing_are_not_usable(folder, dense, coarse, passes):
    """H3S with 0.05 Ry on k 16³ and with 0.02 Ry on k 12³; smeared deltas of first order can be negative."""
    result, _ = summarise(inputs(limits=LENIENT, phonon_dos=[dense, coarse]), with_interpolation(folder))
    assert failed(result) == (set() if passes else {"k_sampling"})


LENIENT = {"interpolation": 1.0, "q_spacing": 1.6, "plateau_spread": 0.40}
"""The limits that this coarse chain does not keep."""


def test_usable_when_all_checks_pass(folder):
    with_interpolation(folder)
    assert summarise(inputs(limits=LENIENT), folder)[0]["usable"]
    # a plateau over the broadening does not make up for a coarse mesh: H3S with k 4³, q 2³ has one at λ = 1.1 instead of 2.5
    assert failed(summarise(inputs(limits=LENIENT, coarse=[4, 4, 4]), folder)[0]) == {"mesh_density"}
    named = replace(protocol("screening"), name="plumbing").settings()
    assert failed(summarise(inputs(limits=LENIENT, protocol=named), folder)[0]) == {"protocol"}, "plumbing is never usable"


def test_an_imaginary_mode_between_the_q_points_is_found(folder):
    with_interpolation(folder)
    frequencies(folder, [0.0, 300.0, 900.0], [-100.0, 310.0, 880.0])
    result, _ = summarise(inputs(limits=LENIENT), folder)
    assert failed(result) == {"interpolated_modes"} and result["lowest_thz"] > 0
    assert result["lowest_interpolated"] == {"thz": pytest.approx(-2.998, abs=1e-3), "q": [0.1, 0.0, 0.0]}
    # the path has other points than the mesh
    frequencies(folder, [0.0, 300.0, 900.0], [120.0, 310.0, 880.0])
    frequencies(folder, [0.0, 300.0, 900.0], [-60.0, 310.0, 880.0], name="path.freq")
    assert failed(summarise(inputs(limits=LENIENT), folder)[0]) == {"interpolated_modes"}


def broadenings(folder: Path, first_ry: float) -> None:
    """Couplings as ph.x prints them for multiples of another first broadening: with three decimals."""
    for path in folder.glob("couplings?"):
        _, *sections = text = path.read_text().split("Gaussian Broadening:")
        path.write_text("Gaussian Broadening:".join([text[0], *(
            f"{first_ry * n:8.3f}" + section[8:] for n, section in enumerate(sections, start=1))]))


@pytest.mark.parametrize("loose", [
    {"tr2_ph": 1e-3}, {"degauss_ry": 0.5}, {"dense_factor": 1}, {"sigma_first_ry": 0.02}, {"sigma_first_ry": 0.01},
    {"conv_thr_ry": 1.0}])
def test_settings_that_blind_the_other_checks_are_not_usable(folder, loose):
    """Each makes one of them compare like with like: tr2_ph with itself, both N(E_F) with a smearing that levels anything, a mesh
    with itself, λ at broadenings where it always levels off (the first too large, the last too large)."""
    settings = replace(protocol("screening"), name="loose", **loose)
    broadenings(folder, settings.sigma_first_ry)
    settings = settings.settings()
    assert failed(summarise(inputs(limits=LENIENT, protocol=settings), with_interpolation(folder))[0]) == {"settings"}


@pytest.mark.parametrize("first", [0.0025, 0.0035, 0.0004])
def test_broadenings_are_those_that_were_asked_for_not_their_three_decimals(folder, first):
    """`publication` asks for 0.0025, which ph.x prints as 0.003 (or 0.002)."""
    broadenings(folder, first)
    settings = replace(protocol("screening"), sigma_first_ry=first).settings()
    result, spectra = summarise(inputs(limits=LENIENT, protocol=settings), with_interpolation(folder))
    assert [b["sigma_ry"] for b in result["broadenings"]] == pytest.approx([first * n for n in range(1, 11)], abs=1e-12)
    assert spectra["sigma_ry"] == pytest.approx([first * n for n in range(1, 11)], abs=1e-12)
    # the same couplings, whatever the broadening is called
    assert result["broadenings"][3]["lambda"] == pytest.approx(1.859, abs=2e-3)
    with pytest.raises(EngineFailure, match="were asked for"):
        summarise(inputs(), folder)


def test_frequencies_of_the_mesh_that_cannot_be_read_are_not_made_up_for_by_those_of_the_path(folder):
    with_interpolation(folder)
    frequencies(folder, [100.0, 300.0, 900.0], name="path.freq")
    (folder / "x.freq").write_text((folder / "x.freq").read_text()[:-15])
    assert failed(summarise(inputs(limits=LENIENT), folder)[0]) == {"interpolated_modes"}


def test_negative_weight_of_the_interpolated_spectrum_counts(folder):
    with_interpolation(folder)
    lines = (DATA / "h3s" / "a2F.dos4").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("0."))
    for i in range(at + 20, at + 40):
        w, _, *rest = lines[i].split()
        lines[i] = f"  {w}  -0.200000E+00  " + "  ".join(rest)
    for i in range(1, 11):
        (folder / f"a2F.dos{i}").write_text("\n".join(lines) + "\n")
    result, _ = summarise(inputs(limits=LENIENT), folder)
    assert "negative_weight" in failed(result)
    row = next(r for r in result["broadenings"] if r["sigma_ry"] == result["sigma_ry"])
    check = next(c for c in result["checks"] if c["name"] == "negative_weight")
    assert row["negative_share"] == 0 < check["value"] == row["negative_share_interpolated"]


@pytest.mark.parametrize(("force", "there", "asked", "good"), [
    (0.009, 200.0, 200.0, True), (0.02, 200.0, 200.0, False), (0.0, 185.0, 200.0, False), (0.0, 185.0, None, True)])
def test_phonons_away_from_the_minimum_are_not_usable(folder, force, there, asked, good):
    with_interpolation(folder)
    ground_state(folder, force, there)
    result, _ = summarise(inputs(limits=LENIENT, pressure_gpa=asked), folder)
    assert failed(result) == (set() if good else {"relaxed"})


def test_a_stress_of_the_right_trace_only_is_not_usable(folder):
    with_interpolation(folder)
    ground_state(folder, shear=30.0)
    result, _ = summarise(inputs(limits=LENIENT, pressure_gpa=200.0), folder)
    assert failed(result) == {"relaxed"}
    assert "off by more than 60.0" in next(c["text"] for c in result["checks"] if c["name"] == "relaxed")


def test_one_noisy_broadening_leaves_the_other_interpolated_spectra(folder):
    with_interpolation(folder)
    text = (folder / "a2F.dos1").read_text().splitlines()
    noisy = [line if "#" in line or "=" in line or not line.strip() else f"{line.split()[0]} NaN " + " ".join(line.split()[2:])
             for line in text]
    (folder / "a2F.dos1").write_text("\n".join(noisy) + "\n")
    result, spectra = summarise(inputs(limits=LENIENT), folder)
    assert not failed(result)
    assert ["lambda_interpolated" in r for r in result["broadenings"]] == [False] + [True] * 9
    assert not spectra["interpolated"][0]["a2f"] and spectra["interpolated"][1]["a2f"]


def test_the_coupling_is_told_at_the_dos_of_tetrahedra_too(folder):
    plain, _ = summarise(inputs(), folder)
    rescaled = plain["rescaled"]
    for row in plain["broadenings"]:
        assert row["lambda_rescaled"] / 4.28 == pytest.approx(row["lambda"] / row["dos"], abs=1e-4)
    row = next(r for r in plain["broadenings"] if r["sigma_ry"] == rescaled["sigma_ry"])
    assert rescaled["lambda"] == row["lambda_rescaled"] and (rescaled["dos"], rescaled["rough_dos"]) == (4.28, 4.1)
    # where it is N(σ) itself nothing changes, and more states couple more
    same = summarise(inputs(fermi_dos=tetrahedra(row["dos"])), folder)[0]["rescaled"]
    assert same["lambda"] == pytest.approx(row["lambda"], abs=1e-5) and same["sigma_ry"] == row["sigma_ry"]
    assert same["tc_k"]["0.10"] == pytest.approx(row["tc_k"]["0.10"], abs=0.05)
    more = summarise(inputs(fermi_dos=tetrahedra(1.1 * row["dos"])), folder)[0]["rescaled"]
    assert more["lambda"] == pytest.approx(1.1 * row["lambda"], abs=1e-4)
    assert more["tc_k"]["0.10"]["allen_dynes"] > same["tc_k"]["0.10"]["allen_dynes"]
    # a second opinion: value and checks are those of λ(σ)
    other = summarise(inputs(fermi_dos=tetrahedra(8.0)), folder)[0]
    assert [other[k] for k in ("lambda", "tc_k", "plateau", "usable")] == [
        plain[k] for k in ("lambda", "tc_k", "plateau", "usable")]


def test_a_density_of_states_that_is_steep_at_the_fermi_level_is_a_limitation(folder):
    """As in H3S; Al has none."""
    flat, steep = (summarise(inputs(fermi_dos=tetrahedra(4.28, near)), folder)[0]["limitations"] for near in (
        [4.30, 4.29, 4.28, 4.2, 4.1], [4.35, 4.35, 4.28, 3.19, 3.00]))
    assert "N(E) goes from 3.00 to 4.35 states/spin/Ry within 0.1 eV of E_F, where it is 4.28" in " ".join(steep)
    assert len(steep) == len(flat) + 1


@pytest.mark.parametrize(("found", "words"), [({"failed": "dos.out: out of memory"}, "dos.out: out of memory"),
                                              ({"dos": [0.0] * 5}, "it is 0")])
def test_without_a_dos_by_tetrahedra_nothing_is_rescaled_and_the_rest_stands(folder, found, words):
    plain = summarise(inputs(), folder)[0]
    result, _ = summarise(inputs(fermi_dos=found if "failed" in found else {**tetrahedra(4.28), **found}), folder)
    assert result["rescaled"] is None and "lambda_rescaled" not in result["broadenings"][0]
    assert [text for text in result["limitations"] if "no λ at N(E_F) by tetrahedra" in text and words in text]
    assert result["lambda"] == plain["lambda"] and result["checks"] == plain["checks"]


def test_a_q_that_converged_only_to_less_than_the_protocol_is_not_usable(folder):
    with_interpolation(folder)
    result, _ = summarise(inputs(limits=LENIENT, loosened={"2": 1e-10}), folder)
    assert failed(result) == {"self_consistency"}
    assert "q 2 converged only to tr2_ph = 1e-10" in next(c["text"] for c in result["checks"] if not c["passed"])


def test_q_points_of_another_mesh_do_not_fill_it(folder):
    result, _ = summarise(inputs(q_mesh=[3, 3, 3]), folder)
    check = next(c for c in result["checks"] if c["name"] == "q_points")
    assert not check["passed"] and "8 of the 27 points" in check["text"]


def test_no_plateau_is_not_usable(folder):
    result, _ = summarise(inputs(limits={"plateau_spread": 0.02}), folder)
    assert "plateau" in failed(result) and not result["usable"]
    assert "no plateau" in next(c["text"] for c in result["checks"] if c["name"] == "plateau")


def test_imaginary_modes_are_named_and_left_out(tmp_path):
    shutil.copy(DATA / "cah6" / "x.dyn1", tmp_path)
    shutil.copy(DATA / "cah6" / "elph.inp_lambda.1", tmp_path / "couplings1")
    (tmp_path / "x.dyn0").write_text("1 1 1\n1\n0.0 0.0 0.0\n")
    result, _ = summarise(inputs(n_q=1, q_mesh=[1, 1, 1]), tmp_path)
    assert {"imaginary_modes", "interpolation"} <= failed(result)
    assert result["imaginary_modes"][0]["frequency_thz"] == pytest.approx(-56.2, abs=0.1)
    assert result["lambda"] > 0


@pytest.mark.parametrize("spoilt", [lambda text: text[:200], lambda text: text.replace("-0.433013", "-0.333013")])
def test_tetrahedra_that_cannot_be_used_leave_the_value_of_the_broadenings(folder, spoilt):
    whole, _ = summarise(inputs(), folder)
    for q in (2, 3):
        text = (DATA / "h3s" / "elph_dir" / f"elph.inp_lambda.{q}").read_text()
        (folder / f"tetrahedra{q}").write_text(spoilt(text))
    result, spectra = summarise(inputs(), folder)
    assert "tetrahedra" not in result and "tetrahedra" not in spectra
    assert "by tetrahedra there is no λ" in result["limitations"][-1]
    assert {k: v for k, v in result.items() if k != "limitations"} == {k: v for k, v in whole.items() if k != "limitations"}


def test_spectra_integrate_to_lambda(folder):
    result, spectra = summarise(inputs(), folder)
    w = np.array(spectra["frequency_thz"])
    for row, a2f, running in zip(result["broadenings"], spectra["a2f"], spectra["lambda"], strict=True):
        assert np.trapezoid(2 * np.array(a2f[1:]) / w[1:], w[1:]) == pytest.approx(row["lambda"], rel=0.02)
        assert running[-1] == pytest.approx(row["lambda"], rel=1e-4)


def test_gamma_alone_of_one_atom_is_an_error(folder):
    # only acoustic modes: nothing couples
    lines = (DATA / "al_nan" / "x.dyn2.elph.2").read_text().splitlines()
    lines[0] = " 0.00000000 0.00000000 0.00000000 10 3"
    (folder / "couplings1").write_text("\n".join(lines) + "\n")
    text = (DATA / "al_nan" / "x.dyn2").read_text()
    head, _, tail = text.partition("     Dynamical  Matrix in cartesian axes")
    block, _, _ = tail.partition("     Dynamical  Matrix in cartesian axes")
    end = text[text.index("     Diagonalizing the dynamical matrix"):]
    (folder / "x.dyn1").write_text(head + "     Dynamical  Matrix in cartesian axes" + block.replace(
        block.splitlines()[2], "     q = (    0.000000000   0.000000000   0.000000000 )") + end)
    (folder / "x.dyn0").write_text("1 1 1\n1\n0.0 0.0 0.0\n")
    with pytest.raises(EngineFailure) as caught:
        summarise(inputs(n_q=1, q_mesh=[1, 1, 1]), folder)
    assert caught.value.code is FailureCode.unphysical_result


SIGMAS = [0.005 * i for i in range(1, 11)]


@pytest.mark.parametrize(("lambdas", "stretch"), [
    # levels off too, at large broadenings, but over less in ln σ
    ([9.0, 3.0, 2.0, 1.95, 1.9, 1.88, 1.5, 1.2, 1.19, 1.18], (2, 5)),
    # H3S on q 5³, k 10³: the top of the rise is flat within 10 % over a factor of two, the plateau over one of three
    ([1.05, 1.42, 1.52, 1.57, 1.59, 1.60, 1.60, 1.59, 1.58, 1.56], (2, 9)),
])
def test_plateau_is_the_longest_flat_stretch(lambdas, stretch):
    plateau = find_plateau(SIGMAS, lambdas)
    assert (plateau.first, plateau.last) == stretch and plateau.flat and plateau.spread < 0.1


def test_of_two_plateaus_as_long_the_one_at_smaller_broadenings_counts():
    plateau = find_plateau([0.005, 0.0075, 0.01, 0.02, 0.03, 0.04], [2.0, 2.0, 2.0, 3.0, 3.0, 3.0])
    assert (plateau.first, plateau.last) == (0, 2)


def test_what_falls_all_the_way_has_no_plateau():
    """H3S on q 3³, k 9³, which is near the converged λ in its middle."""
    assert not find_plateau(SIGMAS, [3.40, 2.47, 2.13, 1.97, 1.87, 1.79, 1.72, 1.65, 1.59, 1.54]).flat


def test_no_plateau_gives_the_flattest_stretch():
    plateau = find_plateau(SIGMAS[:5], [8.0, 4.0, 2.0, 1.5, 1.2])
    assert not plateau.flat and (plateau.first, plateau.last) == (1, 3)
    assert find_plateau(SIGMAS[:2], [1.0, 1.0]) is None
    assert find_plateau([0.040, 0.045, 0.050], [1.0, 1.0, 1.0]) is None


@pytest.mark.parametrize("power", [-0.22, -0.5, -0.75, -1.0])
@pytest.mark.parametrize("step", [0.001, 0.0025, 0.005])
def test_a_power_law_has_no_plateau_however_closely_the_broadenings_lie(power, step):
    sigmas = np.arange(step, 0.0501, step)
    assert not find_plateau(sigmas, 2 * (sigmas / 0.02) ** power).flat


def test_keys_of_mu_star():
    assert [mu_key(m) for m in (0.1, 0.15, 0.125)] == ["0.10", "0.15", "0.125"]
