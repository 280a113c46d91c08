"""What every object store must do; run on each backend."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from hydroflow.errors import DataError
from hydroflow.store import packs
from hydroflow.store.objects import ManifestExists, ObjectDamaged, ObjectMissing, ObjectStore


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class ObjectStoreContract:
    """Subclasses provide the fixture ``objects``."""

    def test_bytes_and_files_come_back_under_their_checksum(self, objects: ObjectStore, tmp_path: Path) -> None:
        for data in (b"", b"\x00" * 10, os.urandom(200_000)):
            name = objects.put(data)
            assert name == digest(data) and objects.put(data) == name
            assert objects.get(name) == data
            assert objects.exists(name) and objects.size(name) == len(data)
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(os.urandom(12 << 20))  # above one part of a multipart upload
        name = objects.put_file(source)
        objects.fetch(name, target)
        assert target.read_bytes() == source.read_bytes() and name == digest(source.read_bytes())
        assert objects.put_file(source) == name
        assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []

    def test_small_files_share_an_object_and_come_back_one_by_one(self, objects: ObjectStore, tmp_path: Path) -> None:
        files = {}
        for i, data in enumerate((b"", b"a", os.urandom(70_000), os.urandom(packs.LARGE_BYTES + 1))):
            files[f"job{i}/out"] = tmp_path / str(i)
            files[f"job{i}/out"].write_bytes(data)
        addresses = packs.put_pack(objects, files)
        assert {name: packs.read(objects, address) for name, address in addresses.items()} == {
            name: path.read_bytes() for name, path in files.items()}
        assert len(list(objects.list())) == 2  # the pack and the large file
        assert packs.put_pack(objects, files) == addresses
        with pytest.raises(ObjectDamaged, match="storage verify"):
            packs.read(objects, addresses["job1/out"][:-64] + "0" * 64)
        objects.delete(addresses["job1/out"][:71])
        with pytest.raises(ObjectMissing):
            packs.read(objects, addresses["job2/out"])

    def test_missing_objects_are_named(self, objects: ObjectStore, tmp_path: Path) -> None:
        absent = digest(b"never stored")
        assert not objects.exists(absent)
        for action in (lambda: objects.get(absent), lambda: objects.size(absent), lambda: objects.fetch(absent, tmp_path / "x"),
                       lambda: objects.get_manifest("never/written")):
            with pytest.raises(ObjectMissing):
                action()
        assert list(tmp_path.iterdir()) == []
        objects.delete(absent)
        for wrong in ("", "sha256:xyz", "../../etc/passwd"):
            with pytest.raises(DataError, match="not an object digest"):
                objects.get(wrong)

    def test_listing_and_deleting(self, objects: ObjectStore) -> None:
        names = {objects.put(bytes([i])) for i in range(5)}
        assert {d for d, size, _ in objects.list() if size == 1} == names
        gone = names.pop()
        objects.delete(gone)
        assert not objects.exists(gone) and {d for d, _, _ in objects.list()} == names

    def test_manifests_are_written_once(self, objects: ObjectStore) -> None:
        objects.put_manifest("run/a", {"x": [1, 2.5, "é"]})
        objects.put_manifest("run", {"x": 0})  # a name may be the beginning of another
        objects.put_manifest("run/a", {"x": [1, 2.5, "é"]})
        with pytest.raises(ManifestExists):
            objects.put_manifest("run/a", {"x": 1})
        assert objects.get_manifest("run/a") == {"x": [1, 2.5, "é"]}
        assert sorted(objects.manifests()) == ["run", "run/a"]
        with pytest.raises(DataError, match="not a manifest name"):
            objects.put_manifest("../up", {})

    def test_of_many_writers_one_manifest_wins(self, objects: ObjectStore) -> None:
        outcomes: list[object] = []

        def write(i: int) -> None:
            try:
                objects.put_manifest("race", {"writer": i})
                outcomes.append(i)
            except ManifestExists:
                outcomes.append(None)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        winners = [o for o in outcomes if o is not None]
        assert len(outcomes) == 8 and len(winners) == 1
        assert objects.get_manifest("race") == {"writer": winners[0]}
