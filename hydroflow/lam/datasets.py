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
from hydroflow.store import Store
from hydroflow.store.documents import Dataset
from hydroflow.store.objects import ObjectStore
from hydroflow.units import EV_A3_GPA

SPLITS = ("train", "validation", "test")
TEST_SHARE = 0.1
VALIDATION_SHARE = 0.1
_LARGEST_HELD_OUT = 0.15
COLUMNS = ("energy_ev", "virial_ev", "pressure_gpa", "label_settings", "source")
SAME_ENERGY_EV = 1e-3
SAME_FORCE_EV_A = 0.05
"""Per atom, and per component: labels of one geometry that differ by more are two answers, not two runs."""
_MAX_FORCE_EV_A = 500.0
_MAX_PRESSURE_GPA = 3000.0
_LEAST_MEDIAN_PRESSURE_GPA = -20.0
"""No compressed solid's: data whose middle is under more tension than this have the sign of the virial reversed."""
_PRESSURE_BIN_GPA = 50
_MAX_RESIDUAL_EV_ATOM = 20.0


# ---- checks ---------------------------------------------------------------------------------------------------------
def check_frames(frames: StructureArrays, expected_pressure_gpa: float | None = None) -> str:
    """Check labelled frames and return their one label settings string.

    Parameters
    ----------
    frames : StructureArrays
        Labelled frames. Their column ``pressure_gpa`` mostly comes from the same stress as the virial, and cannot show that the
        virial is wrong.
    expected_pressure_gpa : float, optional
        The pressure that they were made at, from another source than their stress.

    Raises
    ------
    DataError
        empty; a column missing (virial among them); a value not finite; values that are not in eV, Å and GPa; a virial of
        the wrong sign; more than one label settings.
    """
    if not len(frames):
        raise DataError("no labelled frames to make a dataset of")
    lacking = [c for c in COLUMNS if c not in frames.columns]
    if "forces_ev_a" not in frames.atom_columns:
        lacking.append("forces_ev_a")
    if lacking:
        raise DataError(f"labelled frames lack {', '.join(lacking)}; a label needs energy, forces and virial (stress)")
    n = len(frames)
    for name, values in (("energy_ev", frames.columns["energy_ev"]), ("virial_ev", frames.columns["virial_ev"]),
                         ("pressure_gpa", frames.columns["pressure_gpa"]), ("cells", frames.cells)):
        bad = ~np.isfinite(np.asarray(values, float).reshape(n, -1)).all(axis=1)
        if bad.any():
            raise DataError(f"{name} of frame {int(np.argmax(bad))} is not finite ({int(bad.sum())} such frames)")
    for name, values in (("forces_ev_a", frames.atom_columns["forces_ev_a"]), ("positions", frames.fractional)):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise DataError(f"{name} of frame {int(frames.owner[np.argmax(bad)])} are not finite")
    _check_units(frames, expected_pressure_gpa)
    settings = sorted({str(s) for s in frames.columns["label_settings"]})
    if len(settings) > 1:
        raise DataError(f"frames of {len(settings)} label settings are mixed ({settings[0]}; {settings[1]}; …); "
                        "make one dataset per level of theory")
    return settings[0]


def _check_units(frames: StructureArrays, expected_pressure_gpa: float | None) -> None:
    """Numbers that no solid under pressure has in eV, Å and GPa mean other units, a reversed sign or a broken label."""
    force = np.abs(frames.atom_columns["forces_ev_a"]).max()
    if force > _MAX_FORCE_EV_A:
        raise DataError(f"a force of {force:.3g} eV/Å is not a solid's; check the units (Ry/bohr, eV/Å) or drop the frame")
    volume = frames.volumes / frames.counts
    if volume.min() < 0.5 or volume.max() > 1000:
        raise DataError(f"volumes of {volume.min():.3g} to {volume.max():.3g} Å³ per atom; check the units of the cells "
                        "(bohr, Å)")
    pressure = np.trace(frames.columns["virial_ev"], axis1=1, axis2=2) / (3 * frames.volumes) * EV_A3_GPA
    if np.abs(pressure).max() > _MAX_PRESSURE_GPA:
        raise DataError(f"a virial that means {pressure[np.abs(pressure).argmax()]:.4g} GPa; virial_ev is −V·σ in eV, not a "
                        "stress in GPa or kbar")
    middle = float(np.median(pressure))
    if middle < _LEAST_MEDIAN_PRESSURE_GPA:
        raise DataError(f"the virials mean {middle:.0f} GPa in the middle of the frames, a solid under tension: the sign is "
                        "reversed; give the virial as −V·σ, positive under compression (a stress the other way, as ASE's)")
    if expected_pressure_gpa is not None:
        slack = -_LEAST_MEDIAN_PRESSURE_GPA
        if not expected_pressure_gpa / 3 - slack < middle < 3 * expected_pressure_gpa + slack:
            raise DataError(f"the virials mean {middle:.3g} GPa in the middle of the frames where {expected_pressure_gpa:g} GPa "
                            "is expected; check their units (eV per cell; a stress in an extxyz file: eV/Å³)")
    aim = np.median(frames.columns["pressure_gpa"])
    if aim > 50 and np.median(np.abs(pressure)) < aim / 20:
        raise DataError(f"the virials mean {np.median(pressure):.3g} GPa where {aim:.0f} GPa was aimed at; check their units "
                        "(virial_ev is in eV per cell)")
    check_energies(frames, frames)


def check_energies(reference: StructureArrays, frames: StructureArrays) -> None:
    """Energies of `frames` must fit the composition-wise least-squares energies of `reference` within 20 eV/atom: other
    pseudopotentials or units are further off.

    Raises
    ------
    DataError
        naming the frame and how far it is off.
    """
    elements = np.unique(reference.numbers)
    if len(np.unique([f.encode() for f in reference.formulas()])) <= len(elements):
        return  # not enough compositions to tell an offset from an element's energy
    counts = np.stack([reference.count_of(z) for z in elements], 1) / reference.counts[:, None]
    energies = reference.columns["energy_ev"] / reference.counts
    # Least absolute residuals by reweighting, so that a wrong frame does not pull the fit to itself.
    weight = np.ones(len(reference))
    for _ in range(20):
        coefficients, *_ = np.linalg.lstsq(counts * weight[:, None], energies * weight, rcond=None)
        weight = 1 / np.sqrt(np.maximum(np.abs(counts @ coefficients - energies), 0.01))
    known = np.isin(frames.numbers, elements)
    usable = np.bincount(frames.owner[~known], minlength=len(frames)) == 0
    share = np.stack([frames.count_of(z) for z in elements], 1) / frames.counts[:, None]
    residual = np.where(usable, frames.columns["energy_ev"] / frames.counts - share @ coefficients, 0.0)
    worst = int(np.abs(residual).argmax())
    if abs(residual[worst]) > _MAX_RESIDUAL_EV_ATOM:
        raise DataError(f"the energy of frame {worst} ({frames[worst].formulas()[0]}) is {residual[worst]:+.1f} eV/atom away "
                        "from what its composition has in the other frames; check units and pseudopotentials")


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
