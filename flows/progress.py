"""Progress of a stage: to whoever watches the terminal, to the run's record and to an artifact in the Prefect UI."""

from __future__ import annotations

import logging
import time

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from hydroflow.store.runs import set_stage

log = logging.getLogger("hydroflow.progress")

RECORD_EVERY_S = 2.0


class StageProgress:
    """A :data:`hydroflow.learning.context.Progress` for one stage of one campaign."""

    def __init__(self, campaign: str, stage: str) -> None:
        self.campaign, self.stage = campaign, stage
        self._what = ""
        self._last = 0.0
        self._artifact: object | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        what, _, figures = what.partition(" · ")  # figures change from call to call, what is being done does not
        log.info(
            "%s: %d of %d", what, done, total,
            extra={"stage": self.stage, "what": what, "done": done, "total": total, "figures": figures},
        )
        ended = done >= total
        if what == self._what and not ended and time.monotonic() - self._last < RECORD_EVERY_S:
            return
        self._last = time.monotonic()
        said = f"{what}: {done} of {total}" + (f" ({figures})" if figures else "")
        set_stage(self.campaign, self.stage, said)
        percent = 100.0 * done / max(total, 1)
        if what != self._what:
            self._artifact = create_progress_artifact(progress=percent, description=what)
        elif self._artifact is not None:
            described = {"description": said} if figures else {}
            update_progress_artifact(artifact_id=self._artifact, progress=percent, **described)  # type: ignore[arg-type]
        self._what = what
