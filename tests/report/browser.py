"""A real Chromium, headless, that opens a page and says what became of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest


def chromium() -> str:
    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if not found:
        words = "no Chromium on the PATH (Debian: apt-get install chromium)"
        pytest.fail(words) if os.environ.get("CI") == "true" else pytest.skip(words)
    return found


@dataclass
class Opened:
    """The page after its script ran: DOM text, addresses it asked for, complaints on the console."""

    dom: str
    requests: list[str]
    console: str


def open_page(page: Path, folder: Path) -> Opened:
    log = folder / "net.json"
    # no host resolves: the browser's own calls home stay home, and what the page asks for is still logged
    done = subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
         f"--log-net-log={log}", "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    events = json.loads(log.read_text())
    kind = events["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    # the browser's own requests have no page as their initiator
    asked = [e["params"]["url"] for e in events["events"] if e["type"] == kind
             and e.get("params", {}).get("initiator", "not an origin") != "not an origin"]
    return Opened(done.stdout, [u for u in asked if not u.startswith(("data:", "file:"))],
                  "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line))


@dataclass
class Row:
    attributes: dict[str, str | None]
    cells: list[str] = field(default_factory=list)
    links: list[dict[str, str | None]] = field(default_factory=list)


class CandidateRows(HTMLParser):
    """Rows of the candidate table in the order of the document."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "tr":
            self._inside = "data-search" in attributes
            if self._inside:
                self.rows.append(Row(attributes))
        elif self._inside and tag == "td":
            self.rows[-1].cells.append("")
        elif self._inside and tag == "a":
            self.rows[-1].links.append(attributes)

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside and self.rows[-1].cells:
            self.rows[-1].cells[-1] += data
