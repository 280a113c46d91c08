"""A flow run cancelled in Prefect takes its jobs off the cluster, whoever started it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from hydroflow.store import open_store
from hydroflow.store.documents import Job
from hydroflow.store.services import down, prefect_api_url
from tests.flows.test_kill import count, kill_agent, make_bench
from tests.waiting import until

pytestmark = [pytest.mark.flow, pytest.mark.engine, pytest.mark.timeout(400)]
OPEN = ["prepared", "submitted", "running", "collecting"]


def test_cancelled_in_prefect(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    try:
        api = prefect_api_url(bench.settings)
        with open_store(bench.settings):
            process = bench.start()
            assert until(lambda: count(kind="dft.label", state="done") >= 2, 180), bench.log.read_text()[-2000:]
            (run,) = httpx.post(f"{api}/flow_runs/filter", json={}).raise_for_status().json()
            assert run["state"]["type"] == "RUNNING" and count(state__in=OPEN) > 0
            httpx.post(f"{api}/flow_runs/{run['id']}/set_state", json={"state": {"type": "CANCELLING"}}).raise_for_status()
            assert process.wait(timeout=90) == 130, bench.log.read_text()[-2000:]
            assert "cancelled in Prefect" in bench.log.read_text()
            assert until(lambda: count(state__in=OPEN) == 0), Job.objects(state__in=OPEN).first().to_json()
            run = httpx.get(f"{api}/flow_runs/{run['id']}").raise_for_status().json()
            assert run["state"]["type"] == "CANCELLED"
            cancelled, done = count(state="cancelled"), count(state="done")
            assert cancelled > 0
            assert Job.objects(state="done", campaigns="tiny").count() == done  # with their cost
    finally:
        kill_agent(bench)
        down(bench.settings)
