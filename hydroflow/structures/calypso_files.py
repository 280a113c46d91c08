"""The files through which CALYPSO is driven in split mode: ``input.dat``, ``POSCAR_n``, ``CONTCAR_n``, ``OUTCAR_n``, ``step``.

In split mode each start of the executable does one step and ends: it reads the relaxed ``CONTCAR_n`` and ``OUTCAR_n`` of the
last generation (if there is one), writes ``POSCAR_1`` … ``POSCAR_PopSize`` of the next, and leaves the number of the
generation after that in ``step``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from hydroflow.errors import DataError
from hydroflow.structures.variation import Crystal
from hydroflow.units import EV_A3_GPA

FAILED_ENTHALPY_EV = 610612509.0
"""What CALYPSO itself writes for a structure whose local optimisation failed."""


def input_dat(
    symbols: list[str], counts: list[int], distances: np.ndarray, volume_a3: float, pressure_gpa: float, population: int,
    generations: int, space_groups: tuple[int, int],
) -> str:
    """Text of ``input.dat`` for one fixed cell composition in split mode with an external optimiser.

    Parameters
    ----------
    symbols, counts
        Elements and atoms per cell.
    distances : (s, s)
        Minimum distances in Å.
    volume_a3, pressure_gpa
        Cell volume in Å³ and pressure in GPa (written in kbar).
    population, generations
        Structures per generation and number of generations.
    space_groups
        First and last space-group number.
    """
    lines = {
        "SystemName": "".join(f"{s}{n}" for s, n in zip(symbols, counts, strict=True)),
        "NumberOfSpecies": len(symbols),
        "NameOfAtoms": " ".join(symbols),
        "AtomicNumber": " ".join(str(atomic_numbers[s]) for s in symbols),
        "NumberOfAtoms": " ".join(map(str, counts)),
        "NumberOfFormula": "1 1",
        "Volume": f"{volume_a3:.4f}",
        "Ialgo": 2, "PsoRatio": 0.6, "PopSize": population, "MaxStep": generations, "NumberOfLbest": 4, "GenType": 1,
        "ICode": 15, "NumberOfLocalOptim": 1, "Split": "T", "PickUp": "F",
        "SpeSpaceGroup": f"{space_groups[0]} {space_groups[1]}",
        "PSTRESS": f"{10 * pressure_gpa:.4f}",
    }
    table = "\n".join(" ".join(f"{d:.4f}" for d in row) for row in distances)
    return "".join(f"{key} = {value}\n" for key, value in lines.items()) + f"@DistanceOfIon\n{table}\n@End\n"


def read_poscar(path: Path, symbols: list[str]) -> Crystal:
    """A structure from a POSCAR with or without its line of element symbols (then `symbols` are meant).

    Raises
    ------
    DataError
        naming the file, when it is missing, cut off or not a POSCAR.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        scale = float(lines[1].split()[0])
        cell = scale * np.array([[float(x) for x in lines[i].split()[:3]] for i in (2, 3, 4)])
        names, at = symbols, 5
        if not lines[5].split()[0].isdigit():
            names, at = lines[5].split(), 6
        counts = [int(x) for x in lines[at].split()]
        cartesian = lines[at + 1].strip()[:1].lower() in ("c", "k")
        rows = lines[at + 2:at + 2 + sum(counts)]
        points = np.array([[float(x) for x in row.split()[:3]] for row in rows])
        if points.shape != (sum(counts), 3) or cell.shape != (3, 3) or abs(np.linalg.det(cell)) < 1e-6:
            raise ValueError
        numbers = np.repeat([atomic_numbers[s] for s in names], counts)
        return Crystal(numbers, points @ np.linalg.inv(cell) if cartesian else points, cell)
    except (ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path}: not a complete POSCAR (half-written by a killed run?); delete the folder {path.parent} to "
                        "begin this composition again") from error


def write_contcar(path: Path, crystal: Crystal, symbols: list[str]) -> None:
    """Write a relaxed structure, elements in the given order."""
    lines = ["relaxed by hydroflow", "1.0", *(" ".join(f"{x:.10f}" for x in v) for v in crystal.cell), " ".join(symbols)]
    own = [np.flatnonzero(crystal.numbers == atomic_numbers[s]) for s in symbols]
    lines += [" ".join(str(len(o)) for o in own), "Direct"]
    lines += [" ".join(f"{x:.10f}" for x in crystal.fractional[i]) for o in own for i in o]
    path.write_text("\n".join(lines) + "\n")


def write_outcar(path: Path, crystal: Crystal, symbols: list[str], enthalpy_ev: float, pressure_gpa: float) -> None:
    """Write the lines of a VASP OUTCAR that CALYPSO reads: composition, pressure, cell, forces and the enthalpy in eV.

    The forces of a relaxed structure are written as zero: CALYPSO only wants to find the table.
    """
    volume = crystal.volume
    energy = enthalpy_ev - pressure_gpa / EV_A3_GPA * volume
    kbar = 10 * pressure_gpa
    positions = crystal.fractional @ crystal.cell
    n = len(crystal.numbers)
    lines = [f"VRHFIN ={s}" for s in symbols]
    lines.append("ions per type =" + "".join(f"{(crystal.numbers == atomic_numbers[s]).sum():5d}" for s in symbols))
    lines.append("in kB" + "".join(f"{x:15.6f}" for x in (kbar, kbar, kbar, 0, 0, 0)))
    lines.append(f"external pressure = {0.0:20.6f} kB    Pullay stress = {kbar:20.6f}  kB")
    lines += [f"volume of cell : {volume:20.6f}", "direct lattice vectors"]
    lines += ["".join(f"{x:12.6f}" for x in v) for v in crystal.cell]
    lines += ["POSITION                                       TOTAL-FORCE (eV/Angst)", "-" * 67]
    lines += ["".join(f"{x:15.6f}" for x in (*p, 0, 0, 0)) for p in positions]
    lines += ["-" * 67, f"energy  without entropy= {energy:20.6f} {energy / n:20.6f}",
              f"enthalpy is  TOTEN    = {enthalpy_ev:20.6f} {enthalpy_ev / n:20.6f}"]
    path.write_text("\n".join(lines) + "\n")


def formula_of(crystal: Crystal) -> dict[str, int]:
    """Symbol → number of atoms."""
    z, n = np.unique(crystal.numbers, return_counts=True)
    return {chemical_symbols[int(a)]: int(b) for a, b in zip(z, n, strict=True)}
