"""Objects over HTTP: the contract on a real S3 server (Ceph RGW) and on a fast emulator, and servers that misbehave."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hydroflow.errors import ServiceError, SettingsError
from hydroflow.settings import ServiceSettings
from hydroflow.store import open_objects
from hydroflow.store.objects import ObjectDamaged, ObjectStore, object_key
from hydroflow.store.s3 import S3Objects
from tests.fixtures_store import ROOT
from tests.s3_emulator import Emulator, create_bucket, free_port
from tests.store.contract import ObjectStoreContract

pytestmark = pytest.mark.service
CEPH = ROOT / "infra" / "test-clusters" / "ceph_rgw.sh"


@pytest.fixture(scope="module")
def ministack() -> Iterator[str]:
    """The emulator's endpoint."""
    emulator = Emulator()
    emulator.start()
    yield emulator.endpoint
    emulator.remove()


@pytest.fixture(scope="module")
def ceph() -> Iterator[str]:
    """A Ceph object gateway's endpoint."""
    missing = [name for name in ("radosgw", "ceph-osd", "ceph-mon") if shutil.which(name) is None]
    reason = f"needs {', '.join(missing)} on the PATH" if missing else "needs root" if os.getuid() else ""
    if reason:
        if os.environ.get("CI"):
            pytest.fail(f"the Ceph gateway cannot be started: {reason}")
        pytest.skip(reason)
    folder, port = tempfile.mkdtemp(prefix="hf-ceph-"), free_port()
    try:
        subprocess.run([CEPH, "up", folder, str(port), str(free_port())], check=True, timeout=240)
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([CEPH, "down", folder], check=True, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.log").unlink(missing_ok=True)


def bucket(endpoint: str, key: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> S3Objects:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    name = f"test-{uuid.uuid4().hex[:12]}"
    create_bucket(endpoint, name)
    # the smallest part that S3 allows, so that a 12 MB file already goes up in three
    return S3Objects(name, endpoint, part_bytes=5 << 20)


class TestEmulator(ObjectStoreContract):
    @pytest.fixture
    def objects(self, ministack: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
        return bucket(ministack, "test", "test", monkeypatch)


class TestCeph(ObjectStoreContract):
    @pytest.fixture
    def objects(self, ceph: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
        return bucket(ceph, "hydroflow", "hydroflow-secret", monkeypatch)

    def test_damage_is_seen(self, objects: S3Objects, tmp_path: Path) -> None:
        name = objects.put(b"precious")
        objects._s3.put_object(Bucket=objects.bucket, Key=object_key(name), Body=b"rot")
        for action in (lambda: objects.get(name), lambda: objects.fetch(name, tmp_path / "x")):
            with pytest.raises(ObjectDamaged):
                action()
        assert list(tmp_path.iterdir()) == []

    def test_wrong_credentials_and_bucket(self, objects: S3Objects, ceph: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ServiceError, match="no such bucket"):
            S3Objects("no-such-bucket", ceph).check()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        wrong = S3Objects(objects.bucket, ceph)
        for action in (wrong.check, lambda: wrong.put(b"x"), lambda: wrong.get("sha256:" + "0" * 64)):
            with pytest.raises(ServiceError, match="refuses the credentials") as caught:
                action()
            assert "\n" not in str(caught.value)


def test_an_unreachable_store_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    settings = ServiceSettings.from_environment({"HYDROFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
                                                 "HYDROFLOW_S3_BUCKET": "x-bucket"})
    with pytest.raises(ServiceError, match=r"cannot be reached.*HYDROFLOW_S3_ENDPOINT_URL") as caught:
        open_objects(settings).check()
    assert "\n" not in str(caught.value)


def test_an_endpoint_without_a_bucket_is_refused() -> None:
    with pytest.raises(SettingsError, match="HYDROFLOW_S3_BUCKET"):
        ServiceSettings.from_environment({"HYDROFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:1"})


@pytest.mark.parametrize("status", [400, 503])
def test_an_answer_that_makes_no_sense_is_one_line(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy, a moved region or another server altogether behind the address."""
    class Odd(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    objects = S3Objects("bucket", f"http://127.0.0.1:{server.server_port}", attempts=1)
    digest = "sha256:" + "0" * 64
    try:
        for action in (objects.check, lambda: objects.delete(digest), lambda: list(objects.list()),
                       lambda: objects.exists(digest), lambda: objects.get(digest)):
            with pytest.raises(ServiceError, match="check HYDROFLOW_S3_ENDPOINT_URL") as caught:
                action()
            assert "\n" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()
