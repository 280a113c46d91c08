"""One job's folder before it is sent: its object files, the engine's inputs, the script around its command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydroflow.dispatch.engine import engine_for
from hydroflow.dispatch.ledger import spec_of
from hydroflow.dispatch.site import Site
from hydroflow.dispatch.wrapper import Attempt, write_script
from hydroflow.errors import EngineFailure, HydroflowError
from hydroflow.store.objects import ObjectStore


def stage(job: Mapping[str, Any], folder: Path, site: Site, objects: ObjectStore) -> None:
    """Write the folder of a claimed job.

    Raises
    ------
    Exception
        whatever the engine's ``prepare`` does; :func:`refusal` puts it into words.
    """
    spec, adjustments, restart = spec_of(job), job.get("adjustments", {}), job.get("restart_from")
    engine = engine_for(spec.kind)
    if restart and job.get("cost", {}).get("cores") != spec.resources.cores and not getattr(engine, "cores_may_change", False):
        restart, adjustments = None, {}
    folder.mkdir(parents=True)
    for name, digest in spec.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        objects.fetch(digest, folder / name)
    engine.prepare(spec, adjustments, folder)
    executables = site.executables(engine.executables, spec.resources.cores)
    parallel = any("{cores}" in site.cluster.executables.get(name, "") for name in engine.executables)
    # an executable started with {cores} ranks gets one thread per rank, any other all its cores as threads
    threads = 1 if parallel else spec.resources.cores
    write_script(folder, Attempt(
        command=engine.command(spec, adjustments, executables), cores=spec.resources.cores,
        wall_time_s=spec.resources.wall_time_s,
        restart_from=restart if restart and restart.startswith(f"{site.root}/") else None,
        environment={"OMP_NUM_THREADS": str(threads), "HYDROFLOW_JOB": job["_id"], "HYDROFLOW_CLUSTER": site.name,
                     "GFORTRAN_UNBUFFERED_PRECONNECTED": "y"}))


def refusal(error: Exception) -> dict[str, Any]:
    """The failure of a job that could not be staged, as the ledger stores it."""
    if isinstance(error, EngineFailure):  # the engine's own verdict on its input keeps its code
        return error.to_dict()
    known = isinstance(error, HydroflowError)
    return {"code": "bad_input" if known else "unknown", "details": {},
            "message": str(error) if known else f"{type(error).__name__}: {error}"}
