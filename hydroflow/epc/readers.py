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
from hydroflow.epc.frequency_units import UNITS, names_a_unit, units_of_frequencies
from hydroflow.epc.modes import read_folder
from hydroflow.epc.qe_files import numbers
from hydroflow.errors import DataError

_HIGHEST_K = 10_000.0
"""No phonon is as high: the stretching mode of H2, the highest there is, has 6300 K (4400 cm-1)."""
_LOWEST_K = 30.0

_WHOLE = 0.01
"""A whole a2F is below this share of its maximum at its last frequency."""
_ALL_MODES = 0.02
"""So far may the integral of a phonon DOS be from the number of modes."""

_FROM_PH_X = ("matdyn.x a2F.dos", "lambda.x alpha2F.dat")
"""Tables that are made from the elph.inp_lambda files of a folder."""
_Lines = list[tuple[int, str]]
"""Lines with their numbers in the file."""
_COMMENT = ("#", "!", "@")

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
        ``auto`` or a key of :data:`UNITS`; given explicitly it overrides what the format of a table says, with a warning.

    Raises
    ------
    UnknownUnit
        when the unit is not known, the file names none or several, or it is asked of a folder, which is in Ry.
    DataError
        when the file cannot be read or holds no usable coupling.
    EngineFailure
        when a folder of ph.x couplings is incomplete or mixed.
    """
    path = Path(path)
    if unit != "auto" and unit not in UNITS:
        raise UnknownUnit(f"unknown unit {unit!r}; known: auto, {', '.join(UNITS)}")
    if path.is_dir() or path.name.startswith("elph.inp_lambda.") or re.search(r"\.dyn\d+\.elph\.\d+$", path.name):
        if unit not in ("auto", "Ry"):
            raise UnknownUnit(f"{path}: couplings of ph.x are always in Ry; leave --unit {unit} out")
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
    warnings += _grid_warnings(columns[:, 0], unit) + _head_warnings(columns, unit)
    if name != "alpha2f.x a2F.dat":  # it ends at the highest frequency itself, and its phonon DOS tells
        warnings += _end_warnings(columns[:, 1:])
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
            bad = np.flatnonzero(~np.isfinite(columns).all(axis=1))
            raise DataError(f"{path}: {where} hold NaN or overflow (***) and none is left; " + (
                "usually an acoustic mode at Gamma had a negative squared frequency: read the elph.inp_lambda files instead "
                "(hydroflow tc FOLDER)" if name in _FROM_PH_X else
                f"mend {len(bad)} of {len(columns)} rows, the first at {columns[bad[0], 0]:.6g} {unit}"))
        warnings.append(f"{where} hold NaN or overflow (***) and were left out")
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
    with np.errstate(all="ignore"):  # a damaged file ends in a refusal, without numpy's warnings before it
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
    if modes.tetrahedra:
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
    lines: _Lines = list(enumerate(text.splitlines(), 1))
    data = [(n, line) for n, line in lines if not line.lstrip().startswith(_COMMENT)]
    warnings: list[str] = []
    if "Eliashberg function a2F" in head:
        stated = re.search(r"lambda\s*=\s*(\S+)", text)
        if stated is None:
            raise DataError(f"{path}: a matdyn.x a2F file that does not reach its last line (lambda = …): truncated")
        # the total is the second column; contributions of the modes follow, in versions before 6 six numbers to a line
        table = [(n, line) for n, line in lines if "#" not in line and "=" not in line]
        columns = _rows(path, table, least=2, broken=True)[:, :2]
        _compare(columns, numbers(stated[1]), warnings)
        return "matdyn.x a2F.dos", ["Ry"], columns, None, warnings
    if re.match(r"\s*#\s*E\(THz\)", head):
        top = next(i for i, (_, line) in enumerate(lines) if line.strip())
        sigmas = numbers(lines[top][1].split(")", 1)[1])
        if not sigmas:
            raise DataError(f"{path}: an alpha2F.dat whose first line names no broadening: truncated")
        columns = _rows(path, lines[top + 1:])
        if columns.shape[1] != 1 + len(sigmas):
            raise DataError(f"{path}: {columns.shape[1]} columns do not fit the {len(sigmas)} broadenings of its first line: "
                            "damaged, or truncated")
        warnings.append("lambda.x counts the acoustic modes at Gamma, so its a2F overestimates lambda; the elph.inp_lambda files "
                        "do not have this error")
        return "lambda.x alpha2F.dat", ["THz"], columns, sigmas, warnings
    if re.match(r"\s*w\[meV\]", head) or "Integrated el-ph coupling" in text or _EPW_NAME.search(path.name):
        return "EPW a2f", ["meV"], _epw(path, lines, warnings), None, warnings
    if re.search(r"#\s*Frequency\[Ry\],\s*a2F", head):
        rows = _rows(path, data, least=2)
        columns = rows[:, :2]
        if not columns[:, 1].any():
            raise DataError(f"{path}: alpha2f.x wrote zeros only, as that of QE 6.7 always does (it takes each q for the last "
                            "one); its lambda is wrong too: use a newer alpha2f.x")
        _count_modes(rows, warnings)
        return "alpha2f.x a2F.dat", ["Ry"], columns, None, warnings
    if re.search(r"#\s*Frequency,\s*a2F", head):
        # ABINIT's lambda, running in the third column, is the integral of a2F/omega without the 2: its a2F is twice alpha2F
        rows = _rows(path, data, least=3)
        _announced(path, rows, re.search(r"number of frequencies:\s*(\d+)", head))
        columns = rows[:, :2] * [1, 0.5]
        _compare(columns, rows[-1, 2:3].tolist(), warnings)
        return "ABINIT A2FW", ["Ha"], columns, None, warnings
    if re.search(r"#\s*ABINIT package\s*:\s*a2f file", head):
        columns = _rows(path, data, least=2)[:, :2]
        _announced(path, columns, re.search(r"number of energy points\s*:\s*(\d+)", head))
        return "ABINIT A2F", ["Ha"], columns, None, warnings
    if re.match(r"\s*#\s*degauss\s+lambda", head):
        raise DataError(f"{path}: a summary by lambda.x, without a spectrum; give alpha2F.dat or the folder of "
                        "elph.inp_lambda files")
    rows = _rows(path, data, least=2)
    columns = rows[:, :2]
    comments = [line for _, line in lines if line.lstrip().startswith(_COMMENT)]
    if (path.name.upper().startswith("ALPHA2F") and path.suffix.upper() == ".OUT"
            and not any(map(names_a_unit, comments))):  # Elk itself writes no comments
        return "Elk ALPHA2F.OUT", ["Ha"], columns, None, warnings
    if rows.shape[1] > 2:
        if rows[0, 0] in (0, 1) and (np.diff(rows[:, 0]) == 1).all() and (np.diff(rows[:, 1]) > 0).all():
            raise DataError(f"{path}: the first column counts the rows and the second ascends as frequencies do: give a table "
                            "whose first column is the frequency and whose second is a2F")
        warnings.append(f"{rows.shape[1]} columns: the second was read as a2F")
    return "text", units_of_frequencies(comments), columns, None, warnings


def _epw(path: Path, lines: _Lines, warnings: list[str]) -> np.ndarray:
    """Frequencies in meV and one column of α²F per phonon smearing, from any of EPW's files.

    ``prefix.a2f`` has a header, a column of α²F and one of the running λ per smearing, and a footer; old versions leave the
    running λ out, newer ones write the first smearing only. ``prefix.a2f.01`` (of phonselfen) has no header and no running
    λ. ``prefix.a2f_iso`` has no footer; in ``prefix.a2f_proj`` the contributions of the modes follow the total.
    """
    top = next((i for i, (_, line) in enumerate(lines) if line.strip()), 0)
    lines = lines[top:]
    header = lines[0][1] if lines else ""
    other = _EPW_OTHER.search(path.name)
    if other or "phdos" in header:
        what = "phonon density of states" if other is None or other[1] == "phdos" else "spectral function of transport"
        raise DataError(f"{path}: EPW's {what}, no a2F; give prefix.a2f or prefix.a2f.01")
    start = 1 if "w[meV]" in header else 0
    end = next((i for i, (_, line) in enumerate(lines) if "Integrated" in line or "lambda_int" in line), None)
    if header.split() == ["w[meV]", "a2f"]:
        columns = _rows(path, lines[1:], least=2)
        if columns.shape[1] != 2:
            raise DataError(f"{path}: {columns.shape[1]} columns do not fit its header (w[meV] a2f): damaged")
        return columns
    if header.split()[:3] == ["w[meV]", "a2f", "a2f_modeproj"]:
        if end is None:
            raise DataError(f"{path}: an EPW a2f_proj file that does not reach its last line (lambda_int = …): truncated")
        columns = _rows(path, lines[1:end], least=3, broken=True)[:, :2]
        _compare(columns, numbers(lines[end][1].split("=", 1)[-1]), warnings)
        return columns
    footer = "\n".join(line for _, line in lines[end + 1:]) if end is not None else ""
    stated = numbers(footer.split("Phonon smearing")[0])  # one per smearing
    if end is None or not stated:
        raise DataError(f"{path}: an EPW a2f file without its footer (Integrated el-ph coupling): truncated")
    n = len(stated)
    rows = _rows(path, lines[start:end], least=2, broken=True, widths=(1 + 2 * n, 1 + n, 3, 2))
    if rows.shape[1] not in (1 + n, 1 + 2 * n) and rows.shape[1] in (2, 3):
        n, stated = 1, stated[:1]  # the first smearing only
    if rows.shape[1] not in (1 + n, 1 + 2 * n):
        raise DataError(f"{path}: {rows.shape[1]} columns do not fit the {n} phonon smearings of the footer: damaged")
    columns = rows[:, :1 + n]
    for j in range(n):
        _compare(columns[:, [0, 1 + j]], stated[j:j + 1], warnings)
    summed = re.search(r"Summed el-ph coupling\s+(\S+)", footer)
    if summed and (modes := numbers(summed[1])) and abs(stated[0] - modes[0]) > 0.05 * abs(modes[0]):
        warnings.append(f"a2F integrates to lambda = {stated[0]:.4f}, the modes sum to {modes[0]:.4f}: the phonon smearing is "
                        "wide, or this is the spectral function of transport (a2f_tr)")
    return columns


def _rows(
    path: Path, lines: _Lines, *, least: int = 1, broken: bool = False, widths: tuple[int, ...] = (),
) -> np.ndarray:
    """Table of all numeric lines, with ascending frequencies; `broken` and `widths` as in :func:`_lines_per_record`."""
    tokens = [(n, found) for n, line in lines if (found := numbers(line))]
    if not tokens:
        raise DataError(f"{path}: no numbers in it")
    numbered = [n for n, _ in tokens]
    per_record = _lines_per_record(path, numbered, [len(t) for _, t in tokens], broken, widths)
    table = np.array([x for _, t in tokens for x in t]).reshape(len(tokens) // per_record, -1)
    if table.shape[1] < least:
        raise DataError(f"{path}: an a2F file needs a column of frequencies and one of a2F; this one has "
                        f"{table.shape[1]} of {least} columns")
    frequencies, numbered = table[:, 0], numbered[::per_record]
    if (unknown := np.flatnonzero(np.isnan(frequencies))).size:
        raise DataError(f"{path}: line {numbered[unknown[0]]} has no number as its frequency: damaged, or the field too narrow")
    if (wrong := np.flatnonzero(np.diff(frequencies) <= 0)).size:
        i = wrong[0]
        before, after = frequencies[i:i + 2]
        raise DataError(f"{path}: frequencies must ascend, and line {numbered[i + 1]} has {after:.10g} after the {before:.10g} "
                        f"of line {numbered[i]}: " + ("leave one of the rows out, or print the frequencies with more digits"
                                                   if before == after else "sort the rows, and give one spectrum per file"))
    return table


def _lines_per_record(path: Path, numbered: list[int], counts: list[int], broken: bool, widths: tuple[int, ...]) -> int:
    """How many lines are one record, from the count of numbers in each line.

    One, unless the format is one that breaks records (`broken`): there a line with fewer numbers ends each, or the record has
    one of the `widths`. The order of the frequencies does not decide: a doubled row would hide every second one.
    """
    patterns = [[max(set(counts), key=counts.count)]]
    if broken:
        starts = [counts[:p] for p in range(2, min(20, len(counts) // 2) + 1)]
        patterns += [p for p in starts if p == sorted(p, reverse=True) and (p[-1] < p[0] or sum(p) in widths)]
    odd = [next((i for i, n in enumerate(counts) if n != p[i % len(p)]), len(counts)) for p in patterns]
    fits = [len(p) for p, i in zip(patterns, odd, strict=True) if i == len(counts) and not len(counts) % len(p)]
    if fits:
        return next((p for p in fits if sum(counts[:p]) in widths), fits[0])
    i = max(odd)
    if i == len(counts):
        raise DataError(f"{path}: line {numbered[-1]} ends in the middle of a record: truncated")
    pattern = patterns[odd.index(i)]
    raise DataError(f"{path}: line {numbered[i]} has {counts[i]} number(s) where {pattern[i % len(pattern)]} are due: no a2F "
                    "table (comments begin with #), damaged, or truncated")


def _announced(path: Path, rows: np.ndarray, stated: re.Match[str] | None) -> None:
    """Refuse a table that has not as many rows as its header says."""
    if stated and len(rows) != int(stated[1]):
        raise DataError(f"{path}: its header announces {stated[1]} frequencies, the table has {len(rows)}: truncated, or damaged")


def _count_modes(rows: np.ndarray, warnings: list[str]) -> None:
    """Warn where the phonon DOS of alpha2f.x (third column; one column per atom follows) does not hold three modes per atom."""
    modes = 3 * (rows.shape[1] - 3)
    if len(rows) < 2 or modes <= 0 or not rows[:, 2].any():
        return
    held = rows[:, 2].sum() * (rows[1, 0] - rows[0, 0])
    if not abs(held / modes - 1) <= _ALL_MODES:
        warnings.append(f"its phonon DOS holds {held:.2f} of {modes} modes: truncated, or modes are imaginary")


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


def _head_warnings(columns: np.ndarray, unit: str) -> list[str]:
    """What α²F has at the first frequency, where that is not zero: the low frequencies, which weigh most in λ, may be missing."""
    frequencies, a2f = columns[:, 0], np.abs(columns[:, 1:])
    a2f = a2f[:, np.isfinite(a2f).all(axis=0) & a2f.any(axis=0)]
    if len(frequencies) < 2 or frequencies[0] <= 2.5 * float(np.median(np.diff(frequencies))):
        return []
    there = float((a2f[0] / a2f.max(axis=0)).max(initial=0.0))
    if there < _WHOLE:
        return []
    return [f"the frequencies begin at {frequencies[0]:.6g} {unit}, where a2F has {100 * there:.2g} % of its maximum: cut at the "
            "head? The low frequencies weigh most in lambda"]


def _end_warnings(a2f: np.ndarray) -> list[str]:
    """What columns of α²F (rows, spectra) have at the last frequency, where there should be nothing."""
    a2f = np.abs(a2f[:, np.isfinite(a2f).all(axis=0) & a2f.any(axis=0)])
    left = float((a2f[-1] / a2f.max(axis=0)).max(initial=0.0))
    if left < _WHOLE:
        return []
    return [f"a2F is not zero at its last frequency ({100 * left:.2g} % of its maximum): truncated, or the phonon smearing is "
            "wide"]
