"""The provoked pw.x runs of ``data/qe``: what each was and the verdict it deserves."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.io.espresso import read_espresso_in

from hydroflow.dft import crystal

FOLDER = Path(__file__).parent / "data" / "qe"


@dataclass(frozen=True)
class Case:
    """`said` is what output and exit code alone show (None: nothing), `code` what all checks find (None: a good label)."""

    name: str
    exit_code: int
    said: str | None
    code: str | None

    def read(self, suffix: str) -> str:
        path = FOLDER / f"{self.name}.{suffix}"
        return path.read_text() if path.exists() else gzip.decompress(path.with_name(path.name + ".gz").read_bytes()).decode()

    def structure(self) -> dict[str, Any]:
        with open(FOLDER / f"{self.name}.in") as handle:
            atoms = read_espresso_in(handle)
        return crystal.from_arrays(atoms.numbers, atoms.cell.array, atoms.get_scaled_positions(wrap=False))


CASES = [
    Case("ok_scf_cah6", 0, None, None),
    Case("ok_vcrelax_h3s", 0, None, None),
    Case("ok_relax_labeh8", 0, None, None),
    Case("ok_h3s_qe72", 0, None, None),
    Case("ph_imaginary", 0, None, None),  # a good scf of H3S whose phonons are imaginary
    Case("atoms_close_us", 0, None, "atoms_too_close"),
    Case("atoms_too_close", 0, None, "atoms_too_close"),
    Case("k_paw_close", 0, None, "atoms_too_close"),
    Case("ti_close", 0, None, "atoms_too_close"),
    Case("y_h_lowrho", 0, None, "unphysical_result"),  # 1773 GPa, negative density
    Case("pseudo_wrong_element", 0, None, "bad_pseudopotential"),
    Case("atoms_overlap", 1, "atoms_too_close", "atoms_too_close"),
    Case("bad_namelist", 1, "bad_input", "bad_input"),
    Case("ntyp_mismatch", 1, "bad_input", "bad_input"),
    Case("low_cutoff_us_6", 1, "bad_input", "bad_input"),
    Case("cholesky_parallel", 33, "diagonalisation", "diagonalisation"),
    Case("s_matrix_not_posdef", 98, "diagonalisation", "diagonalisation"),
    Case("s_matrix_message_lost", 98, "truncated_output", "truncated_output"),
    *(Case(f"la_{solver}_{cutoff}", 97, "diagonalisation", "diagonalisation")
      for solver in ("cg", "david") for cutoff in (10, 20, 30)),
    Case("fft_sticks", 7, "parallel_limits", "parallel_limits"),
    Case("killed_sigkill", -9, "killed", "killed"),
    Case("killed_sigterm", -15, "killed", "killed"),
    Case("nbnd_few", 1, "too_few_bands", "too_few_bands"),
    Case("occ_fixed_metal", 1, "needs_smearing", "needs_smearing"),
    Case("oom_250", 1, "out_of_memory", "out_of_memory"),
    Case("oom_400", 1, "out_of_memory", "out_of_memory"),
    Case("oom_700", 1, "out_of_memory", "out_of_memory"),
    Case("pseudo_garbage", 1, "bad_pseudopotential", "bad_pseudopotential"),
    Case("pseudo_missing", 1, "bad_pseudopotential", "bad_pseudopotential"),
    Case("pseudo_mixed_xc", 1, "bad_pseudopotential", "bad_pseudopotential"),
    Case("scf_not_converged", 2, "scf_not_converged", "scf_not_converged"),
    Case("scf_not_converged_qe72", 2, "scf_not_converged", "scf_not_converged"),
    Case("walltime_max_seconds", 255, "walltime", "walltime"),
]
