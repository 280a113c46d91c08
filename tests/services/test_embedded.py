"""The embedded services: started once, found again, mended after kill -9 and reboot, honest when they cannot start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymongo import MongoClient

from hydroflow.dispatch.agent import start_agent
from hydroflow.errors import ServiceError
from hydroflow.settings import ServiceSettings
from hydroflow.store import open_store, services
from hydroflow.store.process import ProcessIdentity

pytestmark = pytest.mark.service


@pytest.fixture
def home() -> Iterator[ServiceSettings]:
    settings = ServiceSettings(home=Path(tempfile.mkdtemp(prefix="hf-home-")))
    yield settings
    services.down(settings)
    shutil.rmtree(settings.home, ignore_errors=True)


def mongod(settings: ServiceSettings) -> services.ServiceStatus:
    return services.status(settings)[0]


def test_many_ups_start_one_mongod(home: ServiceSettings) -> None:
    command = [sys.executable, "-c", "import sys; from hydroflow.cli.main import main; main()", "services", "up", "--no-prefect",
               "--home", str(home.home), "--json"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    seen = {json.loads(p.communicate()[0])[0]["pid"] for p in started}
    assert len(seen) == 1 and mongod(home).state == "running"
    assert [p.returncode for p in started] == [0, 0, 0]


def test_kill_9_loses_nothing_and_up_mends_it(home: ServiceSettings) -> None:
    services.up(home, prefect=False)
    with MongoClient(services.mongodb_uri(home)) as client:
        for i in range(200):
            client.x.y.insert_one({"_id": i})
    os.kill(mongod(home).pid, signal.SIGKILL)
    ProcessIdentity.from_dict(json.loads((home.home / "services.json").read_text())["mongod"]).wait_gone(10)
    assert mongod(home).state == "stopped"
    with pytest.raises(ServiceError, match="hydroflow services up"):
        open_store(home)
    services.up(home, prefect=False)
    with MongoClient(services.mongodb_uri(home)) as client:
        assert client.x.y.count_documents({}) == 200


def test_down_stops_the_agent_of_the_home_too(home: ServiceSettings) -> None:
    services.up(home, prefect=False)
    identity = ProcessIdentity.of(start_agent(home))
    assert identity is not None and identity.alive()
    done = subprocess.run([sys.executable, "-c", "from hydroflow.cli.main import main; main()", "services", "down",
                           "--home", str(home.home)], capture_output=True, text=True, timeout=60, check=True)
    assert "agent stopped" in done.stderr
    assert not identity.alive() and mongod(home).state == "stopped"


def test_records_of_another_boot_are_not_believed(home: ServiceSettings) -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    # a live process has the recorded pid, but it is not the one that was started
    (home.home / "services.json").write_text(json.dumps({"mongod": {**identity.to_dict(), "started": "1"}}))
    services.down(home)
    services.up(home, prefect=False)
    assert mongod(home).state == "running" and mongod(home).pid != os.getpid()


def test_a_moved_home_and_a_long_path_work(home: ServiceSettings, tmp_path: Path) -> None:
    services.up(home, prefect=False)
    with MongoClient(services.mongodb_uri(home)) as client:
        client.x.y.insert_one({"_id": 1})
    services.down(home)
    moved = ServiceSettings(home=tmp_path / ("deep" * 20) / "home")
    moved.home.parent.mkdir()
    shutil.copytree(home.home, moved.home, ignore=shutil.ignore_patterns("*.sock"))
    services.up(moved, prefect=False)
    try:
        with MongoClient(services.mongodb_uri(moved)) as client:
            assert client.x.y.count_documents({}) == 1
        folder = services.mongod_socket(moved).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        services.down(moved)
        shutil.rmtree(folder)


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="HYDROFLOW_HOME") as caught:
        services.up(ServiceSettings(home=tmp_path / "file" / "home"), prefect=False)
    assert "\n" not in str(caught.value)


def test_an_unreachable_mongodb_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="HYDROFLOW_MONGODB_URI") as caught:
        open_store(ServiceSettings(home=tmp_path, mongodb_uri="mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=500"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ServiceError, match="HYDROFLOW_MONGODB_URI is not usable"):
        open_store(ServiceSettings(home=tmp_path, mongodb_uri="mongodb://"))


def test_nothing_listens_beyond_this_machine_and_prefect_answers(home: ServiceSettings) -> None:
    states = {s.name: s for s in services.up(home)}
    assert states["prefect"].state == "running"
    assert services.prefect_api_url(home).startswith("http://127.0.0.1:")
    with urllib.request.urlopen(states["prefect"].address + "/health", timeout=10) as answer:
        assert answer.read() == b"true"
    again = {s.name: s for s in services.up(home)}
    assert again["prefect"].pid == states["prefect"].pid
    listening = Path("/proc/net/tcp").read_text()
    port = int(states["prefect"].address.split(":")[2].split("/")[0])
    assert [line.split()[1] for line in listening.splitlines()[1:] if line.split()[3] == "0A"
            and line.split()[1].endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    services.down(home)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
