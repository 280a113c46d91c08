"""Whether a computed Tc may be believed, check by check, with the numbers: the end of the chain.

The paper lost 58 % of its EPC runs; here every one that is lost says why. A result is usable only when all checks pass, and
never under the protocol ``plumbing``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hydroflow.epc.analysis import PLATEAU_POINTS, PLATEAU_RATIO, Plateau, analyse, find_plateau, mu_key, reported
from hydroflow.epc.coupling import Coupling
from hydroflow.epc.formulas import METHODS
from hydroflow.epc.inputs import PREFIX, band_path
from hydroflow.epc.modes import ModeCouplings, combine
from hydroflow.epc.protocols import Crystal, limits, reciprocal_lengths, sigmas_ry
from hydroflow.epc.qe_files import GHZ_PER_RYDBERG, numbers, read_bands, read_couplings, read_dynamical, read_q_list
from hydroflow.epc.readers import Spectrum, read_a2f
from hydroflow.errors import DataError, EngineFailure, FailureCode, HydroflowError
from hydroflow.units import K_PER_RYDBERG, K_PER_THZ, THZ_PER_CM1

LIMITATIONS = ("harmonic phonons", "isotropic Eliashberg theory", "double delta with Gaussian broadening")
METHOD = 7
"""Part of the key of a collection: raised when the same files get another verdict."""
GRID_POINTS = 400
STEEP = 0.2
"""How much N(E) may vary around E_F, relative to N(E_F), before the limitations of a result say so."""
SMEARING_THZ = 0.5
"""Standard deviation with which the modes of the q sum are drawn as a continuous α²F; λ does not depend on it."""


def summarise(
    inputs: Mapping[str, Any], folder: Path, interpolation_note: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of a chain and its spectra, from the files of all q points in `folder`.

    Parameters
    ----------
    inputs
        Inputs of the ``epc.collect`` job.
    folder
        With ``coarse.out``, ``x.dyn0``, ``x.dyn<q>``, ``couplings<q>`` and, where the mesh was interpolated, ``a2F.dos<i>`` and
        ``x.freq`` (and ``path.freq``).
    interpolation_note
        Why there is no ``a2F.dos<i>``, where that is known.

    Returns
    -------
    result
        lambda, omega_log_k, omega2_k, tc_k, broadenings, plateau, checks, usable and what they rest on; ``tetrahedra`` with a
        row like those of the broadenings where the double delta was also integrated without one; ``rescaled``, a second opinion
        (:func:`_rescaled`).
    spectra
        α²F and λ(ω) per broadening on one grid, modes and frequencies: for plots.

    Raises
    ------
    EngineFailure
        when files are missing, incomplete or do not belong together, or nothing couples.
    """
    # a job that was made before a limit existed does not name it
    bounds = {**limits(), **inputs.get("limits", {})}
    modes = _read(inputs, folder)
    couplings = [_coupling(modes, i) for i in range(len(modes.sigma_ry))]
    if not any(couplings):
        raise EngineFailure(FailureCode.unphysical_result, "no mode couples at any broadening: only acoustic modes at Gamma, "
                            "or a k mesh too coarse for these broadenings")
    rows = _rows(modes, couplings, inputs["mu_stars"])
    interpolated, interpolation_note = _interpolated(folder, len(rows), interpolation_note)
    for row, spectrum in zip(rows, interpolated, strict=False):
        if spectrum is None:
            continue
        row["lambda_interpolated"] = _round(spectrum.coupling.lambda_, 5)
        row["omega_log_interpolated_k"] = _round(spectrum.coupling.omega_log_k, 3)
        row["negative_share_interpolated"] = _round(spectrum.coupling.negative / spectrum.coupling.lambda_, 5)
    lowest = _lowest_interpolated(folder)
    plateau = find_plateau([r["sigma_ry"] for r in rows], [r["lambda"] for r in rows], bounds["plateau_spread"])
    rescaled, remarks = _rescaled(rows, modes, couplings, inputs["fermi_dos"], inputs["mu_stars"], bounds["plateau_spread"])
    chosen = reported(rows, plateau)
    row = rows[chosen]
    checks = _checks(inputs, modes, rows, chosen, plateau, interpolation_note, bounds)
    checks.append(_interpolated_modes(lowest, interpolation_note, bounds))
    checks.append(_relaxed(folder, inputs.get("pressure_gpa"), bounds))
    checks.append(_settings(inputs["protocol"], bounds))
    on_plateau = rows[plateau.first:plateau.last + 1] if plateau and plateau.flat else [row]
    result = {
        "protocol": inputs["protocol"]["name"],
        "lambda": row["lambda"], "omega_log_k": row["omega_log_k"], "omega2_k": row["omega2_k"], "tc_k": row["tc_k"],
        "tc_range_k": {m: _range([values[m] for r in on_plateau for values in r["tc_k"].values()]) for m in METHODS},
        "sigma_ry": row["sigma_ry"], "dos": row["dos"], "broadenings": rows,
        "plateau": _told(plateau, rows),
        "rescaled": rescaled,
        "checks": checks,
        "usable": all(c["passed"] for c in checks),
        "n_q": len(modes.q), "q_mesh": list(inputs["q_mesh"]),
        "lowest_thz": None if np.isnan(modes.lowest_thz) else _round(modes.lowest_thz, 4),
        "lowest_interpolated": lowest,
        "acoustic_thz": [_round(float(x), 4) for x in modes.acoustic_thz],
        "imaginary_modes": modes.imaginary(bounds["imaginary_thz"])[:20],
        "hydrogen_dos_share": inputs.get("hydrogen_dos_share"),
        "limitations": [*LIMITATIONS, *remarks],
        "mu_star_convention": "at the highest phonon frequency (scaled to the Matsubara cutoff)",
    }
    spectra = {**_spectra(modes, couplings, interpolated), "path": _path(inputs, folder, modes)}
    try:
        if (tetrahedra := _tetrahedra(inputs, folder)) is not None:
            coupling = tetrahedra.coupling(0)
            result["tetrahedra"] = _rows(tetrahedra, [coupling], inputs["mu_stars"])[0]
            spectra["tetrahedra"] = _spectra(tetrahedra, [coupling], [])
    except (DataError, EngineFailure) as error:
        # a second opinion only: the value of the broadenings stands
        result["limitations"].append(f"by tetrahedra there is no λ (q counted without Γ): {error}")
    return result, spectra


