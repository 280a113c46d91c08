"""Tc from the linearised isotropic Eliashberg equation on the imaginary axis, constant density of states.

At Tc the largest eigenvalue of

    K_mn = l(m−n) + l(m+n+1) − 2μ_c − δ_mn [2m + 1 + l(0) + 2 Σ_{j=1..m} l(j)],    m, n = 0 … N−1,
    l(j) = ∫ 2ω α²F(ω) / (ω² + (2πTj)²) dω

is zero (Allen & Mitrović, Solid State Physics 37 (1982); Allen & Dynes 1975). The diagonal bracket D is positive, so by
Sylvester's law that is where the largest eigenvalue of D^-½ (K + D) D^-½ is one; that spectrum is compact and a few
Lanczos steps find its top. The sum over l(m−n) + l(m+n+1) is a convolution with an even sequence, which cosine transforms do: the
thousands of frequencies of a low Tc cost little.

μ* means nothing without its cutoff. The tabulated convention (Allen–Dynes) is μ*(ω_max) with ω_max the highest phonon
frequency; a sum that is cut at ω_c = 2πTN needs 1/μ_c = 1/μ* + ln(ω_max/ω_c). That is the default here (``scaled``). Unscaled,
the number belongs to a cutoff of 10 ω_max, and is carried from there to wherever the sum is cut: at μ* = 0.1 that raises Tc by
10 % for λ = 1 and by 5 % for λ = 2.

The repulsion that belongs to a cutoff grows with it and is infinite at exp(1/μ*) times the frequency that μ* belongs to, so for
large μ* the sum is cut lower.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import dct, idct
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, eigsh

from hydroflow.epc.coupling import Coupling
from hydroflow.errors import DataError

CUTOFF = 10.0
"""The Matsubara sum goes to this multiple of the highest phonon frequency …"""
MIN_FREQUENCIES = 96
"""… with at least so many frequencies, as far as μ* allows …"""
LEAST_INVERSE = 0.5
"""… which is as far as 1/μ_c does not fall below this: near zero the repulsion is without bound."""
LEAST_CUTOFF = 6.0
"""A sum that has to be cut below this multiple of the highest phonon frequency for that reason is refused: Tc would be off by
several per cent."""
LOWEST_TC = 5e-4
"""A Tc below this multiple of the highest phonon frequency is returned as zero: even there the sum has 3200 frequencies."""
LANCZOS_VECTORS = 10
"""The largest eigenvalue stands far above the others: it is found within the first so many steps."""


def eliashberg_tc(
    coupling: Coupling, mu_star: float, *, scaled: bool = True, frequencies: int | None = None,
) -> float:
    """Tc in K.

    Parameters
    ----------
    coupling
        λ resolved in frequency.
    mu_star
        Coulomb pseudopotential, at the cutoff ω_max when `scaled`, else at 10 ω_max.
    scaled
        Whether μ* belongs to ω_max; either way it is carried to the cutoff of the sum.
    frequencies
        Number of positive Matsubara frequencies; chosen from the cutoff and μ* when not given.

    Returns
    -------
    float
        Tc in K; 0.0 when there is no solution above 5e-4 of the highest phonon frequency.

    Raises
    ------
    DataError
        when μ* is so large (above 0.43 for `scaled`, less for λ far above 4) that it has no value at a cutoff a sum could have.
    """
    top, lam = coupling.max_k, coupling.lambda_
    lowest, highest = LOWEST_TC * top, 10 * np.sqrt(lam) * top
    most = frequencies or max(MIN_FREQUENCIES, int(np.ceil(CUTOFF / (2 * np.pi * LOWEST_TC))))
    kernel = _kernel(coupling, 2 * np.pi * lowest, 2 * np.pi * highest * 2 * most)
    reference = top if scaled else CUTOFF * top
    inverse_mu_star = 1 / mu_star if mu_star > 0 else np.inf

    too_large = DataError(f"mu* = {mu_star:g} is too large for the Eliashberg equation at lambda = {lam:.3g}: the repulsion that "
                          "belongs to it is infinite at the cutoff that the sum over Matsubara frequencies needs")
    if inverse_mu_star - LEAST_INVERSE + np.log(reference / top) < np.log(LEAST_CUTOFF):
        raise too_large

    def inverse(t: float, n: int) -> float:
        """1/μ_c of a sum over n frequencies at t."""
        return float(inverse_mu_star + np.log(reference / (2 * np.pi * t * n)))

    def size(t: float) -> int:
        if frequencies:
            return frequencies
        n = max(int(np.ceil(CUTOFF * top / (2 * np.pi * t))), MIN_FREQUENCIES)
        spare = inverse(t, n) - LEAST_INVERSE
        return n if spare >= 0 else max(int(n * np.exp(spare)), 1)

    def excess(log_t: float) -> float:
        t = float(np.exp(log_t))
        n = size(t)
        # above the temperature where the repulsion at the cutoff is infinite the sum says nothing: taken as no pairing
        return _top_eigenvalue(kernel, lam, t, n, 1 / inverse(t, n)) - 1.0 if inverse(t, n) > 0 else -1.0

    bracket = _bracket(excess, np.log(max(_guess(coupling, mu_star), lowest)), np.log(lowest), np.log(highest))
    if bracket is None:
        return 0.0
    # the number of frequencies follows T in steps, each of which shifts Tc by less than 1e-4
    tc = float(np.exp(brentq(excess, *bracket, xtol=1e-7)))
    if inverse(tc, size(tc)) < LEAST_INVERSE / 2:
        raise too_large
    return tc


def _guess(coupling: Coupling, mu_star: float) -> float:
    """Roughly Tc in K: McMillan's formula, with Allen and Dynes' factor for strong coupling."""
    lam = coupling.lambda_
    attraction = lam - mu_star * (1 + 0.62 * lam)
    if attraction <= 0:
        return 0.0
    return float(coupling.omega_log_k / 1.2 * np.exp(-1.04 * (1 + lam) / attraction) * (1 + (lam / 2.46) ** 1.5) ** (1 / 3))


def _kernel(coupling: Coupling, low: float, high: float) -> CubicSpline:
    """l(ν)/λ as a spline in ln ν between two frequencies in K: it does not depend on T, so it is made once."""
    nu = np.geomspace(low, high, 600)
    w2 = coupling.frequencies_k**2
    values = (coupling.weights / coupling.lambda_) @ (w2[:, None] / (w2[:, None] + nu**2))
    return CubicSpline(np.log(nu), values)


def _top_eigenvalue(kernel: CubicSpline, lam: float, t: float, n: int, mu_c: float) -> float:
    coupling = np.empty(2 * n + 1)
    coupling[0] = lam
    coupling[1:] = lam * kernel(np.log(2 * np.pi * t * np.arange(1, 2 * n + 1)))
    diagonal = 2 * np.arange(n) + 1 + lam + 2 * np.concatenate([[0.0], np.cumsum(coupling[1:n])])
    scale = 1 / np.sqrt(diagonal)
    transformed = dct(coupling, type=1)[:-1]

    def apply(x: np.ndarray) -> np.ndarray:
        x = scale * x.ravel()
        return scale * (idct(transformed * dct(x, n=2 * n))[:n] - 2 * mu_c * x.sum())

    if n <= LANCZOS_VECTORS:
        return float(np.linalg.eigvalsh(np.column_stack([apply(x) for x in np.eye(n)]))[-1])
    start = scale.copy()  # near the gap function, and the same each time: the answer must not depend on chance
    return float(eigsh(LinearOperator((n, n), matvec=apply, dtype=float), k=1, which="LA", v0=start, tol=1e-9,
                       ncv=LANCZOS_VECTORS, return_eigenvectors=False)[0])


def _bracket(function, start: float, low: float, high: float) -> tuple[float, float] | None:
    """An interval of ln T where `function` changes from positive (below Tc) to negative, or None."""
    left = right = min(max(start, low), high)
    if function(left) > 0:
        while right < high:
            right = min(right + 0.3, high)
            if function(right) <= 0:
                return max(right - 0.3, low), right
        return None
    step = 0.3
    while left > low:
        previous, left = left, max(left - step, low)
        if function(left) > 0:
            return left, previous
        step *= 1.5
    return None
