"""The script around each job's command: one attempt, at most once, with its own verdict.

Scheduler jobs may start twice (a resubmission that raced, a requeue after a node failure): the first to make the
directory ``.started`` runs, any other leaves at once. The command's exit code, output and times are written beside it,
and the script itself always ends well, so that one job never takes its group down. On a full disk it waits for room: a
command that has ended is not to be run again because its exit code could not be written.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

SCRIPT = "hydroflow_run.sh"
LOGS = ("exit_code", "stdout.txt", "stderr.txt", "hydroflow_times")
"""What the script leaves in the job's folder."""
PATIENCE = 48
"""Tries, 5 s apart, to write on a full disk: within the margin of the scheduler job's wall time."""

_TEMPLATE = """#!/bin/bash
for i in $(seq {patience}); do
  mkdir .started 2>/dev/null && break
  test -d .started && exit 0
  sleep 5
done
trap 'test -n "$child" && kill -TERM -- "-$child" 2>/dev/null' TERM INT
{restart}{exports}
echo "start $(date +%s.%N) $(hostname)" > hydroflow_times
timeout -k 30 {wall_time_s} bash -c {command} >stdout.txt 2>stderr.txt </dev/null &
child=$!
echo $child > .process_group
# whoever stops it marks that first and looks for the process group then: one of the two sees the other
test -e ".stop-$(basename "$(dirname "$PWD")")" && kill -TERM -- "-$child" 2>/dev/null
wait $child; code=$?
# a signal interrupts wait before the command has ended
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
end="end $(date +%s.%N) $(df -Pk . | tail -n 1 | tr -s ' ' | cut -d' ' -f4)"
for i in $(seq {patience}); do
  {{ echo "$end" >> hydroflow_times && echo $code > .exit_code && mv .exit_code exit_code; }} 2>/dev/null && break
  sleep 5
done
exit 0
"""


@dataclass(frozen=True)
class Times:
    """When and where a job's command ran, seconds since the epoch on the cluster's clock; None where unknown.

    `free_kb` is what was left on the disk when it ended.
    """

    start: float | None = None
    end: float | None = None
    host: str = ""
    free_kb: int | None = None

    @property
    def wall_s(self) -> float:
        return max(0.0, self.end - self.start) if self.start is not None and self.end is not None else 0.0


@dataclass(frozen=True)
class Attempt:
    """What the wrapper of one attempt needs to know."""

    command: str
    cores: int
    wall_time_s: int
    restart_from: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def write_script(folder: Path, attempt: Attempt) -> None:
    restart = ""
    if attempt.restart_from:
        previous = shlex.quote(attempt.restart_from)
        # checkpoints of the last attempt; new inputs and the bookkeeping of this attempt win, and what says that an attempt
        # runs is not taken over
        restart = (f"rm -f {previous}/.process_group {previous}/hydroflow_times\n"
                   f"cp -rln {previous}/. . 2>/dev/null || cp -rn {previous}/. . 2>/dev/null\n"
                   "rm -f exit_code stdout.txt stderr.txt result.json failure.json\n")
    exports = "".join(f"export {k}={shlex.quote(str(v))}\n" for k, v in attempt.environment.items())
    text = _TEMPLATE.format(restart=restart, exports=exports, wall_time_s=attempt.wall_time_s,
                            patience=PATIENCE, command=shlex.quote(attempt.command))
    (folder / SCRIPT).write_text(text)


def read_exit_code(folder: Path) -> int | None:
    try:
        return int((folder / "exit_code").read_text())
    except (OSError, ValueError):
        return None


def read_times(folder: Path) -> Times:
    times = Times()
    try:
        lines = (folder / "hydroflow_times").read_text().splitlines()
    except OSError:
        return times
    for line in lines:
        match line.split():
            case ["start", clock, *rest] if _number(clock):
                times = replace(times, start=float(clock), host=rest[0] if rest else "")
            case ["end", clock, *rest] if _number(clock):
                times = replace(times, end=float(clock), free_kb=int(rest[0]) if rest and rest[0].isdigit() else None)
    return times


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def last_lines(folder: Path, name: str, limit: int = 4000) -> str:
    """End of a log file, for people."""
    try:
        with open(folder / name, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - limit))
            return handle.read().decode(errors="replace")
    except OSError:
        return ""
