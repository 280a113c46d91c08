"""Outputs of pw.x: numbers from the XML where it is whole, from the text where it is not.

XML values are doubles in Hartree atomic units; the text has fewer digits. Nothing here judges (see
:mod:`hydroflow.dft.verdict`), but a file that cannot be read raises a typed failure.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from hydroflow.dft.xml_file import XmlFile, fortran_float
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import BOHR_A, HARTREE_EV, RYDBERG_BOHR3_GPA, RYDBERG_EV

HARTREE_BOHR_EV_A = HARTREE_EV / BOHR_A
RYDBERG_BOHR_EV_A = RYDBERG_EV / BOHR_A


@dataclass
class PwResult:
    """What one pw.x run says.

    Attributes
    ----------
    source
        ``xml`` or ``text``.
    version
        Version of the program, e.g. ``6.7``.
    scf_converged
        Whether the last self-consistent cycle converged.
    ions_converged
        Whether a relaxation converged; None for a single point.
    energy_ev
        Total energy in eV per cell: the free energy E − TS of the smeared electrons, which forces and stress derive from.
    forces_ev_a
        (k, 3) forces, eV/Å; None where there are none.
    stress_gpa
        (3, 3), GPa, positive under compression (a third of its trace is the pressure); None where there is none.
    numbers, cell, fractional
        The structure that energy and forces belong to: atomic numbers (k,), cell (3, 3) in Å, coordinates (k, 3).
    exit_status
        The XML's own: 0 good, 2 not converged, 3 relaxation not converged, 255 stopped by `max_seconds`.
    """

    source: str
    version: str = ""
    scf_converged: bool = False
    ions_converged: bool | None = None
    energy_ev: float | None = None
    forces_ev_a: np.ndarray | None = None
    stress_gpa: np.ndarray | None = None
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    fractional: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    electrons: float | None = None
    fermi_ev: float | None = None
    n_scf: int = 0
    n_ionic: int = 0
    k_points: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    exit_status: int | None = None

    def values(self) -> tuple[float, np.ndarray, np.ndarray]:
        """(energy in eV, forces (k, 3) in eV/Å, stress (3, 3) in GPa) of a run that has them all.

        Raises
        ------
        EngineFailure
            ``missing_output`` naming what is missing.
        """
        if self.energy_ev is None or self.forces_ev_a is None or self.stress_gpa is None:
            missing = [name for name, value in (("energy", self.energy_ev), ("forces", self.forces_ev_a),
                                                ("stress", self.stress_gpa)) if value is None]
            raise EngineFailure(FailureCode.missing_output, f"the output has no {' and no '.join(missing)}")
        return self.energy_ev, self.forces_ev_a, self.stress_gpa


def read_xml(path: Path) -> PwResult:
    """Read ``x.xml`` / ``data-file-schema.xml`` of pw.x 6.4 to 7.x.

    Raises
    ------
    EngineFailure
        ``missing_output``, ``truncated_output`` or ``corrupted_output`` when the file is not there, not whole, of another
        program, or lacks what belongs in it.
    """
    file = XmlFile(path, "pw.x", "espresso")
    root = file.root
    output = root.find("output")
    if output is None:
        raise EngineFailure(FailureCode.truncated_output, f"{path.name} of pw.x has no output section: the run did not finish")

    def whole(parent: ElementTree.Element, tag: str) -> int:
        return file.integer(parent, tag) if parent.find(tag) is not None else 0

    result = PwResult("xml")
    creator = root.find("general_info/creator")
    if creator is not None:
        result.version = _version(creator.get("VERSION", ""))
    result.scf_converged = output.findtext("convergence_info/scf_conv/convergence_achieved") == "true"
    ions = output.findtext("convergence_info/opt_conv/convergence_achieved")
    result.ions_converged = None if ions is None else ions == "true"
    if output.find("total_energy") is not None:
        result.energy_ev = file.number(output, "total_energy/etot") * HARTREE_EV
    result.numbers, result.cell, result.fractional = _structure_from_xml(file, file.node(output, "atomic_structure"))
    if (forces := output.find("forces")) is not None:
        result.forces_ev_a = file.numbers(forces, (-1, 3)) * HARTREE_BOHR_EV_A
    if (stress := output.find("stress")) is not None:
        result.stress_gpa = file.numbers(stress, (3, 3)) * 2 * RYDBERG_BOHR3_GPA
    if (bands := output.find("band_structure")) is not None:
        result.electrons = file.number(bands, "nelec")
        result.k_points = whole(bands, "nks")
        if bands.find("fermi_energy") is not None:
            result.fermi_ev = file.number(bands, "fermi_energy") * HARTREE_EV
    steps = root.findall("step")
    result.n_ionic = len(steps)
    result.n_scf = whole(output, "convergence_info/scf_conv/n_scf_steps") + sum(whole(s, "scf_conv/n_scf_steps") for s in steps)
    for tag in ("exit_status", "status"):
        if root.find(tag) is not None:
            result.exit_status = whole(root, tag)
            break
    if root.find("timing_info/total") is not None:
        result.cpu_s, result.wall_s = (file.number(root, f"timing_info/total/{clock}") for clock in ("cpu", "wall"))
    return result


def _structure_from_xml(file: XmlFile, node: ElementTree.Element) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(atomic numbers (k,), cell (3, 3) in Å, fractional coordinates (k, 3)) of an ``atomic_structure``."""
    atoms = file.node(node, "atomic_positions").findall("atom")
    if not atoms:
        raise file.corrupted("atomic_positions has no atom")
    numbers = []
    for atom in atoms:
        # labels may carry a digit (H1, H2) for distinct species of one element
        symbol = (atom.get("name") or "").rstrip("0123456789").capitalize()
        if symbol not in atomic_numbers:
            raise file.corrupted(f"an atom is called {atom.get('name')!r}")
        numbers.append(atomic_numbers[symbol])
    cell = np.array([file.numbers(file.node(node, f"cell/{axis}"), (3,)) for axis in ("a1", "a2", "a3")])
    positions = np.array([file.numbers(atom, (3,)) for atom in atoms])
    return np.array(numbers), cell * BOHR_A, fractional_of(cell, positions)


