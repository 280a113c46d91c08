"""Figures of one EPC result: α²F with λ(ω), Tc against σ and μ*, phonon dispersion with λ-weighted modes.

`result` and `spectra` are what :func:`hydroflow.epc.verdict.summarise` returns. :func:`write` makes files of all of them; the
others return a matplotlib figure each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hydroflow.epc.inputs import path_ticks
from hydroflow.errors import DataError

LARGEST_CIRCLE = 60.0
"""Area, in points², of the circle of the mode that couples most."""


def write(result: Mapping[str, Any], spectra: Mapping[str, Any], folder: Path, stem: str, suffix: str = "svg") -> list[Path]:
    """Write ``STEM-a2f``, ``STEM-tc`` and, where the chain computed a path, ``STEM-dispersion`` into a folder; returns the files.

    Parameters
    ----------
    suffix
        svg, pdf or png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"a2f": spectral_function(result, spectra), "tc": tc_against_broadening(result)}
    if spectra.get("path"):
        figures["dispersion"] = dispersion(result, spectra)
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{stem}-{name}.{suffix}")
        figure.savefig(written[-1], dpi=150)
    return written


def _nearest(spectra: Mapping[str, Any], sigma_ry: float) -> int:
    return int(np.argmin(np.abs(np.array(spectra["sigma_ry"]) - sigma_ry)))


def spectral_function(result: Mapping[str, Any], spectra: Mapping[str, Any]) -> Figure:
    """α²F(ω) and λ(ω) at the reported broadening: as the sum over the mesh, and interpolated where that was done."""
    i = _nearest(spectra, result["sigma_ry"])
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    left = figure.add_subplot()
    w, a2f = np.array(spectra["frequency_thz"]), np.array(spectra["a2f"][i])
    left.fill_between(w, a2f, color="#9db9d6", label="sum over the q mesh", linewidth=0)
    if spectra["interpolated"] and (table := spectra["interpolated"][i])["a2f"]:
        left.plot(table["frequency_thz"], table["a2f"], color="#1f3b5c", lw=1.0, label="interpolated in q")
    if tetrahedra := spectra.get("tetrahedra"):
        left.plot(tetrahedra["frequency_thz"], tetrahedra["a2f"][0], color="#c98a1b", lw=1.0, label="by tetrahedra, without Γ")
    left.set(xlabel="frequency (THz)", ylabel="α²F", xlim=(0, w[-1]), ylim=(0, None))
    right = left.twinx()
    right.plot(w, spectra["lambda"][i], color="#b5403a", lw=1.5, label="λ(ω) of the sum")
    right.set_ylabel("λ(ω)", color="#b5403a")
    right.set_ylim(0, None)
    figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize=8)
    left.set_title(f"λ = {result['lambda']:.2f}, ω_log = {result['omega_log_k']:.0f} K at σ = {result['sigma_ry']:g} Ry",
                   fontsize=10)
    return figure


def tc_against_broadening(result: Mapping[str, Any]) -> Figure:
    """λ and Tc (Allen–Dynes and Eliashberg, a band over μ*) against the broadening; the plateau is shaded."""
    rows = [r for r in result["broadenings"] if r["lambda"] > 0]
    sigma = [r["sigma_ry"] for r in rows]
    figure = Figure(figsize=(6.0, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    top.plot(sigma, [r["lambda"] for r in rows], "o-", ms=4, color="#1f3b5c", label="sum over the q mesh")
    if there := [r for r in rows if "lambda_interpolated" in r]:
        top.plot([r["sigma_ry"] for r in there], [r["lambda_interpolated"] for r in there],
                 "s--", ms=3, color="#7a8ea3", label="interpolated in q")
    if rescaled := result.get("rescaled"):
        top.plot(sigma, [r["lambda_rescaled"] for r in rows], "o:", ms=3, color="#3b7d4f",
                 label=f"sum, at N(E_F) = {rescaled['dos']:.2f} by tetrahedra")
    if "tetrahedra" in result:
        top.axhline(result["tetrahedra"]["lambda"], color="#c98a1b", lw=1.0, label="tetrahedra, without Γ")
    top.set_ylabel("λ")
    top.legend(frameon=False)
    for method, colour, name in (("allen_dynes", "#b5403a", "Allen–Dynes"), ("eliashberg", "#3b7d4f", "Eliashberg")):
        every = np.array([[values[method] for values in r["tc_k"].values()] for r in rows])
        bottom.fill_between(sigma, every.min(axis=1), every.max(axis=1), alpha=0.25, color=colour, linewidth=0)
        bottom.plot(sigma, every[:, 0], "o-", ms=3, color=colour, label=name)
    keys = list(rows[0]["tc_k"])
    bottom.set(xlabel="broadening σ (Ry)", ylabel="Tc (K)", ylim=(0, None))
    bottom.legend(frameon=False, title=f"line: μ* = {keys[0]}; band: to {keys[-1]}")
    plateau = result.get("plateau")
    if plateau and plateau["flat"]:
        for axes in (top, bottom):
            axes.axvspan(plateau["first"], plateau["last"], color="#f0e6c8", zorder=0)
    return figure


def dispersion(result: Mapping[str, Any], spectra: Mapping[str, Any]) -> Figure:
    """Phonon dispersion along the high-symmetry path; the area of a circle is the λ of that mode at the reported broadening.

    Raises
    ------
    DataError
        when the chain did not compute a path (a Γ-only mesh, or a protocol without one).
    """
    path = spectra.get("path")
    if not path:
        raise DataError("this chain has no dispersion: its q mesh was not interpolated, or its protocol asks for no path")
    i = _nearest(spectra, result["sigma_ry"])
    x, w = np.array(path["x"]), np.array(path["frequency_thz"])
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(x, w, color="#33475b", lw=0.8)
    couplings = np.array(path["lambda"][i])
    most = float(couplings.max())
    if most > 0:
        axes.scatter(np.repeat(x, w.shape[1]), w.ravel(), s=LARGEST_CIRCLE * couplings.ravel() / most, color="#b5403a", alpha=0.5,
                     linewidth=0)
        circle = Line2D([], [], marker="o", ls="", color="#b5403a", alpha=0.5, markeredgewidth=0, ms=LARGEST_CIRCLE**0.5)
        axes.legend([circle], [f"λ of a mode = {most:.2f} at σ = {result['sigma_ry']:g} Ry (area of the circle)"], frameon=False,
                    loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    labels = path_ticks(path["ticks"], path["labels"])
    axes.set(xlim=(x[0], x[-1]), ylabel="frequency (THz)", xticks=list(labels), xticklabels=list(labels.values()))
    for tick in labels:
        axes.axvline(tick, color="#c9d1d9", lw=0.6, zorder=0)
    axes.axhline(0, color="#c9d1d9", lw=0.8, zorder=0)
    return figure
