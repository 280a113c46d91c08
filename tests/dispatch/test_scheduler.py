"""The scripts that schedulers get: our name, wall time and memory in them, every job of the group, in its own folder."""

from __future__ import annotations

import subprocess

import pytest

from hydroflow.campaign import Cluster
from hydroflow.dispatch.job import Resources
from hydroflow.dispatch.scheduler import Batch, BatchJob, ask_queue, batch_name, write_scripts
from hydroflow.dispatch.transport import LocalContext
from hydroflow.errors import TransportError

KEYS = ["a" * 32, "b" * 32]
NAME = batch_name([(key, 1) for key in KEYS])
# one after another: 2 × (600 + 60) s + 300 s = 27 min; in an array each has its own 16 min
EXPECTED = {
    "Slurm": [f"#SBATCH --job-name={NAME}", "#SBATCH --time=27", "#SBATCH --mem=2000M", "#SBATCH --no-requeue"],
    "SlurmJobArray": [f"#SBATCH --job-name={NAME}", "#SBATCH --time=16", "#SBATCH --array=0-1"],
    "PBS": [f"#PBS -N h{NAME[:14]}", "#PBS -l walltime=00:27:00", "#PBS -l mem=2000mb"],
    "SGE": [f"#$ -N h{NAME}", "#$ -l h_rt=00:27:00", "#$ -l h_vmem=2000M"],
    "LSF": [f"#BSUB -J {NAME}", "#BSUB -W 27", "#BSUB -M 2000MB"],
}


@pytest.mark.parametrize("batch", EXPECTED)
def test_scripts(batch: str, tmp_path) -> None:
    staged = tmp_path / NAME
    staged.mkdir()
    context = LocalContext(str(tmp_path))
    context.remote_root = context.local_root = str(staged)
    cluster = Cluster(batch=batch, queue="main", setup=["module load qe"], scheduler_lines=["# account=hydrides"])
    resources = Resources(cores=4, wall_time_s=600, memory_mb=2000)
    write_scripts(cluster, context, Batch(NAME, tuple(BatchJob(key, resources) for key in KEYS)), staged)
    script, run = (staged / f"{NAME}.sub").read_text(), (staged / f"{NAME}.sub.run").read_text()
    for line in (*EXPECTED[batch], "# account=hydrides"):
        assert line in script.splitlines(), script
    everything = script + run
    assert "module load qe" in everything and all(f"hydroflow_run.sh {NAME}" in everything and key in everything for key in KEYS)
    for text in (script, run):
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_queue_that_does_not_answer_is_no_empty_queue() -> None:
    def broken(command: str) -> str:
        raise TransportError("squeue: error: Unable to contact slurm controller")

    with pytest.raises(TransportError):
        ask_queue(Cluster(batch="Slurm"), LocalContext("."), broken, [])


def test_an_array_counts_while_any_element_is_alive() -> None:
    answer = f"17 PD {NAME}\n17 R {NAME}\n18 CD other\n19 PD {'c' * 32}-1\n"
    queue = ask_queue(Cluster(batch="SlurmJobArray"), LocalContext("."), lambda command: answer, ["17"])
    assert queue.running == {"17": True, "19": False}
    assert queue.names == {NAME: "17", "c" * 32 + "-1": "19"}
