"""`hydroflow clusters check`: connection, scheduler, executables, scratch space, and one real tiny job per cluster."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydroflow.campaign import Cluster
from hydroflow.dispatch.job import Resources
from hydroflow.dispatch.scheduler import Batch, BatchJob
from hydroflow.dispatch.site import Site
from hydroflow.dispatch.wrapper import Attempt, read_exit_code, read_times, write_script
from hydroflow.errors import TransportError

_VERSIONS = {
    "pw.x": "echo | {command} 2>/dev/null | grep -o 'v\\.[0-9.]*' | head -n 1",
    "ph.x": "echo | {command} 2>/dev/null | grep -o 'v\\.[0-9.]*' | head -n 1",
    "python": "{command} -c 'import sys, hydroflow; print(sys.version.split()[0], \"hydroflow\", hydroflow.__version__)'",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    cluster: str
    what: str
    ok: bool
    detail: str


def check(name: str, cluster: Cluster, staging: Path, executables: tuple[str, ...] = ("python", "pw.x"),
          wait_s: float = 120.0) -> Iterator[Finding]:
    """Findings as they come; a failed connection ends them."""
    start = time.monotonic()
    try:
        site = Site(name, cluster, staging)
    except (TransportError, OSError) as error:
        yield Finding(name, "connection", False, str(error))
        return
    try:
        where = "this machine" if site.local else f"{cluster.user}@{cluster.host}"
        yield Finding(name, "connection", True, f"{where} in {time.monotonic() - start:.2f} s")
        yield from _asked(site, executables)
        yield _tiny_job(site, wait_s)
    finally:
        site.close()


def _asked(site: Site, executables: tuple[str, ...]) -> Iterator[Finding]:
    try:
        free = site.free_bytes() / 1e9
        yield Finding(site.name, "scratch", free > 1, f"{site.root}: {free:.0f} GB free")
        queue = site.queue([])
        yield Finding(site.name, "scheduler", True, f"{site.cluster.batch}: {len(queue.running)} of our jobs in it")
    except TransportError as error:
        yield Finding(site.name, "scheduler", False, str(error))
        return
    setup = "; ".join(site.cluster.setup) + "; " if site.cluster.setup else ""
    for name, command in site.executables(executables, 1).items():
        question = _VERSIONS.get(name, "command -v {command}").format(command=command)
        try:
            answer = site.call(f"cd /tmp; {setup}OMP_NUM_THREADS=1 timeout 60 bash -c {shlex.quote(question)}", 90).strip()
        except TransportError as error:
            answer, detail = "", str(error)
        else:
            detail = "" if answer else "not found"
        yield Finding(site.name, name, bool(answer), f"{command}: {answer.splitlines()[-1] if answer else detail}")


EXIT_CODE_S = 20.0
"""How long a job that has left the queue may take to show its exit code."""


def _tiny_job(site: Site, wait_s: float) -> Finding:
    """A job through the whole way: staged, handed in, seen in the queue, fetched, removed."""
    key = os.urandom(16).hex()
    batch = Batch(f"{key}-1", (BatchJob(key, Resources(wall_time_s=60), ("answer.txt",)),))
    folder = site.staged(batch.name) / key
    start = time.monotonic()
    try:
        folder.mkdir(parents=True)
        write_script(folder, Attempt("hostname > answer.txt", cores=1, wall_time_s=60))
        ident = site.submit([batch])[batch.name]
        while time.monotonic() - start < wait_s:
            queue = site.queue([ident])
            if ident not in queue.running and batch.name not in queue.names:
                break
            time.sleep(0.5)
        else:
            site.stop(batch.name, ident, [key], whole=True)
            return Finding(site.name, "tiny job", False, f"still in the queue after {wait_s:.0f} s (id {ident}); stopped")
        ended = time.monotonic()
        while True:  # a shared file system may show the exit code later than the queue shows the end
            site.fetch([batch])
            code = read_exit_code(folder)
            if code is not None or time.monotonic() - ended > EXIT_CODE_S:
                break
            time.sleep(0.5)
        if code != 0:
            return Finding(site.name, "tiny job", False, f"scheduler job {ident} left exit code {code}")
        return Finding(site.name, "tiny job", True, f"ran on {read_times(folder).host}, {time.monotonic() - start:.1f} s in all")
    except (TransportError, OSError, KeyError) as error:
        return Finding(site.name, "tiny job", False, str(error))
    finally:
        with contextlib.suppress(TransportError):
            site.clean([f"{site.folder(batch.name)}/{key}"])