def read_text(text: str) -> PwResult:
    """Read the standard output of pw.x: the last complete set of energy, forces, stress and structure.

    Values that overflowed their field (``****``) become NaN. Missing ones stay None.
    """
    result = PwResult("text")
    if match := re.search(r"Program PWSCF v\.\s*(\S+)", text):
        result.version = _version(match.group(1))
    if match := re.search(r"number of electrons\s*=\s*([\d.]+)", text):
        result.electrons = fortran_float(match.group(1))
    if match := re.search(r"number of k points=\s*(\d+)", text):
        result.k_points = int(match.group(1))
    ends = re.findall(r"convergence (has been|NOT) achieved(?: in|\s+after)\s+(\d+) iterations", text)
    result.scf_converged = bool(ends) and ends[-1][0] == "has been" and "convergence NOT achieved" not in text
    result.n_scf = sum(int(n) for _, n in ends)
    if energies := re.findall(r"^!\s+total energy\s+=\s*(\S+) Ry", text, re.M):
        result.energy_ev = fortran_float(energies[-1]) * RYDBERG_EV
    if found := re.findall(r"the Fermi energy is\s+(\S+) ev", text):
        result.fermi_ev = fortran_float(found[-1])
    if "Begin final coordinates" in text:
        result.ions_converged = True
    elif "BFGS Geometry Optimization" in text:
        result.ions_converged = False
    result.n_ionic = len(re.findall(r"number of bfgs steps", text))
    _structure_from_text(text, result)
    result.forces_ev_a = _forces_from_text(text, len(result.numbers))
    if blocks := list(re.finditer(r"total\s+stress.*?P=.*?\n((?:.*\n){3})", text)):
        rows = [_fields(line, 13)[:3] for line in blocks[-1].group(1).splitlines()]
        if all(len(row) == 3 for row in rows):
            result.stress_gpa = np.array(rows) * RYDBERG_BOHR3_GPA
    if match := re.search(r"^\s+PWSCF\s+:\s+(.*?)CPU\s+(.*?)WALL", text, re.M):
        result.cpu_s, result.wall_s = _seconds(match.group(1)), _seconds(match.group(2))
    return result


