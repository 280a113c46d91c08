"""The ledger itself, on a real MongoDB: legal changes only, one owner per job, nobody's crash lasts."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from hydroflow.dispatch import ledger as module
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import AgentLedger, Change, Ledger, now
from hydroflow.dispatch.states import TERMINAL, TRANSITIONS, State
from hydroflow.errors import DataError, RunCancelled
from hydroflow.store.documents import Job

S = State


def spec(i: int, **changes: object) -> JobSpec:
    return JobSpec("tests.dispatch.engines:Echo", {"value": i}, "1", **changes)


def claim(agent: AgentLedger, keys: list[str], cluster: str = "here") -> list[str]:
    return [job["_id"] for job in agent.claim(cluster, [(key, f"{key}-1", {}) for key in keys])]


def state(key: str) -> str:
    return Job.objects.get(key=key).state


def test_two_clusters_of_one_agent_do_not_get_the_same_job(store):
    """Both see it waiting and give it the same batch; it would run twice."""
    agent = AgentLedger(store, "host/home/1")
    (key,) = agent.submit([spec(1)], "a")
    assert claim(agent, [key], "one") == [key]
    assert claim(agent, [key], "two") == []


def test_the_key_is_the_content_and_nothing_else():
    base = spec(1)
    same = [spec(1, label="x", priority=9, resources=Resources(cores=8)), JobSpec(base.kind, dict(base.inputs), "1")]
    other = [spec(2), JobSpec(base.kind, base.inputs, "2"), JobSpec("else", base.inputs, "1"),
             spec(1, files={"x.upf": "sha256:" + "0" * 64})]
    assert {s.key for s in same} == {base.key}
    assert len({base.key, *(s.key for s in other)}) == 5
    for inputs in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(DataError, match="plain finite JSON"):
            _ = JobSpec("k", inputs, "1").key


def test_no_state_is_a_dead_end_and_ends_are_reached_only_through_work():
    assert set(TRANSITIONS) == set(State)
    for found in TERMINAL:
        assert TRANSITIONS[found] == {S.prepared}
    assert S.done not in TRANSITIONS[S.prepared] | TRANSITIONS[S.submitted] | TRANSITIONS[S.running]


def test_of_many_agents_one_gets_each_job(store):
    keys = Ledger(store).submit([spec(i) for i in range(50)], "a")
    agents = [AgentLedger(store, f"host{i}/home/1") for i in range(6)]
    won: list[list[str]] = [[] for _ in agents]

    def race(i: int) -> None:
        won[i] = claim(agents[i], keys, f"cluster{i}")

    threads = [threading.Thread(target=race, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(key for each in won for key in each) == sorted(keys)
    assert all(job.attempt == 1 for job in Job.objects)


def test_two_that_want_the_same_job_both_get_its_one_answer(store):
    first, second = Ledger(store), Ledger(store)
    (key,) = first.submit([spec(1)], "a")
    answers: list[object] = []
    waiting = [threading.Thread(target=lambda w=w: answers.append(w.wait([key], poll_s=0.05)[0].result)) for w in (first, second)]
    assert second.submit([spec(1)], "b") == [key]
    for t in waiting:
        t.start()
    agent = AgentLedger(store, "h/h/1")
    claim(agent, [key])
    agent.collecting([key])
    agent.change([Change(key, S.done, "collected", {"result": {"answer": 7}})])
    for t in waiting:
        t.join()
    assert answers == [{"answer": 7}] * 2
    # asked again later, it is not computed again
    assert first.submit([spec(1)], "c") == [key] and state(key) == "done"


def test_a_cancelled_run_stops_waiting_and_gives_up_only_what_is_open(store):
    ledger = Ledger(store, cancelled=lambda: True)
    keys = ledger.submit([spec(i) for i in range(3)], "a")
    agent = AgentLedger(store, "h/h/1")
    claim(agent, keys[:2])
    agent.collecting(keys[:1])
    agent.change([Change(keys[0], S.done, "collected", {"result": {"answer": 0}})])
    with pytest.raises(RunCancelled, match="2 of 3 jobs were open"):
        ledger.wait(keys)
    assert ledger.cancel(keys, campaign="a", reason="cancelled in the UI") == 2
    assert [state(key) for key in keys] == ["done", "submitted", "cancelled"]
    assert agent.cancel_wishes("here") == {keys[1]: {"cancel": "cancelled in the UI", "discard": False}}
    assert Job.objects.get(key=keys[0]).campaigns == ["a"]  # its cost stays the campaign's
    batches: list[list[Job]] = []
    assert Ledger(store, on_batch=batches.append).wait([keys[0]]) == batches[0]


def test_a_report_of_one_who_lost_the_job_changes_nothing(store):
    (key,) = Ledger(store).submit([spec(1)], "a")
    late, heir = AgentLedger(store, "one/home/1"), AgentLedger(store, "two/home/1")
    claim(late, [key])
    late.collecting([key])
    assert heir.take_over("here", False, "^nobody") == []  # its lease holds
    Job.objects(key=key).update(set__lease_until=now() - timedelta(seconds=1))
    assert heir.take_over("here", True, "^nobody") == []  # only a host that can see the cluster
    assert [job["_id"] for job in heir.take_over("here", False, "^nobody")] == [key]
    late.change([Change(key, S.done, "collected", {"result": {"answer": "late"}})])
    late.heartbeat()
    assert state(key) == "collecting"
    assert Job.objects.get(key=key).owner == "two/home/1"
    heir.change([Change(key, S.done, "collected", {"result": {"answer": "right"}})])
    assert Job.objects.get(key=key).result == {"answer": "right"}
    late.change([Change(key, S.quarantined, "no")])
    assert state(key) == "done"


def test_a_change_from_an_unexpected_state_is_refused(store):
    (key,) = Ledger(store).submit([spec(1)], "a")
    agent = AgentLedger(store, "h/h/1")
    claim(agent, [key])
    agent.change([Change(key, S.done, "not even collected")])
    assert state(key) == "submitted"
    with pytest.raises(AssertionError, match="no job may go from"):
        agent._move([key], S.prepared, S.done, "by force")


def test_documents_stay_small_whatever_happens(store, monkeypatch):
    monkeypatch.setattr(module, "HISTORY", 10)
    (key,) = Ledger(store).submit([spec(1)], "a")
    agent = AgentLedger(store, "h/h/1")
    for _ in range(30):
        claim(agent, [key])
        agent.give_back([key], "x" * 100_000)
    job = Job.objects.get(key=key)
    assert len(job.history) == 10 and all(len(entry.reason) <= 2000 for entry in job.history)
    with pytest.raises(DataError, match=r"take 2\.\d MB; put bulky input into the object store"):
        Ledger(store).submit([JobSpec("k", {"x": "y" * 2_000_000}, "1")], "a")


def test_what_is_gone_from_one_cluster_is_free_for_others(store):
    keys = Ledger(store).submit([spec(i) for i in range(3)], "a")
    agent = AgentLedger(store, "h/h/1")
    claim(agent, keys[2:], "near")
    agent.collecting(keys[2:])
    agent.change([Change(keys[2], S.prepared, "crashed", {"avoid": ["near"], "failure": {"code": "killed"}})])
    claim(agent, keys[:2], "far")
    agent.collecting(keys[:1])
    agent.change([Change(keys[0], S.prepared, "walltime", {"restart_from": "/far/x"})])
    assert Job.objects.get(key=keys[0]).restart_from == "/far/x"
    assert agent.release_lost("far", False, "^nobody", "away too long") == 1
    assert not any(job.restart_from for job in Job.objects)
    assert Job.objects.get(key=keys[2]).avoid == []  # the far cluster was its other chance
    assert {state(key) for key in keys} == {"prepared"}
    assert [Job.objects.get(key=key).losses for key in keys] == [0, 1, 0]
