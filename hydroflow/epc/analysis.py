"""From spectra at several broadenings to λ, Tc and where they can be believed: the plateau of λ(σ)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hydroflow.epc.coupling import NEGATIVE_TOLERANCE
from hydroflow.epc.formulas import METHODS, critical_temperatures
from hydroflow.epc.readers import Spectrum

PLATEAU_SPREAD = 0.10
"""Largest (max − min)/mean of λ over a plateau."""
PLATEAU_POINTS = 3
PLATEAU_RATIO = 2.0
"""A plateau holds so many broadenings at least, and its last is so many times the first: by points alone any smooth λ(σ) becomes
flat when the broadenings lie closely. Over a factor of two the spread bounds the slope: |dlnλ/dlnσ| is 0.15 at most."""
LAMBDA_MAX = 4.0
"""λ above this asks for a look: lattice instability, or a broadening far off the plateau."""


@dataclass(frozen=True)
class Plateau:
    """The stretch of broadenings on which λ is read.

    Attributes
    ----------
    first, last, index
        Its ends and the broadening at which values are read (its middle), as indices.
    spread
        (max − min)/mean of λ over it.
    flat
        Whether the spread is within the limit; where not, this is the flattest stretch there is.
    """

    first: int
    last: int
    index: int
    spread: float
    flat: bool


def find_plateau(sigmas_ry: Sequence[float], lambdas: Sequence[float], limit: float = PLATEAU_SPREAD) -> Plateau | None:
    """The plateau of λ over ascending broadenings: the longest stretch, in ln σ, that is flat within `limit`; of two as long the
    one at smaller broadenings. None where they do not span the width of one.

    Towards zero the double-delta sum is noise, and at large broadenings λ levels off too, at the wrong value, because N(E_F) is
    averaged over the bands. In ln σ that levelling is short, and so is the top of a rise or the foot of a fall.
    """
    sigmas, values = np.asarray(sigmas_ry, float), np.asarray(lambdas, float)
    n = len(values)
    windows = [(a, b) for a in range(n) for b in range(a + PLATEAU_POINTS - 1, n)
               if sigmas[b] >= PLATEAU_RATIO * sigmas[a] * (1 - 1e-6)]
    if not windows:
        return None

    def spread(a: int, b: int) -> float:
        part = values[a:b + 1]
        return float((part.max() - part.min()) / part.mean()) if part.mean() > 0 else float("inf")

    flat = [w for w in windows if spread(*w) <= limit]
    first, last = (max(flat, key=lambda w: round(sigmas[w[1]] / sigmas[w[0]], 6)) if flat
                   else min(windows, key=lambda w: spread(*w)))
    return Plateau(first, last, (first + last) // 2, spread(first, last), bool(flat))


def analyse(
    spectra: Sequence[Spectrum], mu_stars: Sequence[float], methods: tuple[str, ...] = METHODS, scaled: bool = True,
) -> list[dict[str, Any]]:
    """One row per broadening, the smallest first: sigma_ry, lambda, omega_log_k, omega2_k, negative_share and tc_k {μ*: {method:
    K}}; in the order of `spectra` where they name no broadening."""
    rows = []
    for s in sorted(spectra, key=lambda s: s.sigma_ry or 0.0):
        c = s.coupling
        rows.append({
            "sigma_ry": s.sigma_ry, "dos": s.dos, "lambda": c.lambda_, "omega_log_k": c.omega_log_k, "omega2_k": c.omega2_k,
            "negative_share": c.negative / c.lambda_,
            "tc_k": {mu_key(mu): critical_temperatures(c, mu, methods, scaled) for mu in mu_stars},
        })
    return rows


def reported(rows: Sequence[dict[str, Any]], plateau: Plateau | None) -> int:
    """The row whose values are reported: the middle of the plateau, else the one with the median λ."""
    if plateau is not None and rows[plateau.index]["lambda"] > 0:
        return plateau.index
    there = [i for i, r in enumerate(rows) if r["lambda"] > 0]
    return sorted(there, key=lambda i: rows[i]["lambda"])[len(there) // 2]


def mu_key(mu_star: float) -> str:
    """How μ* is written as a key of results: ``0.10``; more digits only where they are needed."""
    return f"{mu_star:.2f}" if round(mu_star, 2) == mu_star else f"{mu_star:g}"


def doubts(rows: Sequence[dict[str, Any]], plateau: Plateau | None, chosen: int) -> list[str]:
    """What an expert would object to, in words with numbers."""
    out = []
    row = rows[chosen]
    if row["negative_share"] > NEGATIVE_TOLERANCE:
        out.append(f"negative a2F weight: {100 * row['negative_share']:.2g} % of lambda, left out")
    if plateau is not None and not plateau.flat:
        out.append(f"lambda has no plateau over the broadening: it varies by {100 * plateau.spread:.0f} % even over its flattest "
                   f"{plateau.last - plateau.first + 1} values (limit {100 * PLATEAU_SPREAD:.0f} %)")
    if plateau is None and len(rows) > 1 and all(r["sigma_ry"] is not None for r in rows):
        out.append(f"{len(rows)} broadenings from {rows[0]['sigma_ry']:g} to {rows[-1]['sigma_ry']:g} Ry: too few or too "
                   f"close for a plateau to be seen (at least {PLATEAU_POINTS}, over a factor of {PLATEAU_RATIO:g})")
    if row["lambda"] > LAMBDA_MAX:
        out.append(f"lambda = {row['lambda']:.2f} is above {LAMBDA_MAX:g}: check for soft modes and the broadening")
    return out
