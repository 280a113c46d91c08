"""`hydroflow tc` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hydroflow.cli.epc import epc, tc

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
    assert "<- plateau" in result.stdout and "acoustic modes" in result.stderr


def test_unscaled_convention_is_named():
    scaled, unscaled = (json.loads(run(DATA / "h3s" / "a2F.dos4", "--json", *more).stdout) for more in ((), ("--unscaled",)))
    assert "unscaled" in unscaled["mu_star_convention"]
    assert unscaled["tc_K"]["eliashberg"]["0.10"] > scaled["tc_K"]["eliashberg"]["0.10"]


def test_large_lambda_is_doubted(tmp_path):
    (tmp_path / "a2f.dat").write_text("# meV\n" + "\n".join(f"{w} {3.0 if 5 <= w <= 50 else 0}" for w in range(1, 80)))
    out = json.loads(run(tmp_path / "a2f.dat", "--json").stdout)
    assert out["lambda"] > 4 and any("above 4" in w for w in out["warnings"])


def test_negative_weight_is_doubted(tmp_path):
    (tmp_path / "a2f.dat").write_text("# meV\n" + "\n".join(f"{w} {-0.2 if w < 10 else 0.5}" for w in range(1, 80)))
    out = json.loads(run(tmp_path / "a2f.dat", "--json").stdout)
    assert any("negative" in w for w in out["warnings"])


@pytest.mark.parametrize("name", ["al_nan/a2F.dos4", "outputs"])
def test_unusable_input_is_one_line_and_exit_code_2(name):
    done = subprocess.run([sys.executable, "-c", "from hydroflow.cli.main import main; main()", "tc", str(DATA / name)],
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("hydroflow: ") and len(done.stderr.strip().splitlines()) == 1


def test_protocols_are_listed():
    result = CliRunner().invoke(epc, ["protocols", "--json"], catch_exceptions=False)
    assert [p["name"] for p in json.loads(result.stdout)] == ["plumbing", "screening", "publication"]
