"""Random chemical systems for the tests of the hull."""

from __future__ import annotations

import numpy as np

from hydroflow.screening.entries import Entries, entries

ELEMENTS = ("Ca", "Y", "H", "La")


def random_entries(seed: int, elements: int, size: int, level: str = "model") -> Entries:
    """Phases of a system with real-looking degeneracies: repeated compositions, equal enthalpies, phases on tie lines.

    Several entries per composition, some exactly on the line between two others, some at exactly zero formation
    enthalpy: where hull codes differ.
    """
    rng = np.random.default_rng(seed)
    symbols = ELEMENTS[:elements]
    counts = rng.integers(0, rng.integers(2, 8), (size, elements))
    counts = np.concatenate([np.eye(elements, dtype=int) * rng.integers(1, 5, (elements, 1)), counts[counts.sum(1) > 0]])
    x = counts / counts.sum(1, keepdims=True)
    formation = rng.normal(rng.uniform(-0.5, 0.3), 0.4, len(x)) * (1 - (x**2).sum(1))
    formation[rng.random(len(x)) < 0.1] = 0.0
    formation[:elements] = 0.0
    h = (x @ rng.normal(-4, 3, elements) + formation) * counts.sum(1)
    # a supercell with the same enthalpy per atom
    twin = int(rng.integers(len(counts)))
    counts, h = np.vstack([counts, 3 * counts[twin]]), np.append(h, 3 * h[twin])
    # a mixture of two others: exactly on their tie line
    a, b = rng.integers(len(counts), size=2)
    counts, h = np.vstack([counts, counts[a] + counts[b]]), np.append(h, h[a] + h[b])
    return entries(symbols, counts, h, 200.0, level)
