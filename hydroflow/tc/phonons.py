"""How far the phonons of the Large Atomic Model are from those of DFPT: a figure of the model, from the candidates with both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hydroflow.epc.protocols import limits
from hydroflow.store.documents import Candidate, ModelRecord
from hydroflow.store.runs import summarise


def agreement(lam_thz: Sequence[float], dfpt_thz: Sequence[float]) -> dict[str, Any]:
    """Lowest frequencies of the same crystals by the model and by DFPT, acoustic modes at Γ left out of both.

    Parameters
    ----------
    lam_thz, dfpt_thz
        (n,) THz, imaginary as negative; n ≥ 1. The model's are the lowest over its supercell's q points at its own relaxed
        cell, DFPT's over the q mesh of the chain at the cell relaxed by DFT: the difference holds both.

    Returns
    -------
    dict
        ``compared`` (n), ``mae_thz`` and ``bias_thz`` (model minus DFPT), ``both_stable``, ``only_lam_stable``,
        ``only_dfpt_stable``, ``neither_stable`` (counts; stable is a lowest frequency above the verdict's limit of imaginary
        modes) and ``same_verdict`` (share).
    """
    lam, dfpt = np.asarray(lam_thz, float), np.asarray(dfpt_thz, float)
    bound = -limits()["imaginary_thz"]
    a, b = lam >= bound, dfpt >= bound
    return {"compared": len(lam), "mae_thz": float(np.abs(lam - dfpt).mean()), "bias_thz": float((lam - dfpt).mean()),
            "both_stable": int((a & b).sum()), "only_lam_stable": int((a & ~b).sum()), "only_dfpt_stable": int((~a & b).sum()),
            "neither_stable": int((~a & ~b).sum()), "same_verdict": float((a == b).mean())}


def record_agreement(campaign: str, candidates: Sequence[Candidate]) -> None:
    """Put :func:`agreement` onto the record of each model that screened the candidates, and into the run's summary.

    A chain that failed because its modes were so imaginary that nothing could be summed counts with the lowest of the q where it
    failed: unstable, however low the others would have been.
    """
    pairs: dict[str | None, list[tuple[float, float]]] = {}
    for c in candidates:
        dfpt = (c.epc or {}).get("lowest_thz")
        if dfpt is not None and c.min_frequency_thz is not None:
            pairs.setdefault(c.model, []).append((c.min_frequency_thz, dfpt))
    for model, found in pairs.items():
        figures = agreement(*zip(*found, strict=True))
        ModelRecord.objects(digest=model).update_one(
            set__metrics__phonon_mae_thz=figures["mae_thz"], set__metrics__phonon_same_verdict=figures["same_verdict"],
            set__metrics__phonons_compared=figures["compared"])
    if pairs:
        summarise(campaign, phonons=agreement(*zip(*[p for found in pairs.values() for p in found], strict=True)))
