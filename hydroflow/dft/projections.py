"""Projected densities of states from projwfc.x: each element's share of N(E_F)."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hydroflow.dft.verdict import error_box
from hydroflow.errors import EngineFailure, FailureCode


@dataclass(frozen=True)
class FermiProjections:
    """States per eV and cell (both spins) at the Fermi level, per element; `total` is their sum."""

    by_element: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.by_element.values())

    def share(self, element: str) -> float:
        """Share of an element in the projected N(E_F), 0 to 1; 0 where nothing is there."""
        return self.by_element.get(element, 0.0) / self.total if self.total > 0 else 0.0


def check_text(path: Path) -> None:
    """Whether projwfc.x ended well; :class:`EngineFailure` otherwise."""
    text = path.read_text(errors="replace") if path.exists() else ""
    if box := error_box(text):
        raise EngineFailure(FailureCode.unknown, f"projwfc.x: {box[0]}: {box[1]}")
    if "JOB DONE" not in text:
        raise EngineFailure(FailureCode.truncated_output, "the output of projwfc.x ends in the middle")


def at_fermi(archive: Path, fermi_ev: float) -> FermiProjections:
    """Sum the ``x.pdos_atm#i(El)_wfc#j(l)`` files of an archive at the Fermi energy (linear between grid points).

    Raises
    ------
    EngineFailure
        ``missing_output`` or ``corrupted_output``.
    """
    totals: dict[str, float] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                match = re.search(r"pdos_atm#\d+\((\w+)\)_wfc#\d+", member.name)
                handle = tar.extractfile(member) if match else None
                if match is None or handle is None:
                    continue
                table = np.loadtxt(io.TextIOWrapper(handle), comments="#", usecols=(0, 1), ndmin=2)
                element = re.sub(r"\d", "", match.group(1))
                totals[element] = totals.get(element, 0.0) + float(np.interp(fermi_ev, table[:, 0], table[:, 1]))
    except FileNotFoundError:
        raise EngineFailure(FailureCode.missing_output, "projwfc.x left no projected densities of states") from None
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise EngineFailure(FailureCode.corrupted_output, f"the projected densities of states cannot be read: {error}") from error
    if not totals:
        raise EngineFailure(FailureCode.missing_output, "projwfc.x left no projected densities of states")
    if not all(np.isfinite(v) and v >= -1e-6 for v in totals.values()):
        raise EngineFailure(FailureCode.unphysical_result, f"projected densities of states at the Fermi level: {totals}")
    return FermiProjections(totals)
