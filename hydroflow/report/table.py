"""The candidate table: one row each with every property, where it stands and why, and its structure as a CIF."""

from __future__ import annotations

import base64
import csv
import io
import warnings
from collections.abc import Callable
from html import escape

from pymatgen.symmetry.analyzer import SymmetryUndeterminedError

from hydroflow.arrays import StructureArrays
from hydroflow.report.records import CandidateRow, ReportData
from hydroflow.report.words import filter_name, fixed, formula_html, spacegroup_html
from hydroflow.store.documents import Candidate

Cell = Callable[[CandidateRow], tuple[str, float | str | None]]
"""What a column shows (HTML) and the value it sorts by."""


def _plain(attribute: str, decimals: int, scale: float = 1.0) -> Cell:
    def cell(r: CandidateRow) -> tuple[str, float | str | None]:
        value = getattr(r, attribute)
        return fixed(value, decimals, "", scale), value
    return cell


def _with_error(attribute: str, decimals: int, scale: float = 1.0) -> Cell:
    """Value ± error, the error from the attribute of the same name with ``_error`` before its unit."""
    name, unit = attribute.rsplit("_", 1)

    def cell(r: CandidateRow) -> tuple[str, float | str | None]:
        value, error = getattr(r, attribute), getattr(r, f"{name}_error_{unit}")
        words = fixed(value, decimals, "", scale)
        return words + (f" <small>± {fixed(error, decimals, '', scale)}</small>" if words and error else ""), value
    return cell


COLUMNS: list[tuple[str, str, str, Cell]] = [
    # heading, kind (how it sorts), first direction, cell
    ("formula", "text", "ascending", lambda r: (f"<b>{formula_html(r.formula)}</b>", r.formula)),
    ("space group", "number", "descending", lambda r: (spacegroup_html(r.spacegroup_symbol, r.spacegroup), r.spacegroup)),
    ("atoms", "number", "ascending", lambda r: (str(r.natoms or ""), r.natoms)),
    ("E<sub>hull</sub> model<br>meV/atom", "number", "ascending", _with_error("ehull_lam_ev", 0, 1000)),
    ("E<sub>hull</sub> DFT<br>meV/atom", "number", "ascending", _plain("ehull_dft_ev", 0, 1000)),
    ("atomic H<br>%", "number", "descending", _plain("atomic_h_fraction", 0, 100)),
    ("lowest phonon<br>THz", "number", "descending", _plain("min_frequency_thz", 1)),
    ("λ", "number", "descending", _plain("lambda_", 2)),
    ("ω<sub>log</sub><br>K", "number", "descending", _plain("omega_log_k", 0)),
    ("Tc A–D<br>K", "number", "descending", lambda r: (_tc(r), r.tc_k)),
    ("Tc McM<br>K", "number", "descending", _plain("tc_mcmillan_k", 0)),
    ("Tc predicted<br>K", "number", "descending", _with_error("tc_predicted_k", 0)),
    ("where it stands and why", "text", "ascending", lambda r: (escape(r.reason), r.reason)),
]


def _tc(r: CandidateRow) -> str:
    if r.tc_k is None:
        return ""
    words = fixed(r.tc_k, 0)
    return f"<b>{words}</b>" if r.usable else f'<span class="soft" title="does not count: see the EPC checks">({words})</span>'


