"""Is that process still the one we started? Pid files lie after a kill or a reboot; pid + start time + boot do not."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one boot of one machine; a recycled pid has another start time."""

    pid: int
    started: str
    boot: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Identity of a running process, None when there is none (a zombie counts as none)."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started, _boot())

    @classmethod
    def from_dict(cls, data: Any) -> ProcessIdentity | None:
        try:
            return cls(int(data["pid"]), str(data["started"]), str(data["boot"]))
        except (KeyError, TypeError, ValueError):
            return None

    def alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

    def stop(self, timeout_s: float = 20.0) -> bool:
        """SIGTERM, and wait until it is gone; False when it is still there after the timeout."""
        if not self.alive():
            return True
        os.kill(self.pid, signal.SIGTERM)
        return self.wait_gone(timeout_s)

    def kill(self) -> None:
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            self.wait_gone(10)

    def wait_gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.alive():
                return True
            time.sleep(0.05)
        return not self.alive()


def _start_time(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
