"""What is installed and what is stood up for production: the wheel is whole, the compose file is safe as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_everything_that_is_read_at_run_time(tmp_path: Path) -> None:
    """Built from what git tracks, in a folder of its own: setuptools leaves its build folder behind."""
    tracked = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                             capture_output=True, text=True).stdout.split("\0")
    source = tmp_path / "source"
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and name.startswith(("hydroflow/", "flows/", "pyproject.toml", "README.md")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source], check=True,
                   capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = [p for room in ("hydroflow", "flows") for p in (source / room).rglob("*") if p.is_file()]
    wanted = {p.relative_to(source).as_posix() for p in files}
    assert {Path(name).suffix for name in wanted} >= {".py", ".toml", ".css", ".js", ".csv", ".npz"}
    assert wanted - inside == set()


def test_the_compose_file_has_pinned_images_loopback_ports_and_no_password() -> None:
    text = (ROOT / "infra" / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    for name, service in services.items():
        image = service["image"]
        assert re.search(r":v?\d+\.\d+", image) and "latest" not in image, f"{name}: {image}"
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{name}: {port}"
    example = dict(re.findall(r"^(\w+)=(.*)$", (ROOT / "infra" / "compose.env.example").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    assert used <= set(example), used - set(example)
    # the services that hydroflow is told of are the ones that are there
    ports = {str(p).split(":")[1] for service in services.values() for p in service.get("ports", [])}
    for key in ("HYDROFLOW_MONGODB_URI", "HYDROFLOW_S3_ENDPOINT_URL", "PREFECT_API_URL"):
        assert re.search(r"127\.0\.0\.1:(\d+)", example[key]).group(1) in ports, key
