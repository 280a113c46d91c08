"""The filters of the funnel, in their order: what each one measures, where its threshold is set, and when it lets pass.

A filter measures only what every earlier one let pass. Measuring is in :mod:`hydroflow.screening.measure`; here is what
can be decided from a stored value alone, which is also all that a "what if" needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hydroflow.campaign import Funnel
from hydroflow.errors import DataError


@dataclass(frozen=True)
class Filter:
    """One declared filter.

    Attributes
    ----------
    name
        As stored in verdicts and in ``Candidate.rejected_by``.
    field
        Field of :class:`hydroflow.store.documents.Candidate` that holds the measured value.
    setting
        Key of the campaign's ``[funnel]`` section that holds the threshold.
    passes
        (values (n,), threshold) → (n,) bool; false for NaN.
    words
        (value, threshold) → why a value is rejected.
    """

    name: str
    field: str
    setting: str
    passes: Callable[[np.ndarray, float], np.ndarray]
    words: Callable[[float, float], str]

    def threshold(self, funnel: Funnel) -> float:
        return float(getattr(funnel, self.setting))


def _at_most(values: np.ndarray, threshold: float) -> np.ndarray:
    return values <= threshold


def _at_least(values: np.ndarray, threshold: float) -> np.ndarray:
    return values >= threshold


def _above(values: np.ndarray, threshold: float) -> np.ndarray:
    return values > threshold


FILTERS: tuple[Filter, ...] = (
    Filter("ehull_lam", "ehull_lam_ev", "ehull_lam_ev", _at_most,
           lambda v, t: f"{1000 * v:.0f} meV/atom above the model's hull, at most {1000 * t:g} allowed"),
    Filter("spacegroup", "spacegroup", "min_spacegroup", _above,
           lambda v, t: f"space group {v:.0f}, above {t:g} wanted"),
    Filter("atomic_hydrogen", "atomic_h_fraction", "min_atomic_h", _above,
           lambda v, t: f"{100 * v:.0f} % of the hydrogen is atomic, above {100 * t:g} % wanted"),
    Filter("phonons", "min_frequency_thz", "min_frequency_thz", _at_least,
           lambda v, t: f"lowest phonon frequency {v:.2f} THz, at least {t:g} THz wanted"),
    Filter("ehull_dft", "ehull_dft_ev", "ehull_dft_ev", _at_most,
           lambda v, t: f"{1000 * v:.0f} meV/atom above the DFT hull, at most {1000 * t:g} allowed"),
)
"""The paper's five filters."""


def by_name(name: str) -> Filter:
    """The filter of a name.

    Raises
    ------
    DataError
        names the filters there are.
    """
    for f in FILTERS:
        if f.name == name:
            return f
    raise DataError(f"no filter {name!r} in the funnel (there are: {', '.join(f.name for f in FILTERS)})")


def thresholds(funnel: Funnel, changed: Mapping[str, float] | None = None) -> dict[str, float]:
    """Threshold per filter name, with some of them changed."""
    out = {f.name: f.threshold(funnel) for f in FILTERS}
    for name, value in (changed or {}).items():
        out[by_name(name).name] = float(value)
    return out
