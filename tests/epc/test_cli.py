"""`hydroflow tc` as a user calls it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hydroflow.cli.epc import epc, tc
from hydroflow.errors import SettingsError

DATA = Path(__file__).parent / "data"


def run(*args: str):
    return CliRunner().invoke(tc, [str(a) for a in args], catch_exceptions=False)


def test_json_of_a_chain():
    out = json.loads(run(DATA / "h3s", "--mu-star", "0.10", "0.15", "--json").stdout)
    assert set(out) >= {"lambda", "omega_log_K", "omega2_K", "tc_K", "broadenings", "warnings"}
    assert set(out["tc_K"]) == {"mcmillan", "allen_dynes", "eliashberg"}
    assert set(out["tc_K"]["allen_dynes"]) == {"0.10", "0.15"}
    assert len(out["broadenings"]) == 10
    at_002 = out["broadenings"][3]
    assert at_002["sigma_ry"] == pytest.approx(0.02)
    # FEASIBILITY: the same chain by hand, 200 and 236 K
    assert at_002["tc_K"]["mcmillan"]["0.10"] == pytest.approx(200.5, abs=0.5)
    assert at_002["tc_K"]["allen_dynes"]["0.10"] == pytest.approx(235.6, abs=0.5)


def test_values_of_mu_star_before_the_file():
    out = json.loads(run("--mu-star", "0.12", str(DATA / "h3s" / "a2F.dos4"), "--json", "--method", "mcmillan").stdout)
    assert list(out["tc_K"]) == ["mcmillan"] and list(out["tc_K"]["mcmillan"]) == ["0.12"]


def test_table_for_people():
    result = run(DATA / "h3s")
    assert result.exit_code == 0
    assert "<- reported, no plateau" in result.stdout and "acoustic modes" in result.stderr


def test_unscaled_convention_is_named():
    scaled, unscaled = (json.loads(run(DATA / "h3s" / "a2F.dos4", "--json", *more).stdout) for more in ((), ("--unscaled",)))
    assert "unscaled" in unscaled["mu_star_convention"]
    assert unscaled["tc_K"]["eliashberg"]["0.10"] > scaled["tc_K"]["eliashberg"]["0.10"]


@pytest.mark.parametrize(("more", "words"), [((), "scaled to the Matsubara cutoff"), (("--unscaled",), "taken as it is")])
def test_table_for_people_says_what_mu_star_means(more, words):
    assert words in run(DATA / "h3s" / "a2F.dos4", *more).stdout
    assert words not in run(DATA / "h3s" / "a2F.dos4", "--method", "mcmillan", *more).stdout


def test_tc_below_the_resolution_is_told():
    # McMillan: 0.20 K at mu* = 0.10
    out = json.loads(run(DATA / "al_abinit" / "al_A2FW", "--json").stdout)
    assert out["tc_K"]["eliashberg"]["0.10"] == 0
    assert any("none above 0.23 K" in w for w in out["warnings"])


def test_tiny_mu_star_gives_almost_the_tc_of_none():
    tc_k = json.loads(run(DATA / "h3s" / "a2F.dos4", "--mu-star", "0", "0.001", "--json").stdout)["tc_K"]["eliashberg"]
    assert 0.99 < tc_k["0.001"] / tc_k["0.00"] < 1


@pytest.mark.parametrize("values", [("0.1", "0.10"), ("0.1234567", "0.1234568")])
def test_values_of_mu_star_with_one_key_are_refused(values):
    with pytest.raises(SettingsError, match="twice"):
        run(DATA / "h3s" / "a2F.dos4", "--mu-star", *values)


def test_large_lambda_is_doubted(tmp_path):
    (tmp_path / "a2f.dat").write_text("# meV\n" + "\n".join(f"{w} {3.0 if 5 <= w <= 50 else 0}" for w in range(1, 80)))
    out = json.loads(run(tmp_path / "a2f.dat", "--json").stdout)
    assert out["lambda"] > 4 and any("above 4" in w for w in out["warnings"])


def test_negative_weight_is_doubted(tmp_path):
    (tmp_path / "a2f.dat").write_text("# meV\n" + "\n".join(f"{w} {-0.2 if w < 10 else 0.5}" for w in range(1, 80)))
    out = json.loads(run(tmp_path / "a2f.dat", "--json").stdout)
    assert any("negative" in w for w in out["warnings"])


# one real file or folder of each format, the format's name, and λ as its own code printed it: matdyn.x in the file's last line,
# lambda.x in lambda.dat (it counts the acoustic modes at Γ), ph.x per mode, Elk in MCMILLAN.OUT, EPW in its footer, alpha2f.x,
# ABINIT and anaddb in their output
REAL = {
    "matdyn.x": ("h3s/a2F.dos4", "matdyn.x a2F.dos", 0, 1.841942, 2e-3),
    "lambda.x": ("h3s/alpha2F.dat", "lambda.x alpha2F.dat", 3, 3.032, 0.06),
    "ph.x interpolated": ("h3s", "ph.x couplings", 3, 1.859, 2e-3),
    "ph.x tetrahedra": ("al_tetrahedra", "ph.x couplings", 0, (4 * 0.2792 + 3 * 0.2551) / 7, 1e-3),
    "Elk": ("al_elk/ALPHA2F.OUT", "Elk ALPHA2F.OUT", 0, 0.6855736093, 1e-6),
    "ABINIT eph": ("al_abinit/al_A2FW", "ABINIT A2FW", 0, 0.3094247, 1e-4),
    "ABINIT anaddb": ("al_abinit/al_A2F", "ABINIT A2F", 0, 0.1386272, 1e-5),
    "EPW": ("al_epw/al.a2f", "EPW a2f", 4, 0.3249451, 1e-4),
    "EPW phonselfen": ("al_epw/al.a2f.01.10.000", "EPW a2f", 4, 0.3050113, 1e-4),
    "alpha2f.x": ("al_alpha2f/al.a2F.dat", "alpha2f.x a2F.dat", 0, 0.336002, 2.5e-3),
}


@pytest.mark.parametrize(("file", "name", "sigma", "stated", "tolerance"), REAL.values(), ids=REAL)
def test_real_files_give_the_lambda_of_their_code(file, name, sigma, stated, tolerance):
    out = json.loads(run(DATA / file, "--json").stdout)
    assert out["format"] == name
    assert out["broadenings"][sigma]["lambda"] == pytest.approx(stated, rel=tolerance)
    assert all(out["tc_K"][m]["0.10"] >= out["tc_K"][m]["0.15"] >= 0 for m in ("mcmillan", "allen_dynes", "eliashberg"))


def test_simple_couplings_of_ph_x_give_the_lambda_it_printed(tmp_path):
    # the one q there is, as the first of its folder
    shutil.copy(DATA / "al_nan" / "x.dyn2", tmp_path / "x.dyn1")
    shutil.copy(DATA / "al_nan" / "x.dyn2.elph.2", tmp_path / "x.dyn1.elph.1")
    out = json.loads(run(tmp_path, "--json").stdout)
    assert out["format"] == "ph.x couplings"
    assert out["broadenings"][3]["lambda"] == pytest.approx(0.0514 + 0.0514 + 0.6687, abs=2e-4)
    assert any("dyn0" in w for w in out["warnings"])


def test_no_plateau_is_doubted(tmp_path):
    # λ of lambda.x's table falls from 7.5 to 3.0 over its first four broadenings
    text = (DATA / "h3s" / "alpha2F.dat").read_text().splitlines()
    path, head = tmp_path / "alpha2F.dat", "# E(THz)     0.005     0.010     0.015     0.020"
    path.write_text("\n".join([head, *(" ".join(line.split()[:5]) for line in text[1:])]) + "\n")
    out, result = json.loads(run(path, "--json").stdout), run(path)
    assert not out["plateau"]["flat"]
    assert any("no plateau" in w and "%" in w for w in out["warnings"])
    assert "no plateau" in result.stderr and "<- plateau" not in result.stdout


@pytest.mark.parametrize("name", ["al_nan/a2F.dos4", "outputs"])
def test_unusable_input_is_one_line_and_exit_code_2(name):
    done = subprocess.run([sys.executable, "-c", "from hydroflow.cli.main import main; main()", "tc", str(DATA / name)],
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("hydroflow: ") and len(done.stderr.strip().splitlines()) == 1


def test_protocols_are_listed():
    result = CliRunner().invoke(epc, ["protocols", "--json"], catch_exceptions=False)
    assert [p["name"] for p in json.loads(result.stdout)] == ["plumbing", "screening", "publication"]
