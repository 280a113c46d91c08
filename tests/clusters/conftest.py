"""Two real clusters on this machine: own network, host name, sshd, munge and Slurm each (infra/test-clusters)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pymongo.errors import PyMongoError

from hydroflow.campaign import Cluster
from hydroflow.dispatch.agent import alive, start_agent
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.errors import HydroflowError
from hydroflow.store.process import ProcessIdentity
from tests.dispatch.engines import ECHO
from tests.fixtures_store import ROOT

SCRIPT = ROOT / "infra" / "test-clusters" / "sites.sh"
NEEDED = ("slurmctld", "slurmd", "sshd", "munged", "ip", "nsenter", "ssh-keygen")


@dataclass(frozen=True)
class Sites:
    """The two running sites; `base` is also visible to them as an ordinary directory."""

    base: Path

    def cluster(self, name: str, batch: str = "Slurm", **settings: object) -> Cluster:
        return Cluster.model_validate({
            "batch": batch, "context": "ssh", "host": self.site(name)[0], "user": "root",
            "key_file": self.base / "keys" / "id_ed25519",
            "remote_root": str(self.base / f"scratch-{name}"), "setup": [f"export PYTHONPATH={ROOT}"], **settings})

    def site(self, name: str) -> tuple[str, str]:
        """(address, network namespace) of a site."""
        lines = (line.split() for line in (self.base / "addresses").read_text().splitlines())
        return next((address, space) for site, address, space in lines if site == name)

    def run(self, *arguments: str) -> None:
        subprocess.run([SCRIPT, *arguments], check=True, env={**os.environ, "BASE": str(self.base)}, timeout=60,
                       stdout=subprocess.DEVNULL)

    def pid(self, name: str, daemon: str) -> int:
        folder = "sshd" if daemon == "sshd" else "slurm"
        return int((self.base / f"{folder}-{name}" / f"{daemon}.pid").read_text())

    def slurm(self, name: str, *command: str) -> str:
        """A Slurm command on a site."""
        done = subprocess.run(["nsenter", f"--net=/run/netns/{self.site(name)[1]}", *command], capture_output=True, text=True,
                              timeout=30, check=True,
                              env={**os.environ, "SLURM_CONF": str(self.base / f"slurm-{name}" / "slurm.conf")})
        return done.stdout

    def start_slurmctld(self, name: str) -> None:
        conf = self.base / f"slurm-{name}" / "slurm.conf"
        subprocess.run(["nsenter", f"--net=/run/netns/{self.site(name)[1]}", "unshare", "--uts", "bash", "-c",
                        f"hostname {name}; slurmctld -f {conf}"], check=True, timeout=30)

    def kill_job(self, key: str, wait_s: float = 60) -> None:
        """What a scheduler does to a job it wants gone: SIGKILL to all its processes, whichever site it is on."""
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            for name in ("alpha", "beta"):
                for line in self.slurm(name, "squeue", "-h", "-t", "R", "-o", "%F %j").splitlines():
                    ident, _, batch = line.partition(" ")
                    if batch.startswith(key):
                        self.slurm(name, "scancel", "--signal=KILL", "--full", ident)
                        return
            time.sleep(0.2)
        raise AssertionError(f"no running scheduler job of {key}")


def job(value: object, log: Path, **inputs: object) -> JobSpec:
    """A job that counts its executions in `log` and its ends in ``log.finished``."""
    return JobSpec(ECHO, {"value": value, "sleep": 0.1, "log": str(log), **inputs}, "1", resources=Resources(wall_time_s=60))


def executions(log: Path) -> Counter[str]:
    """Key → lines in a file of executions."""
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


def write_campaign(folder: Path, **clusters: Cluster) -> Path:
    """A campaign file with these clusters."""
    lines = ['name = "chaos"', "[space]", 'elements = ["Ca", "Y"]']
    for name, cluster in clusters.items():
        lines.append(f"[clusters.{name}]")
        for key, value in cluster.model_dump(mode="json", exclude_defaults=True).items():
            lines.append(f"{key} = {_toml(value)}")
    path = folder / "campaign.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def campaign(sites: Sites, tmp_path: Path) -> Path:
    """A campaign file with both sites."""
    return write_campaign(tmp_path, alpha=sites.cluster("alpha", group_size=10, max_jobs=6),
                          beta=sites.cluster("beta", "SlurmJobArray", group_size=10, max_jobs=4))


class Agents:
    """The agent of one home as a process of its own."""

    def __init__(self, settings, store, campaign: Path) -> None:
        self.settings, self.store, self.campaign = settings, store, campaign

    def __call__(self, wait_s: float = 90) -> int:
        """Start it, or find it; services may be away at this moment."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return start_agent(self.settings, self.campaign)
            except (HydroflowError, PyMongoError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def kill(self) -> bool:
        """SIGKILL; False when there was none to kill or MongoDB, which knows it, is away."""
        try:
            record = alive(self.store)
        except PyMongoError:
            return False
        if record is None:
            return False
        ProcessIdentity.from_dict(record["process"]).kill()
        return True


@pytest.fixture
def agents(settings, store, campaign: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agents]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Agents(settings, store, campaign)
    yield made
    record = alive(store)
    if record is not None:
        ProcessIdentity.from_dict(record["process"]).stop()


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
