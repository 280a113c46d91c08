"""One structure inside a DFT job: its plain JSON form, its geometry checks, its k mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import primitive_neighbor_list

from hydroflow.arrays import StructureArrays
from hydroflow.errors import EngineFailure, FailureCode

CLOSEST = {"with_hydrogen": 0.5, "heavy": 0.42}
"""Atoms nearer than this share of the sum of their covalent radii are no material at any pressure met here (La–H 1.19 Å,
La–La 1.74 Å); generators keep well above it (La–H 1.33 Å, La–La 1.85 Å)."""
CLOSEST_A = 0.5
"""No two nuclei nearer than this, H–H included (0.8 Å in hydrides under pressure, 0.74 Å in free H2)."""


def to_json(structures: StructureArrays, i: int = 0) -> dict[str, Any]:
    """Structure i as plain rounded JSON (1e-8), so that identical content gives an identical job key."""
    rows = slice(structures.offsets[i], structures.offsets[i + 1])
    return from_arrays(structures.numbers[rows], structures.cells[i], structures.fractional[rows])


def from_arrays(numbers: np.ndarray, cell: np.ndarray, fractional: np.ndarray) -> dict[str, Any]:
    """As :func:`to_json`, from atomic numbers (k,), cell (3, 3) in Å and fractional coordinates (k, 3)."""
    # + 0.0 turns -0.0 into 0.0: they are written differently
    return {"numbers": [int(z) for z in numbers], "cell": (np.round(np.asarray(cell, float), 8) + 0.0).tolist(),
            "fractional": (np.round(np.asarray(fractional, float), 8) + 0.0).tolist()}


def to_atoms(data: Mapping[str, Any]) -> Atoms:
    """``ase.Atoms`` of the JSON form."""
    return Atoms(numbers=list(data["numbers"]), cell=np.array(data["cell"], float),
                 scaled_positions=np.array(data["fractional"], float).reshape(-1, 3), pbc=True)


def symbols_of(data: Mapping[str, Any]) -> list[str]:
    """Chemical symbols, sorted, each once."""
    return sorted({chemical_symbols[z] for z in data["numbers"]})


def volume_a3(data: Mapping[str, Any]) -> float:
    """Cell volume in Å³."""
    return float(abs(np.linalg.det(np.array(data["cell"], float))))


def check_geometry(data: Mapping[str, Any]) -> None:
    """Refuse what no engine should be started on.

    Raises
    ------
    EngineFailure
        ``bad_input`` for an empty, non-finite or flat cell; ``atoms_too_close`` for overlapping atoms.
    """
    cell, fractional = np.array(data["cell"], float), np.array(data["fractional"], float).reshape(-1, 3)
    count = len(data["numbers"])
    if count == 0 or fractional.shape != (count, 3) or cell.shape != (3, 3):
        raise EngineFailure(FailureCode.bad_input, f"the structure has {count} atoms and {len(fractional)} positions")
    if not (np.isfinite(cell).all() and np.isfinite(fractional).all()):
        raise EngineFailure(FailureCode.bad_input, "the structure has coordinates that are not finite numbers")
    volume = abs(np.linalg.det(cell))
    if volume / count < 0.5:
        raise EngineFailure(FailureCode.bad_input, f"the cell has {volume / count:.3g} Å³ per atom: flat or collapsed")
    pair = closest_pair(to_atoms(data))
    if pair is not None:
        first, second, distance, limit = pair
        raise EngineFailure(FailureCode.atoms_too_close, f"{first} and {second} are {distance:.3f} Å apart (limit {limit:.2f} Å)",
                            {"pair": [first, second], "distance_a": round(distance, 4), "limit_a": round(limit, 3)})


def closest_pair(atoms: Atoms) -> tuple[str, str, float, float] | None:
    """The pair furthest below its limit as (symbol, symbol, distance Å, limit Å), or None when all are apart."""
    radii, hydrogen = covalent_radii[atoms.numbers], atoms.numbers == 1
    reach = max(CLOSEST_A, 2 * max(CLOSEST.values()) * radii.max())
    i, j, d = primitive_neighbor_list("ijd", atoms.pbc, atoms.cell.array, atoms.positions, float(reach))
    share = np.where(hydrogen[i] | hydrogen[j], CLOSEST["with_hydrogen"], CLOSEST["heavy"])
    limits = np.maximum(CLOSEST_A, share * (radii[i] + radii[j]))
    bad = np.flatnonzero(d < limits)
    if not len(bad):
        return None
    worst = bad[np.argmin(d[bad] / limits[bad])]
    symbols = atoms.get_chemical_symbols()
    return symbols[i[worst]], symbols[j[worst]], float(d[worst]), float(limits[worst])


def sphere_overlap(atoms: Atoms, radii_a: Mapping[str, float]) -> float:
    """Largest overlap of pseudopotential core spheres, as the share 1 − d/(r_i + r_j) of the summed radii; 0 without any.

    `radii_a` is element → projector cutoff radius in Å (0 where unknown).
    """
    radii = np.array([radii_a.get(s, 0.0) for s in atoms.get_chemical_symbols()])
    if radii.max() <= 0:
        return 0.0
    i, j, d = primitive_neighbor_list("ijd", atoms.pbc, atoms.cell.array, atoms.positions, float(2 * radii.max()))
    total = radii[i] + radii[j]
    near = (d < total) & (radii[i] > 0) & (radii[j] > 0)
    return float(np.max(1 - d[near] / total[near])) if near.any() else 0.0


def k_mesh(cell: np.ndarray, spacing_per_a: float) -> tuple[int, int, int]:
    """Γ-centred mesh whose points are at most `spacing_per_a` (Å⁻¹, 2π included) apart along each reciprocal vector."""
    reciprocal = 2 * np.pi * np.linalg.inv(np.asarray(cell, float)).T
    # 1e-4: two axes that symmetry makes equal must not fall on two sides of an integer by rounding
    counts = np.ceil(np.linalg.norm(reciprocal, axis=1) / spacing_per_a - 1e-4)
    a, b, c = np.maximum(1, counts).astype(int)
    return int(a), int(b), int(c)


def denser_mesh(a: Sequence[int], b: Sequence[int]) -> tuple[int, int, int]:
    """The coarsest mesh that is nowhere coarser than either."""
    x, y, z = (max(int(p), int(q)) for p, q in zip(a, b, strict=True))
    return x, y, z


def irreducible_k_points(data: Mapping[str, Any], mesh: tuple[int, int, int]) -> int:
    """Number of k-points that symmetry leaves of a mesh."""
    import spglib

    cell = (np.array(data["cell"]), np.array(data["fractional"]), list(data["numbers"]))
    found = spglib.get_ir_reciprocal_mesh(mesh, cell, is_shift=[0, 0, 0], symprec=1e-4)
    return len(np.unique(found[0])) if found is not None else int(np.prod(mesh)) // 2 + 1
