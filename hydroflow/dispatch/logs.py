"""Where a job's output is to be read: in its folder while it runs, in the object store after it was quarantined."""

from __future__ import annotations

import io
import shlex
import tarfile
from pathlib import Path

from hydroflow.campaign import Cluster
from hydroflow.dispatch.site import Site
from hydroflow.dispatch.states import ACTIVE
from hydroflow.store.documents import Job
from hydroflow.store.objects import ObjectStore
from hydroflow.store.packs import read

NAMES = ("stdout.txt", "stderr.txt")


def stored_logs(objects: ObjectStore, job: Job) -> dict[str, str]:
    """Output kept in the object store: the quarantine's archive, or what the engine keeps under these names."""
    outputs = job.outputs or {}
    texts = {name: read(objects, outputs[name]).decode(errors="replace") for name in NAMES if name in outputs}
    if not texts and "quarantine.tar.gz" in outputs:
        with tarfile.open(fileobj=io.BytesIO(read(objects, outputs["quarantine.tar.gz"]))) as archive:
            for name in NAMES:
                try:
                    member = archive.extractfile(name)
                except KeyError:
                    continue
                if member is not None:
                    texts[name] = member.read().decode(errors="replace")
    return texts


def live_logs(job: Job, cluster: Cluster | None, staging: Path) -> dict[str, str]:
    """Output of a job that is on a cluster, read there."""
    if cluster is None or not job.folder or job.state not in {s.value for s in ACTIVE}:
        return {}
    site = Site(job.cluster, cluster, staging)
    try:
        folder = f"{job.folder}/{job.key}"
        return {name: site.call(f"tail -c 100000 {shlex.quote(f'{folder}/{name}')} 2>/dev/null || true") for name in NAMES}
    finally:
        site.close()
