"""α²F files of several codes, told apart by their content.

Known: matdyn.x (``a2F.dos*``, also old records over several lines), lambda.x (``alpha2F.dat``), alpha2f.x (``prefix.a2F.dat``),
EPW (``prefix.a2f``, ``.a2f.01``, ``.a2f_iso``, ``.a2f_proj``), Elk (``ALPHA2F.OUT``), ABINIT (``*_A2FW``, anaddb's ``*_A2F``),
two-column text with a unit, and a folder of ph.x couplings. λ of each follows from λ = 2∫α²F/ω dω; only ``*_A2FW`` holds 2α²F
and is halved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hydroflow.epc.coupling import Coupling
from hydroflow.epc.modes import read_folder
from hydroflow.epc.qe_files import numbers
from hydroflow.errors import DataError
from hydroflow.units import K_PER_CM1, K_PER_HARTREE, K_PER_MEV, K_PER_RYDBERG, K_PER_THZ

UNITS = {"Ry": K_PER_RYDBERG, "Ha": K_PER_HARTREE, "THz": K_PER_THZ, "meV": K_PER_MEV, "cm-1": K_PER_CM1, "K": 1.0}
"""K per unit."""
_UNIT_WORDS = {"ry": "Ry", "rydberg": "Ry", "ha": "Ha", "hartree": "Ha", "thz": "THz", "mev": "meV", "cm-1": "cm-1",
               "cm^-1": "cm-1", "cm^{-1}": "cm-1", "1/cm": "cm-1", "kelvin": "K"}


_FOREIGN_UNITS = ("eV", "mRy", "mHa", "rad", "Hz", "GHz", "a.u.")
"""Units of frequencies that are none of :data:`UNITS`: named in a comment they must not be read as another one."""
_HIGHEST_K = 10_000.0
"""No phonon is as high: the stretching mode of H2, the highest there is, has 6300 K (4400 cm-1)."""
_LOWEST_K = 30.0

_EPW_NAME = re.compile(r"\.(a2f|a2f_tr|phdos)\.\d\d(\.|$)")
"""Files that EPW writes with phonselfen: number of the electronic smearing, in 5.3 also the temperature; no header."""
_EPW_OTHER = re.compile(r"\.(a2f_tr|phdos)(_proj|\.\d|$)")


class UnknownUnit(DataError):
    """The unit of the frequencies is none that is known, or the file does not say which it is."""


@dataclass(frozen=True)
class Spectrum:
    """The coupling at one broadening; `sigma_ry` is None where the file names none."""

    coupling: Coupling
    sigma_ry: float | None = None
    dos: float | None = None


@dataclass
class A2FFile:
    """What a file held: its format, the unit of its frequencies, one spectrum per broadening, and what is odd about it."""

    format: str
    unit: str
    spectra: list[Spectrum]
    warnings: list[str] = field(default_factory=list)


def read_a2f(path: Path, unit: str = "auto") -> A2FFile:
    """Read an α²F file or a folder of ph.x couplings.

    Parameters
    ----------
    path
        File or folder.
    unit
        ``auto`` or a key of :data:`UNITS`; given explicitly it overrides what the format says, with a warning.

    Raises
    ------
    UnknownUnit
        when the unit is not known, or the file names none or several.
    DataError
        when the file cannot be read or holds no usable coupling.
    EngineFailure
        when a folder of ph.x couplings is incomplete or mixed.
    """
    path = Path(path)
    if unit != "auto" and unit not in UNITS:
        raise UnknownUnit(f"unknown unit {unit!r}; known: auto, {', '.join(UNITS)}")
    if path.is_dir() or path.name.startswith("elph.inp_lambda.") or re.search(r"\.dyn\d+\.elph\.\d+$", path.name):
        return _folder(path)
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    name, named, columns, sigmas, warnings = _table(path, text)
    native = named[0] if len(named) == 1 and named[0] in UNITS else None
    if unit == "auto":
        if native is None:
            found = (f"names several units ({', '.join(named)})" if len(named) > 1 else
                     f"is in {named[0]}, no unit that is known" if named else "does not name the unit of its frequencies")
            raise UnknownUnit(f"{path}: the file {found}; say which is theirs with --unit ({', '.join(UNITS)})")
        unit = native
    elif native is not None and unit != native:
        warnings.append(f"frequencies read in {unit} as asked; {name} files are in {native}")
    frequencies = columns[:, 0] * UNITS[unit]
    warnings += _grid_warnings(columns[:, 0], unit)
    spectra, unusable = [], []
    for j in range(1, columns.shape[1]):
        a2f = columns[:, j]
        sigma = sigmas[j - 1] if sigmas else None
        if not np.isfinite(a2f).all():
            unusable.append(j)
            continue
        spectra.append(Spectrum(Coupling.from_spectrum(frequencies, a2f), sigma))
        warnings += _imaginary_warnings(frequencies, a2f)
    warnings = list(dict.fromkeys(warnings))
    if unusable:
        where = f"{len(unusable)} of {columns.shape[1] - 1} a2F columns"
        if not spectra:
            raise DataError(f"{path}: {where} hold NaN and none is left; usually an acoustic mode at Gamma had a "
                            "negative squared frequency: read the elph.inp_lambda files instead (hydroflow tc FOLDER)")
        warnings.append(f"{where} hold NaN and were left out")
    highest = max(s.coupling.max_k for s in spectra)
    if highest > _HIGHEST_K:
        raise UnknownUnit(f"{path}: read in {unit}, phonons couple up to {highest:.3g} K, where none can be: give their "
                          "unit with --unit")
    if highest < _LOWEST_K:
        warnings.append(f"read in {unit}, no phonon couples above {highest:.2g} K: is that the unit?")
    return A2FFile(name, unit, spectra, warnings)


def _imaginary_warnings(frequencies_k: np.ndarray, a2f: np.ndarray) -> list[str]:
    below = (frequencies_k < 0) & (a2f != 0)
    share = np.abs(a2f[below]).sum() / np.abs(a2f).sum() if below.any() else 0.0
    if share < 1e-4:
        return []
    return [f"{100 * share:.2g} % of the integral of a2F lies at negative frequencies, down to "
            f"{frequencies_k[below].min() / UNITS['THz']:.2f} THz: imaginary modes, left out"]


def _folder(path: Path) -> A2FFile:
    modes = read_folder(path)
    warnings = []
    bad = modes.imaginary(0.0)
    if bad:
        warnings.append(f"{len(bad)} imaginary modes left out, the lowest {bad[0]['frequency_thz']:.2f} THz at q {bad[0]['q']}")
    if modes.acoustic_thz.size:
        worst = modes.acoustic_thz[np.argmax(np.abs(modes.acoustic_thz))]
        warnings.append(f"acoustic modes at Gamma left out (before the sum rule: up to {worst:.2f} THz)")
    if modes.mesh is None:
        warnings.append(f"no *.dyn0 names the q mesh: whether a q is missing after the last cannot be told; the {len(modes.q)} "
                        f"q found stand for {modes.weights.sum():.0f} points")
    if modes.sigma_ry[0] == 0:
        warnings.append("tetrahedra give no lambda at Gamma (the double delta is singular there): the other q stand for it too")
    spectra, uncoupled = [], []
    for i, sigma in enumerate(modes.sigma_ry):
        try:
            spectra.append(Spectrum(modes.coupling(i), float(sigma), float(modes.dos[i])))
        except DataError:  # so narrow that no state lies within it
            uncoupled.append(f"{sigma:g}")
    if not spectra:
        raise DataError(f"{path}: no mode couples at any broadening")
    if uncoupled:
        warnings.append(f"nothing couples at a broadening of {', '.join(uncoupled)} Ry: left out")
    return A2FFile("ph.x couplings", "Ry", spectra, warnings)


def _table(path: Path, text: str) -> tuple[str, list[str], np.ndarray, list[float] | None, list[str]]:
    """Format, units it names (one, where the format says which), columns (rows, 1 + spectra), broadenings in Ry, warnings."""
    head = text[:2000]
    warnings: list[str] = []
    if "Eliashberg function a2F" in head:
        # the total is the second column; contributions of the modes follow
        rows = _rows(path, [line for line in text.splitlines() if "#" not in line and "=" not in line], least=2)
        columns = rows[:, :2]
        stated = re.search(r"lambda\s*=\s*(\S+)", text)
        if stated is None:
            raise DataError(f"{path}: a matdyn.x a2F file that does not reach its last line (lambda = …): truncated")
        _compare(columns, numbers(stated[1]), warnings)
        return "matdyn.x a2F.dos", ["Ry"], columns, None, warnings
    if re.match(r"\s*#\s*E\(THz\)", head):
        lines = text.splitlines()
        top = next(i for i, line in enumerate(lines) if line.strip())
        sigmas = numbers(lines[top].split(")", 1)[1])
        if not sigmas:
            raise DataError(f"{path}: an alpha2F.dat whose first line names no broadening: truncated")
        columns = _rows(path, lines[top + 1:], width=1 + len(sigmas))
        warnings.append("lambda.x counts the acoustic modes at Gamma, so its a2F overestimates lambda; the elph.inp_lambda files "
                        "do not have this error")
        return "lambda.x alpha2F.dat", ["THz"], columns, sigmas, warnings
    if re.match(r"\s*w\[meV\]", head) or "Integrated el-ph coupling" in text or _EPW_NAME.search(path.name):
        return "EPW a2f", ["meV"], _epw(path, text, warnings), None, warnings
    if re.search(r"#\s*Frequency\[Ry\],\s*a2F", head):
        columns = _rows(path, _data(text), least=2)[:, :2]
        if not columns[:, 1].any():
            raise DataError(f"{path}: alpha2f.x wrote zeros only, as that of QE 6.7 always does (it takes each q for the last "
                            "one); its lambda is wrong too: use a newer alpha2f.x")
        return "alpha2f.x a2F.dat", ["Ry"], columns, None, warnings
    if re.search(r"#\s*Frequency,\s*a2F", head):
        # ABINIT's lambda, running in the third column, is the integral of a2F/omega without the 2: its a2F is twice alpha2F
        rows = _rows(path, _data(text), least=3)
        columns = rows[:, :2] * [1, 0.5]
        _compare(columns, rows[-1, 2:3].tolist(), warnings)
        return "ABINIT A2FW", ["Ha"], columns, None, warnings
    if re.search(r"#\s*ABINIT package\s*:\s*a2f file", head):
        return "ABINIT A2F", ["Ha"], _rows(path, _data(text), least=2)[:, :2], None, warnings
    if re.match(r"\s*#\s*degauss\s+lambda", head):
        raise DataError(f"{path}: a summary by lambda.x, without a spectrum; give alpha2F.dat or the folder of "
                        "elph.inp_lambda files")
    rows = _rows(path, _data(text), least=2)
    columns = rows[:, :2]
    if path.name.upper().startswith("ALPHA2F") and path.suffix.upper() == ".OUT":
        return "Elk ALPHA2F.OUT", ["Ha"], columns, None, warnings
    if rows.shape[1] > 2:
        warnings.append(f"{rows.shape[1]} columns: the second was read as a2F")
    comments = " ".join(line for line in text.splitlines()[:40] if line.lstrip().startswith(("#", "!", "@")))
    return "text", _units_in(comments), columns, None, warnings


def _epw(path: Path, text: str, warnings: list[str]) -> np.ndarray:
    """Frequencies in meV and one column of α²F per phonon smearing, from any of EPW's files.

    ``prefix.a2f`` has a header, a column of α²F and one of the running λ per smearing, and a footer; old versions leave the
    running λ out, newer ones write the first smearing only. ``prefix.a2f.01`` (of phonselfen) has no header and no running
    λ. ``prefix.a2f_iso`` has no footer; in ``prefix.a2f_proj`` the contributions of the modes follow the total.
    """
    lines = text.lstrip().splitlines() or [""]
    other = _EPW_OTHER.search(path.name)
    if other or "phdos" in lines[0]:
        what = "phonon density of states" if other is None or other[1] == "phdos" else "spectral function of transport"
        raise DataError(f"{path}: EPW's {what}, no a2F; give prefix.a2f or prefix.a2f.01")
    start = 1 if "w[meV]" in lines[0] else 0
    end = next((i for i, line in enumerate(lines) if "Integrated" in line or "lambda_int" in line), None)
    if lines[0].split() == ["w[meV]", "a2f"]:
        columns = _rows(path, lines[1:], width=2)
        if columns[-1, 1] > 0.05 * columns[:, 1].max():
            warnings.append("a2F is not zero at its last frequency: truncated, or the phonon smearing is wide")
        return columns
    if lines[0].split()[:3] == ["w[meV]", "a2f", "a2f_modeproj"]:
        if end is None:
            raise DataError(f"{path}: an EPW a2f_proj file that does not reach its last line (lambda_int = …): truncated")
        columns = _rows(path, lines[1:end], least=3)[:, :2]
        _compare(columns, numbers(lines[end].split("=", 1)[-1]), warnings)
        return columns
    footer = "\n".join(lines[end + 1:]) if end is not None else ""
    stated = numbers(footer.split("Phonon smearing")[0])  # one per smearing
    if end is None or not stated:
        raise DataError(f"{path}: an EPW a2f file without its footer (Integrated el-ph coupling): truncated")
    rows = _rows(path, lines[start:end], least=2)
    n = len(stated)
    if rows.shape[1] not in (1 + n, 1 + 2 * n) and rows.shape[1] in (2, 3):
        n, stated = 1, stated[:1]  # the first smearing only
    if rows.shape[1] not in (1 + n, 1 + 2 * n):
        raise DataError(f"{path}: {rows.shape[1]} columns do not fit the {n} phonon smearings of the footer: damaged")
    columns = rows[:, :1 + n]
    _compare(columns, stated, warnings)
    summed = re.search(r"Summed el-ph coupling\s+(\S+)", footer)
    if summed and (modes := numbers(summed[1])) and abs(stated[0] - modes[0]) > 0.05 * abs(modes[0]):
        warnings.append(f"a2F integrates to lambda = {stated[0]:.4f}, the modes sum to {modes[0]:.4f}: the phonon smearing is "
                        "wide, or this is the spectral function of transport (a2f_tr)")
    return columns


def _data(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.lstrip().startswith(("#", "!", "@"))]


def _units_in(comment: str) -> list[str]:
    """Units named in a comment, also those that are not known. K is potassium as often as kelvin: it counts in brackets only.
    What follows a slash (states/eV) is no unit of frequencies."""
    comment = re.sub(r"(?<!1)(/\s*[A-Za-z]+)+", " ", comment.replace("rad/", "rad "))
    words = re.findall(r"cm\^\{?-1\}?|cm-1|1/cm|a\.u\.|[A-Za-z]+", comment)
    foreign = {u.lower(): u for u in _FOREIGN_UNITS}
    found = [_UNIT_WORDS.get(w.lower()) or foreign[w.lower()] for w in words if w.lower() in _UNIT_WORDS.keys() | foreign.keys()]
    if re.search(r"[(\[]\s*K\s*[)\]]", comment):
        found.append("K")
    return list(dict.fromkeys(found))


def _rows(path: Path, lines: list[str], width: int | None = None, least: int = 1) -> np.ndarray:
    """Table of all numeric lines; records that run over several lines are put back together.

    The record length is `width`, or the shortest number of lines for which every record has the same length, not below `least`,
    and the first number of the records ascends.
    """
    tokens = [numbers(line) for line in lines if line.strip()]
    tokens = [t for t in tokens if t]
    if not tokens:
        raise DataError(f"{path}: no numbers in it")
    flat = [x for t in tokens for x in t]
    if width is not None:
        if len(flat) % width:
            raise DataError(f"{path}: {len(flat)} numbers do not fill rows of {width}: truncated")
        return np.array(flat).reshape(-1, width)
    counts = [len(t) for t in tokens]
    for period in range(1, min(20, len(counts)) + 1):
        if len(counts) % period or any(counts[i] != counts[i % period] for i in range(len(counts))):
            continue
        table = np.array(flat).reshape(len(counts) // period, -1)
        if len(table) > 1 and (np.diff(table[:, 0]) > 0).all():
            if table.shape[1] < least:
                raise DataError(f"{path}: an a2F file needs a column of frequencies and one of a2F; this one has "
                                f"{table.shape[1]} of {least} columns")
            return table
    raise DataError(f"{path}: rows of different length, or frequencies that do not ascend: not an a2F table, or truncated")


def _compare(columns: np.ndarray, stated: list[float], warnings: list[str]) -> None:
    """Warn where the λ that the file states is not the one its α²F integrates to."""
    if not stated or not np.isfinite(columns).all() or not np.isfinite(stated[0]) or stated[0] <= 0:
        return
    own = Coupling.from_spectrum(columns[:, 0], columns[:, 1]).lambda_
    if abs(own / stated[0] - 1) > 0.02:
        warnings.append(f"a2F integrates to lambda = {own:.4f}, the file states {stated[0]:.4f}")


def _grid_warnings(frequencies: np.ndarray, unit: str) -> list[str]:
    step = np.diff(frequencies)
    if len(step) < 2:
        return []
    typical = float(np.median(step))
    wide = np.flatnonzero(step > 5 * typical)
    if not wide.size:
        return []
    i = int(wide[np.argmax(step[wide])])
    return [f"gap in the frequencies: {frequencies[i]:.6g} to {frequencies[i + 1]:.6g} {unit}, "
            f"where the usual step is {typical:.3g}"]
