"""Two real clusters on this machine: own network, host name, sshd, munge and Slurm each (infra/test-clusters)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hydroflow.campaign import Cluster
from tests.fixtures_store import ROOT

SCRIPT = ROOT / "infra" / "test-clusters" / "sites.sh"
NEEDED = ("slurmctld", "slurmd", "sshd", "munged", "ip", "nsenter", "ssh-keygen")


@dataclass(frozen=True)
class Sites:
    """The two running sites; `base` is also visible to them as an ordinary directory."""

    base: Path

    def cluster(self, name: str, batch: str = "Slurm", **settings: object) -> Cluster:
        address = {"alpha": "10.77.1.2", "beta": "10.77.2.2"}[name]
        return Cluster.model_validate({
            "batch": batch, "context": "ssh", "host": address, "user": "root", "key_file": self.base / "keys" / "id_ed25519",
            "remote_root": str(self.base / f"scratch-{name}"), "setup": [f"export PYTHONPATH={ROOT}"], **settings})

    def run(self, *arguments: str) -> None:
        subprocess.run([SCRIPT, *arguments], check=True, env={**os.environ, "BASE": str(self.base)}, timeout=60,
                       stdout=subprocess.DEVNULL)

    def pid(self, name: str, daemon: str) -> int:
        folder = "sshd" if daemon == "sshd" else "slurm"
        return int((self.base / f"{folder}-{name}" / f"{daemon}.pid").read_text())

    def slurm(self, name: str, *command: str) -> str:
        """A Slurm command on a site."""
        done = subprocess.run(["nsenter", f"--net=/run/netns/hf{name}", *command], capture_output=True, text=True, timeout=30,
                              env={**os.environ, "SLURM_CONF": str(self.base / f"slurm-{name}" / "slurm.conf")}, check=True)
        return done.stdout


@pytest.fixture(scope="session")
def sites() -> Iterator[Sites]:
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    reason = f"needs {', '.join(missing)} on the PATH" if missing else "needs root" if os.getuid() else ""
    if reason:
        if os.environ.get("CI"):
            pytest.fail(f"the test clusters cannot be started: {reason}")
        pytest.skip(reason)
    base = Path(tempfile.mkdtemp(prefix="hf-sites-"))
    running = Sites(base)
    try:
        running.run("up")
        yield running
    finally:
        running.run("down")
        shutil.rmtree(base, ignore_errors=True)
