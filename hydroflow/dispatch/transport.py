"""How a cluster is reached: dpdispatcher's contexts with time-outs, its machines for the scripts, and one shell call for many
jobs.

dpdispatcher writes the scheduler scripts and knows the schedulers. Its own staging, waiting loop, retries and sharing are
not used: they take a dozen round trips per job, block, submit again after an unclear answer, and name folders by a hash
that changes with the cluster's settings.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import socket
import subprocess
import uuid
from collections.abc import Iterator
from typing import IO, Any

import paramiko
from dpdispatcher.contexts.lazy_local_context import LazyLocalContext, SPRetObj
from dpdispatcher.contexts.ssh_context import SSHContext
from dpdispatcher.dlog import dlog
from dpdispatcher.utils.utils import RetrySignal

from hydroflow.campaign import Cluster
from hydroflow.errors import TransportError

dlog.setLevel(logging.ERROR)
CALL_TIMEOUT_S = 60.0
_BLOCK = 1 << 16


class Refused(TransportError):
    """The cluster said no before the scheduler had the job: it is certainly not submitted."""


class LocalContext(LazyLocalContext):
    """This machine; jobs run where they were staged and outlive the agent and its terminal."""

    def block_call(self, cmd: str) -> tuple[int, None, SPRetObj, SPRetObj]:
        code, out, err = self.run(f"cd {shlex.quote(self.remote_root)} && {{ {cmd}\n}}")
        return code, None, SPRetObj(out), SPRetObj(err)

    def run(self, cmd: str, timeout_s: float | None = None) -> tuple[int, bytes, bytes]:
        """Run one command line: (exit code, output, errors)."""
        out = io.BytesIO()
        code, err = self.execute(cmd, None, out, timeout_s)
        return code, out.getvalue(), err

    def execute(self, cmd: str, source: IO[bytes] | None, sink: IO[bytes],
                timeout_s: float | None = None) -> tuple[int, bytes]:
        """Run one command line with standard input `source`; output goes to `sink`; (exit code, errors)."""
        timeout_s = timeout_s or CALL_TIMEOUT_S
        data = source.read() if source is not None else b""
        try:
            done = subprocess.run(["bash", "-c", cmd], capture_output=True, input=data, start_new_session=True, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TransportError(f"no answer within {timeout_s:g} s to: {cmd[:80]}") from error
        sink.write(done.stdout)
        return done.returncode, done.stderr

    def close(self) -> None:
        """Nothing to close."""


class _Shell:
    """A login shell at the other end of a connection that runs one command line after another."""

    def __init__(self, transport: paramiko.Transport | None, where: str) -> None:
        if transport is None or not transport.is_active():
            raise TransportError(f"the connection to {where} is broken")
        self.where = where
        self.channel = transport.open_session(timeout=CALL_TIMEOUT_S)
        self.channel.exec_command("exec bash -l")

    @property
    def closed(self) -> bool:
        return self.channel.closed

    def run(self, cmd: str, timeout_s: float) -> tuple[int, bytes, bytes]:
        mark = f"hydroflow-{uuid.uuid4().hex}"
        # in a subshell: `exit` and `cd` stay inside; the first mark separates what start-up files may have printed
        script = (f"printf '%s\\n' {mark}; printf '%s\\n' {mark} >&2; ( eval {shlex.quote(cmd)} ) </dev/null; "
                  f"printf '\\n%s %s\\n' {mark} $?; printf '\\n%s\\n' {mark} >&2\n")
        self.channel.settimeout(timeout_s)
        try:
            self.channel.sendall(script.encode())
            begin, end = f"{mark}\n".encode(), f"\n{mark} ".encode()
            out = b""
            while (at := out.find(end)) < 0 or not out.endswith(b"\n", at + len(end)):
                block = self.channel.recv(_BLOCK)
                if not block:
                    raise TransportError(f"the shell on {self.where} has ended")
                out += block
            err, last = b"", f"\n{mark}\n".encode()
            while err.count(begin) < 2 or not err.endswith(last):
                block = self.channel.recv_stderr(_BLOCK)
                if not block:
                    raise TransportError(f"the shell on {self.where} has ended")
                err += block
        except BaseException:
            self.channel.close()  # the answer to this command must never be taken for the next one's
            raise
        code = int(out[at + len(end):])
        return code, out[:at].partition(begin)[2], err[:-len(last)].partition(begin)[2]


class RemoteContext(SSHContext):
    """One SSH connection; every request has a timeout, and a broken connection is an error at once (the actor decides
    when to connect again)."""

    _shell: _Shell | None = None
    _sftp: paramiko.SFTPClient | None = None

    @classmethod
    def connect(cls, cluster: Cluster, local_root: str) -> RemoteContext:
        where = f"{cluster.user}@{cluster.host}:{cluster.port}"
        key = {"key_filename": str(cluster.key_file.expanduser())} if cluster.key_file else {}
        with ssh_errors(where):
            context = cls(local_root=local_root, remote_root="/", remote_profile={
                "hostname": cluster.host, "username": cluster.user, "port": cluster.port, "timeout": 15, **key})
            transport = context.ssh.get_transport()
            # a cut line is noticed within half a minute
            with contextlib.suppress(OSError, AttributeError):
                transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
            transport.set_keepalive(15)
        return context

    def run(self, cmd: str, timeout_s: float | None = None) -> tuple[int, bytes, bytes]:
        """Run one command line in the connection's one shell: (exit code, output, errors).

        A shell per command would read the user's start-up files each time, which takes seconds where these set up conda
        or modules.
        """
        with ssh_errors(self.ssh_session.hostname):
            if self._shell is None or self._shell.closed:
                self._shell = _Shell(self.ssh.get_transport(), self.ssh_session.hostname)
            return self._shell.run(cmd, timeout_s or CALL_TIMEOUT_S)

    def put(self, source: IO[bytes], path: str) -> None:
        """Write a file there."""
        with ssh_errors(self.ssh_session.hostname):
            self._files().putfo(source, path)

    def get(self, path: str, sink: IO[bytes]) -> None:
        """Read a file there."""
        with ssh_errors(self.ssh_session.hostname):
            self._files().getfo(path, sink)

    def _files(self) -> paramiko.SFTPClient:
        if self._sftp is None or self._sftp.get_channel().closed:
            self._sftp = paramiko.SFTPClient.from_transport(self.ssh.get_transport())
            self._sftp.get_channel().settimeout(CALL_TIMEOUT_S)
        return self._sftp

    def copy(self) -> RemoteContext:
        """The same connection, for another folder."""
        twin = object.__new__(RemoteContext)
        twin.__dict__.update(self.__dict__)
        return twin

    def block_call(self, cmd: str) -> tuple[int, Any, Any, Any]:
        code, out, err = self.run(f"cd {shlex.quote(self.remote_root or self.temp_remote_root)} && {{ {cmd}\n}}")
        return code, None, SPRetObj(out), SPRetObj(err)

    def execute(self, cmd: str, source: IO[bytes] | None, sink: IO[bytes],
                timeout_s: float | None = None) -> tuple[int, bytes]:
        """Run one command line with standard input `source`, in a session of its own; output goes to `sink`; (exit code,
        errors). `timeout_s` bounds the silence of the other side, not the whole call.
        """
        where, timeout_s = self.ssh_session.hostname, timeout_s or CALL_TIMEOUT_S
        transport = self.ssh.get_transport()
        if transport is None or not transport.is_active():
            raise TransportError(f"the connection to {where} is broken")
        with ssh_errors(where), contextlib.closing(transport.open_session(timeout=timeout_s)) as channel:
            channel.settimeout(timeout_s)
            channel.exec_command(f"bash -c {shlex.quote(cmd)}")
            if source is not None:
                while block := source.read(_BLOCK):
                    channel.sendall(block)
            channel.shutdown_write()
            while block := channel.recv(_BLOCK):
                sink.write(block)
            err = channel.makefile_stderr("rb").read()
            if not channel.status_event.wait(timeout_s):
                raise TransportError(f"no exit status from {where}")
            return channel.recv_exit_status(), err


@contextlib.contextmanager
def ssh_errors(where: str) -> Iterator[None]:
    """What paramiko and dpdispatcher raise on a bad line, as one kind of error."""
    try:
        yield
    except TransportError:
        raise
    except TimeoutError as error:
        raise TransportError(f"{where} did not answer in time") from error
    except (OSError, EOFError, paramiko.SSHException, RetrySignal, RuntimeError, AssertionError) as error:
        raise TransportError(f"{where}: {type(error).__name__}: {str(error)[:200]}") from error
