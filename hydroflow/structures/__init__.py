"""Where structures come from and when two of them are the same: chemical space, generators, symmetry, fingerprints."""

from __future__ import annotations

from hydroflow.structures.generate import Failure, Generation, Generator, Request, generate
from hydroflow.structures.space import Composition, compositions, count, formula_units

__all__ = ["Composition", "Failure", "Generation", "Generator", "Request", "compositions", "count", "formula_units",
           "generate"]
