"""The jobs of one irreducible q: ``epc.q``, and for large cells ``epc.irreps`` before it.

``epc.q`` unpacks the ground state and runs ph.x twice: phonons with stored potential variations (which survives a kill at the
wall time), then couplings from those. Where a q has more modes than one job should carry, its linear response is shared out by
representations: each ``epc.irreps`` computes some of them and keeps their dynamical matrices and their records of the potential
variations; ``epc.q`` puts those where ph.x keeps its own, and goes on from there as after a kill, with nothing left to
respond to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.dispatch.engine import Collected, Recovery
from hydroflow.dispatch.job import JobSpec
from hydroflow.epc import failures
from hydroflow.epc.inputs import PREFIX, coupling_input, phonon_input
from hydroflow.epc.modes import acoustic_at_gamma, unknown_couplings
from hydroflow.epc.protocols import limits
from hydroflow.epc.qe_files import read_couplings, read_dynamical
from hydroflow.epc.scripts import DAMAGED, SAVE, exit_code, head, killed, pools, times
from hydroflow.errors import EngineFailure, FailureCode

ELPH = "elph.tar.gz"
IRREPS = "irreps.tar.gz"
OTHER_PATTERNS = "other_patterns.out"
ALONE = "couplings.alone"
"""Made where an attempt begins with its phonons done: the couplings had all its time."""
CONVERGED = "Convergence has been achieved"
"""What ph.x says of a finished representation."""
RESERVE = 0.93
"""Share of the wall time after which ph.x stops by itself, to leave time for writing its checkpoint."""

_PHONONS = f"""if [ ! -e phonons.done ]; then
  input=fresh.in
  if [ -e out/_ph0/{PREFIX}.phsave/status_run.xml ]; then
    input=recover.in
    # ph.x 6.7 would go on from the bands of its q as it saved them, without their smearing: the representations left would
    # be those of an insulator. Without them it computes the bands again; converged representations stay.
    rm -rf out/_ph0/{PREFIX}.q_*/{PREFIX}.save
    rm -f out/_ph0/{PREFIX}.q_*/{PREFIX}.recover* out/_ph0/{PREFIX}.q_*/{PREFIX}.wfc*
    rm -f out/_ph0/{PREFIX}.q_*/{PREFIX}.bar* out/_ph0/{PREFIX}.q_*/{PREFIX}.dwf*
  fi
  $PH -in $input > phonons.out 2>&1
  touch phonons.done
fi
"""


def _join(q: int, cores: int) -> str:
    """Puts the parts of a q where ph.x keeps its own.

    The patterns that the representations are in come from a diagonalisation of each job's own: with another LAPACK they could be
    others, and dynamical matrix and records of one basis would be taken for those of another. PAW records are written and read
    by the first process of every pool, each with a file of its own that says the same.
    """
    patterns = f"out/_ph0/{PREFIX}.phsave/patterns.{q}.xml"
    return f"""mkdir -p out/_ph0
  rm -f first.patterns {OTHER_PATTERNS}
  for part in irreps*.tar.gz; do
    tar -xzf $part -C out/_ph0
    [ -e first.patterns ] || cp {patterns} first.patterns
    cmp first.patterns {patterns} > {OTHER_PATTERNS} 2>&1 || exit 1
  done
  rm {OTHER_PATTERNS}
  for first in $(find out/_ph0 -name '{PREFIX}.dv*1.0001'); do
    cat ${{first%.0001}}.???? > ${{first%.0001}}
    rm ${{first%.0001}}.????
  done
  for paw in $(find out/_ph0 -name '{PREFIX}.dv_paw1'); do
    for process in {" ".join(str(i) for i in range(2, cores + 1))}; do ln -f $paw ${{paw%1}}$process; done
  done
  """


def _cut(q: int, first: int, last: int) -> str:
    """Packs what ph.x keeps of these representations.

    The potential variation of a mode is one record of a file that reaches up to the last mode computed; the records of other
    jobs' modes are holes in it. How many modes a representation has stands in ph.x's own list of patterns. What is not there to
    its last byte ends the job here, where it can be computed again.
    """
    return f"""cd out/_ph0
