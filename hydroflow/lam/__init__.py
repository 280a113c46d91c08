"""The Large Atomic Model: datasets, training, evaluation, uncertainty, batched relaxation at pressure, phonons."""

from __future__ import annotations

from hydroflow.lam.model import Evaluation, LamModel
from hydroflow.lam.relax import RelaxResult, relax

__all__ = ["Evaluation", "LamModel", "RelaxResult", "relax"]
