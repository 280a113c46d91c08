"""The schedulers: the script of a scheduler job, how it is handed in, what is in the queue, how it is stopped.

Scripts come from dpdispatcher's machines. Handing in and asking are ours where a scheduler allows many jobs per call (Slurm,
plain shell); PBS, Torque, SGE and LSF go through dpdispatcher one by one.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpdispatcher import Job as SchedulerJob
from dpdispatcher import Resources as SchedulerResources
from dpdispatcher import Task
from dpdispatcher.machine import Machine
from dpdispatcher.utils.job_status import JobStatus

from hydroflow.campaign import Cluster
from hydroflow.dispatch.job import Resources
from hydroflow.dispatch.transport import LocalContext, RemoteContext, ssh_errors
from hydroflow.dispatch.wrapper import SCRIPT

JOB_MARGIN_S, BATCH_MARGIN_S = 60, 300
"""Added to the wall time of each job and of a scheduler job, so that the job's own limit strikes first and leaves a verdict."""
SLURM = ("Slurm", "SlurmJobArray")
_SLURM_ALIVE = {"PD", "CF", "S", "R", "CG", "RD", "RF", "RH", "RQ", "RS", "SI", "SO", "ST"}


@dataclass(frozen=True)
class BatchJob:
    """One job inside a batch."""

    key: str
    resources: Resources
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Jobs that share one scheduler job; `name` is its name in the queue and of its folder."""

    name: str
    jobs: tuple[BatchJob, ...]


@dataclass(frozen=True)
class Queue:
    """What a scheduler knew at one moment: id → whether it runs already, and name → id of our scheduler jobs."""

    running: dict[str, bool] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def batch_name(keys_and_attempts: Sequence[tuple[str, int]]) -> str:
    """Name of a batch: the job's own key and attempt where it is alone, else the first's and how many more."""
    key, attempt = keys_and_attempts[0]
    return f"{key}-{attempt}" + (f"-and-{len(keys_and_attempts) - 1}" if len(keys_and_attempts) > 1 else "")


def wall_time_each(cluster: Cluster, count: int) -> float:
    """Wall time (s) that each of `count` jobs may have for all to fit into one scheduler job of the cluster."""
    if cluster.max_wall_time_s is None:
        return math.inf
    in_turn = 1 if cluster.batch == "SlurmJobArray" else count
    return (cluster.max_wall_time_s - BATCH_MARGIN_S) / in_turn - JOB_MARGIN_S


# ---- scripts ----
def write_scripts(cluster: Cluster, context: LocalContext | RemoteContext, batch: Batch, staged: Path) -> SchedulerJob:
    """Write ``NAME.sub`` and ``NAME.sub.run`` into the staged folder; `context` is bound to the batch's folder."""
    machine = Machine.subclasses_dict[cluster.batch](context=context, retry_count=0)
    tasks = [Task(command=f"bash {SCRIPT} {batch.name}", task_work_path=job.key, outlog=None, errlog=None) for job in batch.jobs]
    job = SchedulerJob(job_task_list=tasks, machine=machine, resources=_resources(cluster, batch))
    job.job_hash, job.script_file_name = batch.name, f"{batch.name}.sub"
    (staged / job.script_file_name).write_text(machine.gen_script(job))
    (staged / f"{job.script_file_name}.run").write_text(machine.gen_script_command(job))
    return job


def _resources(cluster: Cluster, batch: Batch) -> SchedulerResources:
    """The largest of the group; one after another, so wall times add up except in an array."""
    array = cluster.batch == "SlurmJobArray"
    walls = [job.resources.wall_time_s + JOB_MARGIN_S for job in batch.jobs]
    wall_s = (max(walls) if array else sum(walls)) + BATCH_MARGIN_S
    memory = max(job.resources.memory_mb for job in batch.jobs)
    return SchedulerResources(
        number_node=1, cpu_per_node=max(job.resources.cores for job in batch.jobs),
        gpu_per_node=max(job.resources.gpus for job in batch.jobs), queue_name=cluster.queue, group_size=0,
        custom_flags=[*_header(cluster.batch, batch.name, wall_s, memory), *cluster.scheduler_lines],
        prepend_script=list(cluster.setup), kwargs={"slurm_job_size": 1} if array else {})


def _header(batch: str, name: str, wall_s: int, memory_mb: int) -> list[str]:
    """Name, wall time and memory, which dpdispatcher leaves to its users."""
    minutes = math.ceil(wall_s / 60)
    clock = f"{wall_s // 3600:02d}:{wall_s % 3600 // 60:02d}:{wall_s % 60:02d}"
    if batch in SLURM:
        memory = [f"#SBATCH --mem={memory_mb}M"] if memory_mb else []
        return [f"#SBATCH --job-name={name}", f"#SBATCH --time={minutes}", "#SBATCH --no-requeue", *memory]
    if batch in ("PBS", "Torque"):
        memory = [f"#PBS -l mem={memory_mb}mb"] if memory_mb else []
        return [f"#PBS -N h{name[:14]}", f"#PBS -l walltime={clock}", *memory]
    if batch == "SGE":
        return [f"#$ -N h{name}", f"#$ -l h_rt={clock}", *([f"#$ -l h_vmem={memory_mb}M"] if memory_mb else [])]
    if batch == "LSF":
        return [f"#BSUB -J {name}", f"#BSUB -W {minutes}", *([f"#BSUB -M {memory_mb}MB"] if memory_mb else [])]
    return []


