"""The filters of the funnel: what each one measures, where its threshold is set, and when it lets pass.

A filter measures only what every earlier one let pass. The campaign names its filters in their order (``funnel.filters``);
each is a :class:`Filter` registered in the entry-point group ``hydroflow.filters``, where an outside package may add its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign, Funnel
from hydroflow.errors import CampaignError

if TYPE_CHECKING:
    from hydroflow.screening.measure import Screening


@dataclass
class Measured:
    """Values of one filter for some structures.

    Attributes
    ----------
    values : (k,) float
        NaN where there is none.
    settings : str
        What they were computed with.
    waiting : (k,) bool
        Left for later by a limit of the campaign, not rejected.
    reasons : dict
        Position → words, where a value is missing or needs a remark.
    fields : dict
        Position → further fields of the candidate.
    """

    values: np.ndarray
    settings: str
    waiting: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    reasons: dict[int, str] = field(default_factory=dict)
    fields: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = np.asarray(self.values, float)
        if len(self.waiting) != len(self.values):
            self.waiting = np.zeros(len(self.values), bool)


@dataclass(frozen=True)
class Filter:
    """One declared filter.

    Attributes
    ----------
    name
        As in the campaign, in verdicts and in ``Candidate.rejected_by``.
    passes
        (values (n,), threshold) → (n,) bool; false for NaN. :func:`at_most`, :func:`at_least`, :func:`above`.
    words
        (value, threshold) → why a value is rejected.
    measure
        (screening, rows (k,) of its structures that are left, threshold) → :class:`Measured` of those.
    setting
        Key of the campaign's ``[funnel]`` section that holds the threshold; without one it is ``funnel.thresholds.NAME``.
    default
        Threshold where ``funnel.thresholds`` does not name it.
    field
        Field of :class:`hydroflow.store.documents.Candidate` for the value; without one it is ``measured.NAME``.
    structural
        (structures, campaign) → values (n,), for a filter that needs the structures alone: a "what if" measures those that an
        earlier filter had kept from it. None: the filter needs jobs, and such candidates are counted as "to compute".
    """

    name: str
    passes: Callable[[np.ndarray, float], np.ndarray]
    words: Callable[[float, float], str]
    measure: Callable[[Screening, np.ndarray, float], Measured]
    setting: str | None = None
    default: float | None = None
    field: str | None = None
    structural: Callable[[StructureArrays, Campaign], np.ndarray] | None = None

    @property
    def document_field(self) -> str:
        """Where the value is in the candidate's document."""
        return self.field or f"measured.{self.name}"

    def threshold(self, funnel: Funnel) -> float:
        """The campaign's threshold.

        Raises
        ------
        CampaignError
            the campaign must name one and does not.
        """
        value = getattr(funnel, self.setting) if self.setting else funnel.thresholds.get(self.name, self.default)
        if value is None:
            raise CampaignError(f"filter {self.name} has no threshold: set {self.name} = … in [funnel.thresholds]")
        return float(value)


def at_most(values: np.ndarray, threshold: float) -> np.ndarray:
    return values <= threshold


def at_least(values: np.ndarray, threshold: float) -> np.ndarray:
    return values >= threshold


def above(values: np.ndarray, threshold: float) -> np.ndarray:
    return values > threshold


@cache
def by_name(name: str) -> Filter:
    """The filter registered under a name.

    Raises
    ------
    CampaignError
        names the filters there are, or says what is wrong with the one found.
    """
    found = entry_points(group="hydroflow.filters", name=name)
    if not found:
        known = ", ".join(sorted({e.name for e in entry_points(group="hydroflow.filters")})) or "none"
        raise CampaignError(f"no filter {name!r} is installed (there are: {known})")
    loaded = next(iter(found)).load()
    if not isinstance(loaded, Filter) or loaded.name != name:
        raise CampaignError(f"the entry point {name!r} of group hydroflow.filters must be a Filter of that name, not {loaded!r}")
    return loaded


def filters_of(funnel: Funnel) -> tuple[Filter, ...]:
    """The campaign's filters in their order.

    Raises
    ------
    CampaignError
        one that is not installed.
    """
    return tuple(by_name(name) for name in funnel.filters)


def thresholds(funnel: Funnel, changed: Mapping[str, float] | None = None) -> dict[str, float]:
    """Threshold per filter name, with some of them changed.

    Raises
    ------
    CampaignError
        a changed filter that the campaign does not have.
    """
    for name in changed or {}:
        if name not in funnel.filters:
            raise CampaignError(f"no filter {name!r} in the funnel (there are: {', '.join(funnel.filters)})")
    return {f.name: float((changed or {}).get(f.name, f.threshold(funnel))) for f in filters_of(funnel)}
