"""Everything that goes wrong in a year, in a few minutes: at the end every job is done or quarantined for the right reason, none
ran twice, none is lost. The jobs count their own executions."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from hydroflow.campaign import Cluster
from hydroflow.dispatch.agent import alive, start_agent
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from hydroflow.store import services
from hydroflow.store.process import ProcessIdentity
from tests.dispatch.engines import ECHO
from tests.fixtures_store import ROOT

pytestmark = pytest.mark.cluster


def job(value: object, log: Path, **inputs: object) -> JobSpec:
    return JobSpec(ECHO, {"value": value, "sleep": 0.1, "log": str(log), **inputs}, "1", resources=Resources(wall_time_s=60))


def toml(name: str, cluster: Cluster) -> str:
    lines = [f"[clusters.{name}]"]
    for key, value in cluster.model_dump(mode="json", exclude_defaults=True).items():
        lines.append(f"{key} = {value!r}" if not isinstance(value, str) else f'{key} = "{value}"')
    return "\n".join(lines)


@pytest.fixture
def campaign(sites, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "campaign.toml"
    path.write_text('name = "chaos"\n[space]\nelements = ["Ca", "Y"]\n'
                    + toml("alpha", sites.cluster("alpha", group_size=10, max_jobs=6)) + "\n"
                    + toml("beta", sites.cluster("beta", "SlurmJobArray", group_size=10, max_jobs=4)))
    return path


@pytest.fixture
def agents(settings, store, campaign):
    """``agents()`` starts or finds the agent, ``agents.kill()`` kills it with SIGKILL."""
    class Agents:
        def __call__(self) -> int:
            return start_agent(settings, campaign)

        def kill(self) -> None:
            record = alive(store)
            if record is not None:
                identity = ProcessIdentity.from_dict(record["process"])
                identity.kill()

    made = Agents()
    yield made
    record = alive(store)
    if record is not None:
        ProcessIdentity.from_dict(record["process"]).stop()


def executions(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


@pytest.mark.timeout(420)
def test_kills_cuts_and_restarts(mongod, settings, store, sites, agents, tmp_path):
    ledger, log, rng = Ledger(store), tmp_path / "log", random.Random(3)
    good = [job(i, log) for i in range(190)]
    broken = [job(i, log, exit=3) for i in range(5)]
    garbage = [job(i, log, garbage=True) for i in range(5)]
    keys = ledger.submit([*good, *broken, *garbage], "chaos")
    agents()

    def beta_goes_away() -> None:
        sites.run("cut", "beta")
        time.sleep(8)
        sites.run("mend", "beta")

    def slurmctld_restarts() -> None:
        conf = sites.base / "slurm-alpha" / "slurm.conf"
        os.kill(sites.pid("alpha", "slurmctld"), signal.SIGTERM)
        time.sleep(2)
        subprocess.run(["nsenter", "--net=/run/netns/hfalpha", "unshare", "--uts", "bash", "-c",
                        f"hostname alpha; slurmctld -f {conf}"], check=True, timeout=30)

    def mongod_restarts() -> None:
        os.kill(services.status(mongod)[0].pid, signal.SIGKILL)
        time.sleep(1)
        services.up(mongod, prefect=False)

    trouble = [threading.Timer(delay, action) for delay, action in (
        (10, beta_goes_away), (22, slurmctld_restarts), (34, mongod_restarts))]
    for timer in trouble:
        timer.start()
    for _ in range(10):
        time.sleep(rng.uniform(0.5, 6.0))
        for _ in range(20):  # MongoDB may be away at this moment
            try:
                agents.kill()
                agents()
                break
            except Exception:
                time.sleep(0.5)
    for timer in trouble:
        timer.join()
    agents()
    jobs = ledger.wait(keys)
    assert Counter(j.state for j in jobs) == {"done": 190, "quarantined": 10}
    assert [j.result["answer"] for j in jobs[:190]] == list(range(190))
    assert {j.failure["code"] for j in jobs[190:195]} == {"unknown"}
    assert {j.failure["code"] for j in jobs[195:]} == {"corrupted_output"}
    assert {j.cluster for j in jobs} == {"alpha", "beta"}
    counts = executions(log)
    assert set(counts) == set(keys)
    # never twice, and nothing was thought lost that was not
    assert {key: n for key, n in counts.items() if n > 1} == {}
    assert sum(j.losses for j in jobs) == 0


@pytest.mark.timeout(120)
def test_a_job_the_scheduler_killed_runs_again(store, sites, agents, tmp_path):
    ledger, log = Ledger(store), tmp_path / "log"
    agents()
    keys = ledger.submit([job(1, log, sleep=4, recoveries=1)], "chaos")
    while not log.exists():
        time.sleep(0.1)
    (running,) = ledger.jobs(keys)
    while not running.scheduler_id:
        time.sleep(0.1)
        (running,) = ledger.jobs(keys)
    sites.slurm(running.cluster, "scancel", "--signal=KILL", "--full", running.scheduler_id)
    (finished,) = ledger.wait(keys)
    # whether the script around the command had time to write the exit code or not
    assert finished.state == "done" and finished.attempt == 2 and finished.losses + finished.failures == 1
    assert executions(log)[keys[0]] == 2
    assert executions(Path(f"{log}.finished"))[keys[0]] == 1


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
        deadline = time.monotonic() + 30
        while "kB are free" not in made.actors["alpha"].health.reason and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "kB are free" in made.actors["alpha"].health.reason
        assert {j.state for j in ledger.jobs(keys)} <= {"prepared", "submitted"}
        (scratch / "ballast").unlink()
        assert {j.state for j in ledger.wait(keys)} == {"done"}
        assert max(executions(log).values()) == 1
    finally:
        made.stop.set()
        time.sleep(3)
        subprocess.run(["umount", "-l", scratch], check=True)


@pytest.mark.timeout(120)
def test_jobs_of_a_site_that_stays_away_run_elsewhere(store, sites, agent, tmp_path, monkeypatch):
    monkeypatch.setattr("hydroflow.dispatch.actor.LOST_AFTER_S", 3.0)
    monkeypatch.setattr("hydroflow.dispatch.actor.FIRST_BACKOFF_S", 1.0)
    monkeypatch.setattr("hydroflow.dispatch.transport.CALL_TIMEOUT_S", 5.0)
    ledger, log = Ledger(store), tmp_path / "log"
    made = agent({"beta": sites.cluster("beta")})
    keys = ledger.submit([job(1, log, sleep=15)], "chaos")
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
    deadline = time.monotonic() + 40
    while list((sites.base / "scratch-beta").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert list((sites.base / "scratch-beta").glob("*")) == []
