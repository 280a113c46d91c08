"""Runs every benchmark and tabulates what it measured: ``python -m benchmarks [--quick] [--json] [NAME …]``.

Each script of this folder takes ``--quick`` (at most 50 s) and ``--json`` (its last line is one JSON object of named
figures; ratios against a peer have ``ratio`` in their name).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
QUICK_LIMIT_S, LIMIT_S = 300, 7200
"""When a benchmark counts as hung: well beyond what it takes on a busy machine."""


def scripts() -> dict[str, Path]:
    return {p.stem: p for p in sorted(HERE.glob("*.py")) if not p.stem.startswith("_")}


def measure(script: Path, quick: bool) -> dict[str, Any]:
    """One benchmark in a process of its own: its figures, or why there are none."""
    started = time.monotonic()
    # as a module of the folder's parent, so that benchmarks may share helpers
    limit_s = QUICK_LIMIT_S if quick else LIMIT_S
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{script.stem}", "--json", *(["--quick"] if quick else [])],
            cwd=HERE.parent, capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"wall_s": limit_s, "error": f"stopped after {limit_s} s"}
    out: dict[str, Any] = {"wall_s": round(time.monotonic() - started, 1)}
    last = next(reversed(done.stdout.strip().splitlines()), "")
    try:
        figures = json.loads(last)
    except ValueError:
        figures = None
    if done.returncode == 0 and isinstance(figures, dict):
        return out | {"figures": figures}
    words = next(reversed(done.stderr.strip().splitlines()), "") or last or "it printed nothing"
    return out | {"error": f"exit code {done.returncode}: {words}"}


def main() -> int:
    known = scripts()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all): {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="at most 50 s each")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of all figures")
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in known]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)} (there are: {', '.join(known) or 'none'})")
    results = {}
    for name in args.names or known:
        if not args.json:
            print(f"{name} …", file=sys.stderr, flush=True)
        results[name] = measure(known[name], args.quick)
    if args.json:
        print(json.dumps(results))
    else:
        show(results)
    return 1 if any("error" in r for r in results.values()) else 0


def show(results: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "figure", "value")
    table.columns[2].justify = "right"
    for name, result in results.items():
        rows = list(flatten(result.get("figures", {}))) or [("–", result.get("error", "no figures"))]
        for i, (key, value) in enumerate(rows):
            number = f"{value:,.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
            table.add_row(f"{name} ({result['wall_s']} s)" if i == 0 else "", key, number,
                          style="bold" if "ratio" in key else None, end_section=i == len(rows) - 1)
    Console().print(table)


def flatten(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures as dotted names."""
    out: list[tuple[str, Any]] = []
    for key, value in figures.items():
        out += flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return out


if __name__ == "__main__":
    sys.exit(main())
