"""The commands over the ledger, on real jobs."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from hydroflow.campaign import Cluster
from hydroflow.cli.main import cli
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger, now
from hydroflow.dispatch.staging import stage
from hydroflow.dispatch.wrapper import SCRIPT
from hydroflow.errors import HydroflowError
from hydroflow.store.documents import Job
from hydroflow.store.packs import read
from tests.dispatch.engines import ECHO, PYTHON
from tests.waiting import until


@pytest.fixture
def run(settings, monkeypatch):
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)

    def invoke(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def echo(value: object, **inputs: object) -> JobSpec:
    return JobSpec(ECHO, {"value": value, **inputs}, "echo 1", label=f"echo {value}")


def test_list_show_logs_cost_retry(store, agent, run):
    agent()
    ledger = Ledger(store)
    good, bad = ledger.submit([echo(1), echo(2, exit=3)], "hunt")
    ledger.wait([good, bad])
    assert [j["key"] for j in json.loads(run("jobs", "list", "--state", "quarantined", "--json"))] == [bad]
    told = run("jobs", "show", bad[:10])
    assert "no recovery is left" in told and "echo 2" in told
    assert "trouble" in run("jobs", "logs", bad)
    costs = json.loads(run("jobs", "cost", "--campaign", "hunt", "--json"))
    assert costs["groups"][0]["jobs"] == 2 and costs["groups"][0]["core_hours"] > 0
    assert costs["candidates"]["accepted"] == 0
    assert run("jobs", "retry", "--state", "quarantined").startswith("1 of 1")
    (again,) = ledger.wait([bad])
    assert again.attempt == 2 and again.state == "quarantined"
    with pytest.raises(HydroflowError, match="no job's key starts with"):
        run("jobs", "show", "0000")
    with pytest.raises(HydroflowError, match="allowed: prepared"):
        run("jobs", "list", "--state", "finished")


def test_cancel_stops_a_running_job_and_its_processes(store, agent, run, tmp_path):
    agent()
    ledger, log = Ledger(store), tmp_path / "log"
    running, waiting = ledger.submit([echo(1, sleep=60, log=str(log)), echo(2)], "hunt")
    while not log.exists():
        time.sleep(0.05)
    start = time.monotonic()
    run("jobs", "cancel", running)
    (job,) = ledger.wait([running])
    assert job.state == "cancelled" and time.monotonic() - start < 45  # not its 60 s
    assert ledger.wait([waiting])[0].state == "done"
    assert not (tmp_path / "log.finished").exists()
    # wanted again, it runs again
    ledger.submit([echo(1, sleep=60, log=str(log))], "hunt")
    assert ledger.jobs([running])[0].state in ("prepared", "submitted", "running")
    ledger.cancel([running])
    ledger.wait([running])


@pytest.mark.parametrize("left_for", [timedelta(days=1), timedelta(days=30)])
def test_a_cancelled_job_goes_on_from_its_checkpoints_for_a_week(store, agent, run, tmp_path, left_for):
    ledger, clusters = Ledger(store), tmp_path / "clusters.toml"
    clusters.write_text("[local]\nmax_cores = 1\n")
    jobs = store.settings.home / "jobs" / "local"
    spec = JobSpec(PYTHON, {"x": 2, "steps": 60, "pace": 0.1}, "square 1")
    first = agent()
    (key,) = ledger.submit([spec], "hunt")

    def steps(attempt: int) -> list[str]:
        path = jobs / f"{key}-{attempt}" / key / "steps.txt"
        return path.read_text().split() if path.exists() else []

    until(lambda: len(steps(1)) > 10)
    run("jobs", "cancel", key)
    assert ledger.wait([key])[0].state == "cancelled"
    before = steps(1)
    assert 10 < len(before) < 60
    first.stop.set()
    assert until(lambda: not first.running)
    # what an agent that starts later removes, and what it leaves
    ledger.collection.update_one({"_id": key}, {"$set": {"finished": now() - left_for}})
    run("jobs", "reconcile", "--clusters", str(clusters), "--apply")
    kept = left_for.days < 7
    assert bool(steps(1)) is kept

    agent()
    ledger.submit([spec], "hunt")
    (done,) = ledger.wait([key])
    assert done.state == "done" and done.attempt == 2
    assert done.result["resumed_at"] == (len(before) if kept else 0)


@pytest.mark.parametrize("by_hand", [True, False])
def test_what_ran_out_of_time_goes_on_with_more_of_it(store, agent, run, by_hand):
    """By the command, or because a campaign with a longer wall time asks for the same job."""
    agent()
    ledger = Ledger(store)

    def spec(seconds: int) -> JobSpec:
        return JobSpec(PYTHON, {"x": 2, "steps": 40, "pace": 0.5}, "square 1", resources=Resources(wall_time_s=seconds))

    (key,) = ledger.submit([spec(4)], "hunt")
    (job,) = ledger.wait([key])
    assert job.state == "quarantined" and job.failure["code"] == "walltime"
    assert "--wall-time" in job.history[-1].reason
    # the same time again is no answer
    ledger.submit([spec(4)], "hunt")
    assert ledger.jobs([key])[0].state == "quarantined"
    if by_hand:
        run("jobs", "retry", key, "--wall-time", "600")
    else:
        ledger.submit([spec(600)], "longer")
    (done,) = ledger.wait([key])
    assert done.state == "done" and done.result["resumed_at"] > 0 and done.resources["wall_time_s"] == 600


def test_resources_are_those_of_the_last_who_asked_until_it_begins(store):
    ledger = Ledger(store)
    first, second, third = (JobSpec(ECHO, {"value": 1}, "echo 1", resources=Resources(cores=n, wall_time_s=60 * n))
                            for n in (4, 2, 3))
    (key,) = ledger.submit([first], "a")
    ledger.submit([second], "b")
    assert (ledger.jobs([key])[0].resources["cores"], ledger.jobs([key])[0].resources["wall_time_s"]) == (2, 120)
    # given more by hand after an attempt, it keeps that when its campaign asks for it again
    ledger.collection.update_one({"_id": key}, {"$set": {"state": "quarantined", "attempt": 1}})
    ledger.retry([key], wall_time_s=9000, cores=8)
    ledger.submit([third], "a")
    assert (ledger.jobs([key])[0].resources["cores"], ledger.jobs([key])[0].resources["wall_time_s"]) == (8, 9000)
    ledger.cancel([key])
    ledger.submit([third], "a")
    assert ledger.jobs([key])[0].resources["cores"] == 3


def test_what_has_become_too_large_for_the_cluster_of_its_checkpoints_runs_on_another(store, agent):
    short = {"short": Cluster(max_cores=1, max_wall_time_s=400)}
    early = agent(short)
    ledger = Ledger(store)

    def spec(seconds: int) -> JobSpec:
        return JobSpec(PYTHON, {"x": 2, "steps": 40, "pace": 0.5}, "square 1", resources=Resources(wall_time_s=seconds))

    (key,) = ledger.submit([spec(3)], "hunt")
    (job,) = ledger.wait([key])
    assert job.state == "quarantined" and job.cluster == "short" and job.restart_from
    early.stop.set()
    assert until(lambda: not early.running)
    agent({**short, "long": Cluster(max_cores=1)})
    ledger.submit([spec(4000)], "hunt")
    (done,) = ledger.wait([key])
    assert done.state == "done" and done.cluster == "long" and done.result["resumed_at"] == 0


@pytest.mark.parametrize(("kind", "cores", "goes_on"), [(ECHO, 1, True), (ECHO, 4, False), (PYTHON, 4, True)])
def test_checkpoints_are_for_as_many_processes_as_left_them(store, tmp_path, kind, cores, goes_on):
    """But where the engine says that it does not matter."""
    site = SimpleNamespace(executables=lambda names, cores: {name: name for name in names}, cluster=Cluster(), root="/scratch",
                           name="one")
    job = {"_id": "k", "kind": kind, "inputs": {"x": 1, "value": 1}, "engine": "1", "resources": {"cores": cores},
           "restart_from": "/scratch/k-1/k", "cost": {"cores": 1}, "adjustments": {"again": True}}
    stage(job, tmp_path / "k", site, store.objects)
    assert ("/scratch/k-1/k" in (tmp_path / "k" / SCRIPT).read_text()) is goes_on


def test_cancelled_before_it_began_again_it_keeps_what_it_had(store, agent, tmp_path):
    """In turn behind another job of its batch, where stopping it means that it must not begin."""
    clusters = {"local": Cluster(max_cores=1, group_size=2)}
    early = agent(clusters)
    ledger, jobs = Ledger(store), store.settings.home / "jobs" / "local"
    spec = JobSpec(PYTHON, {"x": 2, "steps": 60, "pace": 0.1}, "square 1")
    (key,) = ledger.submit([spec], "hunt")
    steps = jobs / f"{key}-1" / key / "steps.txt"
    assert until(lambda: steps.exists() and len(steps.read_text().split()) > 10)
    ledger.cancel([key])
    ledger.wait([key])
    before = len(steps.read_text().split())
    early.stop.set()  # so that both of the next are there when it looks
    assert until(lambda: not early.running)

    first = JobSpec(PYTHON, {"x": 3, "steps": 50, "pace": 0.1}, "square 1", priority=9)
    (other,) = ledger.submit([first], "hunt")
    ledger.submit([spec], "hunt")
    agent(clusters)
    assert until(lambda: ledger.jobs([key])[0].attempt == 2 and ledger.jobs([other])[0].state == "running")
    ledger.cancel([key])
    assert ledger.wait([key])[0].state == "cancelled"
    ledger.wait([other])
    ledger.submit([spec], "hunt")
    assert ledger.wait([key])[0].result["resumed_at"] == before


def test_wanted_again_before_it_was_stopped_it_goes_on(store, agent, tmp_path):
    agent()
    ledger, log = Ledger(store), tmp_path / "log"
    (key,) = ledger.submit([echo(1, sleep=5, log=str(log))], "hunt")
    assert until(log.exists)
    ledger.cancel([key], campaign="hunt")
    ledger.submit([echo(1, sleep=5, log=str(log))], "hunt")
    assert ledger.wait([key])[0].state == "done"
    # also where the agent has stopped it meanwhile
    (key,) = ledger.submit([echo(2, sleep=4, log=str(log))], "hunt")
    assert until(lambda: key in log.read_text())
    ledger.cancel([key])
    assert until(lambda: Job.objects.get(key=key).cancel)
    time.sleep(0.5)
    ledger.submit([echo(2, sleep=4, log=str(log))], "hunt")
    assert ledger.wait([key])[0].state == "done"


def test_checkpoints_of_what_is_for_nothing_go_at_once(store, agent):
    agent()
    ledger, jobs = Ledger(store), store.settings.home / "jobs" / "local"
    (key,) = ledger.submit([JobSpec(PYTHON, {"x": 2, "steps": 60, "pace": 0.1}, "square 1")], "hunt")
    steps = jobs / f"{key}-1" / key / "steps.txt"
    assert until(steps.exists)
    ledger.cancel([key], keep=False)
    assert ledger.wait([key])[0].state == "cancelled"
    assert until(lambda: not steps.exists()) and ledger.jobs([key])[0].restart_from is None


def test_a_job_two_campaigns_want_survives_one_of_them(store):
    ledger = Ledger(store)
    (key,) = ledger.submit([echo(1)], "a")
    ledger.submit([echo(1)], "b")
    ledger.cancel([key], campaign="a")
    assert ledger.jobs([key])[0].state == "prepared"
    ledger.cancel([key], campaign="b")
    assert ledger.jobs([key])[0].state == "cancelled"


def test_clusters_check_runs_a_real_job(run, tmp_path):
    findings = {f["what"]: f for f in json.loads(run("clusters", "check", "--home", str(tmp_path), "--json"))}
    assert findings["tiny job"]["ok"], findings["tiny job"]
    assert findings["python"]["ok"] and "hydroflow" in findings["python"]["detail"]
    bad = tmp_path / "clusters.toml"
    bad.write_text('[far]\ncontext = "ssh"\nhost = "127.0.0.1"\nuser = "nobody"\nport = 9\n')
    (finding,) = json.loads(run("clusters", "check", "--clusters", str(bad), "--home", str(tmp_path), "--json", code=1))
    assert finding["what"] == "connection" and not finding["ok"]


def test_storage_verify_names_jobs_to_redo_and_gc_spares_what_is_used(store, agent, run):
    agent()
    ledger = Ledger(store)
    keys = ledger.submit([echo("kept"), echo("lost"), echo("broken")], "hunt")
    jobs = ledger.wait(keys)
    lost, broken = jobs[1].outputs["answer.json"], jobs[2].outputs["answer.json"]
    store.objects.delete(lost)
    path = store.settings.home / "objects" / "objects" / broken[7:9] / broken[9:]
    path.chmod(0o644)
    path.write_bytes(b"rot")
    found = json.loads(run("storage", "verify", "--json", code=1))
    assert found["missing"] == [lost] and found["damaged"] == [broken] and sorted(found["redo"]) == sorted(keys[1:])
    run("storage", "verify", "--redo", code=1)
    assert [j.result["answer"] for j in ledger.wait(keys)] == ["kept", "lost", "broken"]
    assert json.loads(run("storage", "verify", "--json"))["missing"] == []
    rubbish = store.objects.put(b"nobody wants this")
    assert "0 objects" in run("storage", "gc")
    assert json.loads(run("storage", "gc", "--older-than-hours", "0", "--json"))["objects"] == [rubbish]
    assert store.objects.exists(rubbish)
    run("storage", "gc", "--older-than-hours", "0", "--delete")
    assert not store.objects.exists(rubbish)
    assert json.loads(run("storage", "verify", "--json"))["checked"] == 3


def test_small_proofs_share_objects_and_damage_to_one_redoes_its_jobs(store, agent, run):
    agent({"local": Cluster(group_size=20, max_cores=1)})
    ledger = Ledger(store)
    keys = ledger.submit([echo(i, proof=True) for i in range(20)], "hunt")
    jobs = ledger.wait(keys)
    assert len(list(store.objects.list())) < 10  # 40 files
    assert "said" in run("jobs", "logs", keys[3])
    assert [read(store.objects, j.outputs["answer.json"]) for j in jobs] == [str(i).encode() for i in range(20)]
    assert json.loads(run("storage", "gc", "--older-than-hours", "0", "--json"))["objects"] == []
    pack = jobs[0].outputs["answer.json"].partition("#")[0]
    path = store.settings.home / "objects" / "objects" / pack[7:9] / pack[9:]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    inside = {j.key for j in jobs if j.outputs["answer.json"].startswith(pack)}
    found = json.loads(run("storage", "verify", "--json", code=1))
    assert found["damaged"] == [pack] and set(found["redo"]) == inside
    run("storage", "verify", "--redo", code=1)
    assert {j.state for j in ledger.wait(keys)} == {"done"}
    assert json.loads(run("storage", "verify", "--json"))["damaged"] == []


def test_reconcile_finds_and_clears_what_nobody_wants(store, run):
    ledger = Ledger(store)
    (key,) = ledger.submit([echo(1)], "hunt")
    left = store.settings.home / "jobs" / "local" / f"{key}-7" / key
    left.mkdir(parents=True)
    foreign = store.settings.home / "jobs" / "local" / f"{'f' * 32}-1"
    foreign.mkdir()
    told = json.loads(run("jobs", "reconcile", "--json"))
    assert told["clusters"][0]["unwanted_folders"] == [f"{key}-7"] and not told["agent"]
    run("jobs", "reconcile", "--apply")
    assert not left.parent.exists() and foreign.exists()


def test_reconcile_collects_what_ended_while_nobody_watched(store, agent, run, tmp_path):
    watched, ledger, log = agent({"local": Cluster(max_cores=3)}), Ledger(store), tmp_path / "log"
    short, long = ledger.submit([echo(1, sleep=1, log=str(log)), echo(2, sleep=60, log=str(log))], "hunt")
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        time.sleep(0.05)
    watched.stop.set()  # jobs go on
    assert not until(lambda: ledger.jobs([short])[0].state == "done", 3)
    clusters = tmp_path / "clusters.toml"
    clusters.write_text('[local]\n[far]\ncontext = "ssh"\nhost = "127.0.0.1"\nuser = "nobody"\nport = 9\n')
    told = json.loads(run("jobs", "reconcile", "--apply", "--clusters", str(clusters), "--json", code=1))
    here, far = told["clusters"]
    assert len(here["in_queue"]) == 1 and len(here["ended"]) == 1 and "127.0.0.1" in far["error"]
    assert told["ended_became"] == {"done": 1}
    assert ledger.jobs([short])[0].result["answer"] == 1
    assert ledger.jobs([long])[0].state == "running"
    # the next agent adopts what this command left running and stops what was cancelled meanwhile; a live one is asked to look
    ledger.cancel([long])
    agent()
    assert ledger.wait([long])[0].state == "cancelled"
    assert not (tmp_path / "log.finished").read_text().count(long)
    assert len(log.read_text().splitlines()) == 2
    assert "does it now" in run("jobs", "reconcile", "--apply")


def test_kept_files_come_back_and_clusters_tell_how_they_are(store, agent, run, tmp_path, monkeypatch):
    monkeypatch.setattr("hydroflow.dispatch.agent.HEARTBEAT_S", 0.5)
    assert "no agent has been at work" in run("clusters", "status")
    agent()
    (key,) = Ledger(store).submit([echo("x")], "hunt")
    Ledger(store).wait([key])
    run("jobs", "fetch", key[:8], str(tmp_path / "out"))
    assert (tmp_path / "out" / "answer.json").read_text() == '"x"'
    assert until(lambda: "healthy" in run("clusters", "status"))
