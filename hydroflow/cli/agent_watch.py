"""While a campaign waits for its jobs: somebody must run them, and what holds them up must be said."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from pymongo.errors import PyMongoError

from hydroflow.dispatch.agent import alive, start_agent
from hydroflow.errors import HydroflowError
from hydroflow.settings import ServiceSettings
from hydroflow.store import open_store

PERIOD_S = 15.0

log = logging.getLogger("hydroflow.progress")


class AgentWatch(threading.Thread):
    """Starts the agent again when it is gone, and tells of clusters that take no jobs.

    Parameters
    ----------
    campaign_path
        The campaign whose clusters a new agent serves; None: the agent is somebody else's, its absence is only told.
    """

    def __init__(self, settings: ServiceSettings, campaign_path: Path | None) -> None:
        super().__init__(name="agent watch", daemon=True)
        self.settings, self.campaign_path = settings, campaign_path
        self.told: dict[str, str] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(PERIOD_S):
            try:
                self.look()
            except (PyMongoError, HydroflowError, OSError) as error:
                self._tell("agent", str(error))

    def look(self) -> None:
        """One look at the agent and its clusters."""
        with open_store(self.settings) as store:
            record = alive(store)
        if record is None and self.campaign_path is None:
            self._tell("agent", "no agent is alive: jobs wait until one is started (`hydroflow agent`)")
        elif record is None:
            self._tell("agent", "the agent is gone: another one is started")
            start_agent(self.settings, self.campaign_path)
        else:
            self.told.pop("agent", None)
            for name, health in record.get("clusters", {}).items():
                if not health["reason"]:
                    self.told.pop(name, None)
                else:
                    self._tell(name, f"cluster {name} is {health['state']}: {health['reason']}")

    def _tell(self, about: str, words: str) -> None:
        """Once, until it is over or something else is wrong."""
        if self.told.get(about) != words:
            self.told[about] = words
            log.warning(words)
