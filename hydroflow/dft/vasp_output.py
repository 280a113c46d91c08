"""Outputs of VASP: vasprun.xml first, OUTCAR (through dpdata) where it is all there is; and what went wrong.

Energies are VASP's free energy F ("free energy TOTEN"), which forces and stress derive from, without P·V.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from hydroflow.dft.pw_output import PwResult, fractional_of
from hydroflow.dft.xml_file import XmlFile, fortran_float
from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import EV_A3_GPA, GPA_A3_EV, KBAR_GPA

C = FailureCode

# Messages of VASP's own output, in the order in which they are looked for.
_SIGNS: tuple[tuple[str, FailureCode, str], ...] = (
    (r"Cannot allocate memory|insufficient virtual memory|[Oo]ut of memory|oom-kill", C.out_of_memory, "VASP ran out of memory"),
    (r"No space left on device|Disk quota exceeded", C.disk_full, "no space left on the disk"),
    (r"command not found|No such file or directory.*vasp|error while loading shared libraries", C.executable_missing,
     "VASP could not be started"),
    (r"could not find POTCAR|ERROR: the type information on POSCAR and POTCAR", C.bad_pseudopotential, "wrong POTCAR"),
    (r"WARNING: Sub-Space-Matrix is not hermitian in DAV|Error EDDDAV|ZHEGV failed|ZPOTRF failed|EDDRMM: call to ZHEGV failed|"
     r"LAPACK: Routine ZPOTRF|EDWAV: internal error|Call to ZHEGV|PSSYEVX|PZHEEVX", C.diagonalisation,
     "the diagonalisation broke down"),
    (r"BRMIX: very serious problems", C.charge_density, "the charge mixing lost electrons"),
    (r"ZBRENT: fatal error|ZBRENT: can not reach accuracy|BRIONS problems", C.relaxation_not_converged,
     "the relaxation's line search failed"),
    (r"POSMAP internal error|inversion operation was not found|SGRCON|group operation missing|PRICELV|RHOSYG internal error|"
     r"VERY BAD NEWS! internal error in subroutine (?:IBZKPT|PRICEL)", C.symmetry_mismatch, "VASP could not settle the symmetry"),
    (r"TOO FEW BANDS|Your highest band is occupied", C.too_few_bands, "too few bands"),
    (r"Fatal error detecting k-mesh|Tetrahedron method fails|Reciprocal lattice and k-lattice belong to different", C.bad_input,
     "the k mesh does not fit the lattice"),
    (r"DUE TO TIME LIMIT", C.walltime, "the scheduler's wall time ended the run"),
    (r"electronic self-consistency was not achieved|ELECTRONIC SELF-CONSISTENCY WAS NOT ACHIEVED", C.scf_not_converged,
     "the self-consistent cycle did not converge"),
    (r"segmentation fault|SIGSEGV|forrtl: severe \(174\)", C.killed, "VASP crashed with a segmentation fault"),
)


def diagnose(text: str) -> EngineFailure | None:
    """The failure that VASP's standard output and OUTCAR show; None when they show none."""
    for pattern, code, words in _SIGNS:
        if match := re.search(pattern, text):
            start = text.rfind("\n", 0, match.start()) + 1
            return EngineFailure(code, f"{words}: {' '.join(text[start:match.end() + 80].split())[:200]}")
    return None


