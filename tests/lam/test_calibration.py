"""The map from deviation to error, on numbers whose relation is known."""

from __future__ import annotations

import numpy as np
import pytest

from hydroflow.lam.calibration import from_values


def _sample(scale: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.02, 1.0, n)
    return deviation, scale * deviation * np.abs(rng.normal(size=n))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_window_meets_the_wanted_error(scale: float) -> None:
    deviation, error = _sample(scale)
    found = from_values(deviation, error, wanted_error_ev_a=0.2)
    assert found.scale == pytest.approx(scale, rel=0.05)
    accepted = error[deviation < found.trust_low_ev_a]
    assert np.sqrt((accepted**2).mean()) == pytest.approx(0.2, rel=0.05)
    errors = [b["error_ev_a"] for b in found.bins]
    assert errors == sorted(errors) and sum(b["frames"] for b in found.bins) == len(deviation)


def test_an_overconfident_ensemble_gets_a_narrower_window() -> None:
    honest, overconfident = (from_values(*_sample(s), 0.2).trust_low_ev_a for s in (1.0, 4.0))
    assert overconfident < honest / 3


def test_a_wish_that_no_frame_meets_is_extrapolated_not_granted() -> None:
    deviation, error = _sample(1.0)
    found = from_values(deviation + 1.0, error + 1.0, wanted_error_ev_a=0.01)
    assert found.trust_low_ev_a < 0.05


def test_deviation_that_says_nothing_is_shown_as_such() -> None:
    rng = np.random.default_rng(1)
    assert abs(from_values(rng.uniform(0.1, 1, 500), rng.uniform(0.1, 1, 500), 0.2).rank_correlation) < 0.15
