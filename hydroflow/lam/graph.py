"""Any DPA model through deepmd-kit's own networks: structures of different sizes together, on a CPU or a GPU."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from hydroflow.errors import DataError
from hydroflow.lam.backend import import_deepmd

log = logging.getLogger(__name__)
_PAIRS_AT_ONCE = {"cpu": 2e6, "cuda": 2e7}
"""Pairs of neighbours of an atom evaluated together by a descriptor with angles or attention: some hundred bytes each, so about a
gigabyte on a CPU."""


def deepmd_kernel(params: Mapping[str, Any], state: Mapping[str, Any], device: str) -> Kernel:
    """What evaluates a checkpoint: deepmd-kit's graph where the descriptor has one (DPA-1, DPA-2), else its lists of neighbours
    (DPA-3 in deepmd-kit 3.2). DPA-1 with attention goes by lists too: on the graph every pair of neighbours takes 6 kB.

    Parameters
    ----------
    params, state
        As :func:`hydroflow.lam.model.read_checkpoint` returns them.
    device : str
        ``cpu`` or ``cuda``.

    Raises
    ------
    DataError
        for a model without one descriptor, which neither can take.
    """
    network = rebuilt(params, state)
    if getattr(network.atomic_model, "descriptor", None) is None or not network.atomic_model.mixed_types():
        raise DataError(f"hydroflow cannot evaluate this {params['descriptor'].get('type')} model; train one with the descriptor "
                        "settings that hydroflow writes")
    if params["descriptor"].get("attn_layer", 0):
        return ListKernel(network, device, pairs=True)
    graph = as_graph(network)
    if getattr(graph.atomic_model.descriptor, "uses_graph_lower", lambda: False)():
        return GraphKernel(graph, device)
    return ListKernel(network, device)


def rebuilt(params: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    """deepmd-kit's network of a checkpoint, as it was trained."""
    import_deepmd()
    from deepmd.pt.model.model import get_model

    network = get_model(dict(params))
    network.atomic_model.load_state_dict(dict(state), strict=False)
    return network


def as_graph(network: Any) -> Any:
    """The same network in deepmd-kit's form that can be evaluated on a graph."""
    from deepmd.pt_expt.model.model import BaseModel

    return BaseModel.deserialize(network.serialize())


class Kernel(ABC):
    """Energies, forces and virials of a batch given as edges."""

    def __init__(self, model: Any, device: str) -> None:
        import torch

        self.model = model.to(device).eval()
        self.most_atoms = math.inf
        self.fitted = 0
        self.cutoff_a = float(self.model.get_rcut())
        self.device = device
        self.torch = torch
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def __call__(self, offsets: np.ndarray, types: np.ndarray, pointers: np.ndarray, neighbour: np.ndarray, vector: np.ndarray,
                 ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies (n,) in eV, forces (N, 3) in eV/Å and virials (n, 3, 3) in eV of structures given as edges.

        Out of memory, the batch is halved and goes on; later batches are not tried larger. A structure that does not fit
        alone gets NaN, and costs no other its answer. The error is raised where nothing fits, or no more what did before:
        then the memory is taken by somebody else.
        """
        parts = []
        waiting = [(0, len(offsets) - 1)]  # runs of structures, the next one last
        while waiting:
            first, last = waiting.pop()
            a, b = offsets[first], offsets[last]
            e0, e1 = pointers[a], pointers[b]
            lone = last - first < 2
            if lone or b - a <= self.most_atoms:
                try:
                    parts.append(self._evaluate(offsets[first:last + 1] - a, types[a:b], pointers[a:b + 1] - e0,
                                                neighbour[e0:e1] - np.int32(a), vector[e0:e1]))
                    self.fitted = max(self.fitted, int(b - a))
                    continue
                except RuntimeError as error:
                    if not _out_of_memory(error):
                        raise
                    if lone and (b - a <= self.fitted or (not self.fitted and last == len(offsets) - 1)):
                        raise
                    log.warning("%d atoms do not fit into the memory of the %s: %s", b - a, self.device, error)
                    if self.device != "cpu":
                        self.torch.cuda.empty_cache()
                    if not lone:
                        self.most_atoms = min(self.most_atoms, (b - a) // 2)
            if lone:
                parts.append((np.full(1, np.nan), np.full((b - a, 3), np.nan), np.full((1, 3, 3), np.nan)))
            else:
                half = (first + last) // 2
                waiting += [(half, last), (first, half)]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]

    @abstractmethod
    def _evaluate(self, offsets: np.ndarray, types: np.ndarray, pointers: np.ndarray, neighbour: np.ndarray, vector: np.ndarray,
                  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


def _out_of_memory(error: RuntimeError) -> bool:
    """PyTorch has a type for a GPU's memory only; a CPU's allocator says it in words."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


class GraphKernel(Kernel):
    """A descriptor that deepmd-kit evaluates on a graph."""

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


class ListKernel(Kernel):
    """A descriptor that deepmd-kit evaluates on padded lists of neighbours.

    The whole batch is one frame without a cell: every atom sits at the origin, and every edge ends at an image of its neighbour
    of its own, at the edge's vector. A descriptor sees nothing but these differences, so that derivatives with respect to them
    give forces and virial, and structures cannot see each other.
    """

    def __init__(self, model: Any, device: str, pairs: bool = False) -> None:
        """`pairs`: whether the descriptor treats all pairs of neighbours of an atom (attention)."""
        super().__init__(model, device)
        self.limit = int(model.get_nsel())
        inner = self.limit if pairs else getattr(getattr(model.atomic_model.descriptor, "repflows", None), "a_sel", 0)
        self.most_atoms = _PAIRS_AT_ONCE[device] / max(inner**2, self.limit)

    def _evaluate(self, offsets: np.ndarray, types: np.ndarray, pointers: np.ndarray, neighbour: np.ndarray, vector: np.ndarray,
                  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        torch = self.torch
        atoms = len(types)
        centre = np.repeat(np.arange(atoms), np.diff(pointers))
        order = np.lexsort(((vector**2).sum(axis=1), centre))  # the closest first: angles are between the first ones
        rank = np.arange(len(order)) - pointers[centre]
        kept = rank < self.limit
        lists = np.full((atoms, self.limit), -1, np.int64)
        lists[centre[kept], rank[kept]] = atoms + order[kept]

        species = torch.from_numpy(types.astype(np.int64))
        owner = torch.from_numpy(neighbour.astype(np.int64))
        image = torch.from_numpy(vector.astype(np.float64)).to(self.device).requires_grad_(True)
        out = self.model.atomic_model.forward_common_atomic(
            torch.cat([torch.zeros((atoms, 3), dtype=image.dtype, device=self.device), image])[None],
            torch.cat([species, species[owner]])[None].to(self.device), torch.from_numpy(lists)[None].to(self.device),
            mapping=torch.cat([torch.arange(atoms), owner])[None].to(self.device))
        each = out["energy"][0, :, 0].double()
        slope = torch.autograd.grad(each.sum(), image)[0].double().cpu().numpy()
        structure = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        energy = np.bincount(structure, each.detach().cpu().numpy(), len(offsets) - 1)
        forces = np.zeros((atoms, 3))
        np.add.at(forces, centre, slope)
        np.subtract.at(forces, neighbour, slope)
        virial = np.zeros((len(energy), 3, 3))
        np.subtract.at(virial, structure[centre], vector[:, :, None] * slope[:, None, :])
        return energy, forces, virial
