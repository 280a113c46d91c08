"""Figures as files, from the records of a campaign."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from hydroflow.cli.epc import plot
from hydroflow.errors import UserError
from hydroflow.store import Store
from tests.report import hunt

pytestmark = pytest.mark.service


def test_every_finished_result_is_drawn(store: Store, settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = hunt.record(store)
    monkeypatch.setattr("hydroflow.store.open_store", lambda: store)
    done = CliRunner().invoke(plot, [name, "-o", str(tmp_path), "--formula", "CaH6"], catch_exceptions=False)
    assert done.exit_code == 0
    written = [Path(line) for line in done.stdout.splitlines()]
    assert {p.suffix for p in written} == {".svg"} and all(p.stat().st_size > 5000 for p in written)
    kinds = [p.stem.rsplit("-", 1)[1] for p in written]
    assert kinds.count("a2f") == kinds.count("tc") > kinds.count("dispersion") > 0
    with pytest.raises(UserError, match="no finished EPC result of LaH10"):
        CliRunner().invoke(plot, [name, "-o", str(tmp_path), "--formula", "LaH10"], catch_exceptions=False)
