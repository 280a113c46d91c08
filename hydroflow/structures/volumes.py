"""Atomic volumes under pressure and minimum distances between atoms: the two estimates a random structure starts from.

Volumes are additive: a cell is as large as the sum of its atoms' volumes, which ``atomic_volumes.csv`` tabulates at 50 to
300 GPa (source per element there; docs/structures.md tells how they compare with known hydrides). Between and beyond the
points ln V is linear in ln(P + 20 GPa). Labelled frames give better volumes, see :func:`fit_volumes`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Campaign
from hydroflow.errors import CampaignError, DataError
from hydroflow.units import GPA_A3_EV

VOLUME_SPREAD = 0.12
"""Random cells are drawn within this fraction of the estimated volume: its typical error for hydrides at 200 GPa."""
METAL_FACTOR, HYDROGEN_FACTOR = 0.66, 0.61
"""Minimum distance as a fraction of the sum of two atoms' radii (4/3 π r³ = atomic volume): of two non-hydrogen atoms,
and of one with H. Ours, set so that La–La and La–H come out at the 1.85 Å and 1.33 Å published for 200 GPa."""
HYDROGEN_DISTANCE_A = 0.8
"""Minimum H–H distance: just below the shortest in known superhydrides, above a compressed H₂ bond's 0.74 Å."""


GRID_GPA = (50.0, 100.0, 200.0, 300.0)
SOFT_GPA = 20.0
"""Added to pressures before the logarithm, so that volumes stay finite (if rough) down to ambient pressure."""


@lru_cache(maxsize=1)
def _table() -> dict[str, np.ndarray]:
    """ln V at the pressures of the grid, per element."""
    with Path(__file__).with_name("atomic_volumes.csv").open(newline="") as file:
        return {r["symbol"]: np.log([float(r[f"v{p:.0f}_a3"]) for p in GRID_GPA]) for r in csv.DictReader(file)}


def known_elements() -> list[str]:
    """Elements with built-in volumes."""
    return list(_table())


def atomic_volume(symbol: str, pressure_gpa: float) -> float:
    """Volume of one atom in Å³ at a pressure in GPa.

    Raises
    ------
    DataError
        when the element has no built-in volume.
    """
    try:
        values = _table()[symbol]
    except KeyError:
        raise DataError(f"no atomic volume is known for element {symbol!r}; give it in the campaign file as "
                        f"generator.atomic_volumes_a3 = {{ {symbol} = … }}") from None
    grid = np.log(np.array(GRID_GPA) + SOFT_GPA)
    x = np.log(pressure_gpa + SOFT_GPA)
    i = int(np.clip(np.searchsorted(grid, x) - 1, 0, len(grid) - 2))
    slope = (values[i + 1] - values[i]) / (grid[i + 1] - grid[i])
    return float(np.exp(values[i] + slope * (x - grid[i])))


def atomic_volumes(campaign: Campaign, symbols: Iterable[str], pressure_gpa: float) -> dict[str, float]:
    """Volume per atom in Å³ at a pressure: the campaign's own values, else the built-in ones.

    The campaign's values hold at its ``pressure.campaign_gpa``; at other pressures they are scaled as the built-in ones.
    """
    own = campaign.generator.atomic_volumes_a3
    out = {}
    for symbol in symbols:
        if symbol not in own:
            out[symbol] = atomic_volume(symbol, pressure_gpa)
        elif symbol in _table():
            out[symbol] = own[symbol] * (
                atomic_volume(symbol, pressure_gpa) / atomic_volume(symbol, campaign.pressure.campaign_gpa))
        else:
            out[symbol] = own[symbol]
    return out


def minimum_distances(
    symbols: Sequence[str], volumes: Mapping[str, float], overrides: Mapping[str, float] | None = None,
) -> np.ndarray:
    """(s, s) minimum distances in Å between the species.

    Parameters
    ----------
    symbols
        Elements, in the order of the result.
    volumes
        Volume per atom in Å³ of each.
    overrides
        ``{"La-H": 1.33}``, either order of the two symbols.

    Raises
    ------
    CampaignError
        when a key of the overrides is not two element symbols.
    """
    given: dict[frozenset[str], float] = {}
    for key, value in (overrides or {}).items():
        pair = key.split("-")
        if len(pair) != 2 or not all(pair):
            raise CampaignError(f"generator.minimum_distances_a: {key!r} is not a pair such as 'La-H'")
        given[frozenset(pair)] = value
    radius = {s: (3 * volumes[s] / (4 * np.pi)) ** (1 / 3) for s in symbols}
    out = np.empty((len(symbols), len(symbols)))
    for i, a in enumerate(symbols):
        for j, b in enumerate(symbols):
            if frozenset((a, b)) in given:
                out[i, j] = given[frozenset((a, b))]
            elif a == b == "H":
                out[i, j] = HYDROGEN_DISTANCE_A
            else:
                out[i, j] = (HYDROGEN_FACTOR if "H" in (a, b) else METAL_FACTOR) * (radius[a] + radius[b])
    return out


def fit_volumes(frames: StructureArrays, pressure_gpa: float, window_gpa: float = 50.0) -> dict[str, float]:
    """Volume per atom of each element in Å³ at a pressure, from labelled frames.

    Frames whose pressure is within the window are brought to the wanted pressure with the built-in compressibility, then
    cell volumes are fitted as sums of atomic ones, by least squares drawn towards the built-in values where the data
    say little (ridge).

    Parameters
    ----------
    frames
        With the column ``virial_ev`` (n, 3, 3), from which each frame's pressure is taken, or ``pressure_gpa`` (n,).
    pressure_gpa, window_gpa
        Wanted pressure and how far a frame's may be from it, in GPa.

    Raises
    ------
    DataError
        when no frame lies in the window.
    """
    if "virial_ev" in frames.columns:
        pressures = np.trace(frames.columns["virial_ev"], axis1=1, axis2=2) / (3 * frames.volumes * GPA_A3_EV)
    elif "pressure_gpa" in frames.columns:
        pressures = frames.columns["pressure_gpa"]
    else:
        raise DataError("volumes cannot be fitted: the frames have neither a virial_ev nor a pressure_gpa column")
    near = np.abs(pressures - pressure_gpa) <= window_gpa
    if not near.any():
        raise DataError(f"volumes cannot be fitted: none of {len(frames)} frames is within {window_gpa:g} GPa of "
                        f"{pressure_gpa:g} GPa")
    used, pressures = frames[near], pressures[near]
    compositions = used.compositions()
    symbols = sorted({s for c in compositions for s in c})
    prior = np.array([atomic_volume(s, pressure_gpa) for s in symbols])
    counts = np.array([[c.get(s, 0) for s in symbols] for c in compositions], float)
    # estimated volume here over estimated volume there: brings each frame to the wanted pressure
    grid = {round(float(p)): [atomic_volume(s, max(round(float(p)), 0)) for s in symbols] for p in pressures}
    at_own = np.array([counts[i] @ grid[round(float(p))] for i, p in enumerate(pressures)])
    volumes = used.volumes * (counts @ prior) / at_own
    # per atom, so that large cells do not dominate; unknowns are factors on the built-in volumes
    weight = 1 / (counts @ prior)
    design = counts * prior * weight[:, None]
    ridge = 0.05 * np.eye(len(symbols)) * np.sqrt(len(used))
    factors = np.linalg.lstsq(np.vstack([design, ridge]), np.concatenate([volumes * weight, ridge.sum(1)]), rcond=None)[0]
    return {s: float(v) for s, v in zip(symbols, prior * np.clip(factors, 0.3, 3.0), strict=True)}
