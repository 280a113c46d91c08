"""Versions of the labelled frames: checked, content-addressed, split by composition group.

A dataset is a manifest object (JSON) that names Parquet parts; a new version shares the parts of its parent and adds one.
The split is fixed once a composition group is in it: a group's frames, and with them all frames of a trajectory, stay on
one side for ever. Only a dataset of a single composition is split frame by frame (:func:`assign_splits`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.lam.label_checks import COLUMNS, check_energies, check_frames
from hydroflow.store import Store
from hydroflow.store.documents import Dataset
from hydroflow.store.objects import ObjectStore

SPLITS = ("train", "validation", "test")
TEST_SHARE = 0.1
VALIDATION_SHARE = 0.1
_LARGEST_HELD_OUT = 0.15
SAME_ENERGY_EV = 1e-3
SAME_FORCE_EV_A = 0.05
"""Per atom, and per component: labels of one geometry that differ by more are two answers, not two runs."""
_PRESSURE_BIN_GPA = 50


def pressure_bins(pressures_gpa: np.ndarray) -> np.ndarray:
    """(n,) text such as ``150-200 GPa``, the 50 GPa that each pressure lies in: labels have as many pressures as frames."""
    low = (np.asarray(pressures_gpa, float) // _PRESSURE_BIN_GPA).astype(int) * _PRESSURE_BIN_GPA
    return np.array([f"{p}-{p + _PRESSURE_BIN_GPA} GPa" if p >= 0 else "below 0 GPa" for p in low], dtype="U16")


# ---- split ----------------------------------------------------------------------------------------------------------
def _draw(group: str) -> float:
    """A number in [0, 1) that belongs to a composition group for ever."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def assign_splits(sizes: dict[str, int], fixed: dict[str, str]) -> dict[str, str]:
    """Split of each composition group.

    Parameters
    ----------
    sizes : dict
        Frames per group (reduced formula).
    fixed : dict
        Assignments of the parent dataset; kept.

    Returns
    -------
    dict
        Group → ``train``, ``validation`` or ``test``. Elements are always trained on (they are the corners of the hull), and
        so is a group of more than 15 % of the frames.
        From three groups on, validation and test are not empty if there are compounds enough; with two, the second
        validates. A single group is marked ``frames`` and split frame by frame: there is nothing else to hold out, and a
        training without validation could not be judged at all. Its errors are those of interpolation, since frames of one
        trajectory can be on both sides; ``hydroflow datasets show`` says so.
    """
    out = {g: s for g, s in fixed.items() if g in sizes}
    total = sum(sizes.values())
    if len(sizes) == 1 and not fixed:
        return dict.fromkeys(sizes, "frames")
    for group in sizes:
        if group not in out:
            u = _draw(group)
            kept = sum(c.isupper() for c in group) == 1 or sizes[group] > _LARGEST_HELD_OUT * total
            out[group] = "train" if kept or u >= TEST_SHARE + VALIDATION_SHARE else "test" if u < TEST_SHARE else "validation"
    movable = sorted((g for g in sizes if g not in fixed and sum(c.isupper() for c in g) > 1), key=_draw)
    if not movable and not fixed:
        movable = sorted(sizes, key=_draw)
    median = np.median([sizes[g] for g in sizes])
    wanted = ("validation", "test") if len(sizes) >= 3 else ("validation",)
    for split in wanted:
        if split in out.values():
            continue
        spare = [g for g in movable if out[g] == "train" and sum(s == "train" for s in out.values()) > 1]
        small = [g for g in spare if sizes[g] <= median]
        if spare:
            out[(small or spare)[0]] = split
    if "train" not in out.values() and "frames" not in out.values() and movable:
        out[max(movable, key=lambda g: sizes[g])] = "train"
    return out


def _split_column(frames: StructureArrays, groups: Sequence[str], splits: dict[str, str]) -> np.ndarray:
    """(n,) split of each frame."""
    out = np.array([splits[g] for g in groups], dtype="U10")
    single = np.flatnonzero(out == "frames")
    if len(single):
        # A fifth by content, at least one, so that a lone composition can still be validated and its frames stay put.
        draws = np.array([int(d[:8], 16) / 2**32 for d in frames[single].digests()])
        out[single] = np.where(draws < 0.2, "validation", "train")
        if len(single) > 1 and draws.min() >= 0.2:
            out[single[draws.argmin()]] = "validation"
        if draws.max() < 0.2:
            out[single[draws.argmax()]] = "train"
    return out


