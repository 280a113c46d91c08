"""Files that ph.x leaves per q point: the q list, dynamical matrices, electron–phonon couplings.

A file that exists is not a file that is complete: ph.x writes parts of both kinds before it can still fail. Every reader here
checks that the file reaches its end and raises :class:`EngineFailure` with what is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hydroflow.errors import EngineFailure, FailureCode
from hydroflow.units import K_PER_RYDBERG

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[EeDd][-+]?\d+)?|NaN|\*+", re.IGNORECASE)
GHZ_PER_RYDBERG = 3.2898419602508e6
"""h·1 GHz in Ry, inverted (CODATA 2018)."""


def numbers(text: str) -> list[float]:
    """All Fortran numbers of a line, also glued ones (``-0.43-0.86``); ``***`` and NaN become nan."""
    out = []
    for token in _NUMBER.findall(text):
        try:
            out.append(float(token.replace("D", "E").replace("d", "e")))
        except ValueError:
            out.append(float("nan"))
    return out


@dataclass(frozen=True)
class QList:
    """The q mesh: divisions (3,) and the irreducible q points (n, 3), Cartesian in units of 2π/alat."""

    grid: tuple[int, int, int]
    points: np.ndarray


@dataclass(frozen=True)
class Dynamical:
    """One ``x.dyn<iq>`` file.

    Attributes
    ----------
    q : (3,) first q of the star, Cartesian, 2π/alat.
    star : number of q points (−q included) in the star: the weight of this q in the mesh.
    frequencies_thz : (3N,) as ph.x prints them, negative where imaginary.
    symbols, positions, cell : the crystal, in units of alat (bohr), to tell files of one crystal from another's.
    matrix : (3N, 3N) complex dynamical matrix at q, Ry/bohr² (ph.x prints force constants, masses not divided in).
    masses : (N,) in Rydberg atomic units (twice the electron mass unit of QE: amu·911.444).
    """

    q: np.ndarray
    star: int
    frequencies_thz: np.ndarray
    symbols: tuple[str, ...]
    positions: np.ndarray
    cell: np.ndarray
    alat_bohr: float
    matrix: np.ndarray
    masses: np.ndarray

    def rigid_translations(self) -> np.ndarray:
        """(3N,) how far each mode moves the crystal as a whole, 0 to 1; modes ascend in ω², as in ph.x's files.

        The share of the mode's eigenvector in the space of the three rigid translations. At Γ these are the acoustic modes:
        their share is 1 but for what breaks the sum rule, that of all others 0.

        Raises
        ------
        EngineFailure
            ``corrupted_output`` when the matrix has no eigenvectors (NaN or overflow).
        """
        root = np.repeat(np.sqrt(self.masses), 3)
        if not (np.isfinite(self.matrix).all() and np.isfinite(root).all() and (root > 0).all()):
            raise EngineFailure(FailureCode.corrupted_output, "NaN or overflow in the dynamical matrix or its masses")
        _, vectors = np.linalg.eigh((self.matrix + self.matrix.conj().T) / 2 / np.outer(root, root))
        rigid = np.zeros((3, len(root)))
        for axis in range(3):
            rigid[axis, axis::3] = root[axis::3]
        rigid /= np.linalg.norm(rigid, axis=1, keepdims=True)
        return (np.abs(rigid @ vectors) ** 2).sum(axis=0)


@dataclass(frozen=True)
class Couplings:
    """One ``elph.inp_lambda.<iq>`` (or ``x.dyn<iq>.elph.<iq>``, or one of ph.x's ``lambda_tetra``) file.

    Attributes
    ----------
    q : (3,) Cartesian, 2π/alat.
    omega2_ry2 : (3N,) squared frequencies in Ry², negative where imaginary.
    sigma_ry, dos, fermi_ev : (s,) broadening as printed, with three decimals (:func:`exact_broadenings`), N(E_F) in
        states/spin/Ry/cell, Fermi energy. One broadening of zero with tetrahedra.
    lambdas : (s, 3N) λ_qν.
    gamma_ghz : (s, 3N) linewidths; NaN where they overflow their field.
    tetrahedra : whether the double delta was integrated by tetrahedra, without a broadening.
    """

    q: np.ndarray
    omega2_ry2: np.ndarray
    sigma_ry: np.ndarray
    dos: np.ndarray
    fermi_ev: np.ndarray
    lambdas: np.ndarray
    gamma_ghz: np.ndarray
    tetrahedra: bool = False

    @property
    def frequencies_k(self) -> np.ndarray:
        """(3N,) in K, negative where imaginary."""
        return np.sign(self.omega2_ry2) * np.sqrt(np.abs(self.omega2_ry2)) * K_PER_RYDBERG

    def precise_lambdas(self) -> np.ndarray:
        """(s, 3N) λ_qν = γ/(π N(E_F) ω²): the file prints λ with four decimals but γ with more digits, except where γ
        overflows its field (hydrides at Γ under a small broadening): there the printed λ counts.

        Zero where ω² is not positive: such a mode has no λ. NaN where both overflow.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            value = self.gamma_ghz / GHZ_PER_RYDBERG / (np.pi * self.dos[:, None] * self.omega2_ry2)
        value = np.where(np.isfinite(self.gamma_ghz), value, self.lambdas)
        return np.where((self.omega2_ry2 > 0) & (self.dos[:, None] > 0), value, 0.0)


SIGMA_DIGITS = 0.0005
"""Half a unit of the last digit of the broadenings that ph.x prints (f7.3), in Ry."""


def exact_broadenings(printed: np.ndarray) -> np.ndarray:
    """(s,) broadenings in Ry, of which ph.x prints three decimals (0.0025 as 0.003): they are the multiples of the first
    (``el_ph_sigma``), which is taken for the roundest number that gives what was printed; as printed where none does."""
    count = np.arange(1, len(printed) + 1)
    low, high = ((printed - SIGMA_DIGITS) / count).max() - 1e-9, ((printed + SIGMA_DIGITS) / count).min() + 1e-9
    for unit in (1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5, 1e-6):
        first = round((low + high) / 2 / unit) * unit
        if max(low, 0) < first <= high:
            return np.round(first * count, 9)
    return printed


def _truncated(path: Path, what: str) -> EngineFailure:
    return EngineFailure(FailureCode.truncated_output, f"{path.name} is incomplete: {what}", {"file": path.name})


def _first(path: Path, text: str, what: str) -> float:
    """The first number in a piece of text."""
    found = numbers(text)
    if not found:
        raise _truncated(path, f"no number for {what}")
    return found[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise EngineFailure(FailureCode.missing_output, f"{path.name} is missing", {"file": path.name}) from error


def read_q_list(path: Path) -> QList:
    """Read ``x.dyn0``."""
    lines = [line for line in _text(path).splitlines() if line.strip()]
    try:
        grid = tuple(int(x) for x in lines[0].split())
        n = int(lines[1])
        points = np.array([numbers(line)[:3] for line in lines[2:2 + n]], float)
    except (IndexError, ValueError) as error:
        raise _truncated(path, "no q mesh and list of q points") from error
    if len(grid) != 3 or min(grid) < 1 or points.shape != (n, 3):
        raise _truncated(path, f"{n} q points announced, {len(points)} listed")
    return QList(grid, points)


def read_dynamical(path: Path) -> Dynamical:
    """Read ``x.dyn<iq>``.

    Raises
    ------
    EngineFailure
        ``truncated_output`` when the final diagonalisation is not there in full, ``missing_output`` when the file is not.
    """
    lines = _text(path).splitlines()
    try:
        head = lines[2].split()
        types, atoms, alat = int(head[0]), int(head[1]), float(head[3])
        at = 3
        # with ibrav = 0 the cell follows; otherwise celldm alone defines it
        cell = np.zeros((3, 3))
        if lines[at].strip().startswith("Basis"):
            cell = np.array([numbers(line) for line in lines[at + 1:at + 4]])
            at += 4
        names, weights = [], []
        for line in lines[at:at + types]:
            names.append(line.split("'")[1].strip())
            weights.append(float(line.split("'")[2]))
        at += types
        rows = [line.split() for line in lines[at:at + atoms]]
        kinds = [int(r[1]) - 1 for r in rows]
        symbols = tuple(names[k] for k in kinds)
        masses = np.array([weights[k] for k in kinds])
        positions = np.array([[float(x) for x in r[2:5]] for r in rows])
    except (IndexError, ValueError) as error:
        raise _truncated(path, "the header with the crystal cannot be read") from error
    starts = [i for i, line in enumerate(lines) if "Dynamical  Matrix in cartesian axes" in line]
    end = next((i for i, line in enumerate(lines) if "Diagonalizing the dynamical matrix" in line), None)
    if not starts or end is None:
        raise _truncated(path, "it does not reach the diagonalisation")
    frequencies = [_first(path, line.partition("=")[2], "a frequency") for line in lines[end:]
                   if ("freq (" in line or "omega(" in line) and "[THz]" in line]
    if len(frequencies) != 3 * atoms:
        raise _truncated(path, f"{len(frequencies)} of {3 * atoms} frequencies")
    q = np.array(numbers("".join(lines[starts[0] + 2:starts[0] + 3]).partition("=")[2])[:3])
    if q.shape != (3,) or positions.shape != (atoms, 3) or cell.shape != (3, 3):
        raise _truncated(path, "the crystal or its q cannot be read")
    matrix = np.zeros((3 * atoms, 3 * atoms), complex)
    at = starts[0] + 4
    for a in range(atoms):
        for b in range(atoms):
            values = [numbers(line) for line in lines[at + 1:at + 4]]
            if [len(v) for v in values] != [6, 6, 6]:
                raise _truncated(path, f"force constants of atoms {a + 1}, {b + 1}")
            block = np.array(values)
            matrix[3 * a:3 * a + 3, 3 * b:3 * b + 3] = block[:, ::2] + 1j * block[:, 1::2]
            at += 4
    return Dynamical(q, len(starts), np.array(frequencies), symbols, positions, cell, alat, matrix, masses)


def read_bands(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """q points (n, 3), Cartesian in 2π/alat, and values (n, modes) there, of a file of matdyn.x: frequencies in cm⁻¹
    (``x.freq``, ``path.freq``) or linewidths in GHz (``elph.gamma.<i>``)."""
    head, _, body = _text(path).partition("/")
    sizes = re.search(r"nbnd=\s*(\d+),\s*nks=\s*(\d+)", head)
    values = numbers(body)
    if sizes is None or len(values) != int(sizes[2]) * (3 + int(sizes[1])):
        raise _truncated(path, "it does not hold every q of the path")
    table = np.array(values).reshape(int(sizes[2]), -1)
    return table[:, :3], table[:, 3:]


def read_couplings(path: Path) -> Couplings:
    """Read ``elph.inp_lambda.<iq>`` or ``x.dyn<iq>.elph.<iq>``.

    Raises
    ------
    EngineFailure
        ``truncated_output`` when a broadening or a mode is missing.
    """
    text = _text(path)
    tetrahedra = "Tetrahedron method" in text
    sections = text.split("Tetrahedron method" if tetrahedra else "Gaussian Broadening:")
    head = numbers(sections[0])
    if tetrahedra:
        head.insert(3, 1.0)  # no number of broadenings there
    if len(head) < 5 or not np.isfinite(head[:5]).all():
        raise _truncated(path, "no header")
    n_sigma, modes = int(head[3]), int(head[4])
    omega2 = np.array(head[5:])
    if len(omega2) != modes:
        raise _truncated(path, f"{len(omega2)} of {modes} squared frequencies")
    if len(sections) - 1 != n_sigma:
        raise _truncated(path, f"{len(sections) - 1} of {n_sigma} broadenings")
    sigma, dos, fermi = np.zeros(n_sigma), np.zeros(n_sigma), np.zeros(n_sigma)
    lambdas, gamma = np.zeros((n_sigma, modes)), np.zeros((n_sigma, modes))
    for i, section in enumerate(sections[1:]):
        sigma[i] = 0.0 if tetrahedra else _first(path, section.partition("\n")[0], "a broadening")
        levels = re.search(r"DOS\s*=(.*?)states.*?Ef\s*=(.*?)eV", section, re.DOTALL)
        rows = re.findall(r"lambda\(\s*\d+\)\s*=(.*?)gamma\s*=(.*?)GHz", section)
        if levels is None or len(rows) != modes:
            raise _truncated(path, f"broadening {i + 1}: {len(rows)} of {modes} modes")
        dos[i], fermi[i] = (_first(path, level, "N(E_F) and E_F") for level in levels.groups())
        for nu, (lam, gam) in enumerate(rows):
            lambdas[i, nu], gamma[i, nu] = _first(path, lam, "a λ"), _first(path, gam, "a linewidth")
    return Couplings(np.array(head[:3]), omega2, sigma, dos, fermi, lambdas, gamma, tetrahedra)
