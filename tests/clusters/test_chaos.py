"""Everything that goes wrong in a year, in two minutes: at the end every job is done or quarantined for the right reason, none
that had finished ran again, none is lost. The jobs count their own executions in a file that each run appends to."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Labels
from hydroflow.dft.batch import label_specs
from hydroflow.dft.settings import label_settings
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.ledger import Ledger
from hydroflow.store import open_objects, packs, services
from hydroflow.store.process import ProcessIdentity
from tests.clusters.conftest import executions, job, write_campaign
from tests.s3_emulator import Emulator, create_bucket
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.service]

COUNTED_PW = """#!/bin/sh
echo $HYDROFLOW_JOB $HYDROFLOW_CLUSTER >> {log}
pw.x "$@" || exit $?
echo $HYDROFLOW_JOB $HYDROFLOW_CLUSTER >> {log}.finished
"""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = Emulator()
    server.start()
    create_bucket(server.endpoint, "chaos")
    yield server
    server.remove()


@pytest.fixture
def settings(settings, s3):
    """Objects are in S3 here."""
    return replace(settings, s3_endpoint_url=s3.endpoint, s3_bucket="chaos")


@pytest.fixture
def small_disk(sites) -> Iterator[Path]:
    """The scratch disk of site beta is one of 24 MB."""
    folder = sites.base / "scratch-beta"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def campaign(sites, small_disk, tmp_path):
    counted = tmp_path / "pw.x"
    counted.write_text(COUNTED_PW.format(log=tmp_path / "log"))
    counted.chmod(0o755)
    executables = {"pw.x": str(counted)}
    return write_campaign(
        tmp_path, alpha=sites.cluster("alpha", group_size=10, max_jobs=4, executables=executables),
        beta=sites.cluster("beta", "SlurmJobArray", group_size=4, max_jobs=2, executables=executables))


class Troubles:
    """What goes wrong, each as a function that ends when it is over. `unfinished` says how many jobs each one met."""

    def __init__(self, sites, mongod, s3, disk: Path, log: Path) -> None:
        self.sites, self.mongod, self.s3, self.disk, self.log = sites, mongod, s3, disk, log
        self.unfinished: dict[str, int] = {}

    def when(self, finished: int, what: Callable[..., None], *arguments: object) -> None:
        """Begin a trouble once so many jobs have finished, however fast this machine is."""
        ends = Path(f"{self.log}.finished")
        assert until(lambda: len(executions(ends)) >= finished, 600)
        self.unfinished[what.__name__] = 200 - len(executions(ends))
        what(*arguments)

    def site_cut_off(self) -> None:
        self.sites.run("cut", "beta")
        time.sleep(8)
        self.sites.run("mend", "beta")

    def slurmctld_restarted(self) -> None:
        identity = ProcessIdentity.of(self.sites.pid("alpha", "slurmctld"))
        assert identity is not None and identity.stop(30)
        self.sites.start_slurmctld("alpha")

    def mongod_killed(self) -> None:
        identity = ProcessIdentity.of(services.status(self.mongod)[0].pid)
        assert identity is not None
        os.kill(identity.pid, signal.SIGKILL)
        assert identity.wait_gone(10)
        services.up(self.mongod, prefect=False)

    def s3_down_for_30_s(self) -> None:
        self.s3.stop()
        time.sleep(30)
        self.s3.start()

    def disk_full(self) -> None:
        ballast = self.disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as handle:
            while True:
                handle.write(bytes(65536))
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as handle:
            while True:
                handle.write(bytes(512))
        time.sleep(8)
        ballast.unlink()

    def job_killed_by_the_scheduler(self, key: str) -> None:
        while key not in executions(self.log):
            time.sleep(0.1)
        self.sites.kill_job(key)


@pytest.mark.timeout(900)
def test_a_year_of_troubles(mongod, settings, store, sites, s3, small_disk, agents, tmp_path):
    ledger, log, rng = Ledger(store), tmp_path / "log", random.Random(3)
    good = [job(i, log, sleep=3) for i in range(185)]
    # long, alone in its scheduler job, and the first to be taken; the scheduler's SIGTERM may still leave it time to write its
    # exit code, and then it is the engine that declares the next try
    victim = replace(job("victim", log, sleep=25, recoveries=2), resources=Resources(wall_time_s=90), priority=200)
    pw = label_specs(store, cells(4), label_settings(Labels(protocol="fast"), ["H", "Ca"]), priority=100)
    broken = [job(i, log, exit=3) for i in range(5)]
    garbage = [job(i, log, garbage=True) for i in range(5)]
    specs: list[JobSpec] = [*good, victim, *pw, *broken, *garbage]
    keys = ledger.submit(specs, "chaos")
    assert len(set(keys)) == 200
    agents()
    trouble = Troubles(sites, mongod, s3, small_disk, log)
    with ThreadPoolExecutor() as pool:
        under_way = [pool.submit(trouble.when, *what) for what in (
            (0, trouble.job_killed_by_the_scheduler, victim.key), (2, trouble.site_cut_off), (15, trouble.slurmctld_restarted),
            (30, trouble.s3_down_for_30_s), (60, trouble.mongod_killed), (85, trouble.disk_full))]
        kills = 0
        while kills < 10:
            time.sleep(rng.uniform(0.5, 4.0))
            kills += agents.kill()
            agents()
        for future in under_way:
            future.result()
    jobs = dict(zip(keys, ledger.wait(keys), strict=True))
    # ten of the 200 never finish: each trouble came in the middle
    assert len(trouble.unfinished) == 6 and min(trouble.unfinished.values()) > 20, trouble.unfinished

    bad = {s.key for s in broken + garbage}
    lost = {j.label: (j.attempt, j.failure) for j in jobs.values() if j.state != "done" and j.key not in bad}
    assert not lost
    assert Counter(j.state for j in jobs.values()) == {"done": 190, "quarantined": 10}
    assert [jobs[s.key].result["answer"] for s in good] == list(range(185))
    assert jobs[victim.key].state == "done" and jobs[victim.key].attempt > 1
    assert all(jobs[s.key].result["energy_ev"] < 0 for s in pw)
    assert {jobs[s.key].failure["code"] for s in broken} == {"unknown"}
    assert {jobs[s.key].failure["code"] for s in garbage} == {"corrupted_output"}
    assert {j.cluster for j in jobs.values()} == {"alpha", "beta"}
    # every stored file of every job is whole
    objects = open_objects(settings)
    assert all(packs.read(objects, address) for j in jobs.values() for address in j.outputs.values())
    starts, ends = executions(log), executions(Path(f"{log}.finished"))
    assert set(starts) == set(keys)  # none lost
    finished = {s.key for s in (*good, victim, *pw)}
    assert {key: ends[key] for key in finished if ends[key] != 1} == {}  # none that had finished ran again
    # and none ran twice at all, but the victim and those that the machines had failed, as their history says
    excused = {key for key in keys if any("again" in e.reason or "another cluster" in e.reason for e in jobs[key].history)}
    excused.add(victim.key)
    assert {key: n for key, n in starts.items() if n > 1 and key not in excused} == {}
    # what was left behind by agents that were killed is found and removed
    agents.kill()
    agents()
    scratch = [sites.base / f"scratch-{name}" for name in ("alpha", "beta")]
    assert until(lambda: not [p for folder in scratch for p in folder.glob("[!.]*")]), [list(f.glob("*")) for f in scratch]
    print(f"{kills} kills; jobs not finished when each trouble began: {trouble.unfinished}; {len(keys)} jobs: "
          f"{sum(starts.values())} executions, {sum(ends[k] for k in finished)} ends of the "
          f"{len(finished)} that finished; {sum(j.losses for j in jobs.values())} attempts lost; "
          f"{Counter(j.cluster for j in jobs.values())}")
    assert [sites.slurm(name, "squeue", "-h") for name in ("alpha", "beta")] == ["", ""]


def cells(count: int) -> StructureArrays:
    """CaH cells of two atoms."""
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    return StructureArrays.from_lists([np.array([20, 1])] * count, [sites] * count,
                                      [np.diag([2.2, 2.2, 2.2 + 0.1 * k]) for k in range(count)])
