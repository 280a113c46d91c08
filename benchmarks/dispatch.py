"""What orchestration costs per job: CPU and MongoDB round trips of the agent, beside plain dpdispatcher on the same jobs.

The jobs are real processes that do nothing, run by a real agent on this machine; the peer runs the same command lines
with dpdispatcher's own blocking loop. `python -m benchmarks.dispatch [--quick] [--json]`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pymongo import monitoring

from hydroflow.campaign import Cluster
from hydroflow.dispatch.agent import Agent
from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import Ledger
from hydroflow.errors import EngineFailure
from hydroflow.settings import ServiceSettings
from hydroflow.store import open_store, services

KIND = "benchmarks.dispatch:Nothing"


class Nothing:
    """A job that copies one number."""

    kind = KIND
    executables = ()

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        (folder / "in").write_text(str(job.inputs["i"]))

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return "cp in out"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("out",)

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        return Collected({"i": int((folder / "out").read_text())})

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        return None


class RoundTrips(monitoring.CommandListener):
    """Counts requests to MongoDB."""

    count = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        RoundTrips.count += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Nothing to count."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Nothing to count."""


def ours(count: int, group: int) -> dict[str, float]:
    """`count` jobs through ledger and agent, spread over three clusters of this machine."""
    home = Path(tempfile.mkdtemp(prefix="hf-bench-"))
    settings = ServiceSettings(home=home)
    services.up(settings, prefect=False)
    try:
        with open_store(settings) as store:
            agent = Agent(store, {name: Cluster(group_size=group, max_cores=2) for name in ("one", "two", "three")})
            thread = threading.Thread(target=agent.run)
            ledger = Ledger(store)
            memory, trips, cpu, wall = _memory_mb(), RoundTrips.count, time.process_time(), time.perf_counter()
            keys = ledger.submit([JobSpec(KIND, {"i": i}, "1") for i in range(count)], "benchmark")
            submitted = time.perf_counter() - wall
            thread.start()
            jobs = ledger.wait(keys, poll_s=2.0)
            figures = {
                "cpu_ms_per_job": 1e3 * (time.process_time() - cpu) / count,
                "mongodb_round_trips_per_job": (RoundTrips.count - trips) / count,
                "wall_ms_per_job": 1e3 * (time.perf_counter() - wall) / count, "submit_ms_per_job": 1e3 * submitted / count,
                "memory_growth_mb": _memory_mb() - memory,
            }
            assert [job.result["i"] for job in jobs] == list(range(count))
            agent.stop.set()
            thread.join()
            return figures
    finally:
        services.down(settings)
        shutil.rmtree(home, ignore_errors=True)


def dpdispatcher_alone(count: int, group: int) -> dict[str, float]:
    """The same command lines with dpdispatcher's own loop: one submission, `group` tasks per job."""
    from dpdispatcher import Machine, Resources, Submission, Task

    base = Path(tempfile.mkdtemp(prefix="hf-bench-"))
    try:
        for i in range(count):
            (base / "work" / str(i)).mkdir(parents=True)
            (base / "work" / str(i) / "in").write_text(str(i))
        cpu, wall = time.process_time(), time.perf_counter()
        submission = Submission(
            work_base="work", machine=Machine.load_from_dict({
                "batch_type": "Shell", "context_type": "LazyLocalContext", "local_root": str(base)}),
            resources=Resources(number_node=1, cpu_per_node=1, gpu_per_node=0, queue_name="", group_size=group),
            task_list=[Task(command="cp in out", task_work_path=str(i), forward_files=["in"], backward_files=["out"])
                       for i in range(count)])
        submission.run_submission(check_interval=1)
        figures = {"cpu_ms_per_job": 1e3 * (time.process_time() - cpu) / count,
                   "wall_ms_per_job": 1e3 * (time.perf_counter() - wall) / count}
        assert all((base / "work" / str(i) / "out").read_text() == str(i) for i in range(count))
        return figures
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 50 s")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    monitoring.register(RoundTrips())
    runs = [(300, 25)] if arguments.quick else [(1000, 1), (1000, 50), (10_000, 100)]
    figures: dict[str, float] = {}
    for count, group in runs:
        mine, peer = ours(count, group), dpdispatcher_alone(count, group)
        name = f"{count}_jobs_groups_of_{group}"
        figures |= {f"{name}_{key}": round(value, 3) for key, value in mine.items()}
        figures |= {f"{name}_dpdispatcher_{key}": round(value, 3) for key, value in peer.items()}
        figures[f"{name}_cpu_ratio_to_dpdispatcher"] = round(mine["cpu_ms_per_job"] / peer["cpu_ms_per_job"], 2)
        print(f"{count} jobs in groups of {group}: {mine['cpu_ms_per_job']:.2f} ms CPU and "
              f"{mine['mongodb_round_trips_per_job']:.2f} MongoDB round trips per job, {mine['wall_ms_per_job']:.1f} ms wall, "
              f"memory +{mine['memory_growth_mb']:.0f} MB; dpdispatcher alone {peer['cpu_ms_per_job']:.2f} ms CPU, "
              f"{peer['wall_ms_per_job']:.1f} ms wall", flush=True)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