def table(data: ReportData, cifs: dict[str, str]) -> str:
    """The table with its filters; `cifs` maps candidate ids to CIF texts."""
    stages = {r.rejected_by for r in data.rows if r.rejected_by}
    options = [("", "all"), ("passed", "passed every filter"), ("epc", "with EPC"), ("usable", "Tc counts"),
               *((f"rejected-{s}", f"rejected: {filter_name(s)}") for s in sorted(stages))]
    choose = "".join(f'<option value="{escape(v, quote=True)}">{escape(w)}</option>' for v, w in options)
    head = "".join(f'<th scope=col data-kind={kind} data-first={first}{" class=left" if kind == "text" else ""}>'
                   f"<button type=button>{name}</button></th>" for name, kind, first, _ in COLUMNS)
    rows = "".join(_row(r, cifs.get(r.id)) for r in data.rows)
    return f"""
<div class="filters">
  <label>formula, space group, reason <input id="filter-find" type="search" placeholder="CaYH12, Fm-3m …"></label>
  <label>where it stands <select id="filter-where">{choose}</select></label>
  <label>E_hull at most (meV/atom) <input id="filter-hull" type="number" min="0" step="10"></label>
  <label>Tc at least (K) <input id="filter-tc" type="number" min="0" step="10"></label>
  <span><span id="shown" role="status" class="soft">{len(data.rows)} shown</span> ·
  <a download="{data.campaign}-candidates.csv" href="{_data_uri(to_csv(data.rows), 'text/csv')}">CSV</a></span>
</div>
<div class="scroll" tabindex="0"><table id="candidates-table"><thead><tr><th></th>{head}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _row(r: CandidateRow, cif: str | None) -> str:
    where = [w for w, there in (("passed", r.rejected_by is None and r.stage in ("passed", "epc")),
                                ("epc", r.tc_k is not None), ("usable", bool(r.usable and r.tc_k is not None)),
                                (f"rejected-{r.rejected_by}", bool(r.rejected_by))) if there]
    cells = []
    for name, kind, _, cell in COLUMNS:
        words, value = cell(r)
        css = "" if kind == "number" else ' class="reason"' if "why" in name else ' class="left"'
        cells.append(f'<td{css} data-v="{"" if value is None else escape(str(value), quote=True)}">{words}</td>')
    name = "_".join(w for w in (r.formula, (r.spacegroup_symbol or "").replace("/", ""), r.id[:10]) if w)
    link = f'<a download="{escape(name, quote=True)}.cif" href="{_data_uri(cif, "chemical/x-cif")}">CIF</a>' if cif else ""
    tc = r.tc_k if r.tc_k is not None else r.tc_predicted_k
    search = " ".join(str(w) for w in (r.formula, r.spacegroup_symbol or "", r.spacegroup or "", r.system, r.reason, r.id,
                                       r.prototype or "")).lower()
    hull = "" if r.ehull_ev is None else f"{1000 * r.ehull_ev:.3f}"
    return (f'<tr data-search="{escape(search, quote=True)}" data-where="{escape(" ".join(where), quote=True)}" '
            f'data-hull="{hull}" data-tc="{"" if tc is None else f"{tc:.3f}"}"><td>{link}</td>{"".join(cells)}</tr>')


def to_csv(rows: list[CandidateRow]) -> str:
    """The listed candidates as CSV, energies in eV/atom."""
    fields = ["id", "formula", "spacegroup", "spacegroup_symbol", "prototype", "natoms", "stage", "rejected_by", "reason",
              "ehull_lam_ev", "ehull_lam_error_ev", "ehull_dft_ev", "atomic_h_fraction", "min_frequency_thz",
              "hydrogen_dos_share", "lambda_", "omega_log_k", "tc_k", "tc_mcmillan_k", "usable", "tc_predicted_k",
              "tc_predicted_error_k"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f.rstrip("_") for f in fields])
    writer.writerows([[getattr(r, f) for f in fields] for r in rows])
    return out.getvalue()


def cifs(campaign: str, rows: list[CandidateRow], symprec_a: float) -> dict[str, str]:
    """Candidate id → CIF with its symmetry, of the DFT structure where there is one, else the model's."""
    found = Candidate.objects(campaign=campaign, structure_id__in=[r.id for r in rows]).only(
        "structure_id", "structure", "structure_dft")
    return {c.structure_id: cif(bytes(c.structure_dft or c.structure), symprec_a)
            for c in found if c.structure_dft or c.structure}


def cif(parquet: bytes, symprec_a: float) -> str:
    """One stored structure as a CIF: symmetrised with the tolerance of the campaign's symmetry filter, so that the file
    says the space group the table says; in P1 where no symmetry is found."""
    structure = StructureArrays.from_parquet(parquet).structure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return structure.to(fmt="cif", symprec=symprec_a)
        except (TypeError, ValueError, SymmetryUndeterminedError):
            return structure.to(fmt="cif")


def _data_uri(text: str, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(text.encode()).decode()}"
