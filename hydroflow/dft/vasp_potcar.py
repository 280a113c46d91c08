"""POTCARs from the user's own VASP library; hydroflow ships none.

The library is the folder in ``PMG_VASP_PSP_DIR`` (environment or pymatgen's configuration) in either layout: pymatgen's
(``POT_PAW_PBE_54/POTCAR.Ca_sv.gz``) or VASP's own (``potpaw_PBE.54/Ca_sv/POTCAR``); or any folder of one release, in
either layout, that a campaign names.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from hydroflow.dft.pseudos import FAMILIES
from hydroflow.dft.upf import Pseudo
from hydroflow.errors import SettingsError
from hydroflow.units import BOHR_A, RYDBERG_EV

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RELEASES = {
    # name: folders it may be in
    "PBE_64": ("POT_PAW_PBE_64", "POT_GGA_PAW_PBE_64", "potpaw_PBE.64"),
    "PBE_54": ("POT_PAW_PBE_54", "POT_GGA_PAW_PBE_54", "potpaw_PBE.54"),
    "PBE_52": ("POT_PAW_PBE_52", "POT_GGA_PAW_PBE_52", "potpaw_PBE.52"),
    "PBE": ("POT_GGA_PAW_PBE", "POT_PAW_PBE", "potpaw_PBE"),
}
DEFAULT_RELEASE = "PBE_54"


@dataclass(frozen=True)
class PotcarFamily:
    """One release of VASP's PBE potentials in the user's library, or a folder of them."""

    name: str
    root: Path
    version: str = ""
    digest: str = ""
    """The release says which potentials are meant; each one's checksum is in the settings, and of a folder that is all."""

    def require(self, elements: list[str]) -> dict[str, Pseudo]:
        """Potentials of these elements; :class:`SettingsError` names what is missing or no PBE potential."""
        found, missing = {}, []
        for element in sorted(set(elements)):
            symbol = potcar_symbols().get(element, element)
            path = potcar_path(self.root, symbol)
            if path is None:
                missing.append(symbol)
            else:
                found[element] = parse_potcar(read_potcar(path), element, symbol)
        if missing:
            raise SettingsError(f"the VASP library {self.root} has no POTCAR for {', '.join(missing)}; complete it or set "
                                "labels.pseudos to another release (PBE_64, PBE_54, PBE_52, PBE)")
        return found


@cache
def potcar_symbols() -> dict[str, str]:
    """Element → name of its potential."""
    return tomllib.loads(files("hydroflow.dft").joinpath("potcars.toml").read_text())


def potcar_family(name: str) -> PotcarFamily:
    """A release of the user's library by name, or a folder of POTCARs by path. The name of a Quantum ESPRESSO family means the
    default release, so that switching ``labels.engine`` is all a campaign needs.

    Raises
    ------
    SettingsError
        when no library is configured, it does not have the release, or the name is neither release nor folder.
    """
    if name not in RELEASES and name not in FAMILIES:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise SettingsError(f"labels.pseudos = {name!r}: neither a release ({', '.join(RELEASES)}) of the library in "
                                "PMG_VASP_PSP_DIR nor a folder of POTCARs")
        return PotcarFamily("folder", folder.resolve())
    release = name if name in RELEASES else DEFAULT_RELEASE
    library = os.environ.get("PMG_VASP_PSP_DIR") or _pymatgen_setting()
    if not library:
        raise SettingsError("labels.engine = 'vasp' needs your own POTCAR library; set PMG_VASP_PSP_DIR to its folder")
    root = Path(library).expanduser()
    for folder_name in RELEASES[release]:
        if (root / folder_name).is_dir():
            return PotcarFamily(release, root / folder_name)
    raise SettingsError(f"PMG_VASP_PSP_DIR = {root} has none of {', '.join(RELEASES[release])}; set labels.pseudos to the "
                        f"release that it has ({', '.join(RELEASES)})")


def _pymatgen_setting() -> str | None:
    from pymatgen.core import SETTINGS

    return SETTINGS.get("PMG_VASP_PSP_DIR")


def potcar_path(root: Path, symbol: str) -> Path | None:
    for name in (f"POTCAR.{symbol}.gz", f"POTCAR.{symbol}", f"{symbol}/POTCAR", f"{symbol}/POTCAR.gz"):
        if (root / name).is_file():
            return root / name
    return None


def read_potcar(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def stored_potcar(root: Path, pseudo: Pseudo) -> bytes:
    """The POTCAR that label settings name; :class:`SettingsError` when it is gone or has changed."""
    path = potcar_path(root, pseudo.file.removeprefix("POTCAR."))
    data = read_potcar(path) if path else b""
    if hashlib.sha256(data).hexdigest() != pseudo.sha256:
        raise SettingsError(f"{pseudo.file} in {root} is not the file that the label settings were made with; put the old file "
                            "back or start a new campaign")
    return data


def parse_potcar(data: bytes, element: str, symbol: str) -> Pseudo:
    """What a POTCAR says of itself, and whether it is the PBE potential of this element.

    Raises
    ------
    SettingsError
        for another element, another functional than PBE, or a file that is no POTCAR or is cut off.
    """
    text = data.decode("utf-8", errors="replace")

    def value(pattern: str) -> str | None:
        match = re.search(pattern, text)
        return match.group(1).strip() if match else None

    inside = value(r"VRHFIN\s*=\s*([A-Za-z]{1,2})\s*:")
    functional, valence = value(r"LEXCH\s*=\s*(\S+)"), value(r"ZVAL\s*=\s*([\d.]+)")
    if inside is None or functional is None or valence is None or "End of Dataset" not in text:
        raise SettingsError(f"POTCAR of {symbol}: not a complete POTCAR file; copy it again from VASP's distribution")
    if inside != element:
        raise SettingsError(f"POTCAR of {symbol}: it is for {inside}, not {element}")
    if functional != "PE":
        raise SettingsError(f"POTCAR of {symbol}: functional {functional} instead of PE (PBE); use the potpaw_PBE release")
    enmax, radius = value(r"ENMAX\s*=\s*([\d.]+)"), value(r"RCORE\s*=\s*([\d.]+)")
    return Pseudo(element, f"POTCAR.{symbol}", hashlib.sha256(data).hexdigest(), "PBE", float(valence), "PAW",
                  round(float(radius or 0) * BOHR_A, 4), round(float(enmax or 0) / RYDBERG_EV, 4))
