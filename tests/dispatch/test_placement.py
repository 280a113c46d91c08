"""Which cluster takes which job: limits, groups, checkpoints, and clusters that fail one job after another."""

from __future__ import annotations

import time

import pytest

from hydroflow.campaign import Cluster
from hydroflow.dispatch import suspicion
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from hydroflow.dispatch.placement import Placement
from hydroflow.dispatch.suspicion import SAME_FAILURES, Suspicion
from hydroflow.errors import FailureCode
from hydroflow.store.documents import Job
from tests.dispatch.engines import ECHO, PYTHON
from tests.small_disk import small_disk
from tests.waiting import connected, until

C = FailureCode


def waiting(count: int, **resources: object) -> list[dict]:
    return [{"_id": f"{i:032x}", "kind": "k", "resources": {"wall_time_s": 600, **resources}} for i in range(count)]


def sizes(cluster: Cluster, jobs: list[dict], room_cores: int | None = None) -> list[int]:
    batches = [batch for _, batch, _ in Placement("c", cluster).group(jobs, cluster.max_jobs, room_cores, cluster.max_gpus)]
    return [batches.count(name) for name in dict.fromkeys(batches)]


def test_groups_keep_to_size_and_wall_time():
    assert sizes(Cluster(group_size=4), waiting(10)) == [4, 4, 2]
    # 300 s of margin and 60 s per job: three jobs of 10 min are 2 280 s
    assert sizes(Cluster(group_size=4, max_wall_time_s=2280), waiting(10)) == [3, 3, 3, 1]
    # the elements of an array have their wall time each
    assert sizes(Cluster(batch="SlurmJobArray", group_size=4, max_wall_time_s=2280), waiting(8)) == [4, 4]
    assert sizes(Cluster(group_size=2, max_jobs=3), waiting(10)) == [2, 2, 2]
    assert sizes(Cluster(), waiting(10, cores=2), room_cores=5) == [1, 1]
    assert sizes(Cluster(max_gpus=1), waiting(3, gpus=1)) == [1]


def test_the_filter_and_the_question_for_one_job_agree(store):
    clusters = [Cluster(kinds=["dft.*"], max_wall_time_s=3600), Cluster(max_cores=4), Cluster(kinds=["epc.q", "lam.*"]),
                Cluster(max_gpus=2, max_cores=64, kinds=["[dl]*"])]
    specs = [JobSpec(kind, {"i": i}, "1", resources=Resources(cores, gpus, wall))
             for i, (kind, cores, gpus, wall) in enumerate(
                 (k, c, g, w) for k in ("dft.label", "epc.q", "lam.train") for c in (1, 8) for g in (0, 1) for w in (600, 3600))]
    ledger = Ledger(store)
    ledger.submit(specs, "a")
    for i, cluster in enumerate(clusters):
        placement = Placement(f"c{i}", cluster)
        found = {r["_id"] for r in ledger.collection.find(placement.capable(placement.max_cores, cluster.max_gpus))}
        assert found == {r["_id"] for r in ledger.collection.find() if placement.takes(r)}
        assert 0 < len(found) < len(specs)


def test_what_goes_on_from_checkpoints_does_not_wait_for_a_better_cluster(store):
    """Which has room for it and may not take it: it would wait for ever."""
    worse, better = Placement("worse", Cluster(max_cores=1)), Placement("better", Cluster(max_cores=1, priority=9))
    worse.max_cores = better.max_cores = 1
    better.room = (1, 0)
    ledger = Ledger(store)
    free, bound = ledger.submit([JobSpec(ECHO, {"value": i}, "1") for i in (1, 2)], "a")
    ledger.collection.update_one({"_id": bound}, {"$set": {"cluster": "worse", "restart_from": "/scratch/x"}})
    for cluster, other, taken in ((worse, better, bound), (better, worse, free)):
        assert [row["_id"] for row in ledger.collection.find(cluster.match(1, 0, (), [other]))] == [taken]


