"""Asking for structures: the request, the generator protocol, and the mix of generators a campaign draws from.

A generator is registered in the entry-point group ``hydroflow.generators``; :mod:`hydroflow.testing.generator_kit` checks
that one keeps the contract.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.errors import CampaignError, GenerationFailed
from hydroflow.structures.space import Composition


@dataclass(frozen=True)
class Request:
    """So many structures of one cell composition.

    Attributes
    ----------
    composition
        Atoms per cell, e.g. ``{"Ca": 2, "Y": 2, "H": 24}``.
    count
        How many structures.
    first
        Number of the first one. Structure k of a composition is the same whatever else is asked for beside it, so a
        search goes on where it stopped with ``first`` set to how many there are.
    """

    composition: Mapping[str, int]
    count: int
    first: int = 0

    @property
    def cell_id(self) -> str:
        """Composition of the cell with every count written, e.g. ``Ca2Y2H24``."""
        return Composition.from_dict(dict(self.composition)).id


@dataclass(frozen=True)
class Failure:
    """What a generator could not make.

    Attributes
    ----------
    request
        Index of the request.
    composition
        Its cell, e.g. ``Ca2Y2H24``.
    missing
        How many structures are missing.
    reason
        Why, in words with the numbers that matter.
    """

    request: int
    composition: str
    missing: int
    reason: str

    def __str__(self) -> str:
        return f"{self.composition}: {self.reason} ({self.missing} structures missing)"


@dataclass
class Generation:
    """What a generator hands back: structures (in the order of the requests) and what it could not make.

    ``structures`` has the columns ``id``, ``generator``, ``composition_index`` (index of the request) and
    ``requested_spacegroup`` (0 where the generator does not aim at one).
    """

    structures: StructureArrays
    failures: list[Failure] = field(default_factory=list)


@runtime_checkable
class Generator(Protocol):
    """A source of structures. Holds no state between calls; the same arguments give the same structures."""

    name: str

    def generate(
        self, campaign: Campaign, requests: Sequence[Request], pressure_gpa: float, seed: int,
        relaxed: StructureArrays | None = None,
    ) -> Generation:
        """Structures for each request.

        Parameters
        ----------
        campaign, requests, pressure_gpa, seed
            What to make; only ``campaign.generator`` and ``campaign.space`` matter here.
        relaxed
            Structures of these compositions that were relaxed before, with the column ``enthalpy_ev`` (n,) in eV per
            cell: generators that learn go on from them, others ignore them.
        """


@cache
def generator_for(name: str) -> Generator:
    """The generator registered under a name.

    Raises
    ------
    CampaignError
        when no installed package registers it.
    """
    found = entry_points(group="hydroflow.generators", name=name)
    if not found:
        known = ", ".join(sorted({e.name for e in entry_points(group="hydroflow.generators")})) or "none"
        raise CampaignError(f"generator.mix: no generator {name!r} is installed (installed: {known})")
    return next(iter(found)).load()()


def generate(
    campaign: Campaign, requests: Sequence[Request], pressure_gpa: float, seed: int,
    relaxed: StructureArrays | None = None, on_failure: Callable[[Failure], object] | None = None,
) -> StructureArrays:
    """Structures from the campaign's mix of generators.

    What a generator of the mix cannot make (no prototype known for a composition, say) the one with the largest share
    makes in its place.

    Parameters
    ----------
    campaign, requests, pressure_gpa, seed
        What to make. Requests of the same cell composition are numbered on, so that their structures differ.
    relaxed
        See :class:`Generator`.
    on_failure
        Called with each :class:`Failure`; without it the first failure raises. One impossible request never costs the
        structures of another: collect them with ``on_failure=failures.append``.

    Returns
    -------
    StructureArrays
        Columns ``id`` (text, made of cell, pressure, seed, generator and number), ``generator``, ``composition_index`` (into
        `requests`) and ``requested_spacegroup``; sorted by request.

    Raises
    ------
    GenerationFailed
        without `on_failure`, when a request cannot be met; names the composition and the reason.
    CampaignError
        when the mix names an unknown generator or has no positive share.
    """
    requests = _numbered(requests)
    mix = {name: share for name, share in campaign.generator.mix.items() if share > 0}
    if not mix:
        raise CampaignError("generator.mix: every share is zero; give at least one generator a positive share")
    main = max(mix, key=lambda name: mix[name])
    shares = np.array(list(mix.values())) / sum(mix.values())
    split = np.array([
        np.random.default_rng(stream_key(seed, r.cell_id, pressure_gpa, r.first)).multinomial(r.count, shares)
        for r in requests
    ]).reshape(len(requests), len(mix))
    parts: list[StructureArrays] = []
    failures: list[Failure] = []
    lacking = np.zeros(len(requests), int)
    for name in sorted(mix, key=lambda n: n == main):  # the main one last: it fills the others' gaps
        counts = split[:, list(mix).index(name)] + (lacking if name == main else 0)
        wanted = np.flatnonzero(counts)
        made = generator_for(name).generate(
            campaign, [replace(requests[i], count=int(counts[i])) for i in wanted], pressure_gpa, seed, relaxed)
        if len(made.structures):
            made.structures.columns["composition_index"] = wanted[made.structures.columns["composition_index"]]
            parts.append(made.structures)
        for failure in made.failures:
            if name == main:
                failures.append(replace(failure, request=int(wanted[failure.request])))
            else:
                lacking[wanted[failure.request]] += failure.missing
    for failure in failures:
        if on_failure is None:
            raise GenerationFailed(str(failure))
        on_failure(failure)
    joined = StructureArrays.concatenate(parts)
    if not len(joined):
        return joined
    return joined[np.argsort(joined.columns["composition_index"], kind="stable")]


def _numbered(requests: Sequence[Request]) -> list[Request]:
    """Requests of one cell composition must not overlap in their numbers: later ones are moved behind."""
    following: dict[str, int] = {}
    out = []
    for request in requests:
        cell = request.cell_id
        first = max(request.first, following.get(cell, 0))
        following[cell] = first + request.count
        out.append(replace(request, first=first))
    return out


def stream_key(*parts: object) -> int:
    """64-bit key of a random stream from anything with a stable text form."""
    text = "|".join(f"{p:g}" if isinstance(p, float) else str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def structure_ids(request: Request, pressure_gpa: float, seed: int, generator: str, numbers: np.ndarray) -> list[str]:
    """Ids such as ``Ca2Y2H24-200gpa-7-random-12``."""
    prefix = f"{request.cell_id}-{pressure_gpa:g}gpa-{seed}-{generator}-"
    return [prefix + str(n) for n in numbers.tolist()]
