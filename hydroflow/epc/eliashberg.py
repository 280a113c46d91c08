"""Tc from the linearised isotropic Eliashberg equation on the imaginary axis, constant density of states.

At Tc the largest eigenvalue of

    K_mn = l(m−n) + l(m+n+1) − 2μ_c − δ_mn [2m + 1 + l(0) + 2 Σ_{j=1..m} l(j)],    m, n = 0 … N−1,
    l(j) = ∫ 2ω α²F(ω) / (ω² + (2πTj)²) dω

is zero (Allen & Mitrović, Solid State Physics 37 (1982); Allen & Dynes 1975). The diagonal bracket D is positive, so by
Sylvester's law that is where the largest eigenvalue of D^-½ (K + D) D^-½ is one; that spectrum is compact and a few
Lanczos steps find its top.

μ* means nothing without its cutoff. The tabulated convention (Allen–Dynes) is μ*(ω_max) with ω_max the highest phonon
frequency; a sum that is cut at ω_c = 2πTN needs 1/μ_c = 1/μ* + ln(ω_max/ω_c). That is the default here (``scaled``). Unscaled,
the number belongs to a cutoff of 10 ω_max, and is carried from there to wherever the sum is cut: at μ* = 0.1 that raises Tc by
10 % for λ = 1 and by 5 % for λ = 2.

The repulsion that belongs to a cutoff grows with it and is infinite at exp(1/μ*) times the frequency that μ* belongs to, so for
large μ* the sum is cut lower.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.linalg import hankel, toeplitz
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, eigsh

from hydroflow.epc.coupling import Coupling
from hydroflow.errors import DataError

CUTOFF = 10.0
"""The Matsubara sum goes to this multiple of the highest phonon frequency …"""
MIN_FREQUENCIES, MAX_FREQUENCIES = 96, 1200
"""… with at least and at most so many frequencies, as far as μ* allows …"""
LEAST_INVERSE = 0.5
"""… which is as far as 1/μ_c does not fall below this: near zero the repulsion is without bound."""
LEAST_CUTOFF = 6.0
"""A sum that has to be cut below this multiple of the highest phonon frequency for that reason is refused: Tc would be off by
several per cent."""
PASSES, SAME_SIZE = 6, 0.02
"""Tc is sought anew until its number of frequencies changes by no more than this share, at most so often."""
LOWEST_TC = 5e-4
"""A Tc below this multiple of the highest phonon frequency is returned as zero: it is beyond MAX_FREQUENCIES."""


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
    top = coupling.max_k
    lowest, highest = LOWEST_TC * top, 10 * np.sqrt(coupling.lambda_) * top
    kernel = _kernel(coupling, 2 * np.pi * lowest, 2 * np.pi * highest * 2 * MAX_FREQUENCIES)
    lam = coupling.lambda_
    reference = top if scaled else CUTOFF * top

    too_large = DataError(f"mu* = {mu_star:g} is too large for the Eliashberg equation at lambda = {lam:.3g}: the repulsion that "
                          "belongs to it is infinite at the cutoff that the sum over Matsubara frequencies needs")
    if mu_star > 0 and np.exp(1 / mu_star - LEAST_INVERSE) * reference < LEAST_CUTOFF * top:
        raise too_large

    def inverse(t: float, n: int) -> float:
        """1/μ_c of a sum over n frequencies at t."""
        return 1 / mu_star + np.log(reference / (2 * np.pi * t * n))

    def excess(log_t: float, n: int) -> float:
        t = float(np.exp(log_t))
        if mu_star == 0:
            return _top_eigenvalue(kernel, lam, t, n, 0.0) - 1.0
        # above the temperature where the repulsion at the cutoff is infinite the sum says nothing: taken as no pairing
        return _top_eigenvalue(kernel, lam, t, n, 1 / inverse(t, n)) - 1.0 if inverse(t, n) > 0 else -1.0

    def size(t: float) -> int:
        if frequencies:
            return frequencies
        n = int(np.clip(np.ceil(CUTOFF * top / (2 * np.pi * t)), MIN_FREQUENCIES, MAX_FREQUENCIES))
        if mu_star > 0:
            n = min(n, int(np.exp(1 / mu_star - LEAST_INVERSE) * reference / (2 * np.pi * t)))
        return max(n, 1)

    # The number of frequencies is fixed while the root is sought, so that the function is smooth; further passes take the
    # number that belongs to the Tc found.
    tc, n = 0.0, 0
    guess = 0.18 * np.sqrt(coupling.lambda_) * coupling.omega2_k
    for _ in range(PASSES):
        n = size(tc or guess)
        bracket = _bracket(lambda x, n=n: excess(x, n), np.log(tc or guess), np.log(lowest), np.log(highest))
        if bracket is None and (frequencies or n >= MIN_FREQUENCIES):
            return 0.0
        if bracket is None:  # so few frequencies, chosen for a far higher T, may have missed the phonons at this one
            tc, guess = 0.0, (tc or guess) / 4
            continue
        tc = float(np.exp(brentq(excess, *bracket, args=(n,), xtol=1e-7)))
        if abs(size(tc) - n) <= SAME_SIZE * n:
            break
    if mu_star > 0 and tc > 0 and inverse(tc, n) < LEAST_INVERSE / 2:
        raise too_large
    return tc


def _kernel(coupling: Coupling, low: float, high: float) -> CubicSpline:
    """l(ν)/λ as a spline in ln ν between two frequencies in K: it does not depend on T, so it is made once."""
    nu = np.geomspace(low, high, 600)
    w2 = coupling.frequencies_k**2
    values = (coupling.weights / coupling.lambda_) @ (w2[:, None] / (w2[:, None] + nu**2))
    return CubicSpline(np.log(nu), values)


def _top_eigenvalue(kernel: CubicSpline, lam: float, t: float, n: int, mu_c: float) -> float:
    coupling = np.empty(2 * n)
    coupling[0] = lam
    coupling[1:] = lam * kernel(np.log(2 * np.pi * t * np.arange(1, 2 * n)))
    diagonal = 2 * np.arange(n) + 1 + lam + 2 * np.concatenate([[0.0], np.cumsum(coupling[1:n])])
    matrix = toeplitz(coupling[:n]) + hankel(coupling[1:n + 1], coupling[n:]) - 2 * mu_c
    scale = 1 / np.sqrt(diagonal)
    if n < 3:
        return float(np.linalg.eigvalsh(scale[:, None] * matrix * scale)[-1])
    operator = LinearOperator((n, n), matvec=lambda x: scale * (matrix @ (scale * x.ravel())), dtype=float)
    start = scale.copy()  # near the gap function, and the same each time: the answer must not depend on chance
    return float(eigsh(operator, k=1, which="LA", v0=start, tol=1e-9, return_eigenvectors=False)[0])


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
