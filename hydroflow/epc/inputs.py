"""Input files of the chain: pw.x, ph.x, q2r.x, matdyn.x.

Only what the chain decides is written; everything else is the code's default. Values come from a job's inputs (see
:mod:`hydroflow.epc.ground_state` and its neighbours), corrections from its adjustments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.cell import Cell
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from ase.dft.kpoints import BandPath

from hydroflow.epc.protocols import Crystal

PREFIX = "x"
OUTDIR = "./out"
TETRAHEDRA = "./tetrahedra"
"""Where the ground state is described once more, for tetrahedra."""


def namelist(name: str, values: Mapping[str, Any]) -> str:
    """One Fortran namelist, a key per line; None values are left out."""
    lines = [f" {key} = {_fortran(value)}" for key, value in values.items() if value is not None]
    return "\n".join([f"&{name}", *lines, "/"]) + "\n"


def _fortran(value: Any) -> str:
    if isinstance(value, bool):
        return ".true." if value else ".false."
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, float):
        return f"{value:.10g}".replace("e", "d")
    return str(value)


def species(crystal: Crystal) -> list[str]:
    """Symbols in order of first appearance."""
    return list(dict.fromkeys(chemical_symbols[z] for z in crystal.numbers))


def pseudo_name(symbol: str) -> str:
    """Name of an element's pseudopotential in the job's folder."""
    return f"{symbol}.UPF"


def pw_input(crystal: Crystal, values: Mapping[str, Any], *, run: str, adjustments: Mapping[str, Any]) -> str:
    """Input of pw.x.

    Parameters
    ----------
    run
        ``dense`` leaves the eigenvalues for the double delta (``la2F``), ``coarse`` what ph.x starts from; it takes its first
        density from the dense run. At the coarse run's density ``tetrahedra`` only leaves a description of the ground state that
        makes ph.x integrate by tetrahedra, ``dos`` and ``dos_rough`` the eigenvalues of a denser mesh for dos.x: within 1e-6 Ry,
        which pw.x takes from ``conv_thr``; the phonons' own would take four times as long and change no digit of N(E).
    """
    kinds = species(crystal)
    smeared, coarse = run in ("dense", "coarse"), run == "coarse"
    text = namelist("control", {
        "calculation": "scf" if smeared else "nscf", "prefix": PREFIX, "outdir": TETRAHEDRA if run == "tetrahedra" else OUTDIR,
        "pseudo_dir": "./", "disk_io": "low", "tprnfor": True if coarse else None, "tstress": True if coarse else None})
    text += namelist("system", {
        "ibrav": 0, "nat": len(crystal.numbers), "ntyp": len(kinds), "ecutwfc": float(values["ecutwfc_ry"]),
        "ecutrho": float(values["ecutrho_ry"]), "occupations": "smearing" if smeared else "tetrahedra_opt",
        "smearing": "mp" if smeared else None, "degauss": float(values["degauss_ry"]) if smeared else None,
        "la2F": True if run == "dense" else None})
    threshold = 1e-4 if run in ("dos", "dos_rough") else float(values["conv_thr_ry"])
    text += namelist("electrons", {
        "conv_thr": threshold, "mixing_beta": adjustments.get("mixing_beta", 0.7),
        "electron_maxstep": adjustments.get("electron_maxstep", 100),
        "diagonalization": adjustments.get("diagonalization"), "startingpot": "file" if coarse else None})
    text += "ATOMIC_SPECIES\n" + "".join(f"{s} {atomic_masses[atomic_numbers[s]]:.4f} {pseudo_name(s)}\n" for s in kinds)
    text += "CELL_PARAMETERS angstrom\n" + "".join(f"{a:.10f} {b:.10f} {c:.10f}\n" for a, b, c in crystal.cell)
    text += "ATOMIC_POSITIONS crystal\n" + "".join(
        f"{chemical_symbols[z]} {x[0]:.10f} {x[1]:.10f} {x[2]:.10f}\n"
        for z, x in zip(crystal.numbers, crystal.fractional, strict=True))
    return text + "K_POINTS automatic\n{} {} {} 0 0 0\n".format(*values["coarse" if run == "tetrahedra" else run])


def dos_input(run: str, first_ev: str, last_ev: str, step_ev: float) -> str:
    """dos.x after pw.x's `run`: N(E) from the first to the last energy, by optimised tetrahedra as that run. Both are texts: E_F,
    from which they are counted, is known only when the job has run, and it puts numbers in their place."""
    return (f"&dos\n prefix = '{PREFIX}'\n outdir = '{OUTDIR}'\n fildos = '{run}.dat'\n Emin = {first_ev}\n Emax = {last_ev}\n"
            f" DeltaE = {step_ev}\n/\n")


def q_list_input(q_mesh: Sequence[int]) -> str:
    """ph.x that stops after it has found the irreducible q points and their representations."""
    return "q list\n" + namelist("inputph", {**_ph_common(q_mesh), "start_irr": 0, "last_irr": 0})


def phonon_input(
    values: Mapping[str, Any], *, max_seconds: int, adjustments: Mapping[str, Any], recover: bool,
) -> str:
    """ph.x for the phonons of one q, or of a range of its `representations` (first and last, 1-based): the dynamical matrix and
    the variations of the potential, kept for the couplings.

    ph.x stops cleanly after `max_seconds` and goes on with `recover`. Couplings are a run of their own because `recover`
    together with ``electron_phonon`` does not work in QE 6.7. It refuses more than 100 iterations and a mixing of more than
    5.
    """
    first, last = values.get("representations", (None, None))
    return "phonons\n" + namelist("inputph", {
        **_ph_common(values["q_mesh"]), "start_q": values["q"], "last_q": values["q"], "start_irr": first, "last_irr": last,
        "max_seconds": max_seconds,
        "tr2_ph": adjustments.get("tr2_ph", values["tr2_ph"]),
        "alpha_mix(1)": adjustments.get("alpha_mix", values["alpha_mix"]),
        "niter_ph": adjustments.get("niter_ph", 100), "nmix_ph": adjustments.get("nmix_ph"),
        "diagonalization": adjustments.get("diagonalization"),
        "recover": True if recover else None})


def coupling_input(
    values: Mapping[str, Any], *, max_seconds: int, adjustments: Mapping[str, Any], tetrahedra: bool = False,
) -> str:
    """ph.x for the couplings of one q, from the stored variations of the potential and bands at k+q of its own.

    By Gaussians the matrix elements of the coarse mesh are interpolated onto the dense one; with `tetrahedra` they are computed
    on the dense mesh.
    """
    how: dict[str, Any] = {"electron_phonon": "interpolated", "el_ph_sigma": values["sigma_first_ry"],
                           "el_ph_nsigma": values["sigma_count"]}
    if tetrahedra:
        how = {"electron_phonon": "lambda_tetra", **{f"nk{i}": n for i, n in enumerate(values["dense"], start=1)}}
    return "couplings\n" + namelist("inputph", {
        **_ph_common(values["q_mesh"]), "start_q": values["q"], "last_q": values["q"], "max_seconds": max_seconds,
        "tr2_ph": values["tr2_ph"], "diagonalization": adjustments.get("diagonalization"), "trans": False, **how})


def _ph_common(q_mesh: Sequence[int]) -> dict[str, Any]:
    # Nobody reads the symmetry labels of the modes, and looking for them ends ph.x 6.7 in a crystal of the group I4
    # ("divide_class: wrong angle").
    return {"search_sym": False, "prefix": PREFIX, "outdir": OUTDIR, "fildyn": f"{PREFIX}.dyn", "fildvscf": "dv",
            "ldisp": True, "nq1": q_mesh[0], "nq2": q_mesh[1], "nq3": q_mesh[2]}


def q2r_input(sigma_count: int) -> str:
    return namelist("input", {"fildyn": f"{PREFIX}.dyn", "flfrc": f"{PREFIX}.fc", "zasr": "crystal", "la2F": True,
                              **_broadenings(sigma_count)})


def _broadenings(count: int) -> dict[str, Any]:
    """How many broadenings there are: versions of QE before the key assume ten, so ten is not written."""
    return {} if count == 10 else {"el_ph_nsigma": count}


def matdyn_input(crystal: Crystal, mesh: Sequence[int], sigma_count: int) -> str:
    """Interpolated phonon density of states and α²F on a mesh; the acoustic sum rule is imposed (``crystal``)."""
    return namelist("input", {
        "asr": "crystal", "flfrc": f"{PREFIX}.fc", "flfrq": f"{PREFIX}.freq", "la2F": True, "dos": True,
        "fldos": f"{PREFIX}.phdos", "nk1": mesh[0], "nk2": mesh[1], "nk3": mesh[2], "ndos": 400,
        **_broadenings(sigma_count), **_masses(crystal)})


def path_input(crystal: Crystal, q_path: np.ndarray, sigma_count: int) -> str:
    """Dispersion and linewidths (``elph.gamma.<i>``) along q points (n, 3) in units of the reciprocal lattice vectors."""
    text = namelist("input", {
        "asr": "crystal", "flfrc": f"{PREFIX}.fc", "flfrq": "path.freq", "la2F": True, "q_in_cryst_coord": True,
        **_broadenings(sigma_count), **_masses(crystal)})
    return text + f"{len(q_path)}\n" + "".join(f"{a:.9f} {b:.9f} {c:.9f}\n" for a, b, c in q_path)


def band_path(crystal: Crystal, points: int) -> BandPath:
    """High-symmetry path of a crystal's lattice with about `points` q points."""
    return Cell(crystal.cell).bandpath(npoints=points)


def path_ticks(ticks: Sequence[float], labels: Sequence[str]) -> dict[float, str]:
    """Names of the points along a path by their place on its axis; where the path jumps, two points share a place (``M|R``)."""
    names: dict[float, str] = {}
    for tick, label in zip(ticks, labels, strict=True):
        name = {"G": "Γ"}.get(label, label)
        names[tick] = f"{names[tick]}|{name}" if tick in names else name
    return names


def _masses(crystal: Crystal) -> dict[str, float]:
    return {f"amass({i})": float(atomic_masses[atomic_numbers[s]]) for i, s in enumerate(species(crystal), start=1)}
