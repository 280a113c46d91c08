"""What a search in progress shows: how fast it goes, what it has found, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.screening.entries import Entries, by_system, composition_matrix, entries
from hydroflow.screening.hull import Hull, build
from hydroflow.screening.storage import MINIMA, lowest_of, read_shard
from hydroflow.store import Store
from hydroflow.store.documents import Job


class LiveFigures:
    """Figures of a search, brought up to date from its finished shards.

    Attributes
    ----------
    structures
        Relaxed so far.
    new_minima
        How often a composition got a lower phase than it had.
    hull_changes
        How often a shard changed the hull of a chemical system.
    lowest
        The lowest phase of each reduced composition.
    """

    def __init__(self, store: Store, total: int) -> None:
        self.store, self.total = store, total
        self.structures = self.new_minima = self.hull_changes = 0
        self.lowest = StructureArrays.empty()
        self._hulls: dict[frozenset[str], Hull] = {}
        self._seen: set[str] = set()
        self._started, self._at_start = time.monotonic(), 0

    def update(self, keys: Sequence[str]) -> None:
        """Read the minima of shards that have finished since the last call."""
        first = not self._seen
        for job in Job.objects(key__in=[k for k in keys if k not in self._seen], state="done"):
            self._seen.add(job.key)
            self.structures += int(job.result["generated"])
            self._learn(read_shard(self.store.objects, job.outputs[MINIMA]), job)
        if first:
            # what was there at the first look was not computed while we watched
            self._started, self._at_start = time.monotonic(), self.structures

    def _learn(self, minima: StructureArrays, job: Job) -> None:
        before = set(self.lowest.columns["id"]) if len(self.lowest) else set()
        self.lowest = lowest_of([self.lowest, minima])
        fresh = np.array([name not in before for name in self.lowest.columns["id"]])
        self.new_minima += int(fresh.sum())
        pressure, level = float(job.result["pressure_gpa"]), job.files["model.pt"]
        for elements, rows, _ in by_system(self.lowest):
            news = rows[fresh[rows]]
            if not len(news):
                continue
            hull = self._hulls.get(frozenset(elements))
            now = self._grown(hull, elements, rows if hull is None else news, pressure, level)
            if now is not None and now is not hull:
                self._hulls[frozenset(elements)] = now
                self.hull_changes += hull is not None

    def _grown(self, hull: Hull | None, elements: tuple[str, ...], rows: np.ndarray, pressure: float,
               level: str) -> Hull | None:
        part = self.lowest[rows]
        counts = composition_matrix(part, elements)
        if hull is None and not (counts == part.counts[:, None]).any(axis=0).all():
            return None
        given: Entries = entries(elements, counts, part.columns["enthalpy_ev"], pressure, level, part.columns["id"])
        return build(given) if hull is None else hull.with_entries(given)

    def line(self) -> str:
        """E.g. ``5200 of 20000 structures, 41/s, 6 min left, 34 new minima, 3 hull changes``."""
        words = [f"{self.structures} of {self.total} structures"]
        elapsed = time.monotonic() - self._started
        computed = self.structures - self._at_start
        if computed and elapsed > 1:
            rate = computed / elapsed
            left = max(self.total - self.structures, 0) / rate
            words += [f"{rate:.3g}/s", f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"]
        return ", ".join([*words, f"{self.new_minima} new minima", f"{self.hull_changes} hull changes"])
