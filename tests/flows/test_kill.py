"""`kill -9` anywhere, the same command again: it goes on, nothing finished is computed again, the result is the same."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from hydroflow.settings import ServiceSettings
from hydroflow.store import open_store
from hydroflow.store.documents import Candidate, Iteration, Job, Run
from hydroflow.store.services import down, prefect_api_url

pytestmark = [pytest.mark.flow, pytest.mark.engine, pytest.mark.timeout(2400)]

HYDROFLOW = [sys.executable, "-c", "from hydroflow.cli.main import main; main()"]
TINY = Path(__file__).parent / "tiny.toml"


@dataclass
class Bench:
    """A home of its own and a campaign whose pw.x and ph.x write a line to a file whenever a run of them ends."""

    settings: ServiceSettings
    campaign: Path
    runs: Path
    log: Path

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*HYDROFLOW, "run", str(self.campaign)],
            env=self.environment,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.settings.to_environment(), "OMP_NUM_THREADS": "1"}

    def hydroflow(self, *arguments: str) -> None:
        subprocess.run([*HYDROFLOW, *arguments], env=self.environment, check=True, capture_output=True)

    def ended_runs(self) -> Counter[str]:
        lines = self.runs.read_text().splitlines() if self.runs.exists() else []
        return Counter(line for line in lines if len(line.split()) > 2)  # without arguments, it was asked for its version


def make_bench(folder: Path) -> Bench:
    runs = folder / "runs.txt"
    executables = []
    for name in ("pw.x", "ph.x"):
        script = folder / f"counted-{name}"
        script.write_text(
            f'#!/bin/sh\n{name} "$@"\ncode=$?\necho "$(basename "$PWD") {name} $*" >> {runs}\nexit $code\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        executables.append(f'"{name}" = "{script}"')
    campaign = folder / "campaign.toml"
    campaign.write_text(TINY.read_text() + "\n[clusters.local.executables]\n" + "\n".join(executables) + "\n")
    settings = ServiceSettings(home=folder / "home")
    bench = Bench(settings, campaign, runs, folder / "run.log")
    bench.hydroflow("services", "up")
    return bench


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    made: list[Bench] = []

    def make(name: str) -> Bench:
        (tmp_path / name).mkdir()
        made.append(make_bench(tmp_path / name))
        return made[-1]

    yield make
    for bench in made:
        kill_agent(bench)
        down(bench.settings)


def kill_agent(bench: Bench) -> None:
    """SIGKILL to the agent of this home, if there is one."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if (
            b"agent" in command
            and b"hydroflow" in command
            and str(bench.settings.home).encode() in command + environment
        ):
            os.kill(int(pid), signal.SIGKILL)


def count(**query: object) -> int:
    return int(Job.objects(**query).count())


def at_stage(name: str) -> bool:
    return bool(Run.objects(campaign="tiny", stage=name))


def outcome() -> dict[str, object]:
    """Everything a user reads of a campaign, keyed so that two runs can be compared."""
    # Packed ground states carry the times of their calculation, so keys behind them differ; their λ are compared below.
    kinds = ["dft.label", "lam.train", "learning.explore", "search.shard"]
    return {
        "jobs": sorted(Job.objects(state="done", kind__in=kinds).scalar("key")),
        "iterations": sorted((i.stage, i.index, i.labelled, i.dataset, tuple(i.models)) for i in Iteration.objects),
        "candidates": sorted(
            (c.structure_id, c.stage, c.rejected_by or "", round(c.ehull_lam_ev or 0, 9), c.lambda_ or 0.0)
            for c in Candidate.objects
        ),
    }


def test_killed_at_several_points_it_goes_on_and_ends_the_same(benches: Callable[[str], Bench]) -> None:
    killed, straight = benches("killed"), benches("straight")
    points: list[tuple[str, Callable[[], bool], bool]] = [
        # when, condition, kill the agent too
        ("amid the bootstrap labels", lambda: count(kind="dft.label", state="done") >= 6, True),
        ("in the first training", lambda: count(kind="lam.train", state="running") >= 1, False),
        ("amid the labels of stage 1", lambda: count(kind="dft.label", state="done") >= 33, False),
        ("amid the labels of stage 2", lambda: at_stage("stage2") and count(kind="dft.label", state="running") >= 1, True),
        ("in the search", lambda: count(kind="search.shard") >= 1, True),
        ("in a relaxation by DFT", lambda: count(kind="dft.relax", state="running") >= 1, False),
        ("in the EPC chain", lambda: count(kind="epc.q", state__in=["running", "done"]) >= 1, True),
    ]
    finished: list[tuple[str, dict[str, int], Counter[str]]] = []
    with open_store(killed.settings):
        for when, condition, agent_too in points:
            process = killed.start()
            deadline = time.monotonic() + 900
            while not condition():
                assert process.poll() is None, f"ended before it could be killed {when}: {killed.log.read_text()[-2000:]}"
                assert time.monotonic() < deadline, f"never came to be {when}: {killed.log.read_text()[-2000:]}"
                time.sleep(0.2)
            process.kill()
            process.wait()
            if agent_too:
                kill_agent(killed)
            done = dict(Job.objects(state="done").scalar("key", "attempt"))
            finished.append((when, done, killed.ended_runs()))  # in this order: the runs of what is done have all ended
        assert killed.start().wait(timeout=600) == 0, killed.log.read_text()[-3000:]
        shown = httpx.post(f"{prefect_api_url(killed.settings)}/artifacts/latest/filter", json={}).raise_for_status().json()
        assert {"jobs-dft-label", "jobs-lam-train", "funnel", "learning"} <= {a["key"] for a in shown}
        assert Run.objects.get(campaign="tiny").stage == "finished"
        with_kills = outcome()
        # What was done at a kill is neither tried nor run again: the ledger says so, and the engines themselves counted.
        attempts, ended = dict(Job.objects.scalar("key", "attempt")), killed.ended_runs()
        for when, done, runs in finished:
            assert {k: attempts[k] for k in done} == done, f"killed {when}: a finished job was tried again"
            again = {line: n for line, n in runs.items() if line.split()[0] in done and ended[line] != n}
            assert not again, f"killed {when}: a finished calculation was run again"
        # What was tried more than once was lost or failed in between, never finished.
        for job in Job.objects(state="done", attempt__gt=1):
            assert [e.state for e in job.history].count("done") == 1, job.key
        repeated = {line: n for line, n in ended.items() if n > 1 and attempts[line.split()[0]] == 1}
        assert not repeated
        assert with_kills["candidates"]

        before = killed.ended_runs()
        assert killed.start().wait(timeout=300) == 0
        assert killed.ended_runs() == before, "a finished campaign run again computed something"
        assert outcome() == with_kills
    with open_store(straight.settings):
        assert straight.start().wait(timeout=900) == 0, straight.log.read_text()[-3000:]
        assert outcome() == with_kills
