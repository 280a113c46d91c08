"""Phonons by the model for the funnel: finite displacements by phonopy, all displaced supercells evaluated together."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spglib

from hydroflow.arrays import StructureArrays
from hydroflow.dispatch.job import JobSpec, Resources
from hydroflow.dispatch.python_engine import PythonEngine
from hydroflow.lam.model import LamModel

if TYPE_CHECKING:
    from phonopy import Phonopy

    from hydroflow.store.objects import ObjectStore

ENGINE = "hydroflow-phonons 1"
_DISPLACEMENT_A = 0.02
_SYMPREC_A = 0.02
_MESH_A = 40.0
"""Real-space length that the q mesh stands for: 40 Å is about 10×10×10 for a 4 Å cell."""
_BATCH_ATOMS = 20_000
_UNTREATABLE = (RuntimeError, ValueError, AssertionError, np.linalg.LinAlgError, spglib.SpglibError)
"""What phonopy (its own exceptions are RuntimeErrors and ValueErrors, and it asserts), NumPy's linear algebra and spglib raise
for a cell that they cannot treat; anything else is an error of the program and fails the job."""


def minimum_frequencies(model: LamModel, arrays: StructureArrays, supercell_length_a: float) -> np.ndarray:
    """Lowest phonon frequency of each relaxed structure.

    The structure is brought to its idealised primitive cell (spglib, 0.02 Å), repeated until every edge is at least
    `supercell_length_a`; force constants from finite displacements obey the acoustic sum rule; frequencies are taken on a
    Γ-centred mesh together with all q points commensurate with the supercell. At Γ the three modes nearest to zero are the
    acoustic ones and are left out.

    Parameters
    ----------
    model : LamModel
    arrays : StructureArrays
        Relaxed structures.
    supercell_length_a : float
        Least length of the supercell's edges, in Å.

    Returns
    -------
    (n,) float
        THz, imaginary as negative; NaN where the model or phonopy gave no finite answer.
    """
    return frequencies_or_reasons(model, arrays, supercell_length_a)[0]


def frequencies_or_reasons(model: LamModel, arrays: StructureArrays, supercell_length_a: float,
                           ) -> tuple[np.ndarray, dict[int, str]]:
    """As :func:`minimum_frequencies`, with the reason for each structure (by index) that has no answer."""
    out = np.full(len(arrays), np.nan)
    reasons: dict[int, str] = {}
    pending: list[tuple[int, Phonopy, StructureArrays]] = []
    atoms = 0
    for i in range(len(arrays)):
        try:
            made = _displaced(arrays[i], supercell_length_a)
        except _UNTREATABLE as error:
            reasons[i] = f"phonopy cannot treat the cell: {type(error).__name__}: {error}"
            continue
        pending.append((i, *made))
        atoms += len(made[1].numbers)
        if atoms > _BATCH_ATOMS:
            _solve(model, pending, out, reasons)
            pending, atoms = [], 0
    _solve(model, pending, out, reasons)
    return out, reasons


def _displaced(one: StructureArrays, length: float) -> tuple[Phonopy, StructureArrays]:
    """phonopy's object and the perfect supercell followed by the displaced ones."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = (one.cells[0], one.fractional, one.numbers)
    ideal = spglib.standardize_cell(cell, to_primitive=True, no_idealize=False, symprec=_SYMPREC_A)
    lattice, fractional, numbers = ideal if ideal is not None else cell
    reduced = spglib.niggli_reduce(lattice)
    if reduced is not None:
        fractional = fractional @ lattice @ np.linalg.inv(reduced)
        lattice = reduced
    repeat = [max(1, math.ceil(length / np.linalg.norm(v) - 1e-6)) for v in lattice]
    phonon = Phonopy(PhonopyAtoms(numbers=numbers, cell=lattice, scaled_positions=fractional % 1.0), np.diag(repeat),
                     primitive_matrix=np.eye(3), symprec=1e-4, log_level=0)
    phonon.generate_displacements(distance=_DISPLACEMENT_A)
    supercells = [phonon.supercell, *phonon.supercells_with_displacements]
    return phonon, StructureArrays.from_lists(
        [s.numbers for s in supercells], [s.scaled_positions for s in supercells], [s.cell for s in supercells])


