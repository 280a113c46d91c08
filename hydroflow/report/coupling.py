"""One panel per candidate with electron–phonon coupling: λ and Tc against the broadening, α²F, the dispersion with each mode's
coupling, Tc by formula, and the checks."""

from __future__ import annotations

from html import escape
from typing import Any

from hydroflow.epc.inputs import path_ticks
from hydroflow.report.svg import Plot, Scale
from hydroflow.report.words import fixed, formula_html, number, spacegroup_html

FORMULAS = {"mcmillan": "McMillan", "allen_dynes": "Allen–Dynes", "eliashberg": "Eliashberg"}
MAX_PATH_POINTS = 60
"""q points that the small picture of a dispersion is drawn with."""
LEAST_CIRCLE = 0.05
"""Modes with less than this share of the largest λ get no circle: hundreds of dots too small to see."""


def panel(result: dict[str, Any]) -> str:
    """The HTML of one candidate's EPC result."""
    css, words = ("good", "Tc counts") if result["usable"] else ("bad", "Tc does not count")
    figures = "".join(f"<div>{f}</div>" for f in (
        broadening(result), temperature(result), spectrum(result), dispersion(result)) if f)
    facts = [
        ("λ", number(result.get("lambda"))), ("ω<sub>log</sub>", f"{fixed(result.get('omega_log_k'), 0)} K"),
        ("ω̄₂", f"{fixed(result.get('omega2_k'), 0)} K"), ("protocol", escape(str(result.get("protocol") or "–"))),
    ]
    if result.get("hydrogen_dos_share") is not None:
        facts.append(("H share of N(E<sub>F</sub>)", f"{fixed(result['hydrogen_dos_share'], 0, scale=100)} %"))
    return (
        f'<article class="card"><h3>{formula_html(result["formula"])} '
        f'{spacegroup_html(result.get("spacegroup_symbol"), result.get("spacegroup"))} '
        f'<span class="badge {css}">{words}</span></h3>'
        f'<dl class="facts">{"".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts)}</dl>'
        f'<div class="pair">{figures}</div>{_formulas(result.get("tc_k"))}'
        f'{_checks(result.get("checks") or [])}</article>'
    )


def broadening(result: dict[str, Any]) -> str | None:
    """λ against the double-delta broadening σ; the value that is reported is dashed."""
    points = [(float(b["sigma_ry"]), float(b["lambda"])) for b in result.get("broadenings") or []
              if b.get("lambda") is not None]
    if not points:
        return None
    reported = result.get("lambda")
    plot = Plot(Scale.around([p[0] for p in points], include=[0]),
                Scale.around([p[1] for p in points], include=[0, *([reported] if reported else [])]),
                "broadening σ (Ry)", "λ", width=260, height=180, left=46)
    plot.key([("s0", "λ(σ)"), *([("rule", f"reported: {reported:.2f}")] if reported else [])])
    plot.line(points, "s0")
    plateau = result.get("plateau") or {}
    if plateau.get("flat"):
        plot.band(float(plateau["first"]), float(plateau["last"]), "plateau", "band plateau")
    tcs = {float(b["sigma_ry"]): _first_tc(b.get("tc_k")) for b in result["broadenings"]}
    for sigma, value in points:
        tc = tcs[sigma]
        plot.dot(sigma, value, "s0", f"σ {sigma:g} Ry: λ {value:.3f}" + (f", Tc {tc:.0f} K" if tc is not None else ""))
    if reported:
        plot.rule(y=float(reported))
    return plot.render(f"λ against broadening for {result['formula']}")


def temperature(result: dict[str, Any]) -> str | None:
    """Tc against the double-delta broadening: Allen–Dynes and Eliashberg at the lowest μ* (lines) and the highest (dashed)."""
    rows = [(float(b["sigma_ry"]), b["tc_k"]) for b in result.get("broadenings") or [] if b.get("lambda") and b.get("tc_k")]
    if not rows:
        return None
    lines = []
    marks = {min(rows[0][1]): ""}
    marks.setdefault(max(rows[0][1]), " dashed")
    for css, name in (("s0", "allen_dynes"), ("s1", "eliashberg")):
        for mu, dashed in marks.items():
            points = [(sigma, float(tc[mu][name])) for sigma, tc in rows if tc.get(mu, {}).get(name) is not None]
            lines.append((points, css + dashed, f"{FORMULAS[name]}, μ* = {_mu(mu)}"))
    temperatures = [tc for points, *_ in lines for _, tc in points]
    plot = Plot(Scale.around([r[0] for r in rows], include=[0]), Scale.around(temperatures, include=[0]),
                "broadening σ (Ry)", "Tc (K)", width=260, height=180, left=46)
    plot.key([("s0", FORMULAS["allen_dynes"]), ("s1", FORMULAS["eliashberg"]),
              *[("s7" + dashed, f"μ* = {_mu(mu)}") for mu, dashed in marks.items()]])
    plateau = result.get("plateau") or {}
    if plateau.get("flat"):
        plot.band(float(plateau["first"]), float(plateau["last"]), "plateau", "band plateau")
    for points, css, words in lines:
        plot.line(points, css, words)
        for sigma, tc in points:
            plot.dot(sigma, tc, css.split()[0], f"σ {sigma:g} Ry: {tc:.0f} K, {words}", radius=2)
    return plot.render(f"Tc against broadening for {result['formula']}")


