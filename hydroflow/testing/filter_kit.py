"""Conformance tests for filters, the plug-ins that screen structures: run them on your own.

In your package's tests::

    from hydroflow.testing.filter_kit import FilterContract

    class TestMyFilter(FilterContract):
        def make(self):
            return MY_FILTER

and register the filter under its name in the entry-point group ``hydroflow.filters``. A campaign then names it in
``funnel.filters``, with its threshold in ``[funnel.thresholds]``.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.screening.filters import Filter
from hydroflow.structures.generate import Request, generate


class FilterContract:
    """What every filter must keep. Subclass it and override :meth:`make`."""

    campaign: ClassVar[Campaign] = Campaign.model_validate({"name": "contract", "space": {"elements": ["Ca", "Y"]}})

    def make(self) -> Filter:
        raise NotImplementedError("override make() to return your filter")

    def structures(self) -> StructureArrays:
        """Some 60 structures of Ca–Y–H."""
        return generate(self.campaign, [Request({"Ca": 1, "Y": 1, "H": x}, 10) for x in (4, 6, 8, 10, 12, 16)], 200.0, 1)

    def test_is_a_filter(self) -> None:
        made = self.make()
        assert isinstance(made, Filter)
        assert made.name and not set(made.name) & set(".$ "), "the name is a key of documents"

    def test_nan_never_passes(self) -> None:
        for threshold in (-1.0, 0.0, 0.05, 75.0):
            assert not self.make().passes(np.array([np.nan]), threshold)[0]

    def test_a_rejection_has_words(self) -> None:
        assert self.make().words(0.5, 1.0)

    def test_values_are_each_structures_own(self) -> None:
        """The same whatever the order and whatever else is asked at the same time."""
        made = self.make()
        if made.structural is None:
            pytest.skip("the filter needs jobs")
        arrays, campaign = self.structures(), self.campaign
        whole = np.asarray(made.structural(arrays, campaign), float)
        assert whole.shape == (len(arrays),)
        order = np.random.default_rng(0).permutation(len(arrays))
        np.testing.assert_array_equal(made.structural(arrays[order], campaign), whole[order])
        np.testing.assert_array_equal(made.structural(arrays[:3], campaign), whole[:3])
