"""Jobs through a real agent on this machine: real processes, real MongoDB."""

from __future__ import annotations

from hydroflow.campaign import Cluster
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from tests.dispatch.engines import ECHO, PYTHON
from tests.waiting import connected


def echo(value: object, **inputs: object) -> JobSpec:
    return JobSpec(ECHO, {"value": value, **inputs}, "echo 1")


def square(x: float, **inputs: object) -> JobSpec:
    return JobSpec(PYTHON, {"x": x, **inputs}, "square 1")


def test_jobs_run_once_and_answers_come_back_in_order(store, agent, tmp_path):
    agent()
    ledger = Ledger(store)
    log = tmp_path / "log"
    specs = [echo(i, log=str(log)) for i in (3, 1, 2)]
    seen = []
    keys = ledger.submit([*specs, specs[0]], "a")
    jobs = ledger.wait(keys, seen.append)
    assert [j.result["answer"] for j in jobs] == [3, 1, 2, 3]
    assert ledger.wait(ledger.submit(specs, "b"))[0].campaigns == ["a", "b"]
    assert len(log.read_text().splitlines()) == 3
    assert seen[-1] == {"done": 3}
    assert store.objects.get(jobs[0].outputs["answer.json"]) == b"3"
    assert jobs[0].cost["core_hours"] > 0


def test_failures_are_recovered_then_quarantined_with_files(store, agent):
    agent()
    ledger = Ledger(store)
    keys = ledger.submit([echo(1, exit=3, fail_times=2, recoveries=3), echo(2, exit=3, recoveries=1), echo(3, garbage=True),
                          JobSpec("no.such.kind", {}, "x"), echo(4)], "a")
    recovered, hopeless, garbage, unknown, good = ledger.wait(keys)
    assert recovered.state == "done" and recovered.attempt == 3
    assert [e.reason for e in recovered.history if "try number" in e.reason] == [
        "unknown: exit code 3; try number 2", "unknown: exit code 3; try number 3"]
    assert hopeless.state == "quarantined" and hopeless.failures == 2
    assert "trouble" in hopeless.failure["stderr"]
    assert store.objects.exists(hopeless.outputs["quarantine.tar.gz"])
    assert garbage.state == "quarantined" and garbage.failure["code"] == "corrupted_output"
    assert unknown.state == "failed" and "no engine is registered" in unknown.failure["message"]
    assert good.state == "done"


def test_jobs_that_no_cluster_can_run_fail_with_the_reason(store, agent, monkeypatch):
    monkeypatch.setattr("hydroflow.dispatch.agent.HEARTBEAT_S", 0.5)
    agent({"local": Cluster(max_cores=2, executables={"sleep": "no-such-sleep"})})
    ledger = Ledger(store)
    wide = JobSpec(ECHO, {"value": 1}, "echo 1", resources=Resources(cores=64))
    missing, too_wide = ledger.wait(ledger.submit([echo(2, exit=0), wide], "a"))
    assert (too_wide.state, missing.state) == ("failed", "failed")
    assert "64 cores" in too_wide.failure["message"]
    assert missing.failure["code"] == "executable_missing" and "no-such-sleep" in missing.failure["message"]


def test_the_cluster_of_higher_priority_is_filled_first(store, agent):
    running = agent({"low": Cluster(max_cores=4), "high": Cluster(max_cores=4, priority=1)})
    ledger = Ledger(store)
    connected(running)
    assert {j.cluster for j in ledger.wait(ledger.submit([echo(i, sleep=0.5) for i in range(3)], "a"))} == {"high"}
    jobs = ledger.wait(ledger.submit([echo(10 + i, sleep=3) for i in range(8)], "a"))
    assert {j.cluster for j in jobs} == {"low", "high"}


def test_a_killed_python_job_goes_on_from_its_checkpoint(store, agent):
    agent()
    ledger = Ledger(store)
    (job,) = ledger.wait(ledger.submit([square(3, die_at=2, steps=4)], "a"))
    assert job.result["square"] == 9
    assert job.result["resumed_at"] == 2
    assert store.objects.get(job.outputs["steps.txt"]).split() == [b"0", b"1", b"2", b"3"]