d={PREFIX}.q_{q}
[ -e $d/{PREFIX}.dv1 ] || d=.  # Γ has no folder of its own
for n in $(seq {first} {last}); do [ -s {PREFIX}.phsave/dynmat.{q}.$n.xml ]; done
n=0 before=0 own=0
for modes in $(tr -d '\\n' < {PREFIX}.phsave/patterns.{q}.xml | grep -o '<NUMBER_OF_PERTURBATIONS[^>]*>[^<]*' | sed 's/.*>//'); do
  n=$((n + 1))
  if [ $n -lt {first} ]; then before=$((before + modes)); elif [ $n -le {last} ]; then own=$((own + modes)); fi
done
for f in $d/{PREFIX}.dv1 $d/{PREFIX}.dv_paw1; do
  [ -e $f ] || [ $f = $d/{PREFIX}.dv1 ] || continue
  size=$(wc -c < $f)
  record=$((size / (before + own)))
  dd if=$f of=$f.{first:04d} bs=$record skip=$before count=$own 2> ../../cut.out
  [ $((record * (before + own))) -eq $size ]
  [ $(wc -c < $f.{first:04d}) -eq $((record * own)) ]
done
tar -cf ../../irreps.tar {PREFIX}.phsave $d/{PREFIX}.dv*1.{first:04d}
cd ../..
gzip -1 < irreps.tar > {IRREPS}.part
rm irreps.tar
mv {IRREPS}.part {IRREPS}
"""


def _write_phonons(job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> int:
    """Writes the two inputs of ph.x's linear response; returns after how many seconds it is to stop."""
    seconds = int(RESERVE * job.resources.wall_time_s)
    for name, recover in (("fresh.in", False), ("recover.in", True)):
        (folder / name).write_text(phonon_input(job.inputs, max_seconds=seconds, adjustments=adjustments, recover=recover))
    return seconds


_STOPPED = (FailureCode.walltime, FailureCode.killed, FailureCode.truncated_output)


def _judge(job: JobSpec, folder: Path, output: str) -> None:
    """:func:`hydroflow.epc.failures.judge` of ph.x; the details of a run that was stopped say whether it was ``stuck``, with
    nothing done that the next one could go on from.

    At Γ ph.x goes on within a representation, elsewhere only with the next one; couplings start again.
    """
    try:
        failures.judge(folder / output, "PHONON", exit_code(folder))
    except EngineFailure as failure:
        if output == "phonons.out":
            text = (folder / output).read_text(errors="replace") if (folder / output).exists() else ""
            stuck = job.inputs["q"] > 1 and CONVERGED not in failures.last_run(text, "PHONON")
        else:
            stuck = (folder / ALONE).exists()
        words = "; it had finished nothing to go on from" if stuck and failure.code in _STOPPED else ""
        raise EngineFailure(failure.code, failure.message + words, {**failure.details, "stuck": stuck}) from failure


_TETRAHEDRAL_COUPLINGS = f"""cp out/tetrahedra.xml out/{PREFIX}.save/data-file-schema.xml
cp out/tetrahedra.xml out/{PREFIX}.xml
$PH -in tetrahedra.in > tetrahedra.out 2>&1
cp {PREFIX}.dyn{{q}}.elph.{{q}} tetrahedra.dat
"""


