"""Labelled frames out of a file that somebody made: of ours (Parquet), of VASP, of pw.x."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dft import pw_output, verdict
from hydroflow.errors import DataError, EngineFailure
from hydroflow.units import GPA_A3_EV


def read_labels(path: Path) -> StructureArrays:
    """Labelled frames of a file: columns ``energy_ev``, ``virial_ev``, ``pressure_gpa``, atom column ``forces_ev_a``.

    Raises
    ------
    DataError
        when the file is none of those known, or not of a finished calculation.
    """
    try:
        if path.suffix == ".parquet":
            frames = StructureArrays.from_parquet(path.read_bytes())
        elif "vasprun" in path.name or "OUTCAR" in path.name:
            from hydroflow.dft.vasp_output import read_vasp

            return frame(read_vasp(path))
        elif path.suffix == ".xml":
            return frame(pw_output.read_xml(path))
        else:
            text = path.read_text(errors="replace")
            if failure := verdict.diagnose(text):
                raise failure
            return frame(pw_output.read_text(text))
    except EngineFailure as failure:
        raise DataError(f"{path}: {failure}") from failure
    missing = {"energy_ev", "pressure_gpa"} - set(frames.columns) or {"forces_ev_a"} - set(frames.atom_columns)
    if missing:
        raise DataError(f"{path}: these structures carry no labels ({', '.join(sorted(missing))} missing)")
    return frames


def frame(result: pw_output.PwResult) -> StructureArrays:
    """One labelled frame of a finished calculation; :class:`DataError` when it is not converged or lacks a value."""
    if not result.scf_converged or result.energy_ev is None or result.forces_ev_a is None or result.stress_gpa is None:
        raise DataError("the calculation is not converged or wrote no forces or no stress")
    out = StructureArrays.from_lists([result.numbers], [result.fractional], [result.cell])
    out.columns = {
        "energy_ev": np.array([result.energy_ev]),
        "virial_ev": (result.stress_gpa * out.volumes[0] * GPA_A3_EV)[None],
        "pressure_gpa": np.array([np.trace(result.stress_gpa) / 3]),
    }
    out.atom_columns = {"forces_ev_a": result.forces_ev_a}
    return out
