"""Labelled frames in and out of other formats, through dpdata and ASE: deepmd/npy, deepmd/npy/mixed, OUTCAR, extxyz.

Inside hydroflow, labelled frames are :class:`StructureArrays` (docs/architecture.md, "Labelled frames").
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from hydroflow.arrays import StructureArrays, numbers_of
from hydroflow.errors import DataError

if TYPE_CHECKING:
    import dpdata

EXPORTS = ("deepmd/npy/mixed", "deepmd/npy", "extxyz")
IMPORTS = (*EXPORTS, "vasp/outcar")


# ---- dpdata ---------------------------------------------------------------------------------------------------------
def to_dpdata(frames: StructureArrays, type_map: Sequence[str]) -> dpdata.MultiSystems:
    """Labelled frames as dpdata systems, frames of the same atoms in the same order together.

    Raises
    ------
    DataError
        when an element is not in `type_map`.
    """
    import dpdata

    missing = {chemical_symbols[int(z)] for z in np.unique(frames.numbers)} - set(type_map)
    if missing:
        raise DataError(f"the type map lacks {', '.join(sorted(missing))}; add it to model.type_map")
    species: dict[bytes, list[int]] = {}
    for i in range(len(frames)):
        species.setdefault(frames.numbers[frames.offsets[i]:frames.offsets[i + 1]].tobytes(), []).append(i)
    systems = dpdata.MultiSystems(type_map=list(type_map))
    for rows in species.values():
        group = frames[rows]
        symbols = [chemical_symbols[int(z)] for z in group.numbers[:group.counts[0]]]
        names = sorted(set(symbols), key=list(type_map).index)
        systems.append(dpdata.LabeledSystem(data={
            "atom_names": names, "atom_numbs": [symbols.count(s) for s in names],
            "atom_types": np.array([names.index(s) for s in symbols]), "orig": np.zeros(3), "cells": group.cells,
            "coords": group.positions.reshape(len(rows), -1, 3), "energies": group.columns["energy_ev"].astype(float),
            "forces": group.atom_columns["forces_ev_a"].reshape(len(rows), -1, 3),
            "virials": group.columns["virial_ev"].astype(float),
        }))
    return systems


def from_dpdata(systems: Any) -> StructureArrays:
    """A ``dpdata.LabeledSystem`` or ``MultiSystems`` as labelled frames.

    Raises
    ------
    DataError
        when energies, forces or virials are missing.
    """
    import dpdata

    items = [systems] if isinstance(systems, dpdata.LabeledSystem) else list(systems.systems.values())
    parts = []
    for system in items:
        data = system.data
        for key, name in (("energies", "energies"), ("forces", "forces"), ("virials", "virials (stress)")):
            if key not in data:
                raise DataError(f"{system.formula}: {name} are missing; label the frames with stress")
        n, k = data["coords"].shape[:2]
        numbers = np.array(numbers_of(data["atom_names"]))[data["atom_types"]]
        cells = np.asarray(data["cells"], float)
        part = StructureArrays(
            np.arange(n + 1, dtype=np.int64) * k, np.tile(numbers, n).astype(np.int16),
            np.einsum("nki,nij->nkj", data["coords"], np.linalg.inv(cells)).reshape(-1, 3), cells,
            {"energy_ev": np.asarray(data["energies"], float), "virial_ev": np.asarray(data["virials"], float)},
            {"forces_ev_a": np.asarray(data["forces"], float).reshape(-1, 3)},
        )
        parts.append(part)
    return StructureArrays.concatenate(parts)


def write_training_systems(frames: StructureArrays, folder: Path, type_map: Sequence[str], pad: int) -> list[str]:
    """Write ``deepmd/npy/mixed`` systems, one per number of atoms rounded up to a multiple of `pad`; returns their folders.

    Virtual atoms (type −1) fill a frame up; deepmd-kit masks them out of energy, force and virial losses.
    """
    if not len(frames):
        return []
    to_dpdata(frames, type_map).to_deepmd_npy_mixed(str(folder), atom_numb_pad=pad)
    return sorted(str(p.parent) for p in folder.rglob("type.raw"))


# ---- files ----------------------------------------------------------------------------------------------------------
def export_frames(frames: StructureArrays, path: Path, fmt: str, type_map: Sequence[str]) -> None:
    """Write labelled frames as ``deepmd/npy/mixed``, ``deepmd/npy`` (folders) or ``extxyz`` (one file); whole or not at all.

    Raises
    ------
    DataError
        for an unknown format or a path that exists already.
    """
    if path.exists():
        raise DataError(f"{path} exists already; choose another path or remove it")
    if not len(frames):
        raise DataError("there are no frames to write; choose another split")
    if fmt not in EXPORTS:
        raise DataError(f"unknown export format {fmt!r}; known: {', '.join(EXPORTS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder) / path.name
        if fmt == "extxyz":
            from ase.io import write

            write(part, [_labelled_atoms(frames, i) for i in range(len(frames))], format="extxyz")
        elif fmt == "deepmd/npy/mixed":
            to_dpdata(frames, type_map).to_deepmd_npy_mixed(str(part))
        else:
            to_dpdata(frames, type_map).to_deepmd_npy(str(part))
        part.rename(path)


def import_frames(path: Path, fmt: str, label_settings: str | None = None, source: str = "import") -> StructureArrays:
    """Read a user's labelled frames.

    Parameters
    ----------
    path : Path
        A file (OUTCAR, extxyz) or a folder of deepmd systems.
    fmt : str
        One of :data:`IMPORTS`.
    label_settings : str, optional
        The level of theory the labels came from; frames of different settings are never mixed. An extxyz file may name it
        itself (``label_settings`` of each frame, as :func:`export_frames` writes it).
    source : str
        Goes into the ``source`` column.

    Returns
    -------
    StructureArrays
        Labelled frames. ``pressure_gpa`` is the pressure of each frame itself, from its virial, where the file names none.

    Raises
    ------
    DataError
        for an unknown format, an unreadable file, missing energies, forces or stress; when neither the file nor the caller
        names the label settings, or both do and differ, or two frames differ.
    """
    from hydroflow.units import EV_A3_GPA

    if fmt not in IMPORTS:
        raise DataError(f"unknown import format {fmt!r}; known: {', '.join(IMPORTS)}")
    if not path.exists():
        raise DataError(f"{path} does not exist")
    try:
        frames = _read_extxyz(path) if fmt == "extxyz" else _read_dpdata(path, fmt)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read as {fmt}: {type(error).__name__}: {error}") from error
    if not len(frames):
        raise DataError(f"{path}: no labelled frames in it")
    n = len(frames)
    if "pressure_gpa" not in frames.columns:
        pressure = np.trace(frames.columns["virial_ev"], axis1=1, axis2=2) / (3 * frames.volumes) * EV_A3_GPA
        frames.columns["pressure_gpa"] = np.round(pressure, 1)
    frames.columns["label_settings"] = np.array([_one_settings(path, frames, label_settings)] * n)
    frames.columns["source"] = np.array([source] * n)
    return frames


def _one_settings(path: Path, frames: StructureArrays, told: str | None) -> str:
    """The one label settings of imported frames: what the file names, the caller told, or both alike."""
    named = {str(s) or told or "" for s in frames.columns.get("label_settings", [""])}
    if "" in named:
        raise DataError(f"{path} does not name the level of theory of its frames; give it in words (--label-settings)")
    if len(named) > 1:
        first, second, *_ = sorted(named)
        raise DataError(f"{path}: frames of {len(named)} label settings are mixed ({first}; {second}); import each level of "
                        "theory by itself")
    found = named.pop()
    if told not in (None, found):
        raise DataError(f"{path} says that its frames were labelled with '{found}', not with '{told}'; leave --label-settings "
                        "out, or mend the file")
    return found


def _read_dpdata(path: Path, fmt: str) -> StructureArrays:
    import dpdata

    if fmt == "vasp/outcar":
        return from_dpdata(dpdata.LabeledSystem(str(path), fmt="vasp/outcar"))
    folders = sorted(p.parent for p in path.rglob("type.raw"))
    if not folders:
        raise DataError(f"{path}: no type.raw below it, so not deepmd data")
    mixed = next(path.rglob("real_atom_types.npy"), None)
    if fmt == "deepmd/npy" and mixed is not None:
        # deepmd writes zeros into the type.raw of this layout: every atom would be of the first type
        raise DataError(f"{path} is in deepmd's mixed-type layout ({mixed.parent.name}/{mixed.name}); import it as "
                        "deepmd/npy/mixed")
    if fmt == "deepmd/npy/mixed":
        systems = dpdata.MultiSystems()
        systems.load_systems_from_file(str(path), fmt="deepmd/npy/mixed")
        return from_dpdata(systems)
    return StructureArrays.concatenate(from_dpdata(dpdata.LabeledSystem(str(p), fmt="deepmd/npy")) for p in folders)


def _labelled_atoms(frames: StructureArrays, i: int) -> Any:
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = frames.atoms(i)
    # ASE's stress is positive under tension, the virial is −V·σ.
    stress = -frames.columns["virial_ev"][i] / frames.volumes[i]
    rows = slice(frames.offsets[i], frames.offsets[i + 1])
    atoms.calc = SinglePointCalculator(
        atoms, energy=float(frames.columns["energy_ev"][i]), forces=frames.atom_columns["forces_ev_a"][rows],
        stress=stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])
    for key in ("pressure_gpa", "label_settings", "source"):
        if key in frames.columns:
            value = frames.columns[key][i]
            atoms.info[key] = float(value) if key == "pressure_gpa" else str(value)
    return atoms


def _read_extxyz(path: Path) -> StructureArrays:
    from ase.io import read

    items = read(path, index=":", format="extxyz")
    for k, atoms in enumerate(items):
        has = atoms.calc.results if atoms.calc is not None else {}
        lacking = [q for q in ("energy", "forces", "stress") if q not in has]
        if lacking:
            raise DataError(f"{path}: frame {k} has no {', '.join(lacking)}")
    frames = StructureArrays.from_atoms(items, {
        "energy_ev": [a.get_potential_energy() for a in items],
        "virial_ev": [-a.get_stress(voigt=False) * a.get_volume() for a in items],
    })
    if any("label_settings" in a.info for a in items):
        frames.columns["label_settings"] = np.array([str(a.info.get("label_settings", "")) for a in items], object)
    if all("pressure_gpa" in a.info for a in items):
        frames.columns["pressure_gpa"] = np.array([float(a.info["pressure_gpa"]) for a in items])
    frames.atom_columns["forces_ev_a"] = np.concatenate([a.get_forces() for a in items])
    return frames


def element_order(frames: StructureArrays) -> list[str]:
    """Elements of frames by atomic number: the type map of an export."""
    return [chemical_symbols[int(z)] for z in np.unique(frames.numbers)]