def _solve(model: LamModel, pending: Iterable[tuple[int, Phonopy, StructureArrays]], out: np.ndarray,
           reasons: dict[int, str]) -> None:
    items = list(pending)
    if not items:
        return
    everything = StructureArrays.concatenate(s for _, _, s in items)
    forces = model.evaluate(everything).forces_ev_a
    first = 0
    for i, phonon, supercells in items:
        last = first + len(supercells.numbers)
        mine = forces[first:last].reshape(len(supercells), -1, 3)
        first = last
        if not np.isfinite(mine).all():
            reasons[i] = "the model's forces on a displaced supercell are not finite"
            continue
        try:
            # Residual forces of a not quite relaxed structure are no response to a displacement.
            out[i] = _lowest(phonon, mine[1:] - mine[0])
        except _UNTREATABLE as error:
            reasons[i] = f"phonopy found no frequencies: {type(error).__name__}: {error}"
        else:
            if not math.isfinite(out[i]):
                reasons[i] = "phonopy's frequencies are not finite"


def _lowest(phonon: Phonopy, forces: np.ndarray) -> float:
    phonon.forces = forces
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    repeat = np.diag(phonon.supercell_matrix)
    phonon.run_mesh(_MESH_A, is_gamma_center=True)
    frequencies = [_without_acoustic(q, f) for q, f in zip(phonon.mesh.qpoints, phonon.mesh.frequencies, strict=True)]
    commensurate = [np.array(q) / repeat for q in itertools.product(*(range(n) for n in repeat))]
    phonon.run_qpoints(commensurate)
    frequencies += [_without_acoustic(q, f) for q, f in zip(commensurate, phonon.qpoints.frequencies, strict=True)]
    values = [f.min() for f in frequencies if len(f)]
    return float(min(values)) if values else 0.0


def _without_acoustic(q: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    if np.abs(q).max() > 1e-8:
        return frequencies
    return frequencies[np.argsort(np.abs(frequencies))[3:]]


# ---- jobs -----------------------------------------------------------------------------------------------------------
def phonon_specs(model_digest: str, arrays: StructureArrays, supercell_length_a: float, per_job: int,
                 objects: ObjectStore | None = None, cores: int = 1, wall_time_s: int = 7200, gpus: int = 0) -> list[JobSpec]:
    """Jobs that compute the minimum frequencies of structures, `per_job` of them each, in order.

    Parameters
    ----------
    model_digest : str
        The checkpoint in the object store.
    arrays : StructureArrays
        Relaxed structures.
    supercell_length_a : float
        As in :func:`minimum_frequencies`.
    per_job : int
        Structures per job.
    objects : ObjectStore, optional
        Where the structures are put; opened from the environment by default.
    """
    from hydroflow.settings import ServiceSettings
    from hydroflow.store import open_objects

    objects = objects or open_objects(ServiceSettings.from_environment())
    specs = []
    for first in range(0, len(arrays), per_job):
        part = arrays[first:first + per_job]
        bare = StructureArrays(part.offsets, part.numbers, part.fractional, part.cells)
        specs.append(JobSpec(
            kind=Phonons.kind, engine=ENGINE, label=f"phonons of {len(part)} structures",
            inputs={"supercell_length_a": float(supercell_length_a), "structures": len(part)},
            files={"model.pt": model_digest, "structures.parquet": objects.put(bare.to_parquet())},
            resources=Resources(cores=cores, gpus=gpus, wall_time_s=wall_time_s)))
    return specs


class Phonons(PythonEngine):
    """Result: ``min_frequency_thz``, in the order of the structures, None where there was no answer, and ``reasons`` (index as
    text → words) for those."""

    kind = "lam.phonons"

    def compute(self, inputs: Mapping[str, Any], adjustments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        model = LamModel.load(folder / "model.pt")
        arrays = StructureArrays.from_parquet((folder / "structures.parquet").read_bytes())
        lowest, reasons = frequencies_or_reasons(model, arrays, inputs["supercell_length_a"])
        return {"min_frequency_thz": [float(v) if math.isfinite(v) else None for v in lowest],
                "reasons": {str(i): words for i, words in reasons.items()},
                "threads": int(os.environ.get("OMP_NUM_THREADS", "1"))}
