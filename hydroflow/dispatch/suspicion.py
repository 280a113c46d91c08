"""Is it the jobs or the cluster? The same unexplained failure of several unrelated jobs in a row speaks against the cluster.

A failure that the engine understands (an SCF cycle that does not converge) proves that the engine runs there; a crash, a
vanished job or an output cut short does not. After :data:`SAME_FAILURES` different jobs of one kind have failed alike, with
nothing better in between, the cluster takes no more of that kind for a while, then one at a time until one succeeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hydroflow.errors import FailureCode

SAME_FAILURES = 6
FIRST_PAUSE_S, LAST_PAUSE_S = 60.0, 1800.0
UNEXPLAINED = frozenset({
    FailureCode.unknown, FailureCode.killed, FailureCode.lost, FailureCode.missing_output, FailureCode.truncated_output,
    FailureCode.corrupted_output, FailureCode.disk_full})


@dataclass
class _Streak:
    code: FailureCode
    jobs: set[str] = field(default_factory=set)
    pauses: int = 0
    until: float = 0.0


class Suspicion:
    """What a cluster is suspected of, per kind of job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._streaks: dict[str, _Streak] = {}

    def told(self, kind: str, key: str, code: FailureCode | None) -> bool:
        """A job has ended (None: well). True when this begins or prolongs the cluster's rest from this kind."""
        if code not in UNEXPLAINED:
            self._streaks.pop(kind, None)
            return False
        streak = self._streaks.get(kind)
        if streak is None or streak.code is not code:
            streak = self._streaks[kind] = _Streak(code)
        streak.jobs.add(key)
        # those that were under way when it began fail as well; only a failure after the pause prolongs it
        if len(streak.jobs) < SAME_FAILURES or self._clock() < streak.until:
            return False
        streak.pauses += 1
        streak.until = self._clock() + min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (streak.pauses - 1))
        return True

    def suspected(self, kind: str) -> bool:
        streak = self._streaks.get(kind)
        return streak is not None and len(streak.jobs) >= SAME_FAILURES

    def resting(self) -> list[str]:
        """Kinds that are not taken at present."""
        return [k for k, s in self._streaks.items() if self.suspected(k) and self._clock() < s.until]

    def on_trial(self) -> list[str]:
        """Kinds of which one job at a time is taken."""
        return [k for k, s in self._streaks.items() if self.suspected(k) and self._clock() >= s.until]

    def text(self) -> str:
        """For people; empty when there is nothing to say."""
        return "; ".join(
            f"{len(s.jobs)} {k} jobs in a row failed alike ({s.code.value}): "
            + (f"no more of them for {s.until - self._clock():.0f} s" if self._clock() < s.until else "one at a time")
            for k, s in self._streaks.items() if self.suspected(k))
