"""README, docs and examples say what the code does: commands exist, tables follow the schema, examples are valid."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import click
import pytest

from hydroflow.campaign import TYPE_MAP, load
from hydroflow.cli.main import cli
from hydroflow.learning.estimate import estimate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `hydroflow …` in code of the pages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```(?:bash|sh)?\n(.*?)```", text, re.DOTALL)
        lines = [line.split("#")[0].split("&&")[-1] for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        found += [(page.name, line.strip()) for line in lines if line.strip().startswith("hydroflow ")]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "line"), commands())
def test_documented_commands_exist(page: str, line: str) -> None:
    words = line.split()[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-") or not words[0].islower() or words[0] == "…":
            return  # the group itself is meant
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: `{line}`: no command {words[0]!r}"
        command, words = found, words[1:]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    for word in words:
        if word.startswith("-") and len(word) > 1:
            assert word.split("=")[0] in options, f"{page}: `{line}`: no option {word}"


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = page.read_text()
        targets = re.findall(r"\]\(([^)#:\s]+?)(?:#[^)]*)?\)", text) + re.findall(r"`((?:docs|examples|infra)/[\w./-]+)`", text)
        broken += [f"{page.name}: {t}" for t in targets if not (page.parent / t).exists() and not (ROOT / t).exists()]
    assert not broken


def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "make_campaign_reference.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_campaign_page_follows_the_schema() -> None:
    made = reference()
    text = made.PAGE.read_text()
    assert made.page(text) == text, "run `python docs/make_campaign_reference.py`"
    rows = re.findall(r"^\| `([^`]+)`.*\| ([^|]*) \|$", made.tables(), flags=re.MULTILINE)
    assert len(rows) > 90 and not [key for key, meaning in rows if not meaning.strip()]
    assert {key for key, _ in rows} >= made.PAPER


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in (ROOT / "examples").glob("*/campaign.toml")))
def test_examples_are_valid(folder: str) -> None:
    assert load(ROOT / "examples" / folder).name == folder


def test_paper_example_is_the_papers_space() -> None:
    campaign = load(ROOT / "examples" / "paper")
    plan = estimate(campaign)
    assert sorted(["H", *campaign.space.elements]) == sorted(TYPE_MAP)
    assert (plan.elements, plan.pairs, plan.ternary_compositions) == (28, 378, 217_728)
    assert plan.epc_candidates == 480 + 153 and campaign.labels.engine == "vasp"
    funnel = campaign.funnel
    assert (funnel.ehull_lam_ev, funnel.min_spacegroup, funnel.min_atomic_h, funnel.min_frequency_thz, funnel.ehull_dft_ev,
            funnel.atomic_h_distance_a) == (0.05, 75, 0.75, -3.0, 0.05, 0.9)


@pytest.mark.parametrize("script", ["infra/environment.sh", "infra/quickstart.sh", "infra/test.sh", ".ci/run"])
def test_scripts_parse(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
