"""Swarm evolution: the generator ``swarm`` makes the next generation of a composition from its relaxed structures.

As in CALYPSO, part of every generation are fresh random symmetric structures and the rest descends from the best
distinct structures so far, by particle-swarm steps towards the best of their neighbourhood and by the variation
operators of evolutionary search; what comes out too close to a known structure is drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hydroflow.arrays import StructureArrays, numbers_of
from hydroflow.campaign import Campaign
from hydroflow.structures.bonds import bond_matrices
from hydroflow.structures.fingerprints import deduplicate, distance
from hydroflow.structures.generate import Generation, Request, stream_key, structure_ids
from hydroflow.structures.random import RandomGenerator
from hydroflow.structures.variation import (
    Crystal,
    clashes,
    heredity,
    permutation,
    rattle,
    sorted_cell,
    strain,
    towards,
)
from hydroflow.structures.volumes import atomic_volumes, minimum_distances


@dataclass(frozen=True)
class SwarmSettings:
    """How a generation is made up.

    Attributes
    ----------
    fresh
        Share of fresh random symmetric structures.
    shares
        Relative frequency of the operators on the rest.
    parents
        Number of best distinct structures that may become parents.
    niches
        Number of local bests for the particle-swarm step, each the best of its neighbourhood.
    niche_distance
        Distance of bond characterisation matrices beyond which two structures are different neighbourhoods.
    similarity
        Children nearer than this to a parent or to another child are drawn again.
    distance_factor
        Children may be this much closer than the minimum distances; relaxation parts them.
    tries
        Draws per child before a random structure takes its place.
    """

    fresh: float = 0.4
    shares: tuple[tuple[str, float], ...] = (
        ("towards", 0.25), ("heredity", 0.3), ("rattle", 0.2), ("strain", 0.1), ("permutation", 0.15))
    parents: int = 12
    niches: int = 4
    niche_distance: float = 0.25
    similarity: float = 0.04
    distance_factor: float = 0.85
    tries: int = 5


class SwarmGenerator:
    """Next generations from relaxed structures; random symmetric ones where nothing is relaxed yet."""

    name = "swarm"

    def __init__(self, settings: SwarmSettings | None = None) -> None:
        self.settings = settings or SwarmSettings()

    def generate(
        self, campaign: Campaign, requests: Sequence[Request], pressure_gpa: float, seed: int,
        relaxed: StructureArrays | None = None,
    ) -> Generation:
        by_cell: dict[str, list[int]] = {}
        if relaxed is not None and len(relaxed):
            finite = np.isfinite(relaxed.columns["enthalpy_ev"])
            for i, cell in enumerate(relaxed.compositions()):
                if finite[i]:
                    by_cell.setdefault(Request(cell, 1).cell_id, []).append(i)
        parts, failures = [], []
        for i, request in enumerate(requests):
            known = by_cell.get(request.cell_id, [])
            rng = np.random.default_rng(stream_key("swarm", seed, request.cell_id, float(pressure_gpa), request.first))
            parents = relaxed[np.array(known)] if relaxed is not None and known else None
            made = self._generation(campaign, request, pressure_gpa, seed, parents, rng)
            structures = made.structures
            structures.columns["composition_index"] = np.full(len(structures), i)
            structures.columns["generator"] = np.full(len(structures), self.name, dtype=object)
            structures.columns["id"] = np.array(structure_ids(
                request, pressure_gpa, seed, self.name, request.first + np.arange(len(structures))), dtype=object)
            parts.append(structures)
            for failure in made.failures:
                failures.append(type(failure)(i, failure.composition, request.count - len(structures), failure.reason))
        return Generation(StructureArrays.concatenate(parts), failures)

    def _generation(
        self, campaign: Campaign, request: Request, pressure_gpa: float, seed: int, relaxed: StructureArrays | None,
        rng: np.random.Generator,
    ) -> Generation:
        """`request.count` structures: fresh ones first, then children."""
        if relaxed is None or request.count == 0:
            return RandomGenerator(stream="swarm").generate(campaign, [request], pressure_gpa, seed)
        s = self.settings
        per_atom = relaxed.columns["enthalpy_ev"] / relaxed.counts
        best = relaxed[deduplicate(relaxed, per_atom)]
        best = best[np.argsort(best.columns["enthalpy_ev"], kind="stable")[:s.parents]]
        wanted = request.count - int(rng.binomial(request.count, s.fresh))
        children = _children(campaign, best, pressure_gpa, wanted, s, rng)
        # children that found no place are made up for by random structures
        fresh = Request(request.composition, request.count - len(children), request.first)
        made = RandomGenerator(stream="swarm").generate(campaign, [fresh], pressure_gpa, seed)
        if not children:
            return made
        born = StructureArrays.from_lists(
            [c.numbers for c in children], [c.fractional for c in children], [c.cell for c in children],
            {"composition_index": np.zeros(len(children), int), "requested_spacegroup": np.zeros(len(children), int)})
        return Generation(StructureArrays.concatenate([made.structures, born]), made.failures)


def _children(
    campaign: Campaign, best: StructureArrays, pressure_gpa: float, count: int, s: SwarmSettings, rng: np.random.Generator,
) -> list[Crystal]:
    """Up to `count` children of the best structures (sorted by enthalpy), free of clashes, unlike them and each other."""
    crystals = [sorted_cell(best, i) for i in range(len(best))]
    symbols = list(best.compositions()[0])
    order = np.argsort(numbers_of(symbols))
    symbols = [symbols[i] for i in order]
    least = s.distance_factor * minimum_distances(
        symbols, atomic_volumes(campaign, symbols, pressure_gpa), campaign.generator.minimum_distances_a)
    kinds = np.unique(crystals[0].numbers, return_inverse=True)[1]
    prints = bond_matrices(best)
    leaders = _niches(prints, s)
    weight = 1.0 / (1.0 + np.arange(len(crystals)))
    weight /= weight.sum()
    names = [name for name, _ in s.shares]
    shares = np.array([share for _, share in s.shares]) / sum(share for _, share in s.shares)
    out: list[Crystal] = []
    known = prints
    for _ in range(count):
        for _ in range(s.tries):
            i = int(rng.choice(len(crystals), p=weight))
            child = _vary(str(rng.choice(names, p=shares)), crystals, i, leaders, prints, weight, rng)
            if clashes(child.fractional, kinds, child.cell, least):
                continue
            own = bond_matrices(StructureArrays.from_lists([child.numbers], [child.fractional], [child.cell]))
            if distance(np.broadcast_to(own, known.shape), known).min() < s.similarity:
                continue
            out.append(child)
            known = np.concatenate([known, own])
            break
    return out


def _niches(prints: np.ndarray, s: SwarmSettings) -> list[int]:
    """Local bests: going up in enthalpy, each structure unlike all leaders so far."""
    leaders: list[int] = []
    for i in range(len(prints)):
        if len(leaders) < s.niches and all(float(distance(prints[i], prints[j])) > s.niche_distance for j in leaders):
            leaders.append(i)
    return leaders


def _vary(
    name: str, crystals: list[Crystal], i: int, leaders: list[int], prints: np.ndarray, weight: np.ndarray,
    rng: np.random.Generator,
) -> Crystal:
    """One child of parent i by the named operator."""
    parent = crystals[i]
    if name == "towards" and len(crystals) > 1:
        others = [j for j in leaders if j != i] or [0 if i else 1]
        nearest = min(others, key=lambda j: float(distance(prints[i], prints[j])))
        return towards(parent, crystals[nearest], rng, inertia=float(rng.uniform(0.4, 0.9)))
    if name == "heredity" and len(crystals) > 1:
        j = int(rng.choice(len(crystals), p=weight))
        return heredity(parent, crystals[j], rng)
    if name == "strain":
        return rattle(strain(parent, rng), rng, 0.2)
    if name == "permutation" and len(np.unique(parent.numbers)) > 1:
        return rattle(permutation(parent, rng), rng, 0.1)
    return rattle(parent, rng)
