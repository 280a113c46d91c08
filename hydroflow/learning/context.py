"""What every stage works with: the campaign, the records, the ledger, and somebody to tell how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hydroflow.campaign import Campaign
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import Ledger
from hydroflow.store import Store
from hydroflow.store.documents import Job

Progress = Callable[[str, int, int], None]
"""Called as (what, done, total). What comes after `` · `` in what are figures that change from call to call."""


@dataclass
class Context:
    campaign: Campaign
    store: Store
    ledger: Ledger
    progress: Progress = lambda what, done, total: None

    def run(self, specs: Sequence[JobSpec], what: str) -> list[Job]:
        """Ask the ledger for these jobs and wait until each has ended; documents come back in the order of `specs`."""
        keys = self.ledger.submit(specs, self.campaign.name)
        total = len(set(keys))

        def tell(counts: dict[str, int]) -> None:
            ended = sum(counts.get(s, 0) for s in ("done", "failed", "quarantined", "cancelled"))
            self.progress(what, ended, total)

        return self.ledger.wait(keys, on_progress=tell)