def last_structure(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(numbers, cell in Å, fractional) of the last whole step that a variable-cell relaxation wrote; None without any."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("CELL_PARAMETERS")]
    for start in reversed(starts):
        head = re.match(r"CELL_PARAMETERS \((\w+)(?:\s*=\s*([\d.]+))?", lines[start])
        try:
            cell = np.array([[float(w) for w in line.split()] for line in lines[start + 1:start + 4]])
            if head is None or cell.shape != (3, 3):
                continue
            scale = {"angstrom": 1.0, "bohr": BOHR_A, "alat": float(head.group(2) or 0) * BOHR_A}[head.group(1)]
            below = next(i for i in range(start + 4, min(start + 8, len(lines))) if lines[i].startswith("ATOMIC_POSITIONS"))
            if "crystal" not in lines[below]:
                continue
            numbers, fractional = [], []
            for line in lines[below + 1:]:
                words = line.split()
                if len(words) < 4 or words[0].rstrip("0123456789") not in atomic_numbers:
                    break
                numbers.append(atomic_numbers[words[0].rstrip("0123456789")])
                fractional.append([float(w) for w in words[1:4]])
        except (ValueError, KeyError, StopIteration):
            continue  # a half-written step: the one before it counts
        if numbers:
            return np.array(numbers), cell * scale, np.array(fractional)
    return None


def negative_charge(text: str) -> float:
    """Electrons of negative density that pw.x reports after its last iteration; 0 when it reports none."""
    found = re.findall(r"negative rho \(up, down\):\s+(\S+)\s+(\S+)", text)
    return sum(fortran_float(w) for w in found[-1]) if found else 0.0


def fractional_of(cell: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Fractional coordinates (k, 3) of Cartesian `positions`; NaN in a flat cell, which no check lets pass."""
    try:
        return np.linalg.solve(cell.T, positions.T).T
    except np.linalg.LinAlgError:
        return np.full_like(positions, np.nan)


def _structure_from_text(text: str, result: PwResult) -> None:
    alat = re.search(r"lattice parameter \(alat\)\s+=\s+([\d.]+)", text)
    axes = re.findall(r"a\(\d\) = \(\s*([-\d.]+)\s+([-\d.]+)\s+([-\d.]+)", text)
    sites = re.findall(r"^\s+\d+\s+([A-Z][A-Za-z]?)\w*\s+tau\(\s*\d+\) = \(\s*(\S+)\s+(\S+)\s+(\S+)\s+\)", text, re.M)
    count = re.search(r"number of atoms/cell\s+=\s+(\d+)", text)
    if not (alat and len(axes) >= 3 and count and len(sites) >= int(count.group(1))):
        return
    sites = sites[: int(count.group(1))]
    if any(s[0] not in atomic_numbers for s in sites):
        return
    scale = fortran_float(alat.group(1)) * BOHR_A
    result.cell = np.array([[fortran_float(w) for w in axis] for axis in axes[:3]]) * scale
    result.numbers = np.array([atomic_numbers[s[0]] for s in sites])
    positions = np.array([[fortran_float(w) for w in s[1:]] for s in sites]) * scale
    result.fractional = fractional_of(result.cell, positions)
    if (relaxed := last_structure(text)) and result.ions_converged is not None:
        result.numbers, result.cell, result.fractional = relaxed


def _forces_from_text(text: str, count: int) -> np.ndarray | None:
    blocks = text.split("Forces acting on atoms")
    if len(blocks) < 2 or not count:
        return None
    rows = []
    for line in re.findall(r"^\s+atom\s+\d+\s+type\s+\d+\s+force = (.*)$", blocks[-1], re.M)[:count]:
        rows.append(_fields(line, 14))
    if len(rows) < count or any(len(r) != 3 for r in rows):
        return None
    return np.array(rows) * RYDBERG_BOHR_EV_A


def _fields(line: str, width: int) -> list[float]:
    """Numbers of a Fortran line: by blanks where they stand apart, else by field width; ``****`` is NaN."""
    words = line.split()
    if "*" not in line and all(re.fullmatch(r"[-+]?\d*\.\d+(?:[EeDd][-+]?\d+)?", w) for w in words) and len(words) >= 3:
        return [fortran_float(w) for w in words]
    return [fortran_float(line[i:i + width]) for i in range(0, len(line.rstrip()), width)]


def _version(words: str) -> str:
    match = re.match(r"\s*(\d+(?:\.\d+)*)", words)
    return match.group(1) if match else ""


def _seconds(words: str) -> float:
    """``1h 2m``, ``3m12.5s``, ``0.86s`` in seconds."""
    return sum(fortran_float(value) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[unit]
               for value, unit in re.findall(r"([\d.]+)\s*([dhms])", words))