# ---- handing in ----
def launch_command(cluster: Cluster, batches: Sequence[Batch]) -> str | None:
    """One command line that hands in many batches from the folder that holds theirs, and prints ``NAME CODE ID`` for each;
    None where dpdispatcher must do it. The id is written to a file at once, so that it is found if we die now."""
    if cluster.batch in SLURM:
        hand_in = 'id=$(sbatch --parsable "$b.sub" 2>"$b.refused" | cut -d";" -f1); test -n "$id"'
    elif cluster.batch == "Shell":
        # without a terminal, an input or an open output of ours, and in a session of its own
        # and not before it shows its script's name: until then the queue would not list it, and it would look ended
        hand_in = ('{ setsid nohup bash "$b.sub" >"$b.out" 2>&1 </dev/null & }; id=$!; for i in $(seq 100); do a=(); '
                   'mapfile -d "" -t a 2>/dev/null < /proc/$id/cmdline; '
                   'case "${a[1]-gone}" in gone|*.sub) break ;; esac; sleep 0.02; done; true')
    else:
        return None
    names = " ".join(shlex.quote(b.name) for b in batches)
    return (f'for b in {names}; do ( cd "$b" && {hand_in}; code=$?; '
            'test $code = 0 && echo "$id" > "$b"_job_id; '
            'echo "$b $code $id $(test -s "$b.refused" && head -n 1 "$b.refused")" ); done')


# ---- asking ----
def ask_queue(cluster: Cluster, context: LocalContext | RemoteContext, call: Callable[[str], str], ids: Sequence[str]) -> Queue:
    """State of the scheduler in one query where it can be; `ids` are those we have in it."""
    if cluster.batch in SLURM:
        return _slurm_queue(call)
    if cluster.batch == "Shell":
        lines = _local_processes() if isinstance(context, LocalContext) else call("ps -eo pid=,args= -ww").splitlines()
        return _shell_queue(lines)
    return _other_queue(cluster, context, ids)


def _slurm_queue(call: Callable[[str], str]) -> Queue:
    queue = Queue()
    for line in call('squeue -h -u "$(id -un)" -o "%F %t %j"').splitlines():  # %F: of a job array, the array's own id
        words = line.split()
        if len(words) == 3 and words[1] in _SLURM_ALIVE:
            queue.running[words[0]] = queue.running.get(words[0], False) or words[1] in ("R", "CG")
            queue.names[words[2]] = words[0]
    return queue


def _shell_queue(lines: Sequence[str]) -> Queue:
    queue = Queue()
    for line in lines:
        pid, _, arguments = line.strip().partition(" ")
        words = arguments.split()
        if len(words) >= 2 and words[0].endswith("bash") and words[1].endswith(".sub"):
            queue.running[pid] = True
            queue.names[words[1][:-4]] = pid
        elif len(words) >= 3 and words[0].endswith("bash") and words[1] == SCRIPT:
            # the outer script was killed but the job's own lives on
            queue.names.setdefault(words[2], pid)
    return queue


def _local_processes() -> list[str]:
    """pid and arguments of this machine's bash processes, without starting one."""
    lines = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/cmdline", "rb") as handle:
                    arguments = handle.read(4096)
            except OSError:
                continue
            if arguments.startswith(b"bash\0"):
                lines.append(f"{entry.name} " + arguments.replace(b"\0", b" ").decode(errors="replace").strip())
    return lines


def _other_queue(cluster: Cluster, context: LocalContext | RemoteContext, ids: Sequence[str]) -> Queue:
    queue = Queue()
    machine = Machine.subclasses_dict[cluster.batch](context=context, retry_count=0)

    class _Asked:
        job_hash = ""
        job_id: Any = ""

    for ident in ids:
        asked = _Asked()
        asked.job_id = ident
        with ssh_errors(cluster.host or "this machine"):
            status = machine.check_status(asked)
        if status in (JobStatus.waiting, JobStatus.running, JobStatus.completing):
            queue.running[ident] = status != JobStatus.waiting
    return queue


# ---- stopping ----
def stop_command(cluster: Cluster, ident: str) -> str | None:
    """Command line that takes a whole scheduler job away; None for plain shells."""
    if cluster.batch == "Shell":
        return None
    if cluster.batch in SLURM:
        return f"scancel -Q {shlex.quote(ident)}"
    return ("bkill " if cluster.batch == "LSF" else "qdel ") + shlex.quote(ident)
