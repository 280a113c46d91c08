"""What the deviation of an ensemble means: deviations against true errors on frames that no model was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.lam.ensemble import Ensemble

LEAST_FRAMES = 8
_HIGH_OVER_LOW = 6.0


@dataclass(frozen=True)
class Calibration:
    """How force deviation maps to force error.

    Attributes
    ----------
    frames : int
        Labelled frames it rests on.
    scale : float
        Error per deviation: root mean square of the largest force error of a frame over that of its largest deviation. 1 means an
        honest ensemble; above 1 the models agree more than they should.
    rank_correlation : float
        Spearman's, between a frame's largest deviation and its largest error; without it a trust window selects at random.
    trust_low_ev_a, trust_high_ev_a : float
        Window for the wanted error: below the lower level the expected largest force error meets it; the upper is six times
        that, or the largest deviation among the frames, which were labelled without trouble, where that is more.
    bins : list of dict
        ``deviation_ev_a`` and ``error_ev_a`` (root mean squares) in quartiles of the deviation, with ``frames``.
    """

    frames: int
    scale: float
    rank_correlation: float
    trust_low_ev_a: float
    trust_high_ev_a: float
    bins: list[dict[str, float]]

    def measured(self) -> dict[str, Any]:
        """What was found on the frames, without the window that follows from a wish."""
        return {k: v for k, v in asdict(self).items() if not k.startswith("trust_")}


def largest_errors(ensemble: Ensemble, frames: StructureArrays) -> np.ndarray:
    """(n,) largest force error of each frame by the ensemble's mean, eV/Å."""
    mean = np.mean([m.evaluate(frames).forces_ev_a for m in ensemble.models], axis=0)
    error = np.linalg.norm(mean - frames.atom_columns["forces_ev_a"], axis=1)
    return np.maximum.reduceat(error, frames.offsets[:-1])


def calibrate(ensemble: Ensemble, frames: StructureArrays, wanted_error_ev_a: float) -> Calibration:
    """Map deviation to error on labelled frames that were held out of training, and place the trust window.

    Parameters
    ----------
    ensemble : Ensemble
    frames : StructureArrays
        Labelled frames, validation or test split.
    wanted_error_ev_a : float
        The largest force error in a frame that is still called accurate.

    Raises
    ------
    DataError
        for fewer than eight frames.
    """
    if len(frames) < LEAST_FRAMES:
        raise DataError(f"{len(frames)} held-out frames are too few to calibrate an ensemble; {LEAST_FRAMES} or more are needed")
    deviation = ensemble.deviation(frames).max_force_ev_a
    return from_values(deviation, largest_errors(ensemble, frames), wanted_error_ev_a)


def from_values(deviation: np.ndarray, error: np.ndarray, wanted_error_ev_a: float) -> Calibration:
    """As :func:`calibrate`, from (n,) deviations and errors in eV/Å."""
    from scipy.stats import spearmanr

    scale = float(np.sqrt((error**2).mean() / max((deviation**2).mean(), 1e-12)))
    order = np.argsort(deviation)
    bins = [{"deviation_ev_a": _rms(deviation[part]), "error_ev_a": _rms(error[part]), "frames": len(part)}
            for part in np.array_split(order, 4)]
    # The largest deviation below which the frames' errors, taken together, still meet the wish; where even the least
    # uncertain frames do not, the mean relation is extrapolated downwards.
    running = np.sqrt(np.cumsum(error[order] ** 2) / np.arange(1, len(order) + 1))
    met = np.flatnonzero(running[LEAST_FRAMES // 2 - 1:] <= wanted_error_ev_a)
    low = float(deviation[order][met[-1] + LEAST_FRAMES // 2 - 1]) if len(met) else wanted_error_ev_a / max(scale, 1e-6)
    correlation = spearmanr(deviation, error).statistic if np.ptp(deviation) > 0 else 0.0
    high = max(low * _HIGH_OVER_LOW, float(deviation.max()))
    return Calibration(len(order), round(scale, 3), round(float(correlation), 3), round(low, 4), round(high, 4), bins)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))
