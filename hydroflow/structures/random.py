"""Random symmetric structures: the generator ``random`` (see :mod:`hydroflow.structures.symmetric` for the method)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from hydroflow.arrays import StructureArrays, numbers_of
from hydroflow.campaign import Campaign
from hydroflow.errors import DataError
from hydroflow.structures.generate import Failure, Generation, Request, stream_key, structure_ids
from hydroflow.structures.symmetric import feasible_groups, generate_batch
from hydroflow.structures.volumes import VOLUME_SPREAD, atomic_volumes, minimum_distances
from hydroflow.structures.wyckoff import MAX_ATOMS, tables

GIVE_UP = 20
"""After so many structures in a row that could not be made, and none that could, the rest of a request is given up."""
ATOMS_PER_BATCH = 2_000_000
"""Batches are cut at this many atoms, to bound memory."""


@lru_cache(maxsize=100_000)
def hosts(counts: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    """Space groups from `low` to `high` that can host so many atoms per species in the primitive cell."""
    return tuple(np.flatnonzero(feasible_groups(tables(), np.array(counts), low, high)).tolist())


class RandomGenerator:
    """Random structures of every space group that can host the composition, at the estimated volume.

    Parameters
    ----------
    weights
        Relative weight per space-group number; 0 for those not listed. Default: all equal.
    stream
        Name of the random stream: generators that draw random structures of their own use another one.

    Notes
    -----
    Cells are primitive and Minkowski-reduced, and hold exactly the requested atoms. The requested space group is realised
    or a supergroup of it. Every pair of atoms, images included, keeps its minimum distance.
    """

    name = "random"

    def __init__(self, weights: Mapping[int, float] | None = None, stream: str = "random") -> None:
        self.weights = weights
        self.stream = stream

    def generate(
        self, campaign: Campaign, requests: Sequence[Request], pressure_gpa: float, seed: int,
        relaxed: StructureArrays | None = None,
    ) -> Generation:
        parts, failures = [], []
        start = atoms = 0
        for i, request in enumerate(requests):
            atoms += sum(request.composition.values()) * request.count
            if atoms >= ATOMS_PER_BATCH or i + 1 == len(requests):
                made = self._batch(campaign, requests[start:i + 1], start, pressure_gpa, seed)
                parts.append(made.structures)
                failures += made.failures
                start, atoms = i + 1, 0
        return Generation(StructureArrays.concatenate(parts), failures)

    def _batch(
        self, campaign: Campaign, requests: Sequence[Request], shift: int, pressure_gpa: float, seed: int,
    ) -> Generation:
        """Structures for some requests; `shift` is the index of the first of them."""
        low, high = campaign.generator.space_groups
        elements = sorted({s for r in requests for s, n in r.composition.items() if n})
        numbers_of(elements)
        volume_of = atomic_volumes(campaign, elements, pressure_gpa)
        pair = minimum_distances(elements, volume_of, campaign.generator.minimum_distances_a)
        # big atoms are placed first
        rank = sorted(elements, key=lambda s: -pair[elements.index(s), elements.index(s)])
        most = max((sum(1 for n in r.composition.values() if n) for r in requests), default=1)
        counts = np.zeros((len(requests), most), np.int64)
        species = np.zeros(len(requests), np.int64)
        distances = np.zeros((len(requests), most, most))
        volumes = np.zeros(len(requests))
        ordered: list[list[str]] = []
        groups: list[tuple[int, ...]] = []
        reasons: dict[int, str] = {}
        for i, request in enumerate(requests):
            cell = {s: n for s, n in request.composition.items() if n}
            if not cell or min(cell.values()) < 0 or max(cell.values()) > MAX_ATOMS:
                raise DataError(f"{dict(request.composition)} is not a cell of 1 to {MAX_ATOMS} atoms per element")
            symbols = [s for s in rank if s in cell]
            ordered.append(symbols)
            k = len(symbols)
            counts[i, :k], species[i] = [cell[s] for s in symbols], k
            index = [elements.index(s) for s in symbols]
            distances[i, :k, :k] = pair[np.ix_(index, index)]
            volumes[i] = sum(n * volume_of[s] for s, n in cell.items())
            found = hosts(tuple(counts[i, :k].tolist()), low, high)
            if self.weights is not None:
                found = tuple(g for g in found if self.weights.get(g, 0) > 0)
            groups.append(found)
            if not found:
                reasons[i] = f"no space group from {low} to {high} can host these atoms in a primitive cell"
        wanted = np.array([0 if i in reasons else r.count for i, r in enumerate(requests)])
        request_of = np.repeat(np.arange(len(requests)), wanted)
        numbers = np.concatenate([np.arange(r.first, r.first + w) for r, w in zip(requests, wanted, strict=True)])
        natoms = counts.sum(1)[request_of]
        offsets = np.concatenate([[0], np.cumsum(natoms)]).astype(np.int64)
        kinds = np.zeros(offsets[-1], np.int64)
        fractional = np.zeros((offsets[-1], 3))
        cells = np.zeros((len(request_of), 3, 3))
        spacegroup = np.zeros(len(request_of), np.int64)
        cumulative = [self._cumulative(g) for g in groups]
        generate_batch(
            tables(), request_of, self._seeds(requests, wanted, pressure_gpa, seed), counts, species, volumes,
            VOLUME_SPREAD, distances, np.concatenate([[0], np.cumsum([len(g) for g in groups])]).astype(np.int64),
            np.array([x for g in groups for x in g], np.int64), np.concatenate(cumulative), GIVE_UP, offsets, kinds,
            fractional, cells, spacegroup)

        made = spacegroup > 0
        for i in np.flatnonzero(np.bincount(request_of[made], minlength=len(requests)) < wanted).tolist():
            text = ", ".join(f"{a}-{b} {distances[i, j, k]:.2f}" for j, a in enumerate(ordered[i])
                             for k, b in enumerate(ordered[i]) if k >= j)
            reasons[i] = f"minimum distances ({text} Å) could not be met in {volumes[i]:.1f} Å³ within bounded work"
        per_request = np.bincount(request_of[made], minlength=len(requests))
        failures = [
            Failure(shift + i, requests[i].cell_id, requests[i].count - int(per_request[i]), reason)
            for i, reason in sorted(reasons.items()) if requests[i].count > per_request[i]]
        table = np.zeros((len(requests), most), np.int16)
        ids: list[str] = []
        for i, symbols in enumerate(ordered):
            table[i, :len(symbols)] = numbers_of(symbols)
            own = made & (request_of == i) if len(requests) == 1 else slice(*np.searchsorted(request_of, [i, i + 1]))
            ids += structure_ids(requests[i], pressure_gpa, seed, self.name, numbers[own][made[own]])
        structures = StructureArrays(
            offsets, table[np.repeat(request_of, natoms), kinds], fractional, cells,
            {"composition_index": shift + request_of, "requested_spacegroup": spacegroup},
        )
        if not made.all():
            structures = structures[made]
        structures.columns["id"] = np.array(ids, dtype=object)
        structures.columns["generator"] = np.full(len(structures), self.name, dtype=object)
        return Generation(structures, failures)

    def _cumulative(self, groups: tuple[int, ...]) -> np.ndarray:
        weight = np.ones(len(groups)) if self.weights is None else np.array([self.weights[g] for g in groups], float)
        return np.cumsum(weight) / weight.sum() if len(groups) else weight

    def _seeds(self, requests: Sequence[Request], wanted: np.ndarray, pressure_gpa: float, seed: int) -> np.ndarray:
        """(T,) uint64: one stream per structure, from the composition and the number only."""
        parts = [np.zeros(0, np.uint64)]
        for request, n in zip(requests, wanted, strict=True):
            base = np.uint64(stream_key(self.stream, seed, request.cell_id, float(pressure_gpa)))
            number = np.arange(request.first, request.first + n, dtype=np.uint64)
            # streams start far apart on the generator's counter: multiply by a large odd number, then mix
            z = base + number * np.uint64(0xD1342543DE82EF95)
            z = (z ^ (z >> np.uint64(32))) * np.uint64(0xDABA0B6EB09322E3)
            parts.append(z ^ (z >> np.uint64(29)))
        return np.concatenate(parts)
