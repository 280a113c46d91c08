"""Jobs on real Slurm and SSH sites."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from hydroflow.dispatch.check import check
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from tests.dispatch.engines import ECHO, PYTHON
from tests.waiting import until

pytestmark = pytest.mark.cluster


def echoes(count: int, **inputs: object) -> list[JobSpec]:
    return [JobSpec(ECHO, {"value": i, **inputs}, "1", resources=Resources(wall_time_s=60)) for i in range(count)]


def assert_empty(folder: Path) -> None:
    """Nothing is left behind; cleaning follows the verdict a moment later."""
    assert until(lambda: not list(folder.glob("[!.]*"))), list(folder.glob("*"))


@pytest.mark.parametrize("batch, options", [
    ("Slurm", {}), ("Slurm", {"group_size": 4}), ("SlurmJobArray", {"group_size": 4}), ("Shell", {"group_size": 3})])
def test_a_failing_job_leaves_its_group_alone(store, agent, sites, batch, options, tmp_path):
    agent({"alpha": sites.cluster("alpha", batch, **options)})
    ledger, log = Ledger(store), tmp_path / "log"
    specs = [*echoes(5, log=str(log)), *echoes(1, exit=3, log=str(log)), JobSpec(PYTHON, {"x": 3}, "1")]
    jobs = ledger.wait(ledger.submit(specs, "a"))
    assert [j.state for j in jobs] == ["done"] * 5 + ["quarantined", "done"]
    assert [j.result["answer"] for j in jobs[:5]] == list(range(5))
    assert jobs[0].cost["host"] == "alpha" and jobs[0].cost["core_hours"] > 0
    assert "trouble" in jobs[5].failure["stderr"]
    assert Counter(line.split()[0] for line in log.read_text().splitlines()) == Counter(s.key for s in specs[:6])
    if batch != "Shell":
        assert len({j.batch for j in jobs[:6]}) == (6 if not options else 2)
    assert_empty(sites.base / "scratch-alpha")


@pytest.mark.parametrize("batch", ["Slurm", "Shell"])
def test_clusters_check_on_a_site(sites, tmp_path, batch):
    cluster = sites.cluster("beta", batch, executables={"ph.x": "no-such-ph.x"})
    found = {f.what: f for f in check("beta", cluster, tmp_path, ("python", "pw.x", "ph.x"))}
    assert {what for what, f in found.items() if not f.ok} == {"ph.x"}, found
    assert "no-such-ph.x" in found["ph.x"].detail
    assert "v." in found["pw.x"].detail and "hydroflow" in found["python"].detail
    assert "ran on beta" in found["tiny job"].detail and batch in found["scheduler"].detail
    assert_empty(sites.base / "scratch-beta")
