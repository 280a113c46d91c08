"""Labels per core-hour by cell and protocol, and what the label engine adds to a bare call of pw.x on the same input.

The peer is pw.x itself on the input files that the engine wrote. Times are CPU times of this process and its children, so
that a busy machine changes little; the wall-clock share outside pw.x's own clock is given beside them. Without `--quick` and
`--only`, a batch of labels of different sizes also goes the whole way of a campaign's, through ledger, agent and dpdispatcher on
every core: `batch_wall_share_outside_pw` is the share of core time, from the first start to the last end, in which no pw.x ran.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ase import Atoms
from ase.spacegroup import crystal

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Cluster, Labels
from hydroflow.dft.jobs import Label, label_specs
from hydroflow.dft.pw_run import run_line
from hydroflow.dft.settings import label_settings
from hydroflow.dispatch.agent import Agent
from hydroflow.dispatch.job import JobSpec
from hydroflow.dispatch.ledger import Ledger
from hydroflow.settings import ServiceSettings
from hydroflow.store import open_store, services


def systems() -> dict[str, Atoms]:
    """Known hydrides near 200 GPa, primitive cells; `off` are displaced at random: no symmetry, as most labels of a campaign."""
    def cubic(symbols: list[str], sites: list[tuple[float, float, float]], group: int, a: float) -> Atoms:
        return crystal(symbols, sites, spacegroup=group, cellpar=[a, a, a, 90, 90, 90], primitive_cell=True)

    found = {
        "H3S": cubic(["S", "H"], [(0, 0, 0), (0, 0.5, 0.5)], 229, 2.984),
        "CaH6": cubic(["Ca", "H"], [(0, 0, 0), (0.25, 0.5, 0)], 229, 3.393),
        "YH6": cubic(["Y", "H"], [(0, 0, 0), (0.25, 0.5, 0)], 229, 3.514),
        "LaH10": cubic(["La", "H", "H"], [(0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.1207, 0.1207, 0.1207)], 225, 4.94),
        "CaYH12": cubic(["Ca", "Y", "H"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.25, 0.5, 0)], 221, 3.464),
    }
    for name in ("H3S", "CaH6", "CaYH12"):
        found[f"{name}_off"] = found[name].copy()
        found[f"{name}_off"].rattle(0.05, seed=1)
    return found


def cpu_of(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(CPU s of this process and its children, wall s, result)."""
    def used() -> float:
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

    before, started = used(), time.monotonic()
    result = work()
    return used() - before, time.monotonic() - started, result


def label(engine: Label, spec: JobSpec, folder: Path) -> dict[str, Any]:
    """One attempt as the agent makes it."""
    engine.prepare(spec, {}, folder)
    line = engine.command(spec, {}, {"pw.x": "pw.x"})
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True)
    (folder / "exit_code").write_text(str(done.returncode))
    return engine.collect(spec, folder).result


def measure(protocol: str, names: list[str], root: Path) -> dict[str, Any]:
    objects: dict[str, bytes] = {}

    def put_file(path: Path) -> str:
        data = path.read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        objects[digest] = data
        return digest

    store, engine = SimpleNamespace(objects=SimpleNamespace(put_file=put_file)), Label()
    settings = label_settings(Labels(protocol=protocol), ["H", "S", "Ca", "Y", "La"])
    out: dict[str, Any] = {}
    total_engine = total_bare = outside = wall_all = 0.0
    for name in names:
        spec = label_specs(store, StructureArrays.from_atoms([systems()[name]]), settings)[0]
        folder, bare = root / f"{protocol}-{name}", root / f"{protocol}-{name}-bare"
        for place in (folder, bare):
            place.mkdir()
            for file, digest in spec.files.items():
                (place / file).write_bytes(objects[digest])

        cpu, wall, result = cpu_of(partial(label, engine, spec, folder))
        (bare / "pw.in").write_text((folder / "pw.in").read_text())
        cpu_bare, _, _ = cpu_of(partial(subprocess.run, ["bash", "-c", run_line("pw.x", "pw")], cwd=bare, check=True))
        total_engine, total_bare = total_engine + cpu, total_bare + cpu_bare
        outside, wall_all = outside + wall - result["wall_s"], wall_all + wall
        out[f"{name}_atoms"] = len(systems()[name])
        out[f"{name}_labels_per_core_hour"] = round(3600 / cpu)
        out[f"{name}_wall_share_outside_pw"] = round(1 - result["wall_s"] / wall, 3)
        out[f"{name}_pressure_gpa"] = round(result["pressure_gpa"], 1)
    out["labels_per_core_hour"] = round(3600 * len(names) / total_engine)
    out["engine_to_bare_pw_ratio"] = round(total_engine / total_bare, 3)
    out["wall_share_outside_pw"] = round(outside / wall_all, 3)
    return out


def batch(root: Path, of_each: int = 4) -> dict[str, Any]:
    """Cells without symmetry of 4, 7 and 14 atoms with protocol `standard`, as one batch through a real agent."""
    settings = ServiceSettings(home=root / "services")
    cores = os.cpu_count() or 1
    made = []
    for name in ("H3S", "CaH6", "CaYH12"):
        for seed in range(of_each):
            made.append(systems()[name].copy())
            made[-1].rattle(0.05, seed=seed)
    services.up(settings, prefect=False)
    try:
        with open_store(settings) as store:
            specs = label_specs(store, StructureArrays.from_atoms(made),
                                label_settings(Labels(protocol="standard"), ["H", "S", "Ca", "Y"]))
            agent = Agent(store, {"local": Cluster(max_cores=cores)})
            thread = threading.Thread(target=agent.run)
            thread.start()
            try:
                ledger = Ledger(store)
                jobs = ledger.wait(ledger.submit(specs, "benchmark"))
            finally:
                agent.stop.set()
                thread.join()
    finally:
        services.down(settings)
    inside = sum(job.result["wall_s"] for job in jobs)
    span = max(job.cost["end"] for job in jobs) - min(job.cost["start"] for job in jobs)
    return {
        "batch_labels": len(jobs), "batch_cores": cores, "batch_wall_s": round(span, 1),
        "batch_mean_label_s": round(inside / len(jobs), 1), "batch_wall_share_outside_pw": round(1 - inside / (cores * span), 3),
        "batch_job_share_outside_pw": round(1 - inside / sum(job.cost["wall_s"] for job in jobs), 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="CELL", help=f"of {', '.join(systems())}")
    parser.add_argument("--protocol", help="only this one")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    protocols = [args.protocol] if args.protocol else ["fast"] if args.quick else ["fast", "standard"]
    runs = dict.fromkeys(protocols, args.only or (["H3S", "CaH6", "LaH10"] if args.quick else list(systems())))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for protocol, names in runs.items():
            found = measure(protocol, names, Path(folder))
            figures |= {f"{protocol}_{k}": v for k, v in found.items()}
            if not args.json:
                print(protocol, *(f"  {k} = {v}" for k, v in found.items()), sep="\n")
        if not args.quick and not args.only:
            figures |= batch(Path(folder))
            if not args.json:
                print(*(f"{k} = {v}" for k, v in figures.items() if k.startswith("batch_")), sep="\n")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
