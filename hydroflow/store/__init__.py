"""Documents in MongoDB and objects in a directory or S3: ``open_store()`` connects to both."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import mongoengine
from mongoengine.connection import ConnectionFailure, get_connection
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError, ServerSelectionTimeoutError

from hydroflow.errors import ServiceError
from hydroflow.settings import ServiceSettings
from hydroflow.store.documents import ensure_indexes
from hydroflow.store.objects import DirectoryObjects, ObjectStore
from hydroflow.store.services import mongodb_uri

_lock = threading.Lock()
_opened: dict[str, Any] = {"target": None, "count": 0}


@dataclass
class Store:
    """Both services, connected. Documents are used through :mod:`hydroflow.store.documents`."""

    settings: ServiceSettings
    objects: ObjectStore
    database: Database

    def close(self) -> None:
        """Give the connection back; the last of several openers disconnects."""
        with _lock:
            _opened["count"] = max(0, _opened["count"] - 1)
            if _opened["count"] == 0:
                mongoengine.disconnect()
                _opened["target"] = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(settings: ServiceSettings | None = None) -> Store:
    """Connect to MongoDB (mongoengine's default connection) and to the object store, and make the indexes.

    Opening the same store several times in one process shares one connection.

    Raises
    ------
    ServiceError
        one line: which service, why, and what to do.
    """
    settings = settings or ServiceSettings.from_environment()
    objects = open_objects(settings)
    if settings.s3_bucket:
        objects.check()
    with _lock:
        uri = mongodb_uri(settings)
        target = (uri, settings.database)
        if _opened["target"] not in (None, target):
            raise ServiceError("another store is open in this process; close it first")
        try:
            # somebody waits for this answer; what runs later waits longer, to ride over a restart of the server
            probe: MongoClient = MongoClient(uri, serverSelectionTimeoutMS=5000 if settings.mongodb_uri else 1000)
            with probe:
                probe.admin.command("ping")
            if not settings.s3_bucket:
                objects.check()  # makes the directory: only beside services that are there
            if _opened["target"] is None:
                mongoengine.disconnect()
                mongoengine.connect(db=settings.database, host=uri, alias="default", uuidRepresentation="standard",
                                    tz_aware=True, serverSelectionTimeoutMS=20_000)
                ensure_indexes()
            client = get_connection()
        except (PyMongoError, ConnectionFailure) as error:
            if _opened["target"] is None:
                mongoengine.disconnect()
            raise _explain(settings, error) from error
        _opened["target"] = target
        _opened["count"] += 1
    return Store(settings, objects, client[settings.database])


def open_objects(settings: ServiceSettings) -> ObjectStore:
    """The object store alone, unchecked: S3 where a bucket is set, else a directory under home."""
    if settings.s3_bucket:
        from hydroflow.store.s3 import S3Objects

        return S3Objects(settings.s3_bucket, settings.s3_endpoint_url, settings.s3_checksums)
    return DirectoryObjects(settings.home / "objects")


def _explain(settings: ServiceSettings, error: Exception) -> ServiceError:
    if settings.mongodb_uri is None:
        return ServiceError(f"the embedded MongoDB of {settings.home} is not running; start it with `hydroflow services up`")
    if isinstance(error, (InvalidURI, ConfigurationError)):
        return ServiceError(f"HYDROFLOW_MONGODB_URI is not usable: {error}")
    if isinstance(error, OperationFailure):
        return ServiceError(f"MongoDB refuses the request ({error.details.get('errmsg', error) if error.details else error}); "
                            "check user and password in HYDROFLOW_MONGODB_URI")
    if isinstance(error, ServerSelectionTimeoutError):
        return ServiceError(f"MongoDB cannot be reached at HYDROFLOW_MONGODB_URI: {str(error).split(', Timeout')[0]}")
    return ServiceError(f"MongoDB cannot be used: {error}")


__all__ = ["Store", "open_objects", "open_store"]
