"""Objects in a directory: the contract, and what only a disk can do wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hydroflow.errors import ServiceError
from hydroflow.store.objects import DirectoryObjects, ObjectDamaged, ObjectStore, object_key
from tests.small_disk import small_disk
from tests.store.contract import ObjectStoreContract


@pytest.fixture
def objects(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return DirectoryObjects(tmp_path_factory.mktemp("store"))


class TestDirectory(ObjectStoreContract):
    pass


def test_damage_is_seen_and_a_second_put_mends_a_cut_file(objects: DirectoryObjects, tmp_path: Path) -> None:
    name = objects.put(b"precious")
    path = objects.root / object_key(name)
    path.chmod(0o644)
    path.write_bytes(b"preci")
    for action in (lambda: objects.get(name), lambda: objects.fetch(name, tmp_path / "out")):
        with pytest.raises(ObjectDamaged, match=name):
            action()
    assert not (tmp_path / "out").exists()
    objects.put(b"precious")
    assert objects.get(name) == b"precious"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "1m") as mount:
        objects = DirectoryObjects(mount)
        kept = objects.put(b"first")
        big = tmp_path / "big"
        big.write_bytes(os.urandom(2 << 20))
        for action in (lambda: objects.put_file(big), lambda: objects.put(big.read_bytes())):
            with pytest.raises(ServiceError, match="is full") as caught:
                action()
            assert "\n" not in str(caught.value)
        assert [d for d, _, _ in objects.list()] == [kept]
        assert list((mount / "tmp").iterdir()) == []


def test_kill_9_while_writing_leaves_whole_objects_only(tmp_path: Path) -> None:
    script = ("import os, sys\nfrom hydroflow.store.objects import DirectoryObjects\n"
              "objects = DirectoryObjects(sys.argv[1])\n"
              "while True: print(objects.put(os.urandom(300_000)), flush=True)\n")
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path / "store"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    objects = DirectoryObjects(tmp_path / "store")
    names = [name for name, _, _ in objects.list()]
    assert len(names) >= 20
    for name in names:
        objects.get(name)
