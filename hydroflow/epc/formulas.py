"""Tc from λ, ω_log and ω̄₂: McMillan and Allen–Dynes. Temperatures and frequencies in K."""

from __future__ import annotations

import numpy as np

from hydroflow.epc.coupling import Coupling
from hydroflow.epc.eliashberg import eliashberg_tc
from hydroflow.errors import DataError

METHODS = ("mcmillan", "allen_dynes", "eliashberg")


def mcmillan(lambda_: float, omega_log_k: float, mu_star: float) -> float:
    """McMillan's Tc with Dynes' prefactor, in K: (ω_log/1.2)·exp[−1.04(1+λ)/(λ − μ*(1+0.62λ))].

    Zero where the denominator is not positive: the formula has no superconducting solution there.
    """
    attraction = lambda_ - mu_star * (1 + 0.62 * lambda_)
    if attraction <= 0:
        return 0.0
    return float(omega_log_k / 1.2 * np.exp(-1.04 * (1 + lambda_) / attraction))


def strong_coupling_factors(
    lambda_: float, omega_log_k: float, omega2_k: float, mu_star: float,
) -> tuple[float, float]:
    """f₁ and f₂ of Allen & Dynes, Phys. Rev. B 12, 905 (1975), eqs 35–38."""
    lambda1 = 2.46 * (1 + 3.8 * mu_star)
    lambda2 = 1.82 * (1 + 6.3 * mu_star) * omega2_k / omega_log_k
    f1 = (1 + (lambda_ / lambda1) ** 1.5) ** (1 / 3)
    f2 = 1 + (omega2_k / omega_log_k - 1) * lambda_**2 / (lambda_**2 + lambda2**2)
    return float(f1), float(f2)


def allen_dynes(lambda_: float, omega_log_k: float, omega2_k: float, mu_star: float) -> float:
    """Allen–Dynes Tc in K: McMillan's times f₁f₂ (Phys. Rev. B 12, 905 (1975), eq. 34)."""
    f1, f2 = strong_coupling_factors(lambda_, omega_log_k, omega2_k, mu_star)
    return f1 * f2 * mcmillan(lambda_, omega_log_k, mu_star)


def critical_temperatures(
    coupling: Coupling, mu_star: float, methods: tuple[str, ...] = METHODS, scaled: bool = True,
) -> dict[str, float]:
    """Tc in K by each method; `scaled` is the μ* convention of the Eliashberg equation (see there).

    Raises
    ------
    DataError
        when a method is unknown or μ* is not in [0, 0.5).
    """
    unknown = [m for m in methods if m not in METHODS]
    if unknown:
        raise DataError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    if not 0 <= mu_star < 0.5:
        raise DataError(f"mu* = {mu_star:g} is outside 0 to 0.5")
    out = {}
    for method in methods:
        if method == "mcmillan":
            out[method] = mcmillan(coupling.lambda_, coupling.omega_log_k, mu_star)
        elif method == "allen_dynes":
            out[method] = allen_dynes(coupling.lambda_, coupling.omega_log_k, coupling.omega2_k, mu_star)
        else:
            out[method] = eliashberg_tc(coupling, mu_star, scaled=scaled)
    return out