def read_vasprun(path: Path) -> PwResult:
    """The last ionic step of a vasprun.xml (VASP 5 and 6); atoms in the file's order.

    Raises
    ------
    EngineFailure
        ``missing_output``, ``truncated_output`` or ``corrupted_output`` when the file is not there, not whole, of another
        program, or lacks what belongs in it.
    """
    file = XmlFile(path, "VASP", "modeling")
    root = file.root
    steps = root.findall("calculation")
    if not steps:
        raise EngineFailure(C.truncated_output, f"{path.name} of VASP has no finished ionic step")
    last, settings = steps[-1], file.node(root, "parameters")

    def array(parent: ElementTree.Element, name: str) -> np.ndarray:
        rows = file.node(parent, f".//varray[@name='{name}']").findall("v")
        return np.array([file.numbers(row, (3,)) for row in rows]).reshape(-1, 3)

    def parameter(name: str) -> float | None:
        found = settings.find(f".//i[@name='{name}']")
        return None if found is None else float(file.numbers(found))

    result = PwResult("xml", version=(root.findtext("generator/i[@name='version']") or "").strip())
    symbols = [(c.text or "").strip() for c in root.findall("atominfo/array[@name='atoms']/set/rc/c[1]")]
    structure = file.node(last, "structure")
    result.cell, result.fractional = array(structure, "basis"), array(structure, "positions")
    if unknown := sorted(set(symbols) - set(atomic_numbers)):
        raise file.corrupted(f"atominfo names {', '.join(unknown)}")
    if not symbols or len(symbols) != len(result.fractional):
        raise file.corrupted(f"atominfo names {len(symbols)} atoms and there are {len(result.fractional)} positions")
    if result.cell.shape != (3, 3):
        raise file.corrupted(f"basis has {len(result.cell)} vectors")
    result.numbers = np.array([atomic_numbers[s] for s in symbols])
    if last.find("varray[@name='forces']") is not None:
        result.forces_ev_a = array(last, "forces")
    if last.find("varray[@name='stress']") is not None:
        result.stress_gpa = array(last, "stress") * KBAR_GPA
    if last.find("energy/i[@name='e_fr_energy']") is not None:
        # this entry is E + PSTRESS·V
        volume = abs(np.linalg.det(result.cell))
        external = (parameter("PSTRESS") or 0.0) * KBAR_GPA * GPA_A3_EV
        result.energy_ev = file.number(last, "energy/i[@name='e_fr_energy']") - external * volume
    result.electrons = parameter("NELECT")
    if last.find("dos/i[@name='efermi']") is not None:
        result.fermi_ev = file.number(last, "dos/i[@name='efermi']")
    cycles = [len(s.findall("scstep")) for s in steps]
    result.n_scf, result.n_ionic = sum(cycles), len(steps)
    result.scf_converged = 0 < cycles[-1] < (parameter("NELM") or 60)
    wanted = parameter("NSW") or 0
    result.ions_converged = None if wanted <= 0 else len(steps) < wanted
    result.k_points = len(root.findall("kpoints/varray[@name='kpointlist']/v"))
    return result


def read_outcar(path: Path) -> PwResult:
    """The last ionic step of an OUTCAR, read by dpdata."""
    text = path.read_text(errors="replace")
    if "General timing and accounting" not in text:
        raise EngineFailure(C.truncated_output, f"{path.name} of VASP ends in the middle")
    import dpdata

    try:
        system = dpdata.LabeledSystem(str(path), fmt="vasp/outcar")
    except Exception as error:  # dpdata raises what its regular expressions raise
        raise EngineFailure(C.corrupted_output, f"{path.name} of VASP cannot be read: {error}") from error
    if not len(system):
        raise EngineFailure(C.scf_not_converged, f"{path.name} of VASP has no converged ionic step")
    data = system.data
    result = PwResult("text", scf_converged=True)
    if match := re.search(r"vasp\.(\d+(?:\.\d+)*)", text):
        result.version = match.group(1)
    result.numbers = np.array([atomic_numbers[data["atom_names"][t]] for t in data["atom_types"]])
    result.cell = np.array(data["cells"][-1])
    result.fractional = fractional_of(result.cell, np.array(data["coords"][-1]))
    result.energy_ev = float(data["energies"][-1])
    result.forces_ev_a = np.array(data["forces"][-1])
    if "virials" in data:
        result.stress_gpa = np.array(data["virials"][-1]) / abs(np.linalg.det(result.cell)) * EV_A3_GPA
    if match := re.search(r"NELECT\s*=\s*([\d.]+)", text):
        result.electrons = float(match.group(1))
    if levels := re.findall(r"E-fermi\s*:\s*(\S+)", text):
        result.fermi_ev = fortran_float(levels[-1])
    if match := re.search(r"Total CPU time used \(sec\):\s*([\d.]+)", text):
        result.cpu_s = float(match.group(1))
    if match := re.search(r"Elapsed time \(sec\):\s*([\d.]+)", text):
        result.wall_s = float(match.group(1))
    return result