def test_suspicion_needs_several_jobs_alike_in_a_row_and_ends_with_a_success():
    clock = [0.0]
    doubt = Suspicion(lambda: clock[0])
    for i in range(SAME_FAILURES - 1):
        assert not doubt.told("k", f"j{i}", C.unknown)
        assert not doubt.told("k", "j0", C.unknown)  # the same job again is no second witness
    doubt.told("k", "x", C.scf_not_converged)  # its engine runs
    for i in range(SAME_FAILURES - 1):
        assert not doubt.told("k", f"j{i}", C.unknown)
    assert not doubt.told("other", "y", C.unknown) and not doubt.suspected("k")
    assert doubt.told("k", "last", C.unknown)
    assert doubt.resting() == ["k"] and doubt.on_trial() == [] and "6 k jobs in a row failed alike (unknown)" in doubt.text()
    assert not doubt.told("k", "was under way", C.unknown)
    clock[0] = suspicion.FIRST_PAUSE_S
    assert doubt.resting() == [] and doubt.on_trial() == ["k"]
    assert doubt.told("k", "trial", C.unknown)
    clock[0] += 1.5 * suspicion.FIRST_PAUSE_S
    assert doubt.resting() == ["k"]  # longer than the first time
    clock[0] += suspicion.FIRST_PAUSE_S
    doubt.told("k", "second trial", None)
    assert not doubt.suspected("k") and doubt.text() == ""


def test_a_cluster_that_fails_unrelated_jobs_is_left_and_they_are_done_elsewhere(store, agent, tmp_path):
    """The engine of one cluster crashes; it has the higher priority and would take every job."""
    broken = tmp_path / "sleep"
    broken.write_text("#!/bin/sh\nexit 139\n")
    broken.chmod(0o755)
    running = agent({"sick": Cluster(executables={"sleep": str(broken)}, priority=1, max_cores=2), "well": Cluster(max_cores=2)})
    connected(running)
    ledger = Ledger(store)
    jobs = ledger.wait(ledger.submit([JobSpec(ECHO, {"value": i, "sleep": 0.2}, "1") for i in range(30)], "a"))
    assert [(j.state, j.cluster) for j in jobs] == [("done", "well")] * 30
    assert all(j.failures == 0 for j in jobs)
    tried = [j.key for j in jobs if j.attempt > 1]
    assert SAME_FAILURES <= len(tried) < 20  # not every job had to find out
    assert any("unknown: exit code 139; to be run on another cluster than sick" in e.reason
               for e in Job.objects.get(key=tried[0]).history)
    assert running.actors["sick"].placement.suspicion.suspected(ECHO)
    assert until(lambda: running.actors["sick"].health.state == "suspected")
    assert "failed alike (unknown)" in running.actors["sick"].health.reason


def test_a_job_stopped_at_its_wall_time_goes_on_where_its_checkpoints_are(store, agent):
    agent({"one": Cluster(max_cores=1), "two": Cluster(max_cores=1)})
    ledger = Ledger(store)
    specs = [JobSpec(PYTHON, {"x": x, "steps": 8, "pace": 1.5}, "1", resources=Resources(wall_time_s=10)) for x in (2, 3)]
    jobs = ledger.wait(ledger.submit(specs, "a"))
    assert [j.result["square"] for j in jobs] == [4, 9]
    for job in jobs:
        assert job.attempt > 1 and job.result["resumed_at"] > 0
        assert any("walltime: stopped at its wall time of 10 s" in e.reason and "continued from the checkpoints" in e.reason
                   for e in job.history)
        assert len({e.reason.split(",")[0] for e in job.history if e.state == "submitted"}) == 1  # one cluster only
        assert job.cost["wall_s"] > 10  # all attempts are paid


def test_a_disk_that_fills_up_is_not_the_jobs_fault(store, agent, tmp_path):
    with small_disk(tmp_path / "small", "512k") as disk:
        agent({"local": Cluster(remote_root=str(disk), max_cores=1)})
        ledger = Ledger(store)
        log = tmp_path / "log"
        (key,) = ledger.submit([JobSpec(ECHO, {"value": 1, "sleep": 2, "log": str(log)}, "1")], "a")
        while not log.exists():
            time.sleep(0.02)
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as handle:
            while True:
                handle.write(b"x" * 4096)
        time.sleep(4)  # its command ends and cannot write
        assert Job.objects.get(key=key).state in ("submitted", "running")
        ballast.unlink()
        (job,) = ledger.wait([key])
        assert job.state == "done" and job.failures == 0 and job.losses <= 1
        assert len((tmp_path / "log.finished").read_text().splitlines()) == 1
        if job.losses:  # its answer had not fitted
            assert any("disk_full" in e.reason or "disk it ran on was full" in e.reason for e in job.history)
