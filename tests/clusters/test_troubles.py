"""Troubles one by one, on real Slurm sites: what each does to the jobs and to what people are told."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from tests.clusters.conftest import executions, job
from tests.dispatch.engines import PYTHON
from tests.waiting import until

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(120)
def test_a_job_the_scheduler_killed_runs_again(store, sites, agents, tmp_path):
    ledger, log = Ledger(store), tmp_path / "log"
    agents()
    keys = ledger.submit([job(1, log, sleep=4, recoveries=1)], "chaos")
    while not log.exists():
        time.sleep(0.1)
    sites.kill_job(keys[0])
    (finished,) = ledger.wait(keys)
    # whether the script around the command had time to write the exit code or not
    assert finished.state == "done" and finished.attempt == 2
    assert executions(log)[keys[0]] == 2
    assert executions(Path(f"{log}.finished"))[keys[0]] == 1


@pytest.mark.timeout(180)
def test_a_wall_time_on_a_site_goes_on_from_the_checkpoint(store, sites, agent):
    agent({"alpha": sites.cluster("alpha")})
    ledger = Ledger(store)
    spec = JobSpec(PYTHON, {"x": 3, "steps": 8, "pace": 1.5}, "1", resources=Resources(wall_time_s=10))
    (finished,) = ledger.wait(ledger.submit([spec], "chaos"))
    assert finished.result["square"] == 9 and finished.result["resumed_at"] > 0
    assert any("stopped at its wall time" in e.reason and "continued from the checkpoints" in e.reason for e in finished.history)
    assert store.objects.get(finished.outputs["steps.txt"]).split() == [str(i).encode() for i in range(8)]


@pytest.mark.timeout(120)
def test_a_dead_site_does_not_stop_the_other(settings, store, sites, agents, tmp_path):
    ledger, log = Ledger(store), tmp_path / "log"
    sites.run("cut", "beta")
    try:
        agents()
        jobs = ledger.wait(ledger.submit([job(i, log) for i in range(20)], "chaos"))
        assert Counter((j.state, j.cluster) for j in jobs) == {("done", "alpha"): 20}
        assert max(executions(log).values()) == 1
    finally:
        sites.run("mend", "beta")


@pytest.mark.timeout(120)
def test_a_full_scratch_disk_is_named_and_survived(store, sites, agent, tmp_path):
    scratch = sites.base / "small"
    scratch.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", scratch], check=True)
    try:
        (scratch / "ballast").write_bytes(os.urandom(480 << 10))
        made = agent({"alpha": sites.cluster("alpha").model_copy(update={"remote_root": str(scratch)})})
        ledger, log = Ledger(store), tmp_path / "log"
        keys = ledger.submit([job(i, log) for i in range(4)], "chaos")
        assert until(lambda: "kB are free" in made.actors["alpha"].health.reason), made.actors["alpha"].health
        assert {j.state for j in ledger.jobs(keys)} <= {"prepared", "submitted"}
        (scratch / "ballast").unlink()
        assert {j.state for j in ledger.wait(keys)} == {"done"}
        assert max(executions(log).values()) == 1
    finally:
        made.stop.set()
        subprocess.run(["umount", "-l", scratch], check=True)


@pytest.mark.timeout(120)
def test_jobs_of_a_site_that_stays_away_run_elsewhere(store, sites, agent, tmp_path, monkeypatch):
    monkeypatch.setattr("hydroflow.dispatch.actor.LOST_AFTER_S", 3.0)
    monkeypatch.setattr("hydroflow.dispatch.actor.FIRST_BACKOFF_S", 1.0)
    monkeypatch.setattr("hydroflow.dispatch.transport.CALL_TIMEOUT_S", 5.0)
    ledger, log = Ledger(store), tmp_path / "log"
    made = agent({"beta": sites.cluster("beta")})
    keys = ledger.submit([job(1, log, sleep=8)], "chaos")
    while not log.exists():
        time.sleep(0.1)
    sites.run("cut", "beta")
    try:
        made.add("alpha", sites.cluster("alpha"))
        (finished,) = ledger.wait(keys)
        assert finished.state == "done" and finished.cluster == "alpha" and finished.losses == 1
    finally:
        sites.run("mend", "beta")
    # what the site still has of it is taken away when it comes back
    assert until(lambda: not list((sites.base / "scratch-beta").glob("[!.]*")), 90)