class EpcIrreps:
    """Linear response of some representations of one q (kind ``epc.irreps``).

    Inputs: q (1-based), q_mesh, coarse, representations (first and last, 1-based), tr2_ph, alpha_mix. Files: the scf's package.
    """

    kind = "epc.irreps"
    executables = ("ph.x",)

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        _write_phonons(job, adjustments, folder)
        (folder / "run.sh").write_text(head(job) + f"""
[ -e unpacked ] || {{ tar -xzf {SAVE}; touch unpacked; }}
{_PHONONS}{_cut(job.inputs["q"], *job.inputs["representations"])}""")

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return f"PH='{executables['ph.x']}{pools(job, adjustments)}' sh run.sh"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("phonons.out", IRREPS)

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        _judge(job, folder, "phonons.out")
        if not (folder / IRREPS).exists():
            raise EngineFailure(FailureCode.missing_output, "the representations were not packed: the job ended early")
        return Collected({"q": job.inputs["q"], "representations": job.inputs["representations"],
                          **times([failures.timings(folder / "phonons.out")])},
                         {IRREPS: folder / IRREPS, "phonons.out": folder / "phonons.out"})

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        return _recovery(job, failure, attempt)


class EpcQ:
    """Phonons and couplings of one irreducible q (kind ``epc.q``).

    Inputs: q (1-based), q_cartesian, q_mesh, coarse, tr2_ph, alpha_mix, sigma_first_ry, sigma_count; dense where tetrahedra are
    wanted too. Files: the scf's package; irreps1.tar.gz, irreps2.tar.gz, … where other jobs did the linear response.
    """

    kind = "epc.q"
    executables = ("ph.x",)

    def prepare(self, job: JobSpec, adjustments: Mapping[str, Any], folder: Path) -> None:
        seconds = _write_phonons(job, adjustments, folder)
        (folder / "couplings.in").write_text(coupling_input(job.inputs, max_seconds=seconds, adjustments=adjustments))
        if "dense" in job.inputs:
            (folder / "tetrahedra.in").write_text(
                coupling_input(job.inputs, max_seconds=seconds, adjustments=adjustments, tetrahedra=True))
        q = job.inputs["q"]
        (folder / "run.sh").write_text(head(job) + f"""
[ -e unpacked ] || {{ tar -xzf {SAVE}
  {_join(q, job.resources.cores) if any(name.startswith("irreps") for name in job.files) else ""}touch unpacked; }}
[ ! -e phonons.done ] || touch {ALONE}
{_PHONONS}if [ ! -e {ELPH} ]; then
  rm -rf elph_dir
  $PH -in couplings.in > couplings.out 2>&1
  cp elph_dir/elph.inp_lambda.{q} couplings.dat
  tar -cf - elph_dir | gzip -1 > {ELPH}.part
  mv {ELPH}.part {ELPH}
fi
""" + (_TETRAHEDRAL_COUPLINGS.format(q=q) if "dense" in job.inputs else ""))

    def command(self, job: JobSpec, adjustments: Mapping[str, Any], executables: Mapping[str, str]) -> str:
        return f"PH='{executables['ph.x']}{pools(job, adjustments)}' sh run.sh"

    def outputs(self, job: JobSpec) -> tuple[str, ...]:
        return ("phonons.out", "couplings.out", f"{PREFIX}.dyn{job.inputs['q']}", "couplings.dat", ELPH, OTHER_PATTERNS, ALONE,
                *(("tetrahedra.out", "tetrahedra.dat") if "dense" in job.inputs else ()))

    def collect(self, job: JobSpec, folder: Path) -> Collected:
        q = job.inputs["q"]
        if (folder / OTHER_PATTERNS).exists() and (folder / OTHER_PATTERNS).stat().st_size:
            raise EngineFailure(FailureCode.bad_input, "the jobs that shared this q out have different displacement patterns: "
                                "they ran with different libraries. Let one cluster, with one ph.x, take epc.irreps, and run "
                                f"the parts of q {q} of this crystal again: `hydroflow jobs retry KEYS --redo`, KEYS as "
                                "`hydroflow jobs list --kind epc.irreps` shows them")
        for output in ("phonons.out", "couplings.out"):
            _judge(job, folder, output)
        dynamical = read_dynamical(folder / f"{PREFIX}.dyn{q}")
        couplings = read_couplings(folder / "couplings.dat")
        expected = np.array(job.inputs["q_cartesian"])
        if np.abs(dynamical.q - expected).max() > 1e-5:
            raise EngineFailure(FailureCode.bad_input, f"ph.x computed q = {dynamical.q}, wanted {expected}")
        if len(couplings.omega2_ry2) != len(dynamical.frequencies_thz):
            raise EngineFailure(FailureCode.corrupted_output, "couplings and dynamical matrix have different numbers of modes")
        # acoustic modes at Γ are noise, and may lie well below zero
        lowest = float(np.min(dynamical.frequencies_thz[~acoustic_at_gamma(dynamical)], initial=np.inf))
        if not np.isfinite(couplings.gamma_ghz).all() and lowest < -limits()["imaginary_thz"]:
            # ph.x prints asterisks for the linewidths of strongly imaginary modes: the crystal is unstable, the file is whole
            raise EngineFailure(FailureCode.imaginary_modes, f"the lowest mode at q {q} is imaginary, {lowest:.1f} THz, and "
                                "linewidths overflow: unstable, or the k mesh is too coarse", {"lowest_thz": lowest})
        if unknown_couplings(couplings, dynamical) or not np.isfinite(dynamical.frequencies_thz).all():
            raise EngineFailure(FailureCode.corrupted_output, "NaN or overflow among frequencies or couplings")
        if not (folder / ELPH).exists():
            raise EngineFailure(FailureCode.missing_output, "the couplings were not packed: the job ended early")
        keep = {"dyn": folder / f"{PREFIX}.dyn{q}", "couplings": folder / "couplings.dat", ELPH: folder / ELPH,
                "phonons.out": folder / "phonons.out", "couplings.out": folder / "couplings.out"}
        if "dense" in job.inputs:
            _judge(job, folder, "tetrahedra.out")
            read_couplings(folder / "tetrahedra.dat")
            keep |= {"tetrahedra": folder / "tetrahedra.dat", "tetrahedra.out": folder / "tetrahedra.out"}
        parts = [failures.timings(path) for name, path in keep.items() if name.endswith(".out")]
        return Collected({
            "q": q, "star": dynamical.star, "frequencies_thz": dynamical.frequencies_thz.round(5).tolist(), **times(parts),
        }, keep)

    def recover(self, job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
        return _recovery(job, failure, attempt)


def _recovery(job: JobSpec, failure: EngineFailure, attempt: int) -> Recovery | None:
    """What ph.x is tried with next."""
    if failure.code is FailureCode.phonon_not_converged and attempt <= 3:
        # representations that did converge are kept; only the mixing of the others changes
        alpha = (0.3, 0.15, 0.1)[attempt - 1]
        changes: dict[str, Any] = {"alpha_mix": alpha, "nmix_ph": 5, "niter_ph": 100}
        action = f"alpha_mix {alpha}, mixing of 5 iterations, converged representations kept"
        if attempt == 3:
            changes["tr2_ph"] = 100 * job.inputs["tr2_ph"]
            action += f", tr2_ph {changes['tr2_ph']:.0e}"
        return Recovery(action, changes, keep_folder=True)
    if failure.code is FailureCode.parallel_limits and attempt <= 1:
        return Recovery("without pools", {"pools": 1}, keep_folder=True)
    if failure.code is FailureCode.diagonalisation and attempt <= 1:
        return Recovery("conjugate-gradient diagonalisation of the bands at k+q", {"diagonalization": "cg"},
                        keep_folder=True)
    if failure.code in DAMAGED and attempt <= 1:
        return Recovery("started afresh from the saved ground state")
    if failure.code is FailureCode.walltime and failure.details.get("stuck") and attempt > 1:
        return None
    return killed(failure, attempt, most=12)
