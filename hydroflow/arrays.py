"""Many crystal structures as ragged arrays: how structures travel in bulk through hydroflow.

One :class:`StructureArrays` holds n structures with their atoms laid end to end; per-structure and per-atom columns
ride along. It is sliced and joined like an array and written as Arrow/Parquet. Single ``ase.Atoms`` or pymatgen
``Structure`` objects are made only at the edges.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ase.data import atomic_numbers, chemical_symbols

from hydroflow.errors import DataError
from hydroflow.units import GPA_A3_EV

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


@dataclass
class StructureArrays:
    """n periodic structures with N atoms in all.

    Attributes
    ----------
    offsets : (n + 1,) int64
        Structure i owns atoms ``offsets[i]:offsets[i + 1]``.
    numbers : (N,) int16
        Atomic numbers.
    fractional : (N, 3) float64
        Fractional coordinates.
    cells : (n, 3, 3) float64
        Lattice vectors as rows, in Å.
    columns : dict of (n, ...) arrays
        Per-structure values, e.g. ``energy_ev`` (n,), ``virial_ev`` (n, 3, 3), ``pressure_gpa``, ``spacegroup``, ``id``.
    atom_columns : dict of (N, ...) arrays
        Per-atom values, e.g. ``forces_ev_a`` (N, 3).
    """

    offsets: np.ndarray
    numbers: np.ndarray
    fractional: np.ndarray
    cells: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    atom_columns: dict[str, np.ndarray] = field(default_factory=dict)

    # ---- making -------------------------------------------------------------------------------------------------
    @classmethod
    def empty(cls) -> StructureArrays:
        return cls(np.zeros(1, np.int64), np.zeros(0, np.int16), np.zeros((0, 3)), np.zeros((0, 3, 3)))

    @classmethod
    def from_lists(
        cls,
        numbers: Sequence[np.ndarray],
        fractional: Sequence[np.ndarray],
        cells: Sequence[np.ndarray],
        columns: Mapping[str, Any] | None = None,
    ) -> StructureArrays:
        """From one array of atomic numbers (k,), fractional coordinates (k, 3) and cell (3, 3) per structure."""
        if not len(numbers):
            return cls.empty()
        counts = np.array([len(z) for z in numbers], np.int64)
        return cls(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate(numbers).astype(np.int16),
            np.concatenate(fractional).astype(float),
            np.asarray(cells, float).reshape(-1, 3, 3),
            {k: np.asarray(v) for k, v in (columns or {}).items()},
        )

    @classmethod
    def from_atoms(cls, atoms: Iterable[Atoms], columns: Mapping[str, Any] | None = None) -> StructureArrays:
        items = list(atoms)
        return cls.from_lists(
            [a.numbers for a in items],
            [a.get_scaled_positions(wrap=False) for a in items],
            [a.cell.array for a in items],
            columns,
        )

    @classmethod
    def concatenate(cls, parts: Iterable[StructureArrays]) -> StructureArrays:
        """Join; only columns that every part has are kept."""
        items = [p for p in parts if len(p)]
        if not items:
            return cls.empty()
        shared = [k for k in items[0].columns if all(k in p.columns for p in items)]
        shared_atoms = [k for k in items[0].atom_columns if all(k in p.atom_columns for p in items)]
        counts = np.concatenate([p.counts for p in items])
        return cls(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.concatenate([p.numbers for p in items]),
            np.concatenate([p.fractional for p in items]),
            np.concatenate([p.cells for p in items]),
            {k: np.concatenate([p.columns[k] for p in items]) for k in shared},
            {k: np.concatenate([p.atom_columns[k] for p in items]) for k in shared_atoms},
        )

    # ---- looking ------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Any) -> StructureArrays:
        """A sub-batch by integer, slice, boolean mask (n,) or integer array; columns follow."""
        picked = np.atleast_1d(np.arange(len(self))[index])
        counts = self.counts[picked]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(self.offsets[picked] - offsets[:-1], counts) + np.arange(offsets[-1])
        return StructureArrays(
            offsets,
            self.numbers[rows],
            self.fractional[rows],
            self.cells[picked],
            {k: v[picked] for k, v in self.columns.items()},
            {k: v[rows] for k, v in self.atom_columns.items()},
        )

    def __iter__(self) -> Iterator[StructureArrays]:
        return (self[i] for i in range(len(self)))

    @property
    def counts(self) -> np.ndarray:
        """(n,) atoms per structure."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> np.ndarray:
        """(N,) index of the structure that each atom belongs to."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def volumes(self) -> np.ndarray:
        """(n,) cell volumes in Å³."""
        return np.abs(np.linalg.det(self.cells))

    @property
    def positions(self) -> np.ndarray:
        """(N, 3) Cartesian positions in Å."""
        return np.einsum("ni,nij->nj", self.fractional, self.cells[self.owner])

    def count_of(self, number: int) -> np.ndarray:
        """(n,) how many atoms of this atomic number each structure has."""
        return np.bincount(self.owner[self.numbers == number], minlength=len(self))

    def compositions(self) -> list[dict[str, int]]:
        """Symbol → count per structure, in order of first appearance."""
        out = []
        for i in range(len(self)):
            z, first, n = np.unique(
                self.numbers[self.offsets[i] : self.offsets[i + 1]], return_index=True, return_counts=True
            )
            order = np.argsort(first)
            out.append({chemical_symbols[int(z[k])]: int(n[k]) for k in order})
        return out

    def formulas(self) -> list[str]:
        """Reduced formula per structure, metals first and hydrogen last (see :func:`formula`)."""
        return [formula(c) for c in self.compositions()]

    def chemical_systems(self) -> list[str]:
        """Sorted symbols joined by '-', e.g. ``Ca-H-Y``."""
        return ["-".join(sorted(c)) for c in self.compositions()]

    def enthalpies_ev(self, pressure_gpa: float) -> np.ndarray:
        """(n,) H = E + PV in eV per cell from the ``energy_ev`` column."""
        return self.columns["energy_ev"] + pressure_gpa * GPA_A3_EV * self.volumes

    def digests(self) -> list[str]:
        """Content hash of each structure (numbers, cell and fractional coordinates rounded to 1e-8): its identity in
        job keys. Two descriptions of one crystal have different digests; physical identity is for fingerprints."""
        out = []
        for i in range(len(self)):
            rows = slice(self.offsets[i], self.offsets[i + 1])
            h = hashlib.sha256(self.numbers[rows].astype("<i2").tobytes())
            # + 0.0 turns -0.0 into 0.0, which would hash differently
            h.update((np.round(self.cells[i], 8) + 0.0).astype("<f8").tobytes())
            h.update((np.round(self.fractional[rows], 8) + 0.0).astype("<f8").tobytes())
            out.append(h.hexdigest()[:32])
        return out

    # ---- edges --------------------------------------------------------------------------------------------------
    def atoms(self, i: int = 0) -> Atoms:
        """Structure i as ``ase.Atoms``."""
        from ase import Atoms

        rows = slice(self.offsets[i], self.offsets[i + 1])
        return Atoms(numbers=self.numbers[rows], scaled_positions=self.fractional[rows], cell=self.cells[i], pbc=True)

    def structure(self, i: int = 0) -> Structure:
        """Structure i as a pymatgen ``Structure``."""
        from pymatgen.core import Lattice, Structure

        rows = slice(self.offsets[i], self.offsets[i + 1])
        return Structure(
            Lattice(self.cells[i]), [chemical_symbols[z] for z in self.numbers[rows]], self.fractional[rows]
        )

    def to_table(self) -> pa.Table:
        """Arrow table, one row per structure; per-atom arrays become lists."""
        n = len(self)
        data: dict[str, pa.Array] = {
            "numbers": _ragged(self.numbers, self.offsets),
            "fractional": _ragged(self.fractional, self.offsets),
            "cell": _ragged(self.cells.reshape(n, 9), None),
        }
        for k, v in self.columns.items():
            data[f"column:{k}"] = (
                _ragged(v.reshape(n, -1), None) if v.ndim > 1 else pa.array(v.tolist() if v.dtype == object else v)
            )
        for k, v in self.atom_columns.items():
            data[f"atom:{k}"] = _ragged(v, self.offsets)
        shapes = {f"column:{k}": v.shape[1:] for k, v in self.columns.items()}
        shapes |= {f"atom:{k}": v.shape[1:] for k, v in self.atom_columns.items()}
        meta = {f"shape:{k}": ",".join(map(str, s)) for k, s in shapes.items()}
        return pa.table(data).replace_schema_metadata({"hydroflow": "structures/1", **meta})

    @classmethod
    def from_table(cls, table: pa.Table) -> StructureArrays:
        """Inverse of :meth:`to_table`.

        Raises
        ------
        DataError
            when the table is not one of ours.
        """
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if meta.get("hydroflow") != "structures/1":
            raise DataError("this Arrow table does not hold hydroflow structures (metadata 'hydroflow' is missing)")
        table = table.combine_chunks()

        def flat(name: str) -> tuple[np.ndarray, np.ndarray]:
            col = table.column(name)
            col = col.chunk(0) if col.num_chunks else pa.array([], col.type)
            return col.flatten().to_numpy(zero_copy_only=False), np.asarray(col.offsets)

        numbers, offsets = flat("numbers")
        out = cls(
            (offsets - offsets[0]).astype(np.int64),
            numbers,
            flat("fractional")[0].reshape(-1, 3),
            flat("cell")[0].reshape(-1, 3, 3),
        )
        for name in table.column_names:
            if ":" not in name:
                continue
            family, key = name.split(":", 1)
            shape = tuple(int(s) for s in meta[f"shape:{name}"].split(",") if s)
            if family == "atom":
                out.atom_columns[key] = flat(name)[0].reshape(len(numbers), *shape)
            elif shape:
                out.columns[key] = flat(name)[0].reshape(len(out), *shape)
            else:
                out.columns[key] = table.column(name).to_numpy()
        return out

    def to_parquet(self) -> bytes:
        sink = io.BytesIO()
        pq.write_table(self.to_table(), sink, compression="zstd")
        return sink.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes) -> StructureArrays:
        try:
            table = pq.read_table(io.BytesIO(data))
        except pa.ArrowInvalid as error:
            raise DataError(f"not a readable Parquet shard of structures (half-written?): {error}") from error
        return cls.from_table(table)


def _ragged(values: np.ndarray, offsets: np.ndarray | None) -> pa.Array:
    """A list array: rows of a 2-D array (offsets None) or atoms' values grouped by structure."""
    if offsets is None:
        width = values.shape[1]
        offsets = np.arange(len(values) + 1) * width
        flat = values.reshape(-1)
    else:
        flat = values.reshape(-1)
        offsets = offsets * (values.size // len(values) if len(values) else 1)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.ascontiguousarray(flat)))


@cache
def _electronegativity(symbol: str) -> float:
    from pymatgen.core import Element

    value = Element(symbol).X
    return value if value == value else 9.9  # noble gases have none


def formula(composition: Mapping[str, int], reduce_counts: bool = True) -> str:
    """Formula of a hydride in the field's order: by Pauling electronegativity, hydrogen last.

    ``formula({"H": 24, "Y": 2, "Ca": 2})`` is ``"CaYH12"``, ``formula({"Be": 1, "La": 1, "H": 8})`` is ``"LaBeH8"``.
    """
    divisor = reduce(gcd, composition.values()) if reduce_counts else 1
    parts = []
    for symbol in sorted(composition, key=lambda s: (s == "H", _electronegativity(s), s)):
        n = composition[symbol] // divisor
        parts.append(symbol if n == 1 else f"{symbol}{n}")
    return "".join(parts)


def numbers_of(symbols: Iterable[str]) -> list[int]:
    """Atomic numbers of symbols; :class:`DataError` names an unknown one."""
    out = []
    for s in symbols:
        if s not in atomic_numbers or s == "X":
            raise DataError(f"unknown element {s!r}")
        out.append(atomic_numbers[s])
    return out
