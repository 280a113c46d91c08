"""The agent killed with SIGKILL: nothing runs twice, nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from hydroflow.dispatch.agent import alive, start_agent
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import Ledger
from hydroflow.store.process import ProcessIdentity
from tests.dispatch.engines import ECHO
from tests.fixtures_store import ROOT


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "campaign.toml"
    path.write_text('name = "kill"\n[space]\nelements = ["Ca", "Y"]\n[clusters.local]\nmax_cores = 3\n')
    return path


def kill(pid: int) -> None:
    identity = ProcessIdentity.of(pid)
    os.kill(pid, signal.SIGKILL)
    assert identity is None or identity.wait_gone(10)


@pytest.fixture
def stopped_at_end(store):
    yield
    record = alive(store)
    if record is not None:
        ProcessIdentity.from_dict(record["process"]).stop()


def test_running_processes_are_adopted(settings, store, campaign, stopped_at_end, tmp_path):
    ledger, log = Ledger(store), tmp_path / "log"
    pid = start_agent(settings, campaign)
    assert start_agent(settings, campaign) == pid
    keys = ledger.submit([JobSpec(ECHO, {"value": i, "sleep": 3, "log": str(log)}, "1") for i in range(3)], "a")
    while not (log.exists() and len(log.read_text().splitlines()) == 3):
        time.sleep(0.05)
    kill(pid)
    assert alive(store) is None
    started = time.monotonic()
    assert start_agent(settings, campaign) != pid
    jobs = ledger.wait(keys)
    assert [j.state for j in jobs] == ["done"] * 3
    assert time.monotonic() - started < 45  # no lease had to run out
    assert len(log.read_text().splitlines()) == 3
    assert all(j.attempt == 1 for j in jobs)


def test_random_kills_lose_nothing_and_repeat_nothing(settings, store, campaign, stopped_at_end, tmp_path):
    ledger, log, rng = Ledger(store), tmp_path / "log", random.Random(7)
    keys = ledger.submit([JobSpec(ECHO, {"value": i, "sleep": 0.2, "log": str(log)}, "1") for i in range(30)], "a")
    for _ in range(4):
        pid = start_agent(settings, campaign)
        time.sleep(rng.uniform(0.0, 1.5))
        kill(pid)
    start_agent(settings, campaign)
    jobs = ledger.wait(keys)
    assert [j.result["answer"] for j in jobs] == list(range(30))
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == sorted(keys)


def test_sigterm_stops_cleanly_and_leaves_jobs_running(settings, store, campaign, stopped_at_end, tmp_path):
    ledger, log = Ledger(store), tmp_path / "log"
    keys = ledger.submit([JobSpec(ECHO, {"value": 1, "sleep": 8, "log": str(log)}, "1")], "a")
    pid = start_agent(settings, campaign)
    while not log.exists():
        time.sleep(0.05)
    assert ProcessIdentity.of(pid).stop(timeout_s=40)
    assert ledger.jobs(keys)[0].state in ("submitted", "running")
    start_agent(settings, campaign)
    assert ledger.wait(keys)[0].state == "done"
    assert len(log.read_text().splitlines()) == 1
