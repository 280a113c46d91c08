"""Immutable objects named by their content, and named manifests that are written once.

One small protocol, :class:`ObjectStore`, with two backends that pass the same contract test: a directory (here) and S3
through boto3 (:mod:`hydroflow.store.s3`). A digest is ``sha256:<64 hex>``. Every read is verified. Disk full, an
unreachable store or refused credentials raise :class:`ServiceError` in one line and leave nothing half-written; content
that no longer matches its digest raises :class:`ObjectDamaged`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from hydroflow.errors import DataError, ServiceError

CHUNK = 1 << 20


class ObjectMissing(DataError):
    """No object or manifest of this name."""


class ObjectDamaged(DataError):
    """The stored bytes do not match their digest."""


class ManifestExists(DataError):
    """A manifest of this name is there already with other content; manifests are never rewritten."""


@runtime_checkable
class ObjectStore(Protocol):
    """Content-addressed, create-only storage of bytes."""

    def put(self, data: bytes) -> str:
        """Store bytes and return their digest; storing the same bytes again does nothing."""

    def put_file(self, path: str | Path) -> str:
        """Store a file of any size without reading it into memory."""

    def get(self, digest: str) -> bytes:
        """The bytes, verified. Raises :class:`ObjectMissing`, :class:`ObjectDamaged`."""

    def get_range(self, digest: str, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, fewer where the object ends earlier. The one read that cannot be verified against
        the digest; see :mod:`hydroflow.store.packs`."""

    def fetch(self, digest: str, path: str | Path) -> None:
        """Write the object to `path`, verified, whole or not at all."""

    def exists(self, digest: str) -> bool: ...

    def size(self, digest: str) -> int:
        """Bytes of the stored object. Raises :class:`ObjectMissing`."""

    def list(self) -> Iterator[tuple[str, int, float]]:
        """(digest, bytes, time of writing in seconds since the epoch) of every object."""

    def delete(self, digest: str) -> None:
        """Remove an object; one that is not there is no error. Only for `hydroflow storage gc`."""

    def put_manifest(self, name: str, content: dict[str, Any]) -> None:
        """Write a named JSON manifest once. The same content again does nothing; other content raises
        :class:`ManifestExists`."""

    def get_manifest(self, name: str) -> dict[str, Any]:
        """Raises :class:`ObjectMissing`, :class:`ObjectDamaged`."""

    def manifests(self) -> Iterator[str]:
        """Names of all manifests."""

    def check(self) -> None:
        """Raises :class:`ServiceError` when the store cannot be used."""


# ---- shared by the backends -------------------------------------------------------------------------------------------
def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_of_file(path: str | Path) -> str:
    with open(path, "rb") as handle:
        return f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}" if hasattr(hashlib, "file_digest") \
            else _digest_stream(handle)


def _digest_stream(handle: IO[bytes]) -> str:
    h = hashlib.sha256()
    while block := handle.read(CHUNK):
        h.update(block)
    return f"sha256:{h.hexdigest()}"


def object_key(digest: str) -> str:
    """Path of an object inside a store, e.g. ``objects/ab/cdef…``."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise DataError(f"{digest!r} is not an object digest (sha256: and 64 hex digits)")
    return f"objects/{digest[7:9]}/{digest[9:]}"


def digest_of_key(key: str) -> str:
    return "sha256:" + "".join(key.split("/")[-2:])


def manifest_key(name: str) -> str:
    """Path of a manifest. The ending keeps ``a`` and ``a/b`` apart: no name is another one's folder."""
    if not re.fullmatch(r"[A-Za-z0-9_.=+-]+(/[A-Za-z0-9_.=+-]+)*", name) or ".." in name.split("/"):
        raise DataError(f"{name!r} is not a manifest name (letters, digits, _ . = + - and / between parts)")
    return f"manifests/{name}.json"


def encode_manifest(content: dict[str, Any]) -> bytes:
    """JSON with its own checksum in front, so that damage is seen on reading."""
    body = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    return digest_of(body).encode() + b"\n" + body


def decode_manifest(name: str, data: bytes) -> dict[str, Any]:
    head, _, body = data.partition(b"\n")
    if head.decode(errors="replace") != digest_of(body):
        raise ObjectDamaged(f"manifest {name} is damaged; run `hydroflow storage verify`")
    return json.loads(body)


def damaged(digest: str) -> ObjectDamaged:
    return ObjectDamaged(f"object {digest} is damaged: its content has another checksum; run `hydroflow storage verify` "
                         "to see which jobs must be redone")


def missing(name: str) -> ObjectMissing:
    return ObjectMissing(f"object {name} is not in the store; run `hydroflow storage verify` to see which jobs must be redone")


