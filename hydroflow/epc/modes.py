"""All q points of one crystal together: λ_qν with their weights, and the coupling at each broadening.

The three acoustic modes at Γ are left out: their frequency is zero by the acoustic sum rule, what ph.x finds instead is
noise, and their λ ∝ 1/ω² would be counted at that noise (lambda.x does count them). They are told by their eigenvectors, not by
their frequencies: a soft optical mode may lie below the noise. Γ keeps its weight in the sum, for its optical modes; by
tetrahedra ph.x gives nothing at Γ, and the other q stand for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hydroflow.epc.coupling import Coupling
from hydroflow.epc.qe_files import (
    SIGMA_DIGITS,
    Couplings,
    Dynamical,
    exact_broadenings,
    read_couplings,
    read_dynamical,
    read_q_list,
)
from hydroflow.errors import DataError, EngineFailure, FailureCode
from hydroflow.units import K_PER_THZ

INSULATOR_DOS = 0.02
"""N(E_F) in states/spin/Ry/atom below which there is no Fermi surface to couple to (~ 0.0015 states/eV/atom)."""


@dataclass(frozen=True)
class ModeCouplings:
    """λ_qν of all irreducible q points.

    Attributes
    ----------
    q : (Q, 3) q points, Cartesian, 2π/alat.
    weights : (Q,) stars, summing to the number of points of the full mesh; zero for Γ with tetrahedra.
    frequencies_thz : (Q, M), negative where imaginary.
    acoustic_gamma : (Q, M) bool, the three acoustic modes at Γ.
    sigma_ry, dos : (s,) broadenings and N(E_F) in states/spin/Ry/cell.
    lambdas : (s, Q, M).
    mesh : number of points of the q mesh; None where nothing says so (no ``x.dyn0``).
    tetrahedra : whether there is one λ without a broadening.
    """

    q: np.ndarray
    weights: np.ndarray
    frequencies_thz: np.ndarray
    acoustic_gamma: np.ndarray
    sigma_ry: np.ndarray
    dos: np.ndarray
    lambdas: np.ndarray
    mesh: int | None = None
    tetrahedra: bool = False

    @property
    def acoustic_thz(self) -> np.ndarray:
        """Frequencies of the acoustic modes at Γ before the sum rule is imposed; empty when Γ is not in the mesh."""
        return self.frequencies_thz[self.acoustic_gamma]

    @property
    def lowest_thz(self) -> float:
        """Lowest frequency of all modes but the acoustic ones at Γ; NaN when there is no other."""
        rest = self.frequencies_thz[~self.acoustic_gamma]
        return float(rest.min()) if rest.size else float("nan")

    def imaginary(self, tolerance_thz: float) -> list[dict]:
        """Modes below −tolerance: q index (1-based), q, frequency in THz, lowest first."""
        found = (self.frequencies_thz < -tolerance_thz) & ~self.acoustic_gamma
        rows = [{"q": int(i) + 1, "q_cartesian": [round(float(x), 6) for x in self.q[i]],
                 "frequency_thz": round(float(self.frequencies_thz[i, nu]), 4)} for i, nu in np.argwhere(found)]
        return sorted(rows, key=lambda r: r["frequency_thz"])

    def coupling(self, i: int) -> Coupling:
        """The coupling at broadening i, without acoustic modes at Γ and imaginary modes."""
        weight = (self.weights / self.weights.sum())[:, None] * self.lambdas[i]
        use = ~self.acoustic_gamma & (self.frequencies_thz > 0)
        return Coupling.from_modes(self.frequencies_thz[use] * K_PER_THZ, weight[use])


def combine(
    couplings: Sequence[Couplings], dynamicals: Sequence[Dynamical], mesh: int | None = None,
    sigmas_ry: Sequence[float] | None = None,
) -> ModeCouplings:
    """Put the q points of one crystal together.

    Parameters
    ----------
    couplings, dynamicals
        One each per irreducible q, in the same order.
    mesh
        Number of points of the full q mesh, where it is known; the stars must add up to it.
    sigmas_ry
        The broadenings that were asked for, where that is known: the files print them rounded.

    Raises
    ------
    EngineFailure
        ``missing_q`` for a missing q, ``other_structure`` when files belong to different crystals or calculations,
        ``bad_input`` when they belong to different q points or broadenings, or to a shifted mesh, ``corrupted_output`` for NaN
        couplings, ``no_fermi_surface`` for an insulator.
    """
    if len(couplings) != len(dynamicals) or not couplings:
        raise EngineFailure(FailureCode.missing_q,
                            f"{len(couplings)} coupling files but {len(dynamicals)} dynamical matrices")
    first, settings = dynamicals[0], couplings[0]
    for i, (c, d) in enumerate(zip(couplings, dynamicals, strict=True), start=1):
        _same_crystal(first, d, i)
        if len(c.omega2_ry2) != len(d.frequencies_thz):
            raise EngineFailure(FailureCode.other_structure, f"q {i}: {len(c.omega2_ry2)} modes in the coupling file but "
                                f"{len(d.frequencies_thz)} in the dynamical matrix: files of different crystals")
        if np.abs(c.q - d.q).max() > 1e-4:
            raise EngineFailure(FailureCode.bad_input,
                                f"q {i}: the coupling file is for q = {c.q}, the dynamical matrix for {d.q}")
        apart = np.abs(c.frequencies_k / K_PER_THZ - d.frequencies_thz)
        if (apart > 0.02 + 0.002 * np.abs(d.frequencies_thz)).any():
            raise EngineFailure(FailureCode.other_structure, f"q {i}: frequencies of the coupling file and of the dynamical "
                                f"matrix are up to {apart.max():.2f} THz apart: they belong to different calculations")
        if c.sigma_ry.shape != settings.sigma_ry.shape or np.abs(c.sigma_ry - settings.sigma_ry).max() > 1e-6:
            raise EngineFailure(FailureCode.bad_input, f"q {i} was computed with other broadenings than q 1")
        if c.tetrahedra != settings.tetrahedra:
            raise EngineFailure(FailureCode.bad_input, f"of q {i} and q 1 one was computed by tetrahedra, the other was not")
        if unknown_couplings(c, d):
            raise EngineFailure(FailureCode.corrupted_output, f"q {i}: NaN or overflow among the couplings")
    sigma = settings.sigma_ry if settings.tetrahedra else exact_broadenings(settings.sigma_ry)
    if sigmas_ry is not None:
        sigma = np.array(sigmas_ry, float)
        if sigma.shape != settings.sigma_ry.shape or np.abs(sigma - settings.sigma_ry).max() > SIGMA_DIGITS + 1e-6:
            raise EngineFailure(FailureCode.bad_input, f"the files hold the broadenings {settings.sigma_ry.tolist()} Ry, "
                                f"{sigma.tolist()} were asked for")
    weights = np.array([d.star for d in dynamicals], float)
    if mesh is not None and weights.sum() > mesh:
        raise EngineFailure(FailureCode.bad_input,
                            f"the stars of the q points hold {weights.sum():.0f} points, the mesh only {mesh}: a shifted mesh "
                            "(lshift_q of ph.x), whose stars reach beyond it and give no weights; compute it without a shift")
    if mesh is not None and weights.sum() < mesh:
        raise EngineFailure(FailureCode.missing_q,
                            f"the q points found stand for {weights.sum():.0f} of the mesh's {mesh} points: a q is missing")
    dos = settings.dos
    # a wide broadening reaches the bands across a gap
    narrow = sigma <= max(0.02, sigma[0])
    if dos[narrow].max() < INSULATOR_DOS * len(first.symbols):
        raise EngineFailure(FailureCode.no_fermi_surface, f"N(E_F) = {dos[narrow].max():.3g} states/spin/Ry/cell: "
                            "an insulator has no electron-phonon coupling at a Fermi surface")
    at_gamma = np.array([np.abs(c.q).max() < 1e-6 for c in couplings])
    if settings.tetrahedra and not at_gamma.all():
        # δ(E_k)δ(E_k+q) is singular at q = 0 without a broadening, and ph.x writes zeros: the other q stand for Γ too
        weights[at_gamma] = 0.0
    frequencies = np.array([c.frequencies_k for c in couplings]) / K_PER_THZ
    acoustic = np.array([acoustic_at_gamma(d) for d in dynamicals])
    lambdas = np.stack([c.precise_lambdas() for c in couplings], axis=1)
    lambdas[np.isnan(lambdas)] = 0.0  # of acoustic modes at Γ only, which have no λ: noise divided by noise
    return ModeCouplings(np.array([c.q for c in couplings]), weights, frequencies, acoustic, sigma, dos, lambdas, mesh,
                         settings.tetrahedra)


def acoustic_at_gamma(dynamical: Dynamical) -> np.ndarray:
    """(3N,) bool, the three modes at Γ that are most nearly rigid translations; none at another q."""
    out = np.zeros(len(dynamical.frequencies_thz), bool)
    if np.abs(dynamical.q).max() < 1e-6:
        out[np.argsort(-dynamical.rigid_translations(), kind="stable")[:3]] = True
    return out


def unknown_couplings(couplings: Couplings, dynamical: Dynamical) -> bool:
    """Whether a value that the coupling needs is NaN: acoustic modes at Γ may overflow, they are left out of λ."""
    needed = ~acoustic_at_gamma(dynamical)
    return not (np.isfinite(couplings.omega2_ry2).all() and np.isfinite(couplings.dos).all()
                and np.isfinite(couplings.precise_lambdas()[:, needed]).all())


def _same_crystal(a: Dynamical, b: Dynamical, index: int) -> None:
    if (a.symbols != b.symbols or np.abs(a.cell - b.cell).max() > 1e-5 or abs(a.alat_bohr - b.alat_bohr) > 1e-5
            or np.abs(a.positions - b.positions).max() > 1e-5):
        raise EngineFailure(FailureCode.other_structure,
                            f"the dynamical matrix of q {index} belongs to another crystal than that of q 1")


def read_folder(path: Path) -> ModeCouplings:
    """Read the couplings that ph.x left in a folder: ``elph_dir/elph.inp_lambda.*`` or ``*.dyn*.elph.*`` beside ``*.dyn*``.

    Without ``*.dyn0`` only gaps in the numbers of the q tell that one is missing; ``mesh`` of the result is None then.

    Raises
    ------
    DataError
        when the folder holds no such files.
    EngineFailure
        ``missing_q`` where a q has no coupling file, and as :func:`combine` and the readers of the files say.
    """
    path = Path(path)
    if path.is_file():
        path = path.parent
    root = path.parent if path.name == "elph_dir" else path
    files: dict[int, Path] = {}
    for folder in (root / "elph_dir", root, path):
        files = {int(p.suffix[1:]): p for p in folder.glob("elph.inp_lambda.*") if p.suffix[1:].isdigit()}
        files = files or {int(p.suffix[1:]): p for p in folder.glob("*.dyn*.elph.*") if p.suffix[1:].isdigit()}
        if files:
            break
    if not files:
        raise DataError(f"{path}: no elph.inp_lambda.* or *.dyn*.elph.* files here; give an alpha2F file or ph.x's folder")
    lists = sorted(root.glob("*.dyn0"))
    if len(lists) > 1:
        raise EngineFailure(FailureCode.bad_input, f"{root}: several q lists ({', '.join(p.name for p in lists)}): keep "
                            "those of one calculation")
    listed = read_q_list(lists[0]) if lists else None
    n = max(files) if listed is None else len(listed.points)
    if missing := [i for i in range(1, n + 1) if i not in files]:
        raise EngineFailure(FailureCode.missing_q, f"{root}: q {', '.join(map(str, missing))} of {n} has no coupling file")
    order = sorted(files)
    dynamicals = []
    for iq in order:
        found = [p for p in root.glob(f"*.dyn{iq}") if p.is_file()]
        if not found:
            raise EngineFailure(FailureCode.missing_output, f"{root}: no dynamical matrix *.dyn{iq} for {files[iq].name}; it "
                                "gives the weight of that q")
        if len(found) > 1:
            raise EngineFailure(FailureCode.bad_input, f"{root}: several dynamical matrices of q {iq} "
                                f"({', '.join(sorted(p.name for p in found))}): keep those of one calculation")
        dynamicals.append(read_dynamical(found[0]))
    return combine([read_couplings(files[i]) for i in order], dynamicals, None if listed is None else int(np.prod(listed.grid)))