# ---- versions -------------------------------------------------------------------------------------------------------
def build_dataset(store: Store, campaign_name: str, frames: StructureArrays, parent: str | None = None,
                  expected_pressure_gpa: float | None = None) -> str:
    """Make a dataset of labelled frames, joined to those of `parent`; frames that are there already are not doubled.

    Parameters
    ----------
    store : Store
        Objects and documents.
    campaign_name : str
        Whose dataset it is.
    frames : StructureArrays
        Labelled frames (docs/architecture.md).
    parent : str, optional
        Digest of the version it goes on from.
    expected_pressure_gpa : float, optional
        As for :func:`check_frames`.

    Returns
    -------
    str
        The digest of the manifest. The same frames in the same order give the same digest.

    Raises
    ------
    DataError
        for frames that fail :func:`check_frames`, or of other label settings than the parent's.
    """
    settings = check_frames(frames, expected_pressure_gpa)
    manifest: dict[str, Any] = {"parts": [], "splits": {}, "label_settings": settings}
    old = StructureArrays.empty()
    if parent is not None:
        manifest = read_manifest(store.objects, parent)
        if manifest["label_settings"] != settings:
            raise DataError(f"the new frames were labelled with '{settings}', the dataset they are to join with "
                            f"'{manifest['label_settings']}'; never mix levels of theory")
        old = _read_parts(store.objects, manifest)
        check_energies(old, frames)
    fresh = _fresh(old, frames)
    new = StructureArrays.concatenate([frames[fresh]]) if fresh else StructureArrays.empty()
    new.columns = {k: v for k, v in new.columns.items() if k in COLUMNS}
    new.atom_columns = {k: v for k, v in new.atom_columns.items() if k == "forces_ev_a"}
    parts = [*manifest["parts"], *([store.objects.put(new.to_parquet())] if len(new) else [])]
    everything = StructureArrays.concatenate([old, new])
    groups = everything.formulas()
    splits = assign_splits(dict(Counter(groups)), manifest["splits"])
    column = _split_column(everything, groups, splits)
    pressures = Counter(pressure_bins(everything.columns["pressure_gpa"]).tolist())
    body = {
        "format": "hydroflow dataset/1", "parent": parent, "label_settings": settings, "parts": parts, "splits": splits,
        "frames": len(everything),
        "counts": {"composition": dict(Counter(groups)), "pressure": dict(pressures),
                   "source": dict(Counter(str(s) for s in everything.columns["source"])),
                   "element": {chemical_symbols[int(z)]: int((everything.count_of(z) > 0).sum())
                               for z in np.unique(everything.numbers)}},
        "split": {s: int((column == s).sum()) for s in SPLITS},
    }
    digest = store.objects.put(json.dumps(body, sort_keys=True).encode())
    if Dataset.objects(digest=digest).first() is None:
        Dataset(digest=digest, campaign=campaign_name, parent=parent, label_settings=settings, frames=len(everything),
                counts=body["counts"], split=body["split"], parts=parts).save()
    return digest


def _fresh(old: StructureArrays, frames: StructureArrays) -> list[int]:
    """Indices of the frames that are neither in `old` nor earlier among `frames`.

    Raises
    ------
    DataError
        when a frame is there with another label: one of the two is wrong.
    """
    seen = {d: (old, i) for i, d in enumerate(old.digests())}
    fresh = []
    for i, digest in enumerate(frames.digests()):
        if digest not in seen:
            seen[digest] = (frames, i)
            fresh.append(i)
            continue
        others, k = seen[digest]
        energy = abs(frames.columns["energy_ev"][i] - others.columns["energy_ev"][k]) / frames.counts[i]
        force = np.abs(frames[i].atom_columns["forces_ev_a"] - others[k].atom_columns["forces_ev_a"]).max()
        if energy > SAME_ENERGY_EV or force > SAME_FORCE_EV_A:
            raise DataError(f"frame {i} ({frames.formulas()[i]}) is there already with another label: {1e3 * energy:.3g} "
                            f"meV/atom and {force:.3g} eV/Å apart; drop the wrong one, or begin a dataset without it")
    return fresh


def read_manifest(objects: ObjectStore, digest: str) -> dict[str, Any]:
    """The manifest of a dataset. Raises :class:`DataError` when the object is not one."""
    return parse_manifest(objects.get(digest))


def parse_manifest(data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        if manifest["format"] != "hydroflow dataset/1":
            raise KeyError("format")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("this object is not the manifest of a dataset; `hydroflow datasets list` names them") from error
    return manifest


def split_frames(manifest: dict[str, Any], frames: StructureArrays) -> dict[str, StructureArrays]:
    """Frames of a manifest's parts, in order, by split."""
    column = _split_column(frames, frames.formulas(), manifest["splits"])
    return {s: frames[column == s] for s in SPLITS}


def load_dataset(store: Store, digest: str) -> dict[str, StructureArrays]:
    """The labelled frames of a dataset: ``train``, ``validation``, ``test``."""
    manifest = read_manifest(store.objects, digest)
    return split_frames(manifest, _read_parts(store.objects, manifest))


def _read_parts(objects: ObjectStore, manifest: dict[str, Any]) -> StructureArrays:
    return StructureArrays.concatenate(StructureArrays.from_parquet(objects.get(d)) for d in manifest["parts"])
