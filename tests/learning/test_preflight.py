"""What would stop a campaign is said before it starts: by `campaign check` and by `run` alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from hydroflow import campaign
from hydroflow.errors import UserError
from hydroflow.learning.estimate import estimate
from hydroflow.learning.preflight import check_names, missing_here

MINIMAL = 'name = "x"\n[space]\nelements = ["Ca", "Y"]\n'


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('[labels]\nprotocol = "fats"\n', "'fats': no such DFT protocol (known: fast, paper, standard)"),
        ('[epc]\nprotocol = "plumb"\n', "unknown EPC protocol 'plumb'; known: plumbing"),
        ("[generator]\nmix = { foo = 1 }\n", "no generator 'foo' is installed"),
        ("[generator]\nmix = { random = 1, calypso = 1 }\n", "set generator.calypso_command"),
    ],
)
def test_names_that_exist_nowhere_are_refused(section: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_names(campaign.parse(MINIMAL + section))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + '[labels]\npseudos = "/nowhere/upf"\n', "/nowhere/upf"),
        (MINIMAL.replace('"Y"', '"Sr"'), "Sr"),  # known to give wrong energies in this family
    ],
)
def test_pseudopotentials_that_are_not_here_are_named(text: str, message: str) -> None:
    parsed = campaign.parse(text)
    check_names(parsed)
    assert message in (missing_here(parsed) or "")


def test_programs_that_come_last_are_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDROFLOW_QE_VERSION", "6.7")
    for name in ("pw.x", "ph.x", "projwfc.x", "dos.x", "q2r.x"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "matdyn.x, which epc.collect jobs need" in (missing_here(campaign.parse(MINIMAL)) or "")
    # somebody else's to look at: a cluster that loads its programs first, another machine, a program with a command line
    for cluster in ('setup = ["module load qe"]', 'context = "ssh"\nhost = "h"\nuser = "u"\nbatch = "Slurm"',
                    'executables = { "matdyn.x" = "ph.x matdyn" }'):
        assert missing_here(campaign.parse(MINIMAL + f"[clusters.one]\n{cluster}\n")) is None


def test_the_epc_budget_bounds_the_estimate() -> None:
    free, bounded = (estimate(campaign.parse(MINIMAL + text)) for text in ("", "[epc]\nmax_core_hours = 10\n"))
    assert free.core_hours["epc"] > 100 and bounded.core_hours["epc"] == 10