def dispersion(result: dict[str, Any]) -> str | None:
    """Phonon frequencies along the high-symmetry path; the area of a circle is the λ of that mode."""
    path = (result.get("spectrum") or {}).get("path")
    if not path:
        return None
    every = -(-len(path["x"]) // MAX_PATH_POINTS)
    x = [float(v) for v in path["x"][::every]]
    frequencies, lambdas = path["frequency_thz"][::every], path["lambda"][::every]
    plot = Plot(Scale(x[0], float(path["x"][-1])), Scale.around([w for row in frequencies for w in row], include=[0]),
                "q", "frequency (THz)", width=260, height=180, left=46, x_ticks=path_ticks(path["ticks"], path["labels"]))
    most = max(value for row in lambdas for value in row)
    plot.key([("s7", "modes"), *([("s3 blob", f"λ of a mode, ≤ {most:.2f}")] if most > 0 else [])])
    for mode in zip(*frequencies, strict=True):
        plot.line(list(zip(x, mode, strict=True)), "s7")
    for at, row, couplings in zip(x, frequencies, lambdas, strict=True):
        for thz, value in zip(row, couplings, strict=True):
            if most > 0 and value > LEAST_CIRCLE * most:
                plot.dot(at, thz, "s3", f"{thz:.1f} THz: λ {value:.2f}", radius=5 * (value / most) ** 0.5)
    return plot.render(f"phonon dispersion of {result['formula']}, circles by coupling")


def spectrum(result: dict[str, Any]) -> str | None:
    """α²F and, dashed, the running λ(ω) scaled to the frame."""
    data = result.get("spectrum")
    if not data:
        return None
    points = list(zip(data["frequency_thz"], data["a2f"], strict=True))
    most = max(data["a2f"])
    plot = Plot(Scale.around(data["frequency_thz"], include=[0], pad=0.02), Scale.around([1.08 * most], include=[0]),
                "frequency (THz)", "α²F", width=260, height=180, left=46)
    total = max(data["lambda"], default=0)
    plot.key([("s2", "α²F"), *([("s1 dashed", f"λ(ω), up to {total:.2f}")] if total > 0 else [])])
    plot.area(points, "s2")
    plot.line(points, "s2")
    if total > 0:
        plot.line([(w, most * x / total) for w, x in zip(data["frequency_thz"], data["lambda"], strict=True)], "s1 dashed",
                  f"running λ(ω), up to {total:.2f}")
    return plot.render(f"α²F of {result['formula']}")


def _first_tc(tc: Any) -> float | None:
    """Allen–Dynes Tc at the least μ* of a broadening's table."""
    return tc[min(tc)].get("allen_dynes") if isinstance(tc, dict) and tc else None


def _formulas(tc: Any) -> str:
    """Tc by formula (columns) and μ* (rows)."""
    if not isinstance(tc, dict) or not tc:
        return ""
    names = [f for f in FORMULAS if any(isinstance(v, dict) and v.get(f) is not None for v in tc.values())]
    head = "".join(f"<th scope=col>{FORMULAS[f]} (K)</th>" for f in names)
    rows = "".join(f"<tr><th scope=row>μ* = {_mu(mu)}</th>" + "".join(f"<td>{fixed(v.get(f), 0)}</td>" for f in names) + "</tr>"
                   for mu, v in sorted(tc.items(), key=lambda item: _mu(item[0])) if isinstance(v, dict))
    return f"<table class=small><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _mu(key: str) -> str:
    """μ* as written in a document's key, where the point may have become an underscore."""
    try:
        return f"{float(str(key).replace('_', '.')):.2f}"
    except ValueError:
        return escape(str(key))


def _checks(checks: list[dict[str, Any]]) -> str:
    if not checks:
        return ""
    items = "".join(f'<li class="{"ok" if c.get("passed") else "no"}"><b>{escape(str(c.get("name", "")).replace("_", " "))}</b> '
                    f'{escape(str(c.get("text") or ""))}</li>' for c in checks)
    failed = sum(not c.get("passed") for c in checks)
    words = f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed"
    return f'<details{" open" if failed else ""}><summary>{words}</summary><ul class="checks">{items}</ul></details>'
