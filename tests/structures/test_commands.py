"""`hydroflow chemspace`, `generate` and `structures`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from hydroflow.arrays import StructureArrays
from hydroflow.cli.structures import chemspace, generate, structures
from hydroflow.errors import DataError, HydroflowError
from hydroflow.structures.volumes import atomic_volume


@pytest.fixture
def campaign(tmp_path):
    path = tmp_path / "campaign.toml"
    path.write_text('name = "test"\n[space]\nelements = ["Ca", "Y", "La"]\n')
    return path


def run(command, *arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_chemspace(campaign):
    figures = json.loads(run(chemspace, campaign, "--json"))
    assert figures["ternaries"] == 3 * 576
    assert figures["distinct_ternary_formulas"] == 3 * 473
    assert "1762 compositions" in run(chemspace, campaign)
    assert run(chemspace, campaign, "--ids", "--start", 1728).split()[:3] == ["H1", "Ca1", "La1"]


def test_generate_then_stats_then_cif(campaign, tmp_path):
    shard = tmp_path / "shard.parquet"
    run(generate, campaign, "-n", 200, "-o", shard)
    assert len(StructureArrays.from_parquet(shard.read_bytes())) == 200
    assert not list(tmp_path.glob("*.part"))
    figures = json.loads(run(structures, "stats", shard, "--json"))
    assert figures["structures"] == 200
    assert figures["shortest_distances_a"]["H-H"] >= 0.8
    assert sum(figures["spacegroups"].values()) == 200
    assert figures["requested_found"] > 0.9
    assert "space groups" in run(structures, "stats", shard)
    assert "_cell_length_a" in run(structures, "cif", shard, "7", "--standard")


def test_generate_of_chosen_formulas(campaign, tmp_path):
    shard = tmp_path / "shard.parquet"
    run(generate, campaign, "-n", 21, "-o", shard, "--composition", "CaYH12", "--composition", "LaH10", "--seed", 4)
    made = StructureArrays.from_parquet(shard.read_bytes())
    assert sorted(set(made.formulas())) == ["CaYH12", "LaH10"]
    assert len(made) == 21
    assert all("-4-random-" in x for x in made.columns["id"])


def test_mistakes_are_one_typed_line(campaign, tmp_path):
    for arguments, word in [
        ([campaign, "-o", tmp_path / "none" / "x.parquet"], "does not exist"),
        ([campaign, "-o", tmp_path / "x.parquet", "--composition", "Qq3"], "unknown element"),
        ([campaign, "-o", tmp_path / "x.parquet", "--composition", "Ca4Y4H90"], "max_atoms"),
        ([campaign, "-o", tmp_path / "x.parquet", "--composition", "KH6"], "K not among space.elements"),
    ]:
        with pytest.raises(HydroflowError, match=word):
            CliRunner().invoke(generate, [str(a) for a in arguments], catch_exceptions=False)
    half = tmp_path / "half.parquet"
    half.write_bytes(b"PAR1 half")
    with pytest.raises(DataError, match=r"half\.parquet"):
        CliRunner().invoke(structures, ["stats", str(half)], catch_exceptions=False)


def test_a_negative_pressure_is_refused(campaign, tmp_path):
    result = CliRunner().invoke(generate, [str(campaign), "-o", str(tmp_path / "x.parquet"), "--pressure", "-5"])
    assert result.exit_code == 2 and "--pressure" in result.output


def test_volumes_are_fitted_to_a_shard(campaign, tmp_path):
    """Generated cells are drawn around the built-in volumes; in cells a tenth larger, so are the fitted ones."""
    shard = tmp_path / "shard.parquet"
    run(generate, campaign, "-n", 300, "-o", shard, "--pressure", 200)
    made = StructureArrays.from_parquet(shard.read_bytes())
    made.cells = made.cells * 1.1 ** (1 / 3)
    made.columns["pressure_gpa"] = np.full(len(made), 200.0)
    shard.write_bytes(made.to_parquet())
    fitted = json.loads(run(structures, "volumes", shard, "--pressure", 200, "--json"))["atomic_volumes_a3"]
    assert fitted == {s: pytest.approx(1.1 * atomic_volume(s, 200.0), rel=0.05) for s in ("Ca", "Y", "La", "H")}
    line = run(structures, "volumes", shard, "--pressure", 200).splitlines()[0]
    text = campaign.read_text() + "[generator]\n" + line + "\n"
    campaign.write_text(text)
    assert "1762 compositions" in run(chemspace, campaign)
    with pytest.raises(DataError, match="none of 300 frames"):
        CliRunner().invoke(structures, ["volumes", str(shard), "--pressure", "50"], catch_exceptions=False)
