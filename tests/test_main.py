"""How the `hydroflow` command ends."""

from __future__ import annotations

import errno

import httpx
import pytest
from pymongo.errors import AutoReconnect, OperationFailure, ServerSelectionTimeoutError

from hydroflow.cli import main as command


@pytest.mark.parametrize(("error", "said"), [
    (OSError(errno.ENOSPC, "No space left on device", "/data/x.parquet"), "No space left on device: /data/x.parquet; free some"),
    (PermissionError(errno.EACCES, "Permission denied", "/data"), "Permission denied: /data; check its owner"),
    (OperationFailure("disk full", 14031), "the disk of MongoDB is full: free some space there"),
])
def test_files_that_cannot_be_written_are_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended_with(error, monkeypatch, capsys).startswith(f"hydroflow: {said}")


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "cli", lambda **_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        command.main()


@pytest.mark.parametrize(("error", "who"), [
    (ServerSelectionTimeoutError("/tmp/mongod.sock: [Errno 111]"), "MongoDB"), (AutoReconnect("closed"), "MongoDB"),
    (httpx.ConnectError("[Errno 111] Connection refused"), "the Prefect server"),
])
def test_a_service_that_goes_away_is_one_line(
    error: Exception, who: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    said = ended_with(error, monkeypatch, capsys)
    assert said.startswith(f"hydroflow: {who} does not answer any more; start it again (`hydroflow services up`")


def ended_with(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that meets this error; it ends with 2 and one line."""
    def cli(**_: object) -> None:
        raise error

    monkeypatch.setattr(command, "cli", cli)
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "Traceback" not in said
    return said