def _lowest_interpolated(folder: Path) -> dict[str, Any] | None:
    """The lowest frequency that matdyn.x interpolated, on its mesh and, where there is one, along its path: ``thz`` and ``q``
    (Cartesian, 2π/alat). None where one of them cannot be read: a mode may be imaginary there."""
    found = []
    for name in (f"{PREFIX}.freq", "path.freq"):
        if name == "path.freq" and not (folder / name).exists():
            continue
        try:
            q, frequencies = read_bands(folder / name)
        except EngineFailure:
            return None
        if not np.isfinite(frequencies).all():
            return None
        at, _ = np.unravel_index(np.argmin(frequencies), frequencies.shape)
        found.append((float(frequencies.min()) * THZ_PER_CM1, q[at]))
    thz, q = min(found, key=lambda f: f[0])
    return {"thz": _round(thz, 4), "q": [_round(x, 6) for x in q]}


def _read(inputs: Mapping[str, Any], folder: Path) -> ModeCouplings:
    listed = read_q_list(folder / "x.dyn0")
    n = int(inputs["n_q"])
    if len(listed.points) != n:
        raise EngineFailure(FailureCode.bad_input, f"{n} q points were computed, the list has {len(listed.points)}")
    dynamicals = [read_dynamical(folder / f"x.dyn{q}") for q in range(1, n + 1)]
    couplings = [read_couplings(folder / f"couplings{q}") for q in range(1, n + 1)]
    return combine(couplings, dynamicals, int(np.prod(listed.grid)), sigmas_ry(inputs["protocol"]))


def _tetrahedra(inputs: Mapping[str, Any], folder: Path) -> ModeCouplings | None:
    """The couplings without a broadening, of all q but Γ; None where they were not computed."""
    there = [q for q in range(1, int(inputs["n_q"]) + 1) if (folder / f"tetrahedra{q}").exists()]
    if not there:
        return None
    return combine([read_couplings(folder / f"tetrahedra{q}") for q in there],
                   [read_dynamical(folder / f"x.dyn{q}") for q in there])


def _coupling(modes: ModeCouplings, i: int) -> Coupling | None:
    """None where a broadening is so small that no state lies within it."""
    try:
        return modes.coupling(i)
    except DataError:
        return None


def _range(values: list[float]) -> list[float]:
    return [min(values), max(values)]


