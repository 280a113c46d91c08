"""What a labelled frame must be before it enters a dataset: whole, finite, of one level of theory, and in eV, Å and GPa."""

from __future__ import annotations

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.errors import DataError
from hydroflow.units import EV_A3_GPA

COLUMNS = ("energy_ev", "virial_ev", "pressure_gpa", "label_settings", "source")
_MAX_FORCE_EV_A = 500.0
_MAX_PRESSURE_GPA = 3000.0
_LEAST_MEDIAN_PRESSURE_GPA = -20.0
"""No compressed solid's: data whose middle is under more tension than this have the sign of the virial reversed."""
_MAX_RESIDUAL_EV_ATOM = 20.0
_MAX_STEP_A = 0.3
_MAX_STRAIN = 0.05
"""Frames of one crystal further apart than these are not neighbours on a path: their forces do not integrate to an energy."""
_LEAST_WORK_EV_ATOM = 0.01
"""Well above what a coarse k mesh does to energies when a cell changes."""
_LEAST_PATHS = 5
_MOST_PATHS = 2000
_WORK_WINDOW = (0.6, 1.6)
"""Of the change of energy over the work of the forces or of the stress: Å and bohr are 1.89 apart, eV and Ry 13.6."""


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
    settings = sorted({str(s) for s in frames.columns["label_settings"]})
    if len(settings) > 1:  # first: two levels of theory look like wrong units
        raise DataError(f"frames of {len(settings)} label settings are mixed ({settings[0]}; {settings[1]}; …); "
                        "make one dataset per level of theory")
    _check_units(frames, expected_pressure_gpa)
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
    check_work(frames)


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


def check_work(frames: StructureArrays) -> None:
    """Energies must change by the work of forces and stress between neighbouring frames of one crystal.

    For frames with the same atoms in the same order that differ by small displacements u and a small strain ε, the trapezoidal
    rule gives ΔE = −½ Σ (F₁ + F₂)·u − ½ (W₁ + W₂):ε. Units that contradict each other (energies in Ry beside forces in eV/Å,
    positions in bohr) or a reversed sign change the ratio of the two for every pair. Judged by its median, apart for pairs that
    forces and that stress dominate, where there are enough of them: trajectories have such pairs, unrelated structures have none.

    Raises
    ------
    DataError
        with the median ratio.
    """
    found: dict[str, list[float]] = {"forces": [], "virials": []}
    for i, j in _neighbours(frames):
        rows = slice(frames.offsets[i], frames.offsets[i + 1]), slice(frames.offsets[j], frames.offsets[j + 1])
        cell = (frames.cells[i] + frames.cells[j]) / 2
        step = frames.fractional[rows[1]] - frames.fractional[rows[0]]
        step = (step - np.round(step)) @ cell
        step -= step.mean(axis=0)
        strain = np.linalg.solve(cell, frames.cells[j] - frames.cells[i])
        strain = (strain + strain.T) / 2
        if np.abs(step).max() > _MAX_STEP_A or np.abs(strain).max() > _MAX_STRAIN:
            continue
        forces = frames.atom_columns["forces_ev_a"]
        by_forces = -float(np.sum((forces[rows[0]] + forces[rows[1]]) * step)) / 2
        by_stress = -float(np.sum((frames.columns["virial_ev"][i] + frames.columns["virial_ev"][j]) * strain)) / 2
        work = by_forces + by_stress
        if abs(work) > _LEAST_WORK_EV_ATOM * frames.counts[i]:
            change = float(frames.columns["energy_ev"][j] - frames.columns["energy_ev"][i])
            found["forces" if abs(by_forces) > abs(by_stress) else "virials"].append(change / work)
    for what, ratios in found.items():
        if len(ratios) >= _LEAST_PATHS and not _WORK_WINDOW[0] < np.median(ratios) < _WORK_WINDOW[1]:
            raise DataError(f"between neighbouring frames of a crystal energies change by {np.median(ratios):.3g} times what "
                            f"their {what} say ({len(ratios)} pairs): energies, {what} and cells are not all in eV and Å, or a "
                            "sign is reversed")


def _neighbours(frames: StructureArrays) -> list[tuple[int, int]]:
    """Pairs of frames that follow each other among those with the same atoms in the same order; some of them where there are
    very many."""
    last: dict[bytes, int] = {}
    pairs = []
    for i in range(len(frames)):
        atoms = frames.numbers[frames.offsets[i]:frames.offsets[i + 1]].tobytes()
        if atoms in last:
            pairs.append((last[atoms], i))
        last[atoms] = i
    if len(pairs) > _MOST_PATHS:
        pairs = [pairs[k] for k in np.random.default_rng(0).choice(len(pairs), _MOST_PATHS, replace=False)]
    return pairs
