"""Which services hydroflow talks to: one small settings object, read from the environment.

Where no address is given, the embedded services under ``home`` are meant (:mod:`hydroflow.store.services`). Nothing else
in the code knows whether it talks to an embedded or to a production service.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydroflow.errors import SettingsError

_CHECKSUMS = ("when_supported", "when_required")


@dataclass(frozen=True)
class ServiceSettings:
    """Addresses of the services.

    Attributes
    ----------
    home
        Directory of everything embedded: database, objects, Prefect, logs, job folders. ``HYDROFLOW_HOME``, else
        ``./.hydroflow``.
    mongodb_uri
        ``HYDROFLOW_MONGODB_URI``; None means the embedded mongod.
    database
        Name of the MongoDB database, ``HYDROFLOW_DATABASE``.
    s3_endpoint_url, s3_bucket
        ``HYDROFLOW_S3_ENDPOINT_URL`` and ``HYDROFLOW_S3_BUCKET``; credentials come from the usual AWS variables. Without a
        bucket, objects live in a directory under `home`.
    s3_checksums
        ``HYDROFLOW_S3_CHECKSUMS``: ``when_supported`` (boto3's default) or ``when_required`` for stores that refuse
        boto3's newer request checksums.
    prefect_api_url
        ``PREFECT_API_URL``; None means the embedded Prefect server.
    prefect_port
        ``HYDROFLOW_PREFECT_PORT`` of the embedded Prefect server; None takes a free one.
    """

    home: Path = field(default_factory=lambda: Path(".hydroflow").absolute())
    mongodb_uri: str | None = None
    database: str = "hydroflow"
    s3_endpoint_url: str | None = None
    s3_bucket: str | None = None
    s3_checksums: str = "when_supported"
    prefect_api_url: str | None = None
    prefect_port: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", Path(self.home).expanduser().absolute())
        if self.s3_endpoint_url and not self.s3_bucket:
            raise SettingsError("HYDROFLOW_S3_ENDPOINT_URL is set but HYDROFLOW_S3_BUCKET is not; name the bucket")
        if self.s3_checksums not in _CHECKSUMS:
            raise SettingsError(f"HYDROFLOW_S3_CHECKSUMS = {self.s3_checksums!r}: allowed are {', '.join(_CHECKSUMS)}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, **overrides: Any) -> ServiceSettings:
        """Settings from environment variables (empty counts as unset); keyword arguments that are not None win.

        Raises
        ------
        SettingsError
            names the variable and what is allowed.
        """
        env = {k: v for k, v in (os.environ if environment is None else environment).items() if v}
        port = env.get("HYDROFLOW_PREFECT_PORT")
        if port is not None and not (port.isdigit() and 0 < int(port) < 65536):
            raise SettingsError(f"HYDROFLOW_PREFECT_PORT = {port!r}: a port number from 1 to 65535 is needed")
        settings = cls(
            home=Path(env.get("HYDROFLOW_HOME", ".hydroflow")),
            mongodb_uri=env.get("HYDROFLOW_MONGODB_URI"),
            database=env.get("HYDROFLOW_DATABASE", "hydroflow"),
            s3_endpoint_url=env.get("HYDROFLOW_S3_ENDPOINT_URL"),
            s3_bucket=env.get("HYDROFLOW_S3_BUCKET"),
            s3_checksums=env.get("HYDROFLOW_S3_CHECKSUMS", "when_supported"),
            prefect_api_url=env.get("PREFECT_API_URL"),
            prefect_port=int(port) if port else None,
        )
        return replace(settings, **{k: v for k, v in overrides.items() if v is not None})

    def to_environment(self) -> dict[str, str]:
        """The variables that make a child process see the same settings."""
        values = {
            "HYDROFLOW_HOME": str(self.home), "HYDROFLOW_MONGODB_URI": self.mongodb_uri,
            "HYDROFLOW_DATABASE": self.database, "HYDROFLOW_S3_ENDPOINT_URL": self.s3_endpoint_url,
            "HYDROFLOW_S3_BUCKET": self.s3_bucket, "HYDROFLOW_S3_CHECKSUMS": self.s3_checksums,
            "PREFECT_API_URL": self.prefect_api_url,
            "HYDROFLOW_PREFECT_PORT": str(self.prefect_port) if self.prefect_port else None,
        }
        return {k: v for k, v in values.items() if v}
