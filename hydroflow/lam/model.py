"""A trained Large Atomic Model: energies, forces and virials of many structures in one call.

``LamModel.load`` reads a deepmd-kit PyTorch checkpoint. DPA-1 without attention on a CPU is computed by
:mod:`hydroflow.lam.dpa1_cpu`, which needs neither deepmd-kit nor its start-up time; everything else, and every model on a GPU,
by deepmd-kit's own networks (:mod:`hydroflow.lam.graph`), which takes structures of different sizes together.
"""

from __future__ import annotations

import io
import os
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numba
import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.lam import dpa1_cpu
from hydroflow.lam.neighbours import edges

_CHUNK_EDGES = 3_000_000
_ATOMS_PER_THREAD = 300
_lock = threading.Lock()  # numba's default threading layer must not be entered twice at once


@dataclass(frozen=True)
class Evaluation:
    """What a model says about a batch.

    Attributes
    ----------
    energy_ev : (n,) eV per cell; NaN for a collapsed or non-finite cell.
    forces_ev_a : (N, 3) eV/Å.
    virial_ev : (n, 3, 3) eV, −V·σ.
    """

    energy_ev: np.ndarray
    forces_ev_a: np.ndarray
    virial_ev: np.ndarray


class Kernel(Protocol):
    """What evaluates edges: see :class:`hydroflow.lam.dpa1_cpu.Dpa1Cpu`."""

    cutoff_a: float

    def __call__(self, offsets: np.ndarray, types: np.ndarray, pointers: np.ndarray, neighbour: np.ndarray, vector: np.ndarray,
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


class LamModel:
    """A model ready for evaluation; make one with :meth:`load`."""

    def __init__(self, kernel: Kernel, type_map: list[str], name: str = "") -> None:
        self.kernel = kernel
        self.type_map = type_map
        self.name = name
        self._types = np.full(len(chemical_symbols), -1, np.int64)
        for t, symbol in enumerate(type_map):
            self._types[atomic_numbers[symbol]] = t

    @classmethod
    def load(cls, path: str | Path, head: str | None = None, device: str | None = None) -> LamModel:
        """Read a checkpoint (``model.pt``).

        Parameters
        ----------
        path : path
            deepmd-kit PyTorch checkpoint.
        head : str, optional
            Which model of a multi-task checkpoint.
        device : str, optional
            ``cpu`` or ``cuda``; default: ``cuda`` where there is one.

        Raises
        ------
        DataError
            when the file is no checkpoint, or has no (or several and no named) head.
        """
        import torch

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        state, params = read_checkpoint(path, head)
        if device == "cpu" and dpa1_cpu.supports(params):
            arrays = {k: v.numpy() for k, v in state.items()}
            return cls(dpa1_cpu.Dpa1Cpu(params, arrays), list(params["type_map"]), Path(path).name)
        from hydroflow.lam.graph import deepmd_kernel

        return cls(deepmd_kernel(params, state, device), list(params["type_map"]), Path(path).name)

    @property
    def cutoff_a(self) -> float:
        return self.kernel.cutoff_a

    def types(self, numbers: np.ndarray) -> np.ndarray:
        """Type index of atomic numbers.

        Raises
        ------
        DataError
            naming the elements that the model does not know.
        """
        types = self._types[numbers]
        if (types < 0).any():
            unknown = ", ".join(chemical_symbols[int(z)] for z in np.unique(numbers[types < 0]))
            raise DataError(f"the model {self.name} does not know {unknown}; its type map is {' '.join(self.type_map)}")
        return types

    def evaluate(self, arrays: StructureArrays) -> Evaluation:
        """Energies, forces and virials of structures of any sizes together.

        Raises
        ------
        DataError
            for an element that the model does not know.
        """
        types = self.types(arrays.numbers)
        energy, forces, virial, *_ = self.evaluate_raw(arrays.offsets, types, arrays.fractional, arrays.cells)
        return Evaluation(energy, forces, virial)

    def evaluate_raw(self, offsets: np.ndarray, types: np.ndarray, fractional: np.ndarray, cells: np.ndarray,
                     numbers: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """As :meth:`evaluate` without objects; with `numbers` also (n,) how close the closest atoms are, see
        :func:`hydroflow.lam.neighbours.closest_contacts`."""
        from hydroflow.lam.neighbours import shortest_ratio

        n = len(cells)
        energy, virial = np.full(n, np.nan), np.full((n, 3, 3), np.nan)
        forces = np.full((len(types), 3), np.nan)
        contact = np.zeros(n) if numbers is not None else None
        with _lock:
            for first, last in _chunks(offsets, cells, self.cutoff_a):
                a, b = offsets[first], offsets[last]
                local = offsets[first:last + 1] - a
                # Waking threads costs more than a small batch does.
                numba.set_num_threads(min(threads(), 1 + (b - a) // _ATOMS_PER_THREAD))
                pointers, neighbour, vector, sound = edges(local, fractional[a:b], cells[first:last], self.cutoff_a)
                e, f, v = self.kernel(local, types[a:b], pointers, neighbour, vector)
                e[~sound] = np.nan
                energy[first:last], forces[a:b], virial[first:last] = e, f, v
                if contact is not None and numbers is not None:
                    ratio = np.minimum.reduceat(shortest_ratio(numbers[a:b], pointers, neighbour, vector), local[:-1])
                    contact[first:last] = np.where(sound, ratio, 0.0)
        return energy, forces, virial, contact


def threads() -> int:
    """Threads that a model may use: ``OMP_NUM_THREADS``, else one."""
    value = os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]
    return max(1, min(int(value) if value.isdigit() else 1, numba.config.NUMBA_NUM_THREADS))


def _chunks(offsets: np.ndarray, cells: np.ndarray, cutoff: float) -> list[tuple[int, int]]:
    """Runs of structures whose edges fit in memory together."""
    n = len(cells)
    if not n:
        return []
    counts = np.diff(offsets)
    volumes = np.abs(np.linalg.det(np.where(np.isfinite(cells), cells, 0.0)))
    expected = counts * np.minimum(4.2 * cutoff**3 * counts / np.maximum(volumes, 1e-3), 1e4)
    group = (np.cumsum(expected) // _CHUNK_EDGES).astype(int)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1, [n]])
    return [(int(a), int(b)) for a, b in pairwise(starts)]


def read_checkpoint(path: str | Path, head: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters (prefix up to ``atomic_model.`` removed, on the CPU) and ``model_params`` of one model of a checkpoint.

    Raises
    ------
    DataError
        when the file is no deepmd-kit PyTorch checkpoint, or `head` does not name one of its models.
    OSError, MemoryError
        when it cannot be read now, which says nothing of what it holds.
    """
    import torch

    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such model") from error
    try:  # from memory: torch raises OSError for a file that was cut, too
        data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state = data.get("model", data)
        params = state["_extra_state"]["model_params"]
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{path} is not a deepmd-kit PyTorch checkpoint ({type(error).__name__}); give a model.pt") from error
    if "model_dict" in params:
        heads = list(params["model_dict"])
        if head not in heads:
            instead = f", not {head!r}" if head else " (a campaign: model.pretrained_branch)"
            raise DataError(f"{path} holds the models {', '.join(heads)}; name one of them{instead}")
        params = params["model_dict"][head]
    elif head not in (None, "Default"):
        raise DataError(f"{path} holds a single model, not one named {head!r}")
    prefix = f"model.{head or 'Default'}.atomic_model."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, params
