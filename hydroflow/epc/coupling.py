"""The electron–phonon coupling of a metal as a weighted set of frequencies, and its moments.

Everything the Tc formulas need follows from the measure λ(ω)dω = 2α²F(ω)/ω dω. A tabulated α²F and a list of modes λ_qν at
frequencies ω_qν are two descriptions of that measure, so both become one :class:`Coupling`: frequencies in K and the
share of λ at each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hydroflow.errors import DataError

NEGATIVE_TOLERANCE = 1e-3
"""Share of λ that negative α²F may carry before it is worth a warning."""


@dataclass(frozen=True)
class Coupling:
    """λ resolved in frequency.

    Attributes
    ----------
    frequencies_k : (n,) float64
        Frequencies in K, ascending, above zero.
    weights : (n,) float64
        Contribution of each frequency to λ, not negative; their sum is λ.
    negative : float
        λ that was negative in the source and left out, as a positive number.
    """

    frequencies_k: np.ndarray
    weights: np.ndarray
    negative: float = 0.0

    @classmethod
    def from_modes(cls, frequencies_k: np.ndarray, lambdas: np.ndarray) -> Coupling:
        """From mode frequencies (n,) in K and each mode's share of λ (n,), q weights already in it.

        Raises
        ------
        DataError
            when no coupling is left above zero frequency.
        """
        w = np.asarray(frequencies_k, float).ravel()
        x = np.asarray(lambdas, float).ravel()
        if not (np.isfinite(w).all() and np.isfinite(x).all()):
            raise DataError("the coupling has NaN or infinite entries")
        good = (w > 0) & (x > 0)
        if not good.any():
            raise DataError("no positive electron-phonon coupling at any positive frequency")
        order = np.argsort(w[good], kind="stable")
        return cls(w[good][order], x[good][order], float(np.abs(x[(w > 0) & (x < 0)]).sum()))

    @classmethod
    def from_spectrum(cls, frequencies_k: np.ndarray, a2f: np.ndarray) -> Coupling:
        """From a tabulated α²F: frequencies (n,) in K, ascending, and α²F (n,), by the trapezoidal rule.

        Raises
        ------
        DataError
            when the table is not ascending, too short, or carries no coupling.
        """
        w = np.asarray(frequencies_k, float)
        a = np.asarray(a2f, float)
        if w.shape != a.shape or w.ndim != 1 or len(w) < 3:
            raise DataError(f"an a2F table needs at least 3 rows of (frequency, a2F), this one has {w.size}")
        step = np.diff(w)
        if (step <= 0).any():
            bad = int(np.argmax(step <= 0)) + 1
            raise DataError(f"frequencies do not ascend at row {bad + 1} of the a2F table")
        width = np.empty_like(w)
        width[1:-1] = (w[2:] - w[:-2]) / 2
        width[0], width[-1] = step[0] / 2, step[-1] / 2
        inside = w > 0
        weights = np.zeros_like(w)
        weights[inside] = 2 * a[inside] / w[inside] * width[inside]
        return cls.from_modes(w, weights)

    @property
    def lambda_(self) -> float:
        """λ = 2∫α²F/ω dω."""
        return float(self.weights.sum())

    @property
    def omega_log_k(self) -> float:
        """ω_log = exp[(2/λ)∫ ln ω · α²F/ω dω] in K (Allen & Dynes 1975)."""
        return float(np.exp((self.weights * np.log(self.frequencies_k)).sum() / self.lambda_))

    @property
    def omega2_k(self) -> float:
        """ω̄₂ = [(2/λ)∫ ω·α²F dω]^½ in K (Allen & Dynes 1975)."""
        return float(np.sqrt((self.weights * self.frequencies_k**2).sum() / self.lambda_))

    @property
    def max_k(self) -> float:
        """Highest frequency in K that still carries coupling: 99.9 % of λω² lies at or below it."""
        share = np.cumsum(self.weights * self.frequencies_k**2)
        return float(self.frequencies_k[np.searchsorted(share, 0.999 * share[-1])])

    def spectrum(self, grid_k: np.ndarray, width_k: float) -> np.ndarray:
        """α²F on a grid: each frequency becomes a Gaussian of standard deviation `width_k`; (len(grid_k),)."""
        distance = (np.asarray(grid_k)[:, None] - self.frequencies_k) / width_k
        peak = np.exp(-0.5 * distance**2) / (width_k * np.sqrt(2 * np.pi))
        return peak @ (0.5 * self.weights * self.frequencies_k)

    def cumulative(self, grid_k: np.ndarray) -> np.ndarray:
        """λ(ω): coupling at or below each frequency of the grid; (len(grid_k),)."""
        running = np.concatenate([[0.0], np.cumsum(self.weights)])
        return running[np.searchsorted(self.frequencies_k, grid_k, side="right")]
