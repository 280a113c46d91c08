"""Read what matters of a UPF pseudopotential file: element, functional, valence, kind, core radius, cutoff hints.

Both formats in circulation are read: version 2 (XML attributes of ``PP_HEADER``) and version 1 (lines of words).
pw.x runs happily with the wrong element's file, so nothing here trusts file names.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ase.data import atomic_numbers

from hydroflow.errors import SettingsError
from hydroflow.units import BOHR_A


@dataclass(frozen=True)
class Pseudo:
    """One pseudopotential as its own file describes it.

    Attributes
    ----------
    element, file
        Chemical symbol and file name (without folder).
    sha256
        Checksum of the whole file, 64 hex digits: the object digest without its ``sha256:`` prefix.
    functional
        ``PBE``, ``PBESOL``, ``LDA`` … or the file's own words where they are none of these.
    valence
        Number of valence electrons.
    kind
        ``NC`` (norm-conserving), ``US`` (ultrasoft) or ``PAW``.
    core_radius_a
        Largest cutoff radius of the projectors, Å; 0 where the file does not say.
    ecutwfc_hint_ry, ecutrho_hint_ry
        Suggested cutoffs written in the file, Ry; 0 where it has none.
    """

    element: str
    file: str
    sha256: str
    functional: str
    valence: float
    kind: str
    core_radius_a: float = 0.0
    ecutwfc_hint_ry: float = 0.0
    ecutrho_hint_ry: float = 0.0


def read_upf(path: str | Path) -> Pseudo:
    """The header of a UPF file.

    Raises
    ------
    SettingsError
        when the file cannot be read, is no UPF, or is cut off.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the pseudopotential: {error.strerror}") from error
    return _read_cached(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _read_cached(path: Path, mtime_ns: int, size: int) -> Pseudo:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the pseudopotential: {error.strerror}") from error
    return parse_upf(data, path.name)


def parse_upf(data: bytes, name: str) -> Pseudo:
    """As :func:`read_upf`, from the file's bytes; `name` is what errors call it."""
    text = data.decode("utf-8", errors="replace")
    start = text.find("<PP_HEADER")
    if start < 0:
        raise SettingsError(f"{name}: not a UPF pseudopotential (no PP_HEADER); install a family with "
                            "`hydroflow pseudos install`")
    stripped = text.rstrip()
    if not (stripped.endswith(">") and ("</PP_RHOATOM" in text or "</UPF>" in text)):
        raise SettingsError(f"{name}: the pseudopotential file is cut off; install it again")
    opening = text[start:text.index(">", start) + 1]
    if "element" in opening:
        header = _version_2(opening, name)
    else:
        end = text.find("</PP_HEADER>", start)
        header = _version_1(text[start + len("<PP_HEADER>"):end].strip().splitlines(), name)
    element = header["element"]
    if element not in atomic_numbers or element == "X":
        raise SettingsError(f"{name}: the pseudopotential's element {element!r} is not a chemical element")
    radii = [float(r) for r in re.findall(r'<PP_BETA\.\d+[^>]*?\scutoff_radius\s*=\s*"\s*([0-9.EeDd+-]+)', text)]
    return Pseudo(
        element=element, file=name, sha256=hashlib.sha256(data).hexdigest(),
        functional=normal_functional(header["functional"]), valence=float(header["valence"]),
        kind=header["kind"], core_radius_a=round(max(radii, default=0.0) * BOHR_A, 4),
        ecutwfc_hint_ry=float(header["wfc"]), ecutrho_hint_ry=float(header["rho"]),
    )


def normal_functional(words: str) -> str:
    """Short name of a functional in the words of a UPF header, e.g. ``SLA PW PBX PBC`` → ``PBE``."""
    tokens = tuple(words.upper().replace("+", " ").replace("-", " ").split())
    known = {
        ("SLA", "PW", "PBX", "PBC"): "PBE", ("SLA", "PW", "PBE", "PBE"): "PBE", ("PBE",): "PBE",
        ("SLA", "PW", "PSX", "PSC"): "PBESOL", ("PBESOL",): "PBESOL",
        ("SLA", "PZ", "NOGX", "NOGC"): "LDA", ("PZ",): "LDA", ("SLA", "PW", "NOGX", "NOGC"): "LDA", ("LDA",): "LDA",
    }
    return known.get(tokens, " ".join(tokens))


def _version_2(opening: str, name: str) -> dict[str, str]:
    attributes = dict(re.findall(r'([\w]+)\s*=\s*"([^"]*)"', opening))
    try:
        header = {
            "element": attributes["element"].strip(), "functional": attributes["functional"],
            "valence": _number(attributes["z_valence"]), "kind": _kind(attributes["pseudo_type"]),
            "wfc": _hint(attributes.get("wfc_cutoff", "0")), "rho": _hint(attributes.get("rho_cutoff", "0")),
        }
    except (KeyError, ValueError) as error:
        raise SettingsError(f"{name}: the UPF header is incomplete or damaged ({error}); install the file again") from error
    # ONCVPSP writes its mesh radius in bohr as rho_cutoff: without a wave-function cutoff it is no hint.
    if float(header["wfc"]) <= 0:
        header["rho"] = "0"
    return header


def _version_1(lines: list[str], name: str) -> dict[str, str]:
    """Lines: version, element, kind, core correction, functional, valence, energy, 'wfc rho' cutoffs, …"""
    try:
        wfc, rho = lines[7].split()[:2]
        words = re.split(r"\s{2,}Exchange|\s+Exchange-Correlation", lines[4].strip())[0]
        # four words of four letters each, sometimes preceded by a short name
        functional = " ".join(words.split()[:4])
        return {"element": lines[1].split()[0], "functional": functional, "valence": _number(lines[5].split()[0]),
                "kind": _kind(lines[2].split()[0]), "wfc": _hint(wfc), "rho": _hint(rho)}
    except (IndexError, ValueError) as error:
        raise SettingsError(f"{name}: the UPF header is incomplete or damaged ({error}); install the file again") from error


def _number(word: str) -> str:
    return str(float(word.strip().replace("D", "E").replace("d", "e")))


def _hint(word: str) -> str:
    try:
        return _number(word)
    except ValueError:
        return "0"


def _kind(word: str) -> str:
    word = word.strip().upper()
    if word in ("NC", "SL"):
        return "NC"
    if word in ("US", "USPP"):
        return "US"
    if word == "PAW":
        return "PAW"
    raise ValueError(f"pseudo_type {word!r}")
