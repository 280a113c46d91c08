"""The figures of a campaign: funnel, learning curves, Tc against the hull distance, parity of the Tc model.

Each function returns SVG, or None where there is nothing to draw yet; captions and empty states are the page's.
"""

from __future__ import annotations

import math
from typing import Any

from hydroflow.report import svg
from hydroflow.report.records import MAX_POINTS, CandidateRow, ReportData
from hydroflow.report.svg import Plot, Scale
from hydroflow.report.words import count, filter_name, fixed, formula, number, spacegroup, threshold

ERRORS = {
    "energy_mev_atom": ("energy", "s0"), "enthalpy_mev_atom": ("enthalpy of relaxed structures", "s1"),
    "virial_mev_atom": ("virial", "s2"),
}
CLASSES = {"accurate": "s2", "candidate": "s1", "unreliable": "s6", "unphysical": "s7"}
"""Classes of explored frames by force deviation, with their colours."""


# ---- funnel -----------------------------------------------------------------------------------------------------------
def funnel(steps: list[dict[str, Any]]) -> str | None:
    """One bar per step with its count, the share kept, and what was neither kept nor rejected by value.

    Bar lengths are logarithmic once counts span over 50.
    """
    if not steps:
        return None
    counts = [max(int(s.get("count") or 0), 0) for s in steps]
    most = max(*counts, 1)
    logarithmic = most > 50 * max(min((c for c in counts if c), default=1), 1)
    name_width, width, row = 176.0, 900.0, 44.0
    room = width - name_width - 250
    parts = []
    for i, (step, n) in enumerate(zip(steps, counts, strict=True)):
        y = i * row + 4
        share = (math.log1p(n) / math.log1p(most)) if logarithmic else n / most
        length = max(share * room, 2 if n else 0)
        name = str(step.get("name", ""))
        rule = threshold(name, step.get("threshold"))
        kept = f"{100 * n / counts[i - 1]:.3g} % kept" if i and counts[i - 1] else ""
        for key, what in (("undetermined", "not computed"), ("waiting", "waiting")):
            kept += f", {count(step[key])} {what}" if step.get(key) else ""
        parts += [
            svg.text(name_width - 14, y + 15, filter_name(name), "strong", "end"),
            svg.text(name_width - 14, y + 29, rule, "note", "end"),
            f'<rect x="{name_width}" y="{y}" width="{length:.1f}" height="{row - 12}" rx="3" class="bar s0" '
            f'opacity="{max(1 - 0.09 * i, 0.5):.2f}">{svg.tip(f"{filter_name(name)}: {count(n)} {kept}")}</rect>',
            svg.text(name_width + length + 10, y + 21, count(n), "strong"),
            svg.text(name_width + length + 18 + 8.2 * len(count(n)), y + 21, kept, "note"),
        ]
    if logarithmic:
        parts.append(svg.text(name_width, len(steps) * row + 10, "bar length: logarithm of the count", "note"))
    words = "; ".join(f"{filter_name(str(s.get('name')))} {count(n)}" for s, n in zip(steps, counts, strict=True))
    return svg.drawing(width, len(steps) * row + (16 if logarithmic else 0), parts, f"Funnel: {words}")


