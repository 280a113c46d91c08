"""Any DPA model through deepmd-kit's graph evaluation: structures of different sizes together, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hydroflow.errors import DataError
from hydroflow.lam.backend import import_deepmd


class GraphKernel:
    """A checkpoint of any descriptor that deepmd-kit evaluates as a graph (DPA-1, DPA-2, DPA-3).

    Parameters
    ----------
    params, state
        As :func:`hydroflow.lam.model.read_checkpoint` returns them.
    device : str
        ``cpu`` or ``cuda``.
    """

    def __init__(self, params: Mapping[str, Any], state: Mapping[str, Any], device: str) -> None:
        import torch

        import_deepmd()
        from deepmd.pt.model.model import get_model
        from deepmd.pt_expt.model.model import BaseModel

        reference = get_model(dict(params))
        reference.atomic_model.load_state_dict(dict(state), strict=False)
        self.model = BaseModel.deserialize(reference.serialize()).to(device).eval()
        descriptor = getattr(self.model.atomic_model, "descriptor", None)
        if descriptor is None or not getattr(descriptor, "uses_graph_lower", lambda: False)():
            raise DataError(f"deepmd-kit cannot evaluate this {params['descriptor'].get('type')} model as a graph; train one "
                            "with the descriptor settings that hydroflow writes")
        self.cutoff_a = float(self.model.get_rcut())
        self.device = device
        self.torch = torch
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def __call__(self, offsets: np.ndarray, types: np.ndarray, pointers: np.ndarray, neighbour: np.ndarray, vector: np.ndarray,
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies (n,) in eV, forces (N, 3) in eV/Å and virials (n, 3, 3) in eV of structures given as edges.

        Out of GPU memory, the batch is halved and goes on.
        """
        try:
            return self._evaluate(offsets, types, pointers, neighbour, vector)
        except self.torch.OutOfMemoryError:
            if len(offsets) <= 2:
                raise
            self.torch.cuda.empty_cache()
        half = len(offsets) // 2
        parts = []
        for piece in (offsets[:half + 1], offsets[half:]):
            a, b = piece[0], piece[-1]
            e0, e1 = pointers[a], pointers[b]
            parts.append(self(piece - a, types[a:b], pointers[a:b + 1] - e0, neighbour[e0:e1] - np.int32(a), vector[e0:e1]))
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]

    def _evaluate(self, offsets: np.ndarray, types: np.ndarray, pointers: np.ndarray, neighbour: np.ndarray, vector: np.ndarray,
                  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        torch = self.torch
        n_node = torch.from_numpy(np.diff(offsets)).to(self.device)
        centre = torch.from_numpy(np.repeat(np.arange(len(types)), np.diff(pointers)))
        edge_index = torch.stack([torch.from_numpy(neighbour.astype(np.int64)), centre]).to(self.device)
        out = self.model.forward_common_lower_graph(
            torch.from_numpy(types).to(self.device), n_node, n_node, edge_index, torch.from_numpy(vector).to(self.device),
            torch.ones(len(vector), dtype=torch.bool, device=self.device))
        return (out["energy_redu"][:, 0].detach().double().cpu().numpy(),
                out["energy_derv_r"][:, 0].detach().double().cpu().numpy(),
                out["energy_derv_c_redu"][:, 0].reshape(-1, 3, 3).detach().double().cpu().numpy())
