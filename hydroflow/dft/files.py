"""Labelled frames out of a file that somebody made: of ours (Parquet), of VASP, of pw.x."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dft import pw_output, verdict
from hydroflow.errors import DataError, EngineFailure
from hydroflow.units import GPA_A3_EV


def read_structures(path: Path) -> StructureArrays:
    """Structures of a Parquet file of ours or of any file that ASE reads (POSCAR, CIF, extended XYZ …).

    Raises
    ------
    DataError
        when it cannot be read or a structure has no cell.
    """
    if path.suffix == ".parquet":
        return StructureArrays.from_parquet(path.read_bytes())
    from ase.io import read

    try:
        atoms = read(path, index=":")
    except Exception as error:  # ASE's readers raise whatever their format's parser does
        raise DataError(f"{path}: not a file of structures ({type(error).__name__}: {error})") from error
    if not atoms or any(len(a) == 0 or a.cell.rank < 3 for a in atoms):
        raise DataError(f"{path}: holds no structure, or one without a cell")
    return StructureArrays.from_atoms(atoms)


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