# ---- learning ---------------------------------------------------------------------------------------------------------
def learning(iterations: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(title, SVG) of errors, forces, labels and explored frames over the iterations of all stages."""
    if not iterations:
        return []
    out = []
    series = [(ERRORS[k], [i["errors"].get(k) for i in iterations]) for k in ERRORS]
    target = next((i["goal"].get("target") for i in reversed(iterations) if i["stage"] == "stage2" and i["goal"]), None)
    if any(v is not None for _, values in series for v in values):
        scale = Scale.around([v for _, values in series for v in values if v], log=True, include=[target] if target else [])
        plot = _over_iterations(iterations, scale, "mean error (meV/atom), log")
        for (name, css), values in series:
            _curve(plot, iterations, values, css, name, "meV/atom")
        if target:
            plot.rule(y=target)
        out.append(("Energy, virial and enthalpy", plot.render("Errors in meV/atom over the iterations")
                    + _legend([(css, name) for (name, css), values in series if any(v is not None for v in values)],
                              f"goal of stage 2, enthalpy: {target:g} meV/atom" if target else "")))
    forces = [i["errors"].get("force_mev_a") for i in iterations]
    if any(v is not None for v in forces):
        plot = _over_iterations(iterations, Scale.around([v for v in forces if v], log=True), "mean force error (meV/Å), log")
        _curve(plot, iterations, forces, "s3", "force", "meV/Å")
        out.append(("Forces", plot.render("Force error over the iterations")))
    total, before = [], 0
    for i in iterations:
        before += i["labelled"]
        total.append(before)
    plot = _over_iterations(iterations, Scale.around([*total, 0], include=[0]), "labelled frames")
    for k, (i, n) in enumerate(zip(iterations, total, strict=True)):
        plot.bar(k, 0, n - i["labelled"], "s0 faded", f"{n - i['labelled']} from earlier iterations")
        plot.bar(k, n - i["labelled"], n, "s0", f"{title(i)}: {i['labelled']} new labels, {n} in all")
    out.append(("Labels by DFT", plot.render(f"Labelled frames over the iterations, {before} in all")
                + _legend([("s0", "new"), ("s0 faded", "from before")])))
    explored = [{c: i["explored"].get(c, 0) for c in CLASSES} for i in iterations]
    if any(sum(e.values()) for e in explored):
        plot = _over_iterations(iterations, Scale(0, 100), "explored frames (%)")
        for k, (i, classes) in enumerate(zip(iterations, explored, strict=True)):
            base, frames = 0.0, sum(classes.values())
            for name, n in classes.items():
                if frames and n:
                    plot.bar(k, base, base + 100 * n / frames, CLASSES[name],
                             f"{title(i)}: {n} of {frames} frames {name} ({100 * n / frames:.1f} %)")
                    base += 100 * n / frames
        goal = next((i["goal"].get("target") for i in iterations if i["stage"] == "stage1" and i["goal"]), None)
        percent = 100 * goal if goal is not None and 0 < goal <= 1 else None
        plot.rule(y=percent)
        out.append(("Frames by force deviation", plot.render("Classes of explored frames over the iterations")
                    + _legend([(css, name) for name, css in CLASSES.items()],
                              f"goal of stage 1: {percent:g} % accurate" if percent else "")))
    return out


def title(iteration: dict[str, Any]) -> str:
    return iteration["stage"] if iteration["stage"] == "bootstrap" else f"{iteration['stage']}, iteration {iteration['index']}"


def _over_iterations(iterations: list[dict[str, Any]], y: Scale, y_label: str) -> Plot:
    names = ["b" if i["stage"] == "bootstrap" else f"{i['stage'][-1]}.{i['index']}" for i in iterations]
    plot = Plot(Scale(-0.6, len(names) - 0.4), y, "iteration (stage.number)", y_label, x_names=names, top=22, height=250)
    for stage in dict.fromkeys(i["stage"] for i in iterations):
        inside = [k for k, i in enumerate(iterations) if i["stage"] == stage]
        words = {"stage1": "stage 1", "stage2": "stage 2"}.get(stage, "" if len(names) > 6 else stage)
        plot.band(inside[0] - 0.48, inside[-1] + 0.48, words, f"band {stage}")
    return plot


def _curve(plot: Plot, iterations: list[dict[str, Any]], values: list[float | None], css: str, name: str, unit: str) -> None:
    # joined across iterations that did not measure it: the trend is what is looked at
    known = [(float(k), v) for k, v in enumerate(values) if v is not None and v > 0]
    plot.line(known, css)
    for k, v in known:
        plot.dot(k, v, css, f"{title(iterations[int(k)])}: {name} {number(v)} {unit}")


def _legend(entries: list[tuple[str, str]], rule: str = "", dots: bool = False) -> str:
    """Colours and their names, as squares or as the dots of a scatter plot; `rule` says what the dashed line is."""
    marks = [f'<circle cx="6" cy="6" r="4.5" class="dot {css}"/>' if dots else
             f'<rect x="1" y="1" width="10" height="10" rx="2" class="bar {css}"/>' for css, _ in entries]
    items = [f'<li><svg width="12" height="12" aria-hidden="true">{mark}</svg>{name}</li>'
             for mark, (_, name) in zip(marks, entries, strict=True)]
    if rule:
        items.append('<li><svg width="24" height="12" aria-hidden="true"><line x1="0" x2="24" y1="6" y2="6" class="rule"/></svg>'
                     f"{rule}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


# ---- Tc -----------------------------------------------------------------------------------------------------------------
def tc_against_hull(data: ReportData) -> str | None:
    """Tc (computed and predicted) against E_hull at the best level there is."""
    points = [r for r in data.points if r.ehull_ev is not None][:MAX_POINTS]
    computed = [r for r in points if r.tc_k is not None]
    predicted = [r for r in points if r.tc_k is None and r.tc_predicted_k is not None]
    if not computed and not predicted:
        return None
    limit = 1000 * data.settings.funnel.ehull_dft_ev
    x = Scale.around([1000 * (r.ehull_ev or 0) for r in points], include=[0, limit])
    tops = [r.tc_k or 0 for r in computed] + [(r.tc_predicted_k or 0) + (r.tc_predicted_error_k or 0) for r in predicted]
    plot = Plot(x, Scale.around(tops, include=[0]), "hull distance at the best level computed (meV/atom)", "Tc (K)", width=900,
                height=360, left=64)
    plot.rule(x=limit, words=f"{limit:g} meV/atom")
    for r in predicted:
        at, tc, error = 1000 * (r.ehull_ev or 0), r.tc_predicted_k or 0, r.tc_predicted_error_k
        if error:
            plot.whisker(at, max(tc - error, 0), tc + error, "s1")
        plot.dot(at, tc, "s1 hollow", f"{_name(r)}: Tc predicted {fixed(tc, 0)}{f' ± {fixed(error, 0)}' if error else ''} K, "
                                      f"{_hull(r)}")
    for r in computed:
        css = "s0" if r.usable else "s7 hollow"
        doubt = "" if r.usable else ", does not count"
        plot.dot(1000 * (r.ehull_ev or 0), r.tc_k or 0, css,
                 f"{_name(r)}: Tc {fixed(r.tc_k, 0)} K{doubt}, λ {number(r.lambda_)}, {_hull(r)}", 4.5)
    best = [r for r in computed if r.usable] or computed
    for r in sorted(best, key=lambda r: -(r.tc_k or 0))[:5]:
        at = plot.px(1000 * (r.ehull_ev or 0))
        side = "start" if at < 760 else "end"
        plot.raw(svg.text(at + (8 if side == "start" else -8), plot.py(r.tc_k or 0) + 4, formula(r.formula), "name", side))
    legend = [("s0", "EPC, counts"), ("s7 hollow", "EPC, does not count"), ("s1 hollow", "predicted by the Tc model")]
    shown = [bool([r for r in computed if r.usable]), bool([r for r in computed if not r.usable]), bool(predicted)]
    return (plot.render(f"Tc against hull distance, {len(computed)} computed and {len(predicted)} predicted")
            + _legend([entry for entry, there in zip(legend, shown, strict=True) if there], dots=True))


def _name(r: CandidateRow) -> str:
    return f"{formula(r.formula)} {spacegroup(r.spacegroup_symbol, r.spacegroup)}".strip()


def _hull(r: CandidateRow) -> str:
    return f"E_hull {fixed(r.ehull_ev, 0, scale=1000)} meV/atom ({'DFT' if r.ehull_dft_ev is not None else 'model'})"


def parity(cv: dict[str, Any]) -> str | None:
    """Predicted against computed Tc over the folds of the cross-validation."""
    pairs = [(float(t), float(p)) for t, p in cv.get("parity") or []]
    if not pairs:
        return None
    axis = Scale.around([v for pair in pairs for v in pair], include=[0])
    plot = Plot(axis, axis, "Tc from EPC (K)", "Tc predicted, left-out fold (K)", width=400, height=380)
    plot.line([(axis.low, axis.low), (axis.high, axis.high)], "s7 dashed")
    for true, predicted in pairs:
        plot.dot(true, predicted, "s0", f"EPC {fixed(true, 1)} K, predicted {fixed(predicted, 1)} K")
    return plot.render(f"Parity of the Tc model over {len(pairs)} left-out values")
