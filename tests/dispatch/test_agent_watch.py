"""A campaign that waits for its jobs does not wait for an agent that is gone, and says what holds jobs up."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

from hydroflow.cli.agent_watch import AgentWatch
from hydroflow.dispatch.agent import alive, start_agent, stop_agent
from tests.test_campaign import MINIMAL
from tests.waiting import until

pytestmark = pytest.mark.service


def test_an_agent_that_was_killed_is_started_again(store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    campaign = tmp_path / "campaign.toml"
    campaign.write_text(MINIMAL)
    caplog.set_level(logging.WARNING, "hydroflow.progress")
    try:
        first = start_agent(store.settings, campaign)
        watch = AgentWatch(store.settings, campaign)
        watch.look()
        assert alive(store)["process"]["pid"] == first and not caplog.messages
        os.kill(first, signal.SIGKILL)
        until(lambda: alive(store) is None)
        watch.look()
        assert alive(store)["process"]["pid"] != first
        assert caplog.messages == ["the agent is gone: another one is started"]

        # somebody else's agent is not ours to start; what a cluster suffers from is said once
        store.database["agents"].update_one({}, {"$set": {"clusters.local": {"state": "benched", "reason": "the disk is full"}}})
        elsewhere = AgentWatch(store.settings, None)
        elsewhere.look()
        elsewhere.look()
        assert caplog.messages[1:] == ["cluster local is benched: the disk is full"]
        stop_agent(store.settings)
        elsewhere.look()
        assert alive(store) is None and caplog.messages[-1].startswith("no agent is alive")
    finally:
        stop_agent(store.settings)
