"""Fixtures shared by all tests."""

from __future__ import annotations

import os

import pytest

LONGEST_FIRST = ("flows", "clusters", "engines")
"""Folders whose tests are begun first, so that a run with several workers does not end waiting for one of them."""

# Before numpy and torch are imported: the cores are shared with the other workers of the test run.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

pytest_plugins = ["tests.fixtures_store"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order, and what stays with one worker: a file, whose fixtures are made once; all tests on the two test clusters."""
    def rank(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)
    for item in items:
        folder = item.path.parent
        item.add_marker(pytest.mark.xdist_group("clusters" if folder.name == "clusters" else f"{folder.name}/{item.path.stem}"))