@contextlib.contextmanager
def disk_errors(where: Path, doing: str) -> Iterator[None]:
    """Full or read-only disks as one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServiceError(f"the disk of {where} is full while {doing}; free some space and try again, nothing was left "
                               "half-written") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
            raise ServiceError(f"cannot use {where} while {doing}: {error.strerror}; check permissions and disk") from error
        raise


# ---- directory -------------------------------------------------------------------------------------------------------
class DirectoryObjects:
    """Objects as read-only files below one directory; safe against kill -9, power loss and concurrent writers."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def __repr__(self) -> str:
        return f"DirectoryObjects({str(self.root)!r})"

    def check(self) -> None:
        with disk_errors(self.root, "opening the object store"):
            (self.root / "objects").mkdir(parents=True, exist_ok=True)
            (self.root / "manifests").mkdir(exist_ok=True)
            (self.root / "tmp").mkdir(exist_ok=True)

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        if not self._whole(digest, len(data)):
            with self._temporary() as (temporary, handle):
                handle.write(data)
                self._publish(handle, temporary, self.root / object_key(digest))
        return digest

    def put_file(self, path: str | Path) -> str:
        h, size = hashlib.sha256(), 0
        # copied and hashed in one pass: a file that changes meanwhile cannot get a wrong name
        with open(path, "rb") as source, self._temporary() as (temporary, handle):
            while block := source.read(CHUNK):
                h.update(block)
                size += len(block)
                handle.write(block)
            digest = f"sha256:{h.hexdigest()}"
            if not self._whole(digest, size):
                self._publish(handle, temporary, self.root / object_key(digest))
        return digest

    def get(self, digest: str) -> bytes:
        try:
            with disk_errors(self.root, "reading an object"):
                data = (self.root / object_key(digest)).read_bytes()
        except FileNotFoundError:
            raise missing(digest) from None
        if digest_of(data) != digest:
            raise damaged(digest)
        return data

    def get_range(self, digest: str, start: int, size: int) -> bytes:
        try:
            with disk_errors(self.root, "reading an object"), open(self.root / object_key(digest), "rb") as handle:
                handle.seek(start)
                return handle.read(size)
        except FileNotFoundError:
            raise missing(digest) from None

    def fetch(self, digest: str, path: str | Path) -> None:
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        h = hashlib.sha256()
        try:
            with disk_errors(target.parent, "fetching an object"), open(self.root / object_key(digest), "rb") as source, \
                    open(temporary, "wb") as out:
                while block := source.read(CHUNK):
                    h.update(block)
                    out.write(block)
            if f"sha256:{h.hexdigest()}" != digest:
                raise damaged(digest)
            temporary.replace(target)
        except FileNotFoundError as error:
            if error.filename == str(self.root / object_key(digest)):
                raise missing(digest) from None
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, digest: str) -> bool:
        return (self.root / object_key(digest)).is_file()

    def size(self, digest: str) -> int:
        try:
            return (self.root / object_key(digest)).stat().st_size
        except FileNotFoundError:
            raise missing(digest) from None

    def list(self) -> Iterator[tuple[str, int, float]]:
        for folder in sorted((self.root / "objects").glob("??")):
            for path in sorted(folder.iterdir()):
                if re.fullmatch(r"[0-9a-f]{62}", path.name):
                    stat = path.stat()
                    yield f"sha256:{folder.name}{path.name}", stat.st_size, stat.st_mtime

    def delete(self, digest: str) -> None:
        with disk_errors(self.root, "removing an object"):
            (self.root / object_key(digest)).unlink(missing_ok=True)

    def put_manifest(self, name: str, content: dict[str, Any]) -> None:
        data, path = encode_manifest(content), self.root / manifest_key(name)
        with self._temporary() as (temporary, handle):
            handle.write(data)
            if not self._publish(handle, temporary, path, replace=False) and self.get_manifest(name) != content:
                raise ManifestExists(f"manifest {name} exists with other content; it is written once, choose another name")

    def get_manifest(self, name: str) -> dict[str, Any]:
        try:
            with disk_errors(self.root, "reading a manifest"):
                return decode_manifest(name, (self.root / manifest_key(name)).read_bytes())
        except FileNotFoundError:
            raise missing(f"manifest {name}") from None

    def manifests(self) -> Iterator[str]:
        root = self.root / "manifests"
        for path in sorted(root.rglob("*.json")):
            yield str(path.relative_to(root))[:-5]

    def _whole(self, digest: str, size: int) -> bool:
        """There already, with the right length (a file cut by a broken disk is written anew)."""
        try:
            return (self.root / object_key(digest)).stat().st_size == size
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[Path, IO[bytes]]]:
        temporary = self.root / "tmp" / uuid.uuid4().hex
        with disk_errors(self.root, "writing an object"):
            try:
                try:
                    handle = open(temporary, "xb")  # noqa: SIM115
                except FileNotFoundError:
                    self.check()
                    handle = open(temporary, "xb")  # noqa: SIM115
                with handle:
                    yield temporary, handle
            finally:
                temporary.unlink(missing_ok=True)

    def _publish(self, handle: IO[bytes], temporary: Path, path: Path, replace: bool = True) -> bool:
        """Give a complete, synced temporary file its name; `os.link` never overwrites. False when the name was taken."""
        handle.flush()
        os.fsync(handle.fileno())
        os.fchmod(handle.fileno(), 0o444)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(temporary, path)
        except FileExistsError:
            if not replace:
                return False
            if path.stat().st_size != os.fstat(handle.fileno()).st_size:
                os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True
