"""The page itself: one HTML file that needs no network, put together from records and figures."""

from __future__ import annotations

from collections import Counter
from html import escape
from importlib.resources import files

from hydroflow import __version__
from hydroflow.report import coupling, figures, ternary
from hydroflow.report.records import MAX_SPECTRA, ReportData
from hydroflow.report.table import table
from hydroflow.report.words import count, duration, fixed, formula, formula_html, moment, number


def page(data: ReportData, cifs: dict[str, str]) -> str:
    """The whole page; `cifs` maps candidate ids to CIF texts."""
    sections: list[tuple[str, str, str]] = [
        ("funnel", "Funnel", _funnel(data)),
        ("candidates", "Candidates", _candidates(data, cifs)),
        ("tc", "Tc against hull distance", _tc(data)),
        ("coupling", "Electron–phonon coupling", _coupling(data)),
        ("hull", "Hull at pressure", _hull(data)),
        ("tc-model", "Tc model", _tc_model(data)),
        ("learning", "Learning curves", _learning(data)),
        ("cost", "Cost", _cost(data)),
        ("limits", "What these numbers are, and what they are not", _limits(data)),
        ("provenance", "Provenance", _provenance(data)),
    ]
    nav = "".join(f'<li><a href="#{key}">{"Limits" if key == "limits" else title}</a></li>' for key, title, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{html}</section>' for key, title, html in sections)
    own = files("hydroflow.report")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>{escape(data.campaign)}: {escape(_title(data))}</title><link rel="icon" href="data:,">
<style>{own.joinpath("page.css").read_text("utf-8")}</style></head>
<body><header class="top">{_header(data)}</header>
<nav aria-label="Sections"><ul>{nav}</ul></nav><main>{body}</main>
<footer>Written by hydroflow {__version__} from the records of campaign {escape(data.campaign)} ({escape(data.digest)}), as of
{moment(data.updated)}. Temperatures in K, hull distances per atom, frequencies in THz.</footer>
<script>{own.joinpath("page.js").read_text("utf-8")}</script></body></html>
"""


# ---- head -------------------------------------------------------------------------------------------------------------
def _title(data: ReportData) -> str:
    elements = data.settings.space.elements
    if len(elements) <= 4:
        system = "–".join([*elements, "H"])
    else:
        pairs = len(elements) * (len(elements) - 1) // 2
        system = f"{len(elements)} elements, {count(pairs)} ternary systems with H"
    return f"{system} at {data.settings.pressure.campaign_gpa:g} GPa"


def _header(data: ReportData) -> str:
    usable = data.usable
    labels = sum(i["labelled"] for i in data.iterations)
    hours = sum(c["core_hours"] for c in data.costs)
    best = usable[0] if usable else None
    tiles = [
        (count(int(data.funnel[0]["count"]) if data.funnel else 0), "structures searched"),
        (count(int(data.funnel[-1]["count"]) if data.funnel else 0), "passed every filter"),
        (count(len(data.epc)), f"with EPC, {len(usable)} usable"),
        (f"{fixed(best.tc_k, 0)} K" if best else "–",
         f"highest usable Tc: {formula_html(best.formula)}" if best else
         "no Tc to quote" + (": EPC is plumbing" if data.plumbing else " yet")),
        (count(labels), "DFT labels"),
        (number(hours, 3 if hours >= 0.1 else 1), "core-hours"),
    ]
    cells = "".join(f'<div class="tile"><b>{big}</b><span>{words}</span></div>' for big, words in tiles)
    state = (f"finished {moment(data.finished)}" if data.finished
             else f"stands at {escape(data.stage)}{': ' + escape(data.message) if data.message else ''}")
    warning = ""
    if data.plumbing:
        warning = ('<div class="warning"><b>The EPC protocol of this campaign is “plumbing”.</b> Its grids are far from '
                   "convergence: λ and Tc on this page show that the whole chain works on real engines. They are no "
                   "predictions.</div>")
    model = data.settings.model
    settings = (f"labels: {engine_name(data)}, protocol {escape(data.settings.labels.protocol)} · model: {model.ensemble} × "
                f"{model.descriptor} ({model.size}) · EPC: protocol {escape(data.settings.epc.protocol)} · "
                '<a href="#limits">what these numbers are, and what they are not</a>')
    return (f'<p class="soft">Campaign <b>{escape(data.campaign)}</b> · started {moment(data.started)} · {state}</p>'
            f"<h1>Superconducting hydrides: {escape(_title(data))}</h1>"
            f'<p class="soft">{settings}</p><div class="tiles">{cells}</div>{warning}')


def engine_name(data: ReportData) -> str:
    return {"qe": "Quantum ESPRESSO", "vasp": "VASP"}[data.settings.labels.engine]


def _limits(data: ReportData) -> str:
    return f'<ul class="limits">{"".join(f"<li>{text}</li>" for text in limitations(data))}</ul>'


def limitations(data: ReportData) -> list[str]:
    """What a careful reader must know, from what was done in this campaign; HTML."""
    settings = data.settings
    out = []
    if not data.finished:
        out.append(f"The campaign is not finished (stage: {escape(data.stage)}); everything here may still change.")
    if data.plumbing:
        out.append("λ and Tc come from electron–phonon grids that are not converged (protocol “plumbing”).")
    errors = [i["errors"].get("enthalpy_mev_atom") for i in data.iterations]
    known = [e for e in errors if e is not None]
    if known:
        out.append(f"The model's enthalpy error on fresh relaxed structures was {known[-1]:.0f} meV/atom when last measured, "
                   f"beside a cut at {1000 * settings.funnel.ehull_lam_ev:g} meV/atom: structures near the cut were kept or "
                   "lost by chance.")
    hull = "elements and binaries included" if settings.space.references else "without a search of elements and binaries"
    out.append(f"The hull knows only phases that this campaign found ({hull}). A competing phase that was missed makes every "
               "hull distance look smaller than it is.")
    out.append("Enthalpies are static: no zero-point energy, no temperature. Phonons are harmonic; quantum and anharmonic motion "
               "of hydrogen can stabilise a phase that looks unstable here and can lower λ by a third.")
    mu = " and ".join(f"{m:.2f}" for m in settings.epc.mu_star)
    out.append(f"Tc is from isotropic theory with an assumed μ* ({mu}). A Tc counts only when every check of its panel passed; "
               "λ must have a plateau over the broadening σ.")
    if data.tc_model.get("scope"):
        out.append(f"Tc model: {escape(str(data.tc_model['scope']))}")
    lost = sum((Counter(i["quarantined"]) for i in data.iterations), Counter[str]())
    held = lost.pop("held for review", 0)
    if lost or held:
        codes = ", ".join(f"{escape(code)} {n}" for code, n in lost.most_common())
        out.append(f"{count(lost.total())} DFT labels failed for good{f' ({codes})' if codes else ''} and {count(held)} are held "
                   "for review: they are in no data set.")
    return out


# ---- sections ---------------------------------------------------------------------------------------------------------
def _empty(words: str) -> str:
    return f'<p class="empty">{words}</p>'


def _note(words: str) -> str:
    """What the run itself remarked; nothing when it remarked nothing."""
    return f"<p>{escape(words[:1].upper() + words[1:])}.</p>" if words else ""


def _table(head: list[str], rows: list[list[str]], alignment: str) -> str:
    """A plain table of HTML cells; `alignment` has one letter per column, l or r."""
    css = [' class="left"' if a == "l" else "" for a in alignment]
    top = "".join(f"<th scope=col{c}>{h}</th>" for h, c in zip(head, css, strict=True))
    body = "".join("<tr>" + "".join(f"<td{c}>{cell}</td>" for cell, c in zip(row, css, strict=True)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(svg: str, caption: str) -> str:
    return f'<figure><div class="wide">{svg}</div><figcaption>{caption}</figcaption></figure>'


def _funnel(data: ReportData) -> str:
    svg = figures.funnel(data.funnel)
    if not svg:
        return _empty("Nothing has been screened yet: the search runs once both stages of learning have ended.")
    return _figure(svg, "Structures left after each filter, in the order applied. A filter sees only what those before it kept. "
                   "Not computed: the calculation failed, see the candidate. Waiting: beyond funnel.max_candidates_dft.")


def _candidates(data: ReportData, cifs: dict[str, str]) -> str:
    if not data.rows:
        return _empty("No candidates yet. They appear here when the search has stored structures near the hull.")
    words = f"{count(data.candidates_total)} structures near the hull are on record"
    if len(data.rows) < data.candidates_total:
        words += (f"; the {count(len(data.rows))} that got furthest are listed, all of them with "
                  f"<code>hydroflow candidates {escape(data.campaign)}</code>")
    return (f"<p>{words}. Tc by Allen–Dynes (A–D) and McMillan (McM); in brackets it does not count, see its checks. "
            "A click on a heading sorts.</p>" + table(data, cifs))


def _tc(data: ReportData) -> str:
    svg = figures.tc_against_hull(data)
    if not svg:
        return _empty("No Tc yet, neither computed nor predicted.")
    mu = data.settings.epc.mu_star[0]
    return _figure(svg, f"Allen–Dynes Tc at μ* = {mu:g}. Near the left edge a phase is (meta)stable at pressure, by this hull."
                        + (" Bars: spread of the Tc model over its folds." if "whisker" in svg else ""))


def _coupling(data: ReportData) -> str:
    note = _note(data.epc_note)
    if not data.epc:
        failed = sum(r.epc_status == "failed" for r in data.rows)
        return _empty("No electron–phonon calculation has finished"
                      + (f"; {failed} failed, see <code>hydroflow jobs</code>." if failed else " yet.")) + note
    shown = data.epc[:MAX_SPECTRA]
    words = (f"{len(data.epc)} finished, {len(data.usable)} with a Tc that counts; "
             + (f"the first {len(shown)} by that and by Tc." if len(shown) < len(data.epc) else "those first."))
    return (f"<p>{words} A λ that still moves with the broadening σ is not converged. λ(ω) is λ as it builds up with frequency, "
            f"scaled to the frame.</p>{note}"
            f'<div class="cards">{"".join(coupling.panel(e) for e in shown)}</div>')


def _hull(data: ReportData) -> str:
    entries = data.hull.get("entries") or []
    pairs = ternary.systems(entries)
    if not pairs:
        return _empty("No hull yet: it needs relaxed phases of the elements, the binaries and at least one ternary.")
    drawn = pairs[:ternary.MAX_SYSTEMS]
    pressure = data.hull.get("pressure_gpa", data.settings.pressure.campaign_gpa)
    out = []
    for pair in drawn:
        inside = [e for e in entries if {s for s, x in e["x"].items() if x > 0} <= {*pair, "H"}]
        stable = sorted({e["formula"] for e in inside if e["on_hull"] and sum(x > 0 for x in e["x"].values()) > 1})
        words = ", ".join(formula(f) for f in stable) or "none but the elements"
        out.append(_figure(ternary.ternary(entries, pair) + ternary.legend(),
                           f"<b>{'–'.join([*pair, 'H'])} at {pressure:g} GPa</b>, {count(len(inside))} entries, the lowest of "
                           f"each composition drawn. On the hull: {words}."))
    more = f"<p>{len(pairs) - len(drawn)} more systems are not drawn.</p>" if len(pairs) > len(drawn) else ""
    return "".join(out) + more


def _tc_model(data: ReportData) -> str:
    cv = data.tc_model.get("cv") or {}
    svg = figures.parity(cv)
    if not svg:
        return _empty("No Tc model yet: it is trained when enough electron–phonon calculations have a usable Tc.") + _note(
            data.tc_note)
    mae, spread, baseline = cv.get("mae_k"), cv.get("std_k"), data.tc_model.get("baseline_mae_k")
    error = fixed(mae, 1) + (f" ± {fixed(spread, 1)}" if spread is not None else "")
    facts = [("error of the cross-validation", f"<b>{error} K</b> mean absolute, {len(cv['parity'])} values")]
    if baseline is not None:
        verdict = ""
        if mae is not None:
            verdict = (f": {fixed(100 * (1 - mae / baseline), 0)} % better" if mae < baseline
                       else ": the model is <b>not better</b> than this")
        facts.append(("baseline", f"{fixed(baseline, 1)} K{verdict}"))
    if data.tc_model.get("scope"):
        facts.append(("scope", escape(str(data.tc_model["scope"]))))
    rows = "".join(f"<p><span class=soft>{k}</span><br>{v}</p>" for k, v in facts)
    return (f'<div class="side"><figure>{svg}</figure><div>{rows}'
            "<p class=soft>Every value was predicted by a model that had not seen it.</p></div></div>")


def _learning(data: ReportData) -> str:
    drawn = figures.learning(data.iterations)
    if not drawn:
        return _empty("No iteration has finished yet: the first batch of random structures is being labelled.")
    panels = "".join(f"<figure><h3>{title}</h3>{svg}</figure>" for title, svg in drawn)
    keys = ["energy_mev_atom", "force_mev_a", "virial_mev_atom", "enthalpy_mev_atom"]
    rows = [[figures.title(i), count(i["explored"].get("structures")), count(i["explored"].get("frames")), count(i["labelled"]),
             *(number(i["errors"].get(k)) for k in keys), _goal(i)] for i in data.iterations]
    head = ["", "structures", "frames", "new labels", "energy<br>meV/atom", "force<br>meV/Å", "virial<br>meV/atom",
            "enthalpy<br>meV/atom", "goal"]
    return (f'<div class="panels">{panels}</div><details><summary>All iterations as a table</summary>'
            f'{_table(head, rows, "lrrrrrrrl")}</details>')


def _goal(iteration: dict) -> str:
    goal = iteration["goal"]
    if not goal:
        return "–"
    mark = '<span class="good">reached</span>' if iteration["reached"] else "not yet"
    return f"{escape(str(goal.get('name', '')))}: {number(goal.get('value'))} (goal {number(goal.get('target'))}), {mark}"


def _cost(data: ReportData) -> str:
    if not data.costs and not data.timings_s:
        return _empty("No job has finished yet.")
    most = max((c["core_hours"] for c in data.costs), default=0) or 1
    extra = [k for k in ("gpu_hours", "money") if any(c[k] for c in data.costs)]
    rows = [[escape(c["kind"]), count(c["jobs"]), count(c["done"]), f"{c['core_hours']:.3f}", *(f"{c[k]:.2f}" for k in extra),
             f'<span class="share" style="width:{160 * c["core_hours"] / most:.0f}px"></span>', escape(", ".join(c["engines"]))]
            for c in data.costs]
    total = {k: sum(c[k] for c in data.costs) for k in ("jobs", "done", "core_hours", *extra)}
    rows.append(["sum", count(total["jobs"]), count(total["done"]), f"<b>{total['core_hours']:.3f}</b>",
                 *(f"{total[k]:.2f}" for k in extra), "", ""])
    head = ["kind of job", "jobs", "done", "core-hours", *(k.replace("_", "-") for k in extra), "", "engine"]
    jobs = _table(head, rows, "lrrr" + "r" * len(extra) + "ll") if data.costs else ""
    stages = " · ".join(f"{escape(k)} {duration(v)}" for k, v in data.timings_s.items())
    wall = f"<p>Wall time per stage: {stages}.</p>" if stages else ""
    failures = "".join(f"<li>{count(f['jobs'])} × {escape(f['kind'])}: {escape(f['code'].replace('_', ' '))}</li>"
                       for f in data.failures)
    lost = f"<p>Jobs without an answer, after their recoveries:</p><ul>{failures}</ul>" if failures else ""
    return wall + jobs + lost


def _provenance(data: ReportData) -> str:
    rows = [[f"<code>{escape(m['digest'][:23])}</code>", escape(m["role"] or ""), escape(m["engine"] or ""),
             f"<code>{escape((m['dataset'] or '')[:23])}</code>", escape(_metrics(m["metrics"]))] for m in data.models]
    models = f"<h3>Models</h3>{_table(['checksum', 'role', 'engine', 'data set', 'metrics'], rows, 'lllll')}" if rows else ""
    settings = "".join(f"<li><code>{escape(s)}</code></li>" for s in data.label_settings)
    labels = f"<h3>Level of theory of the candidates</h3><ul>{settings}</ul>" if settings else ""
    return (f"{labels}{models}<details><summary>The campaign file, as frozen at the start (digest {escape(data.digest)})"
            f"</summary><pre>{escape(data.settings.model_dump_json(indent=2, exclude_none=True))}</pre></details>")


def _metrics(metrics: dict) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in metrics.items() if isinstance(v, (int, float)))[:160]