def _rows(modes: ModeCouplings, couplings: list[Coupling | None], mu_stars: list[float]) -> list[dict[str, Any]]:
    rows = []
    for sigma, dos, coupling in zip(modes.sigma_ry, modes.dos, couplings, strict=True):
        if coupling is None:
            zero = dict.fromkeys(METHODS, 0.0)
            rows.append({"sigma_ry": float(sigma), "dos": float(dos), "lambda": 0.0, "omega_log_k": None, "omega2_k": None,
                         "negative_share": 0.0, "tc_k": {mu_key(m): dict(zero) for m in mu_stars}})
            continue
        row = analyse([Spectrum(coupling, float(sigma), float(dos))], mu_stars)[0]
        row |= {k: _round(row[k], 5) for k in ("lambda", "omega_log_k", "omega2_k", "negative_share")}
        row["tc_k"] = {mu: {m: _round(t, 3) for m, t in values.items()} for mu, values in row["tc_k"].items()}
        rows.append(row)
    return rows


def _told(plateau: Plateau | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    return None if plateau is None else {
        "sigma": rows[plateau.index]["sigma_ry"], "first": rows[plateau.first]["sigma_ry"],
        "last": rows[plateau.last]["sigma_ry"], "spread": _round(plateau.spread, 5), "flat": plateau.flat}


def _rescaled(
    rows: list[dict[str, Any]], modes: ModeCouplings, couplings: Sequence[Coupling | None], fermi_dos: Mapping[str, Any],
    mu_stars: list[float], limit: float,
) -> tuple[dict[str, Any] | None, list[str]]:
    """λ brought to N(E_F) by tetrahedra on a dense k mesh, `fermi_dos` (:class:`~hydroflow.epc.density_of_states.EpcDos`), by the
    factor N/N(σ) at each broadening (as Bozier et al., arXiv:2508.18371), written into the rows as ``lambda_rescaled``; the
    plateau of that and λ and Tc in its middle, None where there is no such N(E_F). With what is to be said about it.

    The double delta counts pairs of states at E_F and is divided by N(σ) once: one N(σ) too many or too few stays in λ. Taking
    it out leaves what a coarse k mesh or a wide broadening has wrong in the matrix elements and the nesting alone.
    """
    if "failed" in fermi_dos:
        return None, [f"no λ at N(E_F) by tetrahedra: {fermi_dos['failed']}"]
    near, (dos, rough) = fermi_dos["dos"], (fermi_dos[key][len(fermi_dos["offsets_ev"]) // 2] for key in ("dos", "rough_dos"))
    if dos <= 0:
        return None, [f"no λ at N(E_F) by tetrahedra: it is {dos:.3g}"]
    scaled = _rows(modes, [None if c is None else replace(c, weights=c.weights * dos / own)
                           for c, own in zip(couplings, modes.dos, strict=True)], mu_stars)
    for row, other in zip(rows, scaled, strict=True):
        row["lambda_rescaled"] = other["lambda"]
    plateau = find_plateau([r["sigma_ry"] for r in scaled], [r["lambda"] for r in scaled], limit)
    row = scaled[reported(scaled, plateau)]
    remarks = [] if max(near) - min(near) <= STEEP * dos else [
        f"N(E) goes from {min(near):.2f} to {max(near):.2f} states/spin/Ry within {max(fermi_dos['offsets_ev']):g} eV of E_F, "
        f"where it is {dos:.2f} (tetrahedra): λ depends on the width over which it is taken"]
    return {"dos": dos, "rough_dos": rough, "mesh": fermi_dos["mesh"], "rough_mesh": fermi_dos["rough_mesh"],
            "offsets_ev": fermi_dos["offsets_ev"], "dos_near": near, "plateau": _told(plateau, scaled),
            **{key: row[key] for key in ("lambda", "sigma_ry", "tc_k")}}, remarks


def _interpolated(folder: Path, n: int, note: str) -> tuple[list[Spectrum | None], str]:
    """α²F that matdyn.x interpolated, one per broadening and None where it is unusable (the narrowest may be noise); empty where
    there is none. With the reason for the first that is missing."""
    if note or not (folder / "a2F.dos1").exists():
        return [], note or "there is no a2F.dos1"
    found: list[Spectrum | None] = []
    for i in range(1, n + 1):
        try:
            found.append(read_a2f(folder / f"a2F.dos{i}").spectra[0])
        except HydroflowError as error:
            found.append(None)
            note = note or str(error)
    return found, note


def _checks(
    inputs: Mapping[str, Any], modes: ModeCouplings, rows: list[dict[str, Any]], chosen: int, plateau: Plateau | None,
    interpolation_note: str, bounds: Mapping[str, float],
) -> list[dict[str, Any]]:
    row, out = rows[chosen], []

    def check(name: str, passed: bool, value: float | None, limit: float | None, text: str) -> None:
        out.append({"name": name, "passed": bool(passed), "value": None if value is None else _round(value, 5), "limit": limit,
                    "text": text})

    name = inputs["protocol"]["name"]
    check("protocol", name != "plumbing", None, None, f"protocol {name}" + (
        ": proves that the chain runs, its Tc means nothing" if name == "plumbing" else ""))
    lengths = reciprocal_lengths(Crystal.from_inputs(inputs["crystal"]))
    k, q = (float((lengths / np.array(inputs[key])).max()) for key in ("coarse", "q_mesh"))
    check("mesh_density", k <= bounds["k_spacing"] and q <= bounds["q_spacing"], k, bounds["k_spacing"],
          f"k spacing {k:.2f} 1/Å (limit {bounds['k_spacing']:g}), q spacing {q:.2f} 1/Å (limit {bounds['q_spacing']:g})")
    check("k_sampling", *judge_k_sampling(inputs["phonon_dos"], inputs["protocol"]["degauss_ry"], bounds["phonon_dos"]))
    mesh, points, stars = "×".join(str(n) for n in inputs["q_mesh"]), int(np.prod(inputs["q_mesh"])), int(modes.weights.sum())
    check("q_points", stars == points, stars, points,
          f"{len(modes.q)} irreducible q stand for {stars} of the {points} points of the {mesh} mesh")
    wanted, loosened = inputs["protocol"]["tr2_ph"], inputs.get("loosened", {})
    check("self_consistency", not loosened, max(loosened.values(), default=wanted), wanted,
          f"q {', '.join(loosened)} converged only to tr2_ph = {max(loosened.values()):.0e} ({wanted:.0e} wanted)" if loosened
          else f"every q converged to tr2_ph = {wanted:.0e}")
    imaginary = modes.imaginary(bounds["imaginary_thz"])
    if np.isnan(modes.lowest_thz):
        text = "no modes but the acoustic ones at Gamma"
    elif imaginary:
        worst = imaginary[0]
        text = f"{len(imaginary)} imaginary modes, the lowest {worst['frequency_thz']:.2f} THz at q {worst['q']}"
    else:
        text = f"no imaginary mode: the lowest is {modes.lowest_thz:.2f} THz"
    lowest = None if np.isnan(modes.lowest_thz) else modes.lowest_thz
    check("imaginary_modes", not imaginary, lowest, -bounds["imaginary_thz"], text)
    acoustic = modes.acoustic_thz
    worst_acoustic = float(acoustic[np.argmax(np.abs(acoustic))]) if acoustic.size else None
    check("acoustic_sum_rule", worst_acoustic is not None and abs(worst_acoustic) <= bounds["acoustic_thz"], worst_acoustic,
          bounds["acoustic_thz"], "Gamma is not in the mesh" if worst_acoustic is None else
          f"acoustic modes at Gamma are within {abs(worst_acoustic):.2f} THz of zero before the sum rule; they are left out of λ")
    flat = plateau is not None and plateau.flat
    if plateau is None:
        text = f"no plateau can be seen: it takes at least {PLATEAU_POINTS} broadenings over a factor of {PLATEAU_RATIO:g}"
    else:
        text = (f"λ varies by {100 * plateau.spread:.0f} % from σ = {rows[plateau.first]['sigma_ry']:g} to "
                f"{rows[plateau.last]['sigma_ry']:g} Ry" + ("" if flat else ", its flattest stretch: no plateau"))
    check("plateau", flat, None if plateau is None or not np.isfinite(plateau.spread) else plateau.spread,
          bounds["plateau_spread"], text)
    negative = max(row["negative_share"], row.get("negative_share_interpolated", 0.0))
    check("negative_weight", negative <= bounds["negative_share"], negative, bounds["negative_share"],
          f"negative α²F carries {100 * row['negative_share']:.2g} % of λ in the sum over the mesh" + (
              f", {100 * row['negative_share_interpolated']:.2g} % interpolated" if "negative_share_interpolated" in row else ""))
    check("lambda", row["lambda"] <= bounds["lambda_max"], row["lambda"], bounds["lambda_max"], f"λ = {row['lambda']:.2f}")
    if "lambda_interpolated" in row:
        difference = abs(row["lambda_interpolated"] / row["lambda"] - 1)
        check("interpolation", difference <= bounds["interpolation"], difference, bounds["interpolation"],
              f"λ = {row['lambda_interpolated']:.2f} interpolated in q, {row['lambda']:.2f} as a sum over the mesh")
    else:
        check("interpolation", False, None, bounds["interpolation"], f"not interpolated: {interpolation_note}")
    return out


def judge_k_sampling(phonon_dos: Sequence[float], smearing_ry: float, limit: float) -> tuple[bool, float | None, float, str]:
    """Whether N(E_F) of the phonons' k mesh is near enough to that of the dense one; how far it is, relative to it (None where
    that is not positive); the limit; all of it in words."""
    dense, coarse = phonon_dos
    off = abs(coarse / dense - 1) if dense > 0 else None
    words = "not positive" if off is None else f"{coarse / dense - 1:+.0%}"
    return off is not None and off <= limit, off, limit, (
        f"N(E_F) with the phonons' smearing of {smearing_ry:g} Ry is {coarse:.2f} on their k mesh and {dense:.2f} on the dense "
        f"one ({words}, {limit:.0%} at most): a denser k mesh or a wider smearing brings them together")


def _interpolated_modes(lowest: dict[str, Any] | None, note: str, bounds: Mapping[str, float]) -> dict[str, Any]:
    """No imaginary mode between the points of the q mesh either, as far as the interpolation can tell."""
    if lowest is None:
        text = f"not interpolated: {note or 'matdyn.x left no frequencies'}"
    else:
        q = ", ".join(f"{x:.3f}" for x in lowest["q"])
        text = f"the lowest interpolated mode is {lowest['thz']:.2f} THz, at q = ({q}) 2π/a"
    return {"name": "interpolated_modes", "passed": lowest is not None and lowest["thz"] >= -bounds["imaginary_thz"],
            "value": None if lowest is None else lowest["thz"], "limit": -bounds["imaginary_thz"], "text": text}


def _settings(protocol: Mapping[str, Any], bounds: Mapping[str, float]) -> dict[str, Any]:
    """Whether the settings leave the other checks something to see; named protocols do, a variant of one need not."""
    told = {
        f"tr2_ph {protocol['tr2_ph']:.0e} (limit {bounds['tr2_ph']:.0e})": protocol["tr2_ph"] <= bounds["tr2_ph"],
        f"phonons smeared by {protocol['degauss_ry']:g} Ry (limit {bounds['degauss_ry']:g})":
            protocol["degauss_ry"] <= bounds["degauss_ry"],
        f"smallest broadening {protocol['sigma_first_ry']:g} Ry (limit {bounds['sigma_first_ry']:g})":
            protocol["sigma_first_ry"] <= bounds["sigma_first_ry"],
        f"largest broadening {max(sigmas_ry(protocol)):g} Ry (limit {bounds['sigma_last_ry']:g})":
            max(sigmas_ry(protocol)) <= bounds["sigma_last_ry"],
        f"conv_thr {protocol['conv_thr_ry']:.0e} Ry (limit {bounds['conv_thr_ry']:.0e})":
            protocol["conv_thr_ry"] <= bounds["conv_thr_ry"],
        f"dense k mesh {protocol['dense_factor']}-fold (2 at least)": protocol["dense_factor"] >= 2}
    wrong = [words for words, good in told.items() if not good]
    return {"name": "settings", "passed": not wrong, "value": None, "limit": None, "text": "; ".join(wrong or told)}


def _relaxed(folder: Path, pressure_gpa: float | None, bounds: Mapping[str, float]) -> dict[str, Any]:
    """Whether the phonons were computed at the minimum, at the pressure that was asked for, on their own k mesh."""
    force, stress = _force_and_stress(folder / "coarse.out")
    limit = bounds["force_ry_bohr"]
    if force is None:
        text = "pw.x printed no forces"
    else:
        text = f"largest force on an atom {force:.4f} Ry/bohr (limit {limit:g})"
    passed = force is not None and force <= limit
    if pressure_gpa is None:
        text += "; no pressure was asked for"
    elif stress is None:
        passed = False
        text += "; pw.x printed no stress"
    else:
        off = float(np.abs(stress - pressure_gpa * np.eye(3)).max())
        passed &= off <= bounds["pressure_gpa"]
        text += (f"; pressure {np.trace(stress) / 3:.1f} GPa, {pressure_gpa:g} wanted, no component of the stress off by more "
                 f"than {off:.1f} (limit {bounds['pressure_gpa']:g})")
    return {"name": "relaxed", "passed": bool(passed), "value": None if force is None else _round(force, 6), "limit": limit,
            "text": text}


def _force_and_stress(path: Path) -> tuple[float | None, np.ndarray | None]:
    """Largest force on an atom in Ry/bohr and stress (3, 3) in GPa, as pw.x printed them last, positive under pressure; None
    where it printed none."""
    text = path.read_text(errors="replace") if path.exists() else ""
    _, found, block = text.rpartition("Forces acting on atoms")
    forces = [numbers(line) for line in re.findall(r"atom\s+\d+\s+type\s+\d+\s+force =(.*)", block)] if found else []
    largest = max((float(np.linalg.norm(f)) for f in forces if len(f) == 3), default=None)
    _, found, block = text.rpartition("total   stress")
    rows = [numbers(line)[3:6] for line in block.splitlines()[1:4]] if found else []
    return largest, np.array(rows) / 10 if len(rows) == 3 and all(len(r) == 3 for r in rows) else None


def _spectra(modes: ModeCouplings, couplings: list[Coupling | None],
             interpolated: Sequence[Spectrum | None]) -> dict[str, Any]:
    top = max(float(modes.frequencies_thz.max()) * 1.05, 1.0)
    grid = np.linspace(0, top, GRID_POINTS)
    a2f, running = [], []
    for c in couplings:
        a2f.append([] if c is None else c.spectrum(grid * K_PER_THZ, SMEARING_THZ * K_PER_THZ).round(6).tolist())
        running.append([] if c is None else c.cumulative(grid * K_PER_THZ).round(6).tolist())
    tables = [{"frequency_thz": [], "a2f": []} if s is None else
              {"frequency_thz": (s.coupling.frequencies_k / K_PER_THZ).round(5).tolist(),
               "a2f": (0.5 * s.coupling.weights * s.coupling.frequencies_k
                       / np.gradient(s.coupling.frequencies_k)).round(6).tolist()} for s in interpolated]
    return {"frequency_thz": grid.round(5).tolist(), "sigma_ry": modes.sigma_ry.tolist(), "a2f": a2f, "lambda": running,
            "interpolated": tables, "q": modes.q.round(6).tolist(), "weights": modes.weights.tolist(),
            "mode_frequencies_thz": modes.frequencies_thz.round(5).tolist(),
            "mode_lambdas": modes.lambdas.round(6).tolist()}


def _path(inputs: Mapping[str, Any], folder: Path, modes: ModeCouplings) -> dict[str, Any] | None:
    """Dispersion along the high-symmetry path with λ of each mode at each broadening; None where it was not computed."""
    if not (folder / "path.freq").exists():
        return None
    try:
        thz = read_bands(folder / "path.freq")[1] * THZ_PER_CM1
        gamma = [read_bands(folder / f"elph.gamma.{i}")[1] for i in range(1, len(modes.sigma_ry) + 1)]
    except EngineFailure:
        return None  # a plot is missing, the numbers are not
    path = band_path(Crystal.from_inputs(inputs["crystal"]), int(inputs["protocol"]["q_path_points"]))
    x, ticks, labels = path.get_linear_kpoint_axis()
    # below 1 THz ω² in the denominator makes noise of the interpolation into coupling
    omega2 = np.where(thz > 1.0, (thz * K_PER_THZ / K_PER_RYDBERG) ** 2, np.inf)
    lambdas = [np.maximum(g, 0) / GHZ_PER_RYDBERG / (np.pi * n * omega2) if n > 0 else np.zeros_like(g)
               for g, n in zip(gamma, modes.dos, strict=True)]
    return {"x": x.round(5).tolist(), "ticks": ticks.round(5).tolist(), "labels": labels, "frequency_thz": thz.round(4).tolist(),
            "lambda": [v.round(5).tolist() for v in lambdas]}


def _round(value: float, digits: int) -> float:
    return float(round(float(value), digits)) + 0.0
