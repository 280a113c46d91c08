"""Which candidates get EPC next, when there is a Tc model: low on the DFT hull and high in predicted Tc."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from hydroflow.tc.budget import affordable


def ranking(ehull_dft_ev: Sequence[float], tc_predicted_k: Sequence[float]) -> np.ndarray:
    """Order of candidates, best first; (n,) indices.

    By the sum of the ranks in E_hull(DFT) and in predicted Tc, ties in favour of the higher Tc. Ranks, because the two have no
    common scale; an unknown E_hull ranks last.
    """
    hull = np.asarray([np.inf if e is None or e != e else e for e in ehull_dft_ev], float)
    tc = np.asarray(tc_predicted_k, float)
    if len(hull) != len(tc):
        raise ValueError(f"{len(hull)} hull distances but {len(tc)} predictions")
    if not len(tc):
        return np.zeros(0, int)
    total = rankdata(hull, method="min") + rankdata(-tc, method="min")
    return np.lexsort((-tc, total))


def next_batch(
    ehull_dft_ev: Sequence[float], tc_predicted_k: Sequence[float], count: int, core_hours: Sequence[float] | None = None,
    left_core_hours: float | None = None,
) -> list[int]:
    """Indices of the next `count` candidates for EPC, best first; costs as in :func:`hydroflow.tc.queue.first_batch`."""
    return affordable(ranking(ehull_dft_ev, tc_predicted_k), count, core_hours, left_core_hours)
