"""Conformance tests for generators of structures: run them on your own.

In your package's tests::

    from hydroflow.testing.generator_kit import GeneratorContract

    class TestMyGenerator(GeneratorContract):
        def make(self):
            return MyGenerator()

and register the class under a name in the entry-point group ``hydroflow.generators``; campaigns then use it through
``generator.mix``. The tolerances are named below; override the class attributes where your generator promises less.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hydroflow.campaign import Campaign
from hydroflow.structures.generate import Generation, Generator, Request
from hydroflow.structures.statistics import shortest_distances
from hydroflow.structures.volumes import atomic_volumes, minimum_distances

VOLUME_RANGE = (0.4, 2.5)
"""Cell volume over the estimate at the pressure: outside, a relaxation starts from nonsense."""
PRESSURE_GPA = 200.0


class GeneratorContract:
    """What every generator must keep. Subclass it, override :meth:`make`."""

    campaign: ClassVar[Campaign] = Campaign.model_validate({"name": "contract", "space": {"elements": ["Ca", "Y"]}})
    requests: ClassVar[list[Request]] = [
        Request({"Ca": 1, "Y": 1, "H": 12}, 6), Request({"Ca": 1, "H": 6}, 3), Request({"Ca": 2, "Y": 1, "H": 11}, 4),
    ]
    repeatable: ClassVar[bool] = True
    """The same arguments give the same structures. Only an engine that cannot be seeded may say no."""
    distance_factor: ClassVar[float] = 0.85
    """Atoms may be closer than hydroflow's minimum distances by this factor at most."""

    def make(self) -> Generator:
        raise NotImplementedError("override make() to return your generator")

    def generation(self, seed: int = 1, requests: list[Request] | None = None) -> Generation:
        return self.make().generate(
            self.campaign, self.requests if requests is None else requests, PRESSURE_GPA, seed)

    def test_is_a_generator_with_a_name(self) -> None:
        generator = self.make()
        assert isinstance(generator, Generator)
        assert generator.name and generator.name == generator.name.strip().lower()

    def test_every_structure_is_accounted_for(self) -> None:
        """Made plus missing is what was asked for, request by request; failures give a reason."""
        made = self.generation()
        count = np.zeros(len(self.requests), int)
        if len(made.structures):
            count += np.bincount(made.structures.columns["composition_index"], minlength=len(self.requests))
        for failure in made.failures:
            assert failure.reason.strip() and failure.missing > 0
            assert failure.composition == self.requests[failure.request].cell_id
            count[failure.request] += failure.missing
        assert count.tolist() == [r.count for r in self.requests]

    def test_columns(self) -> None:
        made = self.generation().structures
        ids = [str(x) for x in made.columns["id"]]
        assert len(set(ids)) == len(made)
        index = made.columns["composition_index"]
        assert (np.diff(index) >= 0).all(), "structures must come in the order of the requests"
        assert set(made.columns["generator"]) == {self.make().name}
        groups = made.columns["requested_spacegroup"]
        assert ((groups >= 0) & (groups <= 230)).all()

    def test_compositions_are_exact(self) -> None:
        made = self.generation().structures
        for found, index in zip(made.compositions(), made.columns["composition_index"], strict=True):
            assert Request(found, 1).cell_id == self.requests[int(index)].cell_id

    def test_geometry_is_sane(self) -> None:
        """Finite numbers, volumes near the estimate, no atoms on top of each other."""
        made = self.generation().structures
        assert np.isfinite(made.cells).all() and np.isfinite(made.fractional).all()
        symbols, shortest = shortest_distances(made)
        volumes = atomic_volumes(self.campaign, symbols, PRESSURE_GPA)
        estimate = np.array([sum(volumes[s] * n for s, n in c.items()) for c in made.compositions()])
        ratio = made.volumes / estimate
        assert VOLUME_RANGE[0] < ratio.min() and ratio.max() < VOLUME_RANGE[1]
        assert (shortest >= self.distance_factor * minimum_distances(symbols, volumes) - 1e-6).all()

    def test_the_same_seed_gives_the_same_structures(self) -> None:
        if not self.repeatable:
            return
        assert self.generation(seed=3).structures.digests() == self.generation(seed=3).structures.digests()

    def test_a_later_request_goes_on(self) -> None:
        """What is asked for behind the first structures has other ids, and is not the first structures again."""
        first = self.generation()
        rest = self.generation(requests=[Request(r.composition, r.count, first=r.count) for r in self.requests])
        for of in (lambda made: made.columns["id"].tolist(), lambda made: made.digests()):
            if len(first.structures) and len(rest.structures):
                assert not set(of(first.structures)) & set(of(rest.structures))

    def test_nothing_asked_for_gives_nothing(self) -> None:
        made = self.generation(requests=[])
        assert len(made.structures) == 0 and not made.failures

    def test_relaxed_structures_are_accepted(self) -> None:
        """Structures relaxed earlier may be ignored, but must not disturb."""
        before = self.generation().structures
        before.columns["enthalpy_ev"] = np.linspace(-1.0, 1.0, len(before))
        made = self.make().generate(self.campaign, self.requests, PRESSURE_GPA, 2, before)
        assert len(made.structures) + sum(f.missing for f in made.failures) == sum(r.count for r in self.requests)
