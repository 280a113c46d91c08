"""torch-sim's FIRE with hydroflow's model wrapped for it: the peer of benchmarks/relax.py."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch_sim
from torch_sim.models.interface import ModelInterface

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Relaxation
from hydroflow.lam import LamModel
from hydroflow.units import GPA_A3_EV


class Wrapped(ModelInterface):
    """hydroflow's evaluation behind torch-sim's interface."""

    def __init__(self, model: LamModel) -> None:
        super().__init__()
        self.model = model
        self._device = torch.device("cpu")
        self._dtype = torch.float64
        self._compute_stress = self._compute_forces = True
        self._memory_scales_with = "n_atoms"

    def forward(self, state: Any) -> dict[str, torch.Tensor]:
        cells = state.row_vector_cell.detach().numpy()
        owner = state.system_idx.numpy()
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(cells)))]).astype(np.int64)
        fractional = np.einsum("ni,nij->nj", state.positions.detach().numpy(), np.linalg.inv(cells)[owner])
        energy, forces, virial, _ = self.model.evaluate_raw(
            offsets, self.model.types(state.atomic_numbers.numpy()), fractional, cells)
        stress = -virial / np.abs(np.linalg.det(cells))[:, None, None]
        return {"energy": torch.from_numpy(energy), "forces": torch.from_numpy(forces),
                "stress": torch.from_numpy((stress + stress.transpose(0, 2, 1)) / 2)}


def relax_with_torchsim(model: LamModel, structures: StructureArrays, pressure_gpa: float, settings: Relaxation,
                        ) -> tuple[float, int]:
    """(CPU seconds, converged structures); all structures in one batch, which is torch-sim at its best."""
    wrapped = Wrapped(model)
    atoms = [structures.atoms(i) for i in range(len(structures))]
    converged = torch_sim.generate_force_convergence_fn(settings.fmax_ev_a)

    def run(items: list[Any], steps: int) -> Any:
        # its scalar_pressure is in eV/Å³, whatever its documentation says
        return torch_sim.optimize(items, wrapped, optimizer=torch_sim.frechet_cell_fire, convergence_fn=converged,
                                  max_steps=steps, scalar_pressure=pressure_gpa * GPA_A3_EV)

    run(atoms[:1], 10)
    began = time.process_time()
    state = run(atoms, settings.max_steps)
    seconds = time.process_time() - began
    return seconds, int(converged(state).sum())
