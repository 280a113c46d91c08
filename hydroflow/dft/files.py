"""Labelled frames out of a file that somebody made: of ours (Parquet), of VASP, of pw.x."""

from __future__ import annotations

import gzip
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.dft import pw_output, vasp_output, verdict
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
        try:
            return StructureArrays.from_parquet(path.read_bytes())
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
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

    Known by their content, not by their names: frames of ours (Parquet), vasprun.xml and OUTCAR of VASP, XML and output of pw.x;
    each also compressed (``.gz``), as the ledger keeps them.

    Raises
    ------
    DataError
        when the file is none of those known, or not of a finished calculation.
    """
    try:
        with _plain(path) as plain:
            return _frames(plain)
    except (EngineFailure, DataError) as error:
        raise DataError(f"{path}: {error}") from error


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """The file itself, or a decompressed copy of a ``.gz``."""
    if path.suffix != ".gz":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="hydroflow-") as folder:
        copy = Path(folder) / path.stem
        try:
            copy.write_bytes(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot be decompressed ({error})") from error
        yield copy


def _frames(path: Path) -> StructureArrays:
    with path.open("rb") as file:
        start = file.read(2000)
    if not start.startswith(b"PAR1"):
        return frame(_result(path, start))
    frames = StructureArrays.from_parquet(path.read_bytes())
    missing = {"energy_ev", "pressure_gpa"} - set(frames.columns) or {"forces_ev_a"} - set(frames.atom_columns)
    if missing:
        raise DataError(f"these structures carry no labels ({', '.join(sorted(missing))} missing)")
    return frames


def _result(path: Path, start: bytes) -> pw_output.PwResult:
    """What the program says whose output begins with `start`."""
    if start.lstrip().startswith(b"<"):
        return vasp_output.read_vasprun(path) if b"<modeling" in start else pw_output.read_xml(path)
    if re.match(rb"\s*vasp\.\d", start):
        return vasp_output.read_outcar(path)
    text = path.read_text(errors="replace")
    if "Program PWSCF" not in text:
        raise DataError("neither labelled frames (Parquet), nor vasprun.xml or OUTCAR of VASP, nor XML or output of pw.x")
    if failure := verdict.diagnose(text):
        raise failure
    return pw_output.read_text(text)


def frame(result: pw_output.PwResult) -> StructureArrays:
    """One labelled frame of a finished calculation; :class:`DataError` or :class:`EngineFailure` when it is not converged, lacks
    a value or has one that is no number."""
    if not result.scf_converged or result.ions_converged is False:
        raise DataError("the calculation is not converged")
    energy, forces, stress = result.values()
    if len(forces) != len(result.numbers):
        raise DataError(f"{len(forces)} forces for {len(result.numbers)} atoms")
    if not all(np.isfinite(value).all() for value in (energy, forces, stress, result.cell, result.fractional)):
        raise DataError("the calculation has numbers that are not finite (overflowed fields)")
    out = StructureArrays.from_lists([result.numbers], [result.fractional], [result.cell])
    out.columns = {
        "energy_ev": np.array([energy]),
        "virial_ev": (stress * out.volumes[0] * GPA_A3_EV)[None],
        "pressure_gpa": np.array([np.trace(stress) / 3]),
    }
    out.atom_columns = {"forces_ev_a": forces}
    return out
