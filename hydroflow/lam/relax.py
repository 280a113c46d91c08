"""Relaxation of many structures at fixed pressure, cell and positions, through one model at once.

Structures of different sizes are evaluated together; each has its own step counter and optimizer history; one that is
finished leaves and the next enters, so that the batch stays full to the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.campaign import Relaxation
from hydroflow.errors import DataError
from hydroflow.lam import optimizers, symmetry
from hydroflow.lam.model import LamModel
from hydroflow.units import EV_A3_GPA, GPA_A3_EV

STATUSES = ("converged", "max_steps", "atoms_too_close", "exploded", "non_finite")
_MAX_VOLUME_RATIO = 2.5
"""Beyond this change of volume a cell has left the pressure it was made for: it fell into a hole of the model or blew up."""
_MAX_FORCE_EV_A = 1e4
_OVERLAP_STEPS = 10
"""A random crystal often overshoots into an overlap in its first steps and comes back; one that stays this long has fallen in."""
_COLLAPSED = 0.5
"""Share of the allowed distance from which nothing comes back that could be believed."""
_SLOTS = {"cpu": 128, "cuda": 4096}


@dataclass(frozen=True)
class RelaxResult:
    """What a relaxation gives back.

    Attributes
    ----------
    relaxed : StructureArrays
        In the order of the input, whose columns are carried over, with ``energy_ev``, ``enthalpy_ev`` (eV per cell),
        ``fmax_ev_a``, ``stress_off_gpa`` (largest component of the stress beside the pressure asked for), ``steps``,
        ``converged``, ``status`` and ``pressure_gpa``. A broken structure (status
        ``atoms_too_close``, ``exploded``, ``non_finite``) has NaN energies and its last geometry.
    frames : StructureArrays or None
        Recorded geometries with ``parent`` (index into the input), ``step``, ``energy_ev``, ``fmax_ev_a``, ``stress_off_gpa``,
        ``pressure_gpa`` and ``id``: the line of convergence of each structure.
    evaluations : int
        Structures evaluated in all.
    """

    relaxed: StructureArrays
    frames: StructureArrays | None
    evaluations: int


@dataclass
class _Recorder:
    every: int
    numbers: list[np.ndarray] = field(default_factory=list)
    fractional: list[np.ndarray] = field(default_factory=list)
    cells: list[np.ndarray] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    fmax: list[float] = field(default_factory=list)
    stress_off: list[float] = field(default_factory=list)

    def frames(self, arrays: StructureArrays, pressures: np.ndarray) -> StructureArrays:
        parent = np.array(self.parent, np.int64)
        # By parent and step: in-flight refill mixes trajectories.
        order = np.lexsort((np.array(self.step, np.int64), parent))
        out = StructureArrays.from_lists([self.numbers[k] for k in order], [self.fractional[k] for k in order],
                                         [self.cells[k] for k in order])
        parent = parent[order]
        out.columns = {"parent": parent, "step": np.array(self.step, np.int64)[order],
                       "energy_ev": np.array(self.energy, float)[order], "fmax_ev_a": np.array(self.fmax, float)[order],
                       "stress_off_gpa": np.array(self.stress_off, float)[order], "pressure_gpa": pressures[parent]}
        if "id" in arrays.columns:
            out.columns["id"] = arrays.columns["id"][parent]
        return out


def relax(
    model: LamModel, arrays: StructureArrays, pressure_gpa: float | np.ndarray, settings: Relaxation,
    record: Literal["none", "all"] | int = "none", slots: int | None = None,
) -> RelaxResult:
    """Relax structures at fixed pressure.

    Parameters
    ----------
    model : LamModel
        Gives energies, forces and virials.
    arrays : StructureArrays
        Where they start.
    pressure_gpa : float or (n,)
        Pressure of all or of each, in GPa.
    settings : Relaxation
        Optimizer, ``fmax_ev_a`` (largest norm of an atom's force or of a row of the cell's generalised force, as in ASE),
        ``max_steps``, and ``keep_symmetry``: the start is idealised to its space group (:mod:`hydroflow.lam.symmetry`), forces
        and stress are projected on it, and the relaxed structure has it still.
    record : 'none', 'all' or int
        Which frames are kept: none, all, or every k-th and the last.
    slots : int, optional
        Structures in flight at once.

    Raises
    ------
    DataError
        for an element that the model does not know, or pressures that do not match.
    """
    n = len(arrays)
    pressures = np.broadcast_to(np.asarray(pressure_gpa, float), (n,)).copy() if np.ndim(pressure_gpa) == 0 else \
        np.asarray(pressure_gpa, float)
    if pressures.shape != (n,):
        raise DataError(f"{pressures.shape[0]} pressures for {n} structures; give one for all or one each")
    every = {"none": 0, "all": 1}.get(record, record) if isinstance(record, str) else int(record)
    recorder = _Recorder(int(every)) if every else None
    final = _Final(arrays)
    types = model.types(arrays.numbers)
    evaluations = 0
    if n:
        device = getattr(model.kernel, "device", "cpu")
        batch = _Batch(arrays, types, pressures * GPA_A3_EV, min(n, slots or _SLOTS.get(device, 4096)), settings)
        while batch.active.any():
            evaluations += batch.step(model, final, recorder)
    relaxed = final.arrays(pressures)
    return RelaxResult(relaxed, recorder.frames(arrays, pressures) if recorder else None, evaluations)


class _Final:
    """Where finished structures are put down, in the order of the input."""

    def __init__(self, arrays: StructureArrays) -> None:
        n = len(arrays)
        self.source = arrays
        self.fractional = arrays.fractional.copy()
        self.cells = arrays.cells.copy()
        self.energy = np.full(n, np.nan)
        self.fmax, self.stress_off = np.full(n, np.nan), np.full(n, np.nan)
        self.steps = np.zeros(n, np.int64)
        self.status = np.full(n, "max_steps", dtype="U16")

    def arrays(self, pressures: np.ndarray) -> StructureArrays:
        s = self.source
        out = StructureArrays(s.offsets.copy(), s.numbers.copy(), self.fractional, self.cells, dict(s.columns),
                              {k: v for k, v in s.atom_columns.items() if k != "forces_ev_a"})
        out.columns.pop("virial_ev", None)  # belonged to the unrelaxed structure
        out.columns |= {
            "energy_ev": self.energy, "enthalpy_ev": self.energy + pressures * GPA_A3_EV * out.volumes, "fmax_ev_a": self.fmax,
            "stress_off_gpa": self.stress_off, "steps": self.steps, "converged": self.status == "converged",
            "status": self.status, "pressure_gpa": pressures,
        }
        return out


class _Batch:
    """The structures in flight: one slot each, refilled when its structure is finished."""

    def __init__(self, arrays: StructureArrays, types: np.ndarray, pressures: np.ndarray, slots: int,
                 settings: Relaxation) -> None:
        self.arrays, self.types, self.settings = arrays, types, settings
        self.all_pressures = pressures
        width = 3 * int(arrays.counts.max()) + 9
        self.owner = np.full(slots, -1, np.int64)
        self.active = np.zeros(slots, bool)
        self.counts = np.zeros(slots, np.int64)
        self.steps = np.zeros(slots, np.int64)
        self.overlaps = np.zeros(slots, np.int64)
        self.pressures = np.zeros(slots)
        self.volumes0 = np.ones(slots)
        self.fmax = np.zeros(slots)
        self.cells0 = np.zeros((slots, 3, 3))
        self.inverse0 = np.zeros((slots, 3, 3))
        self.deformations = np.zeros((slots, 3, 3))
        self.x, self.g = np.zeros((slots, width)), np.zeros((slots, width))
        if settings.optimizer == "lbfgs":
            memory = min(optimizers.MEMORY, settings.max_steps)
            self.x_old, self.g_old = np.zeros_like(self.x), np.zeros_like(self.x)
            self.s, self.y = np.zeros((slots, memory, width)), np.zeros((slots, memory, width))
            self.rho = np.zeros((slots, memory))
        else:
            self.velocity, self.fire_state = np.zeros_like(self.x), np.zeros((slots, 3))
        self.groups = [symmetry.Group.trivial(0)] * slots
        self.next = 0
        for b in range(slots):
            self._load(b)
        self._layout()

    def _load(self, b: int) -> None:
        """Put the next waiting structure into slot b, or leave it empty."""
        self.active[b] = self.next < len(self.arrays)
        if not self.active[b]:
            return
        k = self.next
        self.next += 1
        rows = slice(self.arrays.offsets[k], self.arrays.offsets[k + 1])
        fractional, cell = self.arrays.fractional[rows], self.arrays.cells[k]
        n = rows.stop - rows.start
        if self.settings.keep_symmetry:
            fractional, cell, self.groups[b] = symmetry.symmetrised(fractional, cell, self.arrays.numbers[rows])
        self.owner[b], self.counts[b], self.steps[b], self.pressures[b] = k, n, 0, self.all_pressures[k]
        self.overlaps[b] = 0
        self.cells0[b] = cell
        self.volumes0[b] = abs(np.linalg.det(cell))
        self.inverse0[b] = np.linalg.inv(cell) if self.volumes0[b] > 1e-6 else np.eye(3)
        self.x[b] = 0
        self.x[b, :3 * n] = (fractional @ cell).ravel()

    def _layout(self) -> None:
        """Ragged layout of the active slots; changes only when one is refilled."""
        self.slots = np.flatnonzero(self.active)
        counts = self.counts[self.slots]
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = [np.arange(self.arrays.offsets[k], self.arrays.offsets[k + 1]) for k in self.owner[self.slots]]
        atoms = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        self.batch_types = self.types[atoms]
        self.batch_numbers = self.arrays.numbers[atoms]
        if self.settings.keep_symmetry and len(self.slots):
            groups = [self.groups[b] for b in self.slots]
            self.first_operation = np.concatenate([[0], np.cumsum([len(g.rotations) for g in groups])])
            self.first_image = np.concatenate([[0], np.cumsum([g.images.size for g in groups])])
            self.rotations = np.concatenate([g.rotations for g in groups])
            self.images = np.concatenate([g.images.ravel() for g in groups])

    def step(self, model: LamModel, final: _Final, recorder: _Recorder | None) -> int:
        """Evaluate all once, retire and refill the finished, move the others. Returns the number of evaluations."""
        slots, offsets, settings = self.slots, self.offsets, self.settings
        fractional = np.empty((offsets[-1], 3))
        cells = np.empty((len(slots), 3, 3))
        optimizers.geometry(slots, self.counts, self.x, self.cells0, self.inverse0, offsets, fractional, cells, self.deformations)
        volumes = np.abs(np.linalg.det(cells))
        # A cell that exploded or collapsed is not worth its neighbours.
        ratio = volumes / self.volumes0[slots]
        exploded = ~((ratio < _MAX_VOLUME_RATIO) & (ratio > 1 / _MAX_VOLUME_RATIO))
        energy, forces, virials, contact = model.evaluate_raw(
            offsets, self.batch_types, fractional, np.where(exploded[:, None, None], np.nan, cells), self.batch_numbers)
        assert contact is not None
        optimizers.generalised_forces(slots, self.counts, self.x, offsets, np.nan_to_num(forces), np.nan_to_num(virials), volumes,
                                      self.pressures, self.deformations, self.g, self.fmax)
        if settings.keep_symmetry:
            symmetry.project(slots, self.counts, self.g, self.fmax, self.first_operation, self.rotations, self.first_image,
                             self.images)
        fmax, steps = self.fmax[slots], self.steps[slots]
        with np.errstate(divide="ignore", invalid="ignore"):
            stress = virials / volumes[:, None, None] - self.pressures[slots][:, None, None] * np.eye(3)
        stress_off = EV_A3_GPA * np.abs(stress).max(axis=(1, 2))
        status = np.full(len(slots), "", dtype="U16")
        status[steps >= settings.max_steps] = "max_steps"
        status[fmax < settings.fmax_ev_a] = "converged"
        status[~np.isfinite(energy) | ~np.isfinite(fmax) | (fmax > _MAX_FORCE_EV_A)] = "non_finite"
        self.overlaps[slots] = np.where(contact < 1, self.overlaps[slots] + 1, 0)
        lost = (self.overlaps[slots] > _OVERLAP_STEPS) | (contact < _COLLAPSED) | (status != "")
        status[(contact < 1) & lost] = "atoms_too_close"
        status[exploded | ~np.isfinite(volumes)] = "exploded"
        finished = np.flatnonzero(status != "")
        if recorder is not None:
            due = (steps % recorder.every == 0) | (status != "")
            for q in np.flatnonzero(due & np.isfinite(energy)):
                rows = slice(offsets[q], offsets[q + 1])
                recorder.numbers.append(self.batch_numbers[rows])
                recorder.fractional.append(fractional[rows].copy())
                recorder.cells.append(cells[q])
                recorder.parent.append(int(self.owner[slots[q]]))
                recorder.step.append(int(steps[q]))
                recorder.energy.append(float(energy[q]))
                recorder.fmax.append(float(fmax[q]))
                recorder.stress_off.append(float(stress_off[q]))
        for q in finished:
            k = self.owner[slots[q]]
            out = slice(self.arrays.offsets[k], self.arrays.offsets[k + 1])
            final.fractional[out] = fractional[offsets[q]:offsets[q + 1]]
            final.cells[k] = cells[q]
            final.status[k], final.steps[k], final.fmax[k], final.stress_off[k] = status[q], steps[q], fmax[q], stress_off[q]
            if status[q] in ("converged", "max_steps"):
                final.energy[k] = energy[q]
        moving = slots[status == ""]
        if settings.optimizer == "lbfgs":
            optimizers.lbfgs(moving, self.counts, self.x, self.g, self.x_old, self.g_old, self.steps, self.s, self.y, self.rho)
        else:
            optimizers.fire(moving, self.counts, self.x, self.g, self.velocity, self.steps, self.fire_state)
        self.steps[moving] += 1
        for q in finished:
            self._load(int(slots[q]))
        if len(finished):
            self._layout()
        return len(slots)
