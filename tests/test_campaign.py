"""The campaign file: what is wrong is said in one line with the key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hydroflow import campaign
from hydroflow.errors import CampaignError

MINIMAL = 'name = "x"\n[space]\nelements = ["Ca", "Y"]\n'
EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*/campaign.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "[pressure]\ncampaign_gpa = -5\n", "pressure.campaign_gpa = -5"),
        (MINIMAL + "max_metal_atoms = 1\n", "max_metal_atoms = 1: the smallest ternary has 2 metal atoms"),
        (MINIMAL + "max_atoms = 7\n", "max_atoms = 7: the smallest ternary cell has 8 atoms"),
        (MINIMAL + "[pressure]\ncampaign_gpa = 1e6\n", "0 to 1000"),
        (MINIMAL.replace('"Y"', '"Yy"'), "space.elements.1 = 'Yy': 'Yy' is not a chemical element"),
        (MINIMAL.replace('"Y"', '"H"'), "leave out H"),
        (MINIMAL + "[funnel]\nehull = 0.1\n", "funnel.ehull: unknown key (known keys: filters"),
        (MINIMAL + '[funnel]\nfilters = ["ehull_lam", "spacegroup"]\n', "hold ehull_dft"),
        (MINIMAL + "[search]\nrounds = [0.5, 0.4]\n", "must add up to 1, these add up to 0.9"),
        (MINIMAL + '[labels]\nengine = "cp2k"\n', "labels.engine = 'cp2k'"),
        ('name = "x"\n', "space: this key is required"),
        ("name = [", "not valid TOML"),
        (MINIMAL + '[model]\ntype_map = ["H", "Ca"]\n', "model.type_map lacks Y"),
        (MINIMAL + '[clusters.a]\ncontext = "ssh"\n', "needs host and user"),
        (MINIMAL + "[tc]\ninclude_plumbing = true\n", "include_plumbing is only for"),
    ],
)
def test_wrong_files_name_the_key(text: str, message: str) -> None:
    with pytest.raises(CampaignError) as caught:
        campaign.parse(text, "file.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("file.toml: ")
    assert "\n" not in str(caught.value)


def test_missing_file_is_a_campaign_error(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="cannot read"):
        campaign.load(tmp_path / "none.toml")


def test_digest_changes_with_science_not_with_clusters() -> None:
    one = campaign.parse(MINIMAL)
    other_cluster = campaign.parse(MINIMAL + '[clusters.big]\nbatch = "Slurm"\n')
    other_goal = campaign.parse(MINIMAL + "[funnel]\nehull_lam_ev = 0.08\n")
    assert one.digest() == other_cluster.digest() != other_goal.digest()
    assert one.changes(other_goal) == ["funnel.ehull_lam_ev"]


def test_recorded_campaign_reads_back() -> None:
    one = campaign.parse(MINIMAL)
    assert campaign.Campaign.from_json(one.to_json()) == one


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.parent.name)
def test_every_example_is_valid(path: Path) -> None:
    assert campaign.load(path).name
