"""How the `hydroflow` command ends."""

from __future__ import annotations

import httpx
import pytest
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from hydroflow.cli import main as command


@pytest.mark.parametrize(("error", "who"), [
    (ServerSelectionTimeoutError("/tmp/mongod.sock: [Errno 111]"), "MongoDB"), (AutoReconnect("closed"), "MongoDB"),
    (httpx.ConnectError("[Errno 111] Connection refused"), "the Prefect server"),
])
def test_a_service_that_goes_away_is_one_line(
    error: Exception, who: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    def cli(**_: object) -> None:
        raise error

    monkeypatch.setattr(command, "cli", cli)
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "Traceback" not in said
    assert said.startswith(f"hydroflow: {who} does not answer any more; start it again (`hydroflow services up`")
