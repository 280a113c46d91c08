"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Before numpy and torch are imported: these machines are small and shared.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

pytest_plugins = ["tests.fixtures_store"]
