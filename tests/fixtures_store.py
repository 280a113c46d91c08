"""A real MongoDB for all tests (one per session) with a fresh database and object directory per test, and an agent."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hydroflow.campaign import Cluster
from hydroflow.settings import ServiceSettings
from hydroflow.store import Store, open_store, services

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def mongod() -> Iterator[ServiceSettings]:
    """The embedded mongod, on its own data directory; stopped and removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="hf-test-"))
    settings = ServiceSettings(home=home)
    services.up(settings, prefect=False)
    yield settings
    services.down(settings)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def settings(mongod: ServiceSettings, tmp_path: Path) -> ServiceSettings:
    """Settings of one test: the session's mongod, an own database, an own home for objects and job folders."""
    return replace(mongod, home=tmp_path / "home", database=f"test_{uuid.uuid4().hex[:12]}",
                   mongodb_uri=services.mongodb_uri(mongod))


@pytest.fixture
def store(settings: ServiceSettings) -> Iterator[Store]:
    """A fresh, empty store."""
    with open_store(settings) as opened:
        yield opened
        opened.database.client.drop_database(settings.database)


@pytest.fixture
def agent(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """``agent(clusters)`` starts a real agent in a thread; default: this machine as the cluster `local`."""
    from hydroflow.dispatch.agent import Agent

    # jobs that run Python must find the tests' engines
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    running: list[tuple[Agent, threading.Thread]] = []

    def start(clusters: dict[str, Cluster] | None = None) -> Agent:
        made = Agent(store, clusters or {"local": Cluster()})
        thread = threading.Thread(target=made.run)
        thread.start()
        running.append((made, thread))
        return made

    yield start
    for made, thread in running:
        made.stop.set()
        thread.join()
