"""Objects in an S3 bucket through boto3: the second backend of :class:`hydroflow.store.objects.ObjectStore`.

Writes are conditional (``If-None-Match: *``), large files go up in parts, requests are retried with back-off by botocore.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from hydroflow.errors import ServiceError
from hydroflow.store.objects import (
    CHUNK,
    ManifestExists,
    damaged,
    decode_manifest,
    digest_of,
    digest_of_file,
    digest_of_key,
    disk_errors,
    encode_manifest,
    manifest_key,
    missing,
    object_key,
)

_NOT_FOUND = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"412", "PreconditionFailed"}
_BUSY = {"409", "ConditionalRequestConflict", "OperationAborted"}
_CREDENTIALS = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
                "Forbidden"}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "EntityTooLarge", "InsufficientCapacity"}


class S3Objects:
    """Objects in one bucket.

    Parameters
    ----------
    bucket, endpoint_url
        Where; no endpoint means AWS.
    checksums
        ``when_supported`` or ``when_required``, handed to botocore's request and response checksum settings.
    part_bytes
        Files above this go up in parts of this size (at least 5 MiB, which S3 asks for).
    """

    def __init__(self, bucket: str, endpoint_url: str | None = None, checksums: str = "when_supported",
                 part_bytes: int = 64 << 20, attempts: int = 6) -> None:
        self.bucket, self.endpoint_url, self.part_bytes = bucket, endpoint_url, part_bytes
        self._config = Config(
            retries={"mode": "standard", "max_attempts": attempts}, connect_timeout=5, read_timeout=60,
            request_checksum_calculation=checksums, response_checksum_validation=checksums,
            # path style: a bucket name in the host name needs DNS that a private store rarely has
            s3={"addressing_style": "path"} if endpoint_url else None,
        )
        with self._errors("connecting"):
            self._s3 = self._client(self._config)

    def __repr__(self) -> str:
        return f"S3Objects({self.bucket!r}, {self.endpoint_url!r})"

    def _client(self, config: Config) -> Any:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        # a session of its own: boto3's shared one keeps the first credentials it ever saw
        return boto3.Session().client("s3", endpoint_url=self.endpoint_url, config=config, region_name=region)

    def check(self) -> None:
        # somebody is waiting for the answer: little patience here, much in the requests of a running campaign
        config = self._config.merge(Config(retries={"mode": "standard", "max_attempts": 2}))
        with self._errors("opening the bucket"):
            self._client(config).head_bucket(Bucket=self.bucket)

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        if not self.exists(digest):
            self._create(object_key(digest), data)
        return digest

    def put_file(self, path: str | Path) -> str:
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size <= self.part_bytes:
                return self.put(handle.read())
            digest = digest_of_file(path)
            if not self.exists(digest):
                self._create_in_parts(object_key(digest), handle, digest)
        return digest

    def get(self, digest: str) -> bytes:
        data = self._read(object_key(digest), digest)
        if digest_of(data) != digest:
            raise damaged(digest)
        return data

    def get_range(self, digest: str, start: int, size: int) -> bytes:
        if size == 0:
            return b""
        buffer = io.BytesIO()
        self._download(object_key(digest), digest, buffer, Range=f"bytes={start}-{start + size - 1}")
        return buffer.getvalue()

    def fetch(self, digest: str, path: str | Path) -> None:
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            with disk_errors(target.parent, "fetching an object"), open(temporary, "wb") as out:
                self._download(object_key(digest), digest, out)
            if digest_of_file(temporary) != digest:
                raise damaged(digest)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def exists(self, digest: str) -> bool:
        return self._head(object_key(digest)) is not None

    def size(self, digest: str) -> int:
        head = self._head(object_key(digest))
        if head is None:
            raise missing(digest)
        return int(head["ContentLength"])

    def list(self) -> Iterator[tuple[str, int, float]]:
        for item in self._keys("objects/"):
            yield digest_of_key(item["Key"]), int(item["Size"]), item["LastModified"].timestamp()

    def delete(self, digest: str) -> None:
        with self._errors("removing an object"):
            self._s3.delete_object(Bucket=self.bucket, Key=object_key(digest))

    def put_manifest(self, name: str, content: dict[str, Any]) -> None:
        if not self._create(manifest_key(name), encode_manifest(content)) and self.get_manifest(name) != content:
            raise ManifestExists(f"manifest {name} exists with other content; manifests are written once, choose another name")

    def get_manifest(self, name: str) -> dict[str, Any]:
        return decode_manifest(name, self._read(manifest_key(name), f"manifest {name}"))

    def manifests(self) -> Iterator[str]:
        for item in self._keys("manifests/"):
            yield item["Key"][len("manifests/"):-len(".json")]

    # ---- requests ---------------------------------------------------------------------------------------------------
    def _create(self, key: str, data: bytes) -> bool:
        """Conditional write; False when the key was there already."""
        def write() -> None:
            self._s3.put_object(Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*")

        return self._conditional(write)

    def _create_in_parts(self, key: str, handle: IO[bytes], digest: str) -> bool:
        with self._errors("writing an object"):
            upload = self._s3.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
        try:
            h = hashlib.sha256()
            parts: list[dict[str, Any]] = []
            while block := handle.read(self.part_bytes):
                h.update(block)
                with self._errors("writing an object"):
                    part = self._s3.upload_part(Bucket=self.bucket, Key=key, UploadId=upload, PartNumber=len(parts) + 1,
                                                Body=io.BytesIO(block))
                parts.append({"ETag": part["ETag"], "PartNumber": len(parts) + 1})
            if f"sha256:{h.hexdigest()}" != digest:
                raise damaged(digest)  # the file changed while it was read; nothing is published

            def complete() -> None:
                self._s3.complete_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload,
                                                   MultipartUpload={"Parts": parts}, IfNoneMatch="*")

            created = self._conditional(complete)
        except BaseException:
            with contextlib.suppress(Exception):
                self._s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
            raise
        if not created:
            with contextlib.suppress(Exception):
                self._s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        return created

    def _conditional(self, write: Any) -> bool:
        for attempt in range(5):
            try:
                with self._errors("writing an object"):
                    write()
                return True
            except _Refused as refused:
                if refused.code in _TAKEN:
                    return False
                if refused.code not in _BUSY or attempt == 4:
                    raise
                time.sleep(0.2 * 2 ** attempt)
        raise AssertionError("unreachable")

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            with self._errors("reading an object"):
                return self._s3.head_object(Bucket=self.bucket, Key=key)
        except _Refused as refused:
            if refused.code in _NOT_FOUND:
                return None
            raise

    def _read(self, key: str, name: str) -> bytes:
        buffer = io.BytesIO()
        self._download(key, name, buffer)
        return buffer.getvalue()

    def _download(self, key: str, name: str, out: IO[bytes], **options: str) -> None:
        try:
            with self._errors("reading an object"):
                body = self._s3.get_object(Bucket=self.bucket, Key=key, **options)["Body"]
                for block in body.iter_chunks(CHUNK):
                    out.write(block)
        except _Refused as refused:
            if refused.code in _NOT_FOUND:
                raise missing(name) from None
            raise

    def _keys(self, prefix: str) -> Iterator[dict[str, Any]]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        with self._errors("listing objects"):
            for page in pages:
                yield from page.get("Contents", [])

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        where = f"the S3 store {self.endpoint_url or 'aws'}, bucket {self.bucket},"
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise ServiceError(f"no credentials for {where} while {doing}; set AWS_ACCESS_KEY_ID and "
                               "AWS_SECRET_ACCESS_KEY") from error
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _CREDENTIALS:
                raise ServiceError(f"{where} refuses the credentials while {doing} ({code}); check AWS_ACCESS_KEY_ID, "
                                   "AWS_SECRET_ACCESS_KEY and the bucket's policy") from error
            if code == "NoSuchBucket" or (code == "404" and error.operation_name == "HeadBucket"):
                raise ServiceError(f"{where} has no such bucket; create it or set HYDROFLOW_S3_BUCKET") from error
            if code in _FULL:
                raise ServiceError(f"{where} is full while {doing} ({code}); nothing was left half-written") from error
            raise _Refused(code, f"{where} refuses while {doing}: {error}; check HYDROFLOW_S3_ENDPOINT_URL, AWS_REGION and the "
                           "store itself") from error
        except (ConnectionError, HTTPClientError) as error:
            raise ServiceError(f"{where} cannot be reached while {doing}: {error}; check HYDROFLOW_S3_ENDPOINT_URL") from error
        except (BotoCoreError, ValueError) as error:
            raise ServiceError(f"{where} cannot be used while {doing}: {error}") from error


class _Refused(ServiceError):
    """An error answer; a caller may understand it (not found, precondition failed), otherwise it is the user's to read."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)
