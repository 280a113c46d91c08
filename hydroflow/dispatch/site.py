"""One connection to one cluster: stage batches of jobs, hand them in, ask the queue, fetch, stop, clean; few calls for many.

Everything that can go wrong on the way is a :class:`TransportError`; none of it is a verdict on a job. A failed queue
query is an error, never an empty queue.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

# that of Python's own library has no filters before 3.10.12 and 3.11.4 (Debian 12 has 3.11.2)
from backports import tarfile

from hydroflow.campaign import Cluster
from hydroflow.dispatch import scheduler
from hydroflow.dispatch.scheduler import Batch, Queue
from hydroflow.dispatch.transport import LocalContext, Refused, RemoteContext, ssh_errors
from hydroflow.dispatch.wrapper import LOGS
from hydroflow.errors import TransportError

TRANSFER_TIMEOUT_S = 600.0
_NO_FOLDER = 97


class Site:
    """A live connection. Use from one thread only.

    Parameters
    ----------
    staging
        Local folder below which batches are staged and fetched; for local clusters also where they run.
    """

    def __init__(self, name: str, cluster: Cluster, staging: Path) -> None:
        self.name, self.cluster, self.staging = name, cluster, staging
        self.local = cluster.context == "local"
        if self.local and cluster.remote_root:
            self.staging = Path(cluster.remote_root).expanduser().absolute()
        self.staging.mkdir(parents=True, exist_ok=True)
        self.context: LocalContext | RemoteContext
        if self.local:
            self.context = LocalContext(str(self.staging))
            self.root = self.context.remote_root = self.context.local_root = str(self.staging)
        else:
            self.context = RemoteContext.connect(cluster, str(self.staging))
            self.root = self._remote_root()
            self.context.remote_root = self.context.temp_remote_root = self.root

    def _remote_root(self) -> str:
        root = self.cluster.remote_root or "$HOME/.hydroflow/jobs"
        if root.startswith("~/"):
            root = "$HOME" + root[1:]
        quoted = f'"{root}"' if re.fullmatch(r"\$HOME[A-Za-z0-9_./+-]*", root) else shlex.quote(root)
        return self.call(f"mkdir -p {quoted} && cd {quoted} && pwd -P").strip()

    def close(self) -> None:
        self.context.close()

    def call(self, command: str, timeout_s: float | None = None) -> str:
        """Output of a command line on the cluster.

        Raises
        ------
        TransportError
            it failed or could not be asked.
        """
        code, out, err = self.context.run(command, timeout_s)
        if code != 0:
            raise TransportError(f"{self.name}: `{command[:60]}` failed ({code}): {err.decode(errors='replace').strip()[:300]}")
        return out.decode(errors="replace")

    def cores(self) -> int:
        return len(os.sched_getaffinity(0)) if self.local else int(self.call("nproc"))

    def executables(self, names: Sequence[str], cores: int) -> dict[str, str]:
        """Command line of each executable on this cluster, `{cores}` filled in."""
        python = sys.executable if self.local else "python3"
        return {name: self.cluster.executables.get(name, python if name == "python" else name).replace("{cores}", str(cores))
                for name in names}

    def folder(self, batch: str) -> str:
        """Folder of a batch on the cluster; each job has its own, named by its key, inside."""
        return f"{self.root}/{batch}"

    def staged(self, batch: str) -> Path:
        """Folder of a batch on this machine."""
        return self.staging / batch

    # ---- handing in ----
    def submit(self, batches: Sequence[Batch]) -> dict[str, str]:
        """Send staged batches and hand them in; name → scheduler id of those that the scheduler took.

        Raises
        ------
        Refused
            the scheduler took none, or they could not even be sent: none is submitted.
        TransportError
            it is not known which the scheduler has; look for each before submitting it again.
        """
        jobs = {b.name: scheduler.write_scripts(self.cluster, self._bound(b.name), b, self.staged(b.name)) for b in batches}
        self._send(batches)
        command = scheduler.launch_command(self.cluster, batches)
        if command is None:
            taken = {}
            for name, job in jobs.items():
                with ssh_errors(self.name):
                    job.submit_job()
                if job.job_id:
                    taken[name] = str(job.job_id)
            return taken
        taken, reason = {}, ""
        for line in self.call(f"cd {shlex.quote(self.root)} && {{ {command}; }}").splitlines():
            name, code, *rest = line.split(maxsplit=2)
            if code == "0":
                taken[name] = rest[0].split()[0]
            else:
                reason = rest[0] if rest else ""
        if not taken:
            raise Refused(f"{self.name}: the scheduler refused: {reason or 'no reason given'}")
        return taken

    def _bound(self, batch: str) -> LocalContext | RemoteContext:
        context = self.context.copy() if isinstance(self.context, RemoteContext) else LocalContext(str(self.staging))
        context.remote_root = self.folder(batch)
        context.local_root = str(self.staged(batch))
        return context

    def _send(self, batches: Sequence[Batch]) -> None:
        """All staged folders in one stream."""
        if not isinstance(self.context, RemoteContext):
            return
        there = f"{self.root}/.send-{uuid.uuid4().hex}"
        with tempfile.TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
                for batch in batches:
                    tar.add(self.staged(batch.name), arcname=batch.name)
            size = archive.tell()
            archive.seek(0)
            try:
                self.context.put(archive, there)
                self.call(f"cd {shlex.quote(self.root)} && tar xzf {there}", TRANSFER_TIMEOUT_S)
            except TransportError as error:
                # SFTP says only "Failure"; a broken line fails here again and says so
                full = f"; only {self.free_bytes() >> 10} kB are free there" if self.free_bytes() < 4 * size + 65536 else ""
                raise Refused(f"{self.name}: sending inputs failed: {error}{full}") from error
            finally:
                with contextlib.suppress(TransportError):
                    self.call(f"rm -f {there}")

    # ---- asking ----
    def queue(self, ids: Sequence[str]) -> Queue:
        """State of the scheduler; `ids` are those we have in it."""
        return scheduler.ask_queue(self.cluster, self.context, self.call, ids)

    def traces(self, batches: Sequence[str]) -> dict[str, tuple[str, bool]]:
        """What submissions that we may have made left behind: name → (id from the job-id file, whether a job started)."""
        if not batches:
            return {}
        names = " ".join(shlex.quote(b) for b in batches)
        lines = self.call(f"cd {shlex.quote(self.root)} && for b in {names}; do "
                          'echo "$b $(ls -d "$b"/*/.started 2>/dev/null | wc -l) $(cat "$b/${b}_job_id" 2>/dev/null)"; done')
        found = {}
        for line in lines.splitlines():
            words = line.split()
            found[words[0]] = (words[2] if len(words) > 2 else "", int(words[1]) > 0)
        return found

    # ---- ending ----
    def fetch(self, batches: Sequence[Batch]) -> None:
        """Bring the outputs of ended batches into their staged folders, all in one stream; a folder that is gone brings
        nothing, and the collector judges."""
        if not isinstance(self.context, RemoteContext) or not batches:
            return
        patterns = [f"{b.name}/{job.key}/{_glob(p)}" for b in batches for job in b.jobs
                    for p in (".started", *LOGS, *job.outputs)]
        script = (f"cd {shlex.quote(self.root)} || exit {_NO_FOLDER}\nshopt -s nullglob globstar\n"
                  # only what exists; names end in zero bytes because any other may be part of a name
                  "list() { for f in \"$@\"; do test -e \"$f\" && printf '%s\\0' \"$f\"; done; true; }\n"
                  "{\n" + "".join(f"list {p}\n" for p in patterns) + "} | tar czf OUTPUT --null -T - 2>/dev/null\n")
        there = f"{self.root}/.fetch-{uuid.uuid4().hex}"
        with tempfile.TemporaryFile() as archive:
            try:
                code, _, err = self.context.run(script.replace("OUTPUT", there), TRANSFER_TIMEOUT_S)
                if code in (0, 1):  # 1: a file changed while it was read
                    self.context.get(there, archive)
            finally:
                with contextlib.suppress(TransportError):
                    self.call(f"rm -f {there}")
            if code not in (0, 1):
                # a full disk must not keep finished answers back: without a file there, at the price of a new session
                code, err = self.context.execute("bash -s", io.BytesIO(script.replace("OUTPUT", "-").encode()), archive,
                                                 TRANSFER_TIMEOUT_S)
            if code not in (0, 1):
                raise TransportError(f"{self.name}: fetching outputs failed ({code}): {err.decode(errors='replace')[:300]}")
            archive.seek(0)
            try:
                with tarfile.open(fileobj=archive) as tar:
                    tar.extractall(self.staging, filter="data")
            except (tarfile.TarError, EOFError) as error:
                raise TransportError(f"{self.name}: the outputs arrived damaged: {error}") from error

    def free_bytes(self) -> int:
        """Space left where jobs run."""
        if self.local:
            return shutil.disk_usage(self.root).free
        return int(self.call(f"df -Pk {shlex.quote(self.root)} | tail -n 1").split()[3]) * 1024

    def stop(self, batch: str, ident: str, keys: Sequence[str], whole: bool) -> None:
        """Stop jobs of a batch; `whole` when it has no other jobs."""
        command = scheduler.stop_command(self.cluster, ident) if ident and whole else None
        if command is None:
            # one that has not started must not start any more; one that runs gets SIGTERM (SIGKILL after its 30 s)
            command = "".join(
                f"cd {shlex.quote(self.folder(batch))}/{key} 2>/dev/null && {{ touch .stop-{batch}; mkdir .started 2>/dev/null; "
                'g=$(cat .process_group 2>/dev/null); test -n "$g" && kill -TERM -- -$g 2>/dev/null; }; ' for key in keys)
            command += "true"
        self.call(command)

    def clean(self, folders: Sequence[str]) -> None:
        """Remove job folders on the cluster and here, and batch folders that are empty then."""
        mine = sorted({f for f in folders if f.startswith(f"{self.root}/")})
        if not mine:
            return
        for folder in mine:
            here = self.staging / os.path.relpath(folder, self.root)
            shutil.rmtree(here, ignore_errors=True)
            if here.parent != self.staging and here.parent.is_dir() and not any(p.is_dir() for p in here.parent.iterdir()):
                shutil.rmtree(here.parent, ignore_errors=True)
        if not self.local:
            quoted = " ".join(shlex.quote(f) for f in mine)
            # after all of them: batch folders in which no folder is left
            self.call(f'rm -rf {quoted}; for f in {quoted}; do b=${{f%/*}}; set -- "$b"/*/; test -d "$1" || rm -rf "$b"; done')


def _glob(pattern: str) -> str:
    """A pattern for bash: its wildcards live, everything else literal."""
    return "".join(c if c in "*?[]/" or c.isalnum() or c in "._-+=" else shlex.quote(c) for c in pattern)
