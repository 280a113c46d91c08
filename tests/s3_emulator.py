"""A small S3 server for tests (ministack) that can be taken down and brought back with its objects."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def create_bucket(endpoint: str, name: str, wait_s: float = 60) -> None:
    """Make a bucket with the credentials in the environment, waiting until the server answers."""
    client = boto3.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            client.create_bucket(Bucket=name)
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


class Emulator:
    """Credentials are test/test."""

    def __init__(self) -> None:
        self.port, self.folder = free_port(), tempfile.mkdtemp(prefix="hf-s3-")
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ, "AUTH": "true", "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(self.port), "S3_PERSIST": "1",
            "S3_DATA_DIR": f"{self.folder}/s3", "PERSIST_STATE": "1", "STATE_DIR": f"{self.folder}/state"}
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen([Path(sys.executable).with_name("ministack")], env=environment, stdout=log,
                                            stderr=log, cwd=self.folder)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
