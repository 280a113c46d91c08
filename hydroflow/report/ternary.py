"""The ternary hull at pressure: stable phases, tie lines and what lies above, as a triangle with hydrogen on top.

Ternary hydrides crowd into the hydrogen corner (x_H from 0.75), so the corner is drawn again beside the whole triangle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from hydroflow.report import svg
from hydroflow.report.words import fixed, formula

MAX_SYSTEMS = 6
STEPS_EV = (0.05, 0.1, 0.2)
"""Colour steps of the distance above the hull, eV/atom."""
CORNER = 0.6
"""Least hydrogen fraction of the enlarged corner."""
_SIDE = 430.0
_TOP, _LEFT = 34.0, 40.0
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def systems(entries: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs (A, B) with A–B–H phases among the entries, most phases first."""
    found: dict[tuple[str, str], int] = {}
    for e in entries:
        metals = tuple(sorted(s for s, x in e.get("x", {}).items() if x > 0 and s != "H"))
        if len(metals) == 2:
            found[metals] = found.get(metals, 0) + 1  # type: ignore[index]
    return sorted(found, key=lambda pair: (-found[pair], pair))


def ternary(entries: Sequence[dict[str, Any]], pair: tuple[str, str]) -> str:
    """Both panels of one A–B–H system as SVG."""
    elements = (*pair, "H")
    inside = _lowest(e for e in entries if all(s in elements for s, x in e["x"].items() if x > 0))
    ties = tie_lines(inside, elements)
    height = _SIDE * np.sqrt(3) / 2
    whole = _panel(inside, elements, ties, 0.0, _LEFT, labels=False)
    corner = _panel(inside, elements, ties, CORNER, 2 * _LEFT + _SIDE + 24, labels=True)
    stable = ", ".join(formula(e["formula"]) for e in inside if e["on_hull"] and len(_symbols(e)) > 1) or "none but the elements"
    return svg.drawing(2 * _SIDE + 3 * _LEFT + 24, height + _TOP + 40, [*whole, *corner],
                       f"Convex hull of {'–'.join(elements)}; stable: {stable}")


def legend() -> str:
    limits = ["on the hull", *(f"≤ {1000 * s:g} meV/atom" for s in STEPS_EV), f"> {1000 * STEPS_EV[-1]:g} meV/atom"]
    items = "".join(f'<li><svg width="12" height="12" aria-hidden="true"><circle cx="6" cy="6" r="5" class="dot h{i}"/></svg>'
                    f"{w}</li>" for i, w in enumerate(limits))
    return f'<ul class="legend">{items}</ul>'


def tie_lines(entries: Sequence[dict[str, Any]], elements: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of entries joined by an edge of the lower hull; empty where an element's own phase is missing."""
    stable = [i for i, e in enumerate(entries) if e["on_hull"]]
    corners = [next((i for i in stable if entries[i]["x"].get(s, 0) > 1 - 1e-9), None) for s in elements]
    if any(c is None for c in corners):
        return []
    reference = np.array([entries[c]["enthalpy_ev_atom"] for c in corners])  # type: ignore[index]
    x = np.array([[entries[i]["x"].get(s, 0.0) for s in elements] for i in stable])
    formation = np.array([entries[i]["enthalpy_ev_atom"] for i in stable]) - x @ reference
    if len(stable) < 4:
        return list(combinations(stable, 2))
    try:
        hull = ConvexHull(np.column_stack([x[:, 1:], formation]))
    except QhullError:
        return []
    edges = {tuple(sorted((stable[a], stable[b]))) for facet, plane in zip(hull.simplices, hull.equations, strict=True)
             if plane[2] < -1e-9 for a, b in combinations(facet, 2)}
    return sorted(edges)  # type: ignore[arg-type]


# ---- drawing ----------------------------------------------------------------------------------------------------------
def _symbols(entry: dict[str, Any]) -> list[str]:
    return [s for s, x in entry["x"].items() if x > 0]


def _lowest(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lowest entry of each composition, those far above the hull first so that stable ones are drawn on top."""
    best: dict[tuple[tuple[str, float], ...], dict[str, Any]] = {}
    for e in entries:
        key = tuple(sorted((s, round(x, 6)) for s, x in e["x"].items() if x > 0))
        if key not in best or e["ehull_ev"] < best[key]["ehull_ev"]:
            best[key] = e
    return sorted(best.values(), key=lambda e: (e["on_hull"], -e["ehull_ev"]))


def _panel(
    entries: Sequence[dict[str, Any]], elements: Sequence[str], ties: Iterable[tuple[int, int]], cut: float, left: float,
    labels: bool,
) -> list[str]:
    """One triangle; `cut` is the hydrogen fraction at its base."""
    base, apex = _TOP + _SIDE * np.sqrt(3) / 2, _TOP
    corners = np.array([[left, base], [left + _SIDE, base], [left + _SIDE / 2, apex]])

    def place(x: np.ndarray) -> np.ndarray:
        return np.array([x[0], x[1], x[2] - cut]) / (1 - cut) @ corners

    x = [np.array([e["x"].get(s, 0.0) for s in elements]) for e in entries]
    parts = [f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" class="triangle"/>']
    for step in (0.2, 0.4, 0.6, 0.8) if cut == 0 else (0.7, 0.8, 0.9):
        a, b = place(np.array([1 - step, 0, step])), place(np.array([0, 1 - step, step]))
        parts.append(f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" class="grid"/>')
        parts.append(svg.text(a[0] - 6, a[1] + 4, f"{step:g}", "tick", "end"))
    for i, j in ties:
        clipped = _clip(x[i], x[j], cut)
        if clipped:
            a, b = (place(p) for p in clipped)
            parts.append(f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" class="tie"/>')
    stable = [place(f) for e, f in zip(entries, x, strict=True) if e["on_hull"] and f[2] >= cut]
    taken: list[Box] = [(a - 5, b - 5, a + 5, b + 5) for a, b in stable]
    names = []
    for e, fraction in zip(entries, x, strict=True):
        if fraction[2] < cut - 1e-9:
            continue
        at = place(fraction)
        rank = 0 if e["on_hull"] else 1 + sum(e["ehull_ev"] > s for s in STEPS_EV)
        words = (f"{formula(e['formula'])}: on the hull" if e["on_hull"]
                 else f"{formula(e['formula'])}: {fixed(e['ehull_ev'], 0, scale=1000)} meV/atom above the hull")
        parts.append(svg.dot(at[0], at[1], f"dot h{rank}", words, (5.5, 4.2, 3.4, 2.8, 2.2)[rank] * (1 if cut else 0.75)))
        if labels and e["on_hull"] and len(_symbols(e)) > 1:
            names += _label(at, formula(e["formula"]), fraction, taken)
    ends = [(corners[0], "end", elements[0], -4, 24), (corners[1], "start", elements[1], 4, 24),
            (corners[2], "middle", "H", 0, -10)]
    for corner, anchor, symbol, dx, dy in ends:
        words = symbol if cut == 0 or symbol == "H" else f"{symbol} side"
        if cut and symbol != "H":
            anchor, dx = "middle", (30 if symbol == elements[0] else -30)
        parts.append(svg.text(corner[0] + dx, corner[1] + dy, words, "strong", anchor))
    if cut:
        parts.append(svg.text(left + _SIDE / 2, base + 24, f"hydrogen corner, H fraction ≥ {cut:g}", "note", "middle"))
    return [*parts, *names]


def _clip(a: np.ndarray, b: np.ndarray, cut: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of a tie line with at least `cut` hydrogen."""
    if a[2] < b[2]:
        a, b = b, a
    if a[2] <= cut:
        return None
    if b[2] >= cut:
        return a, b
    return a, a + (b - a) * (a[2] - cut) / (a[2] - b[2])


def _label(at: np.ndarray, words: str, fraction: np.ndarray, taken: list[Box]) -> list[str]:
    """A formula beside its point, outside the triangle where that is near; left out where it would cover others."""
    width = 7.5 * len(words)
    sides = [("end", -9.0, 4.0), ("start", 9.0, 4.0), ("middle", 0.0, -11.0), ("middle", 0.0, 19.0)]
    if fraction[1] > fraction[0]:
        sides[0], sides[1] = sides[1], sides[0]
    if fraction[:2].min() > 0:
        sides = [*sides[2:], *sides[:2]]
    for anchor, dx, dy in sides:
        x0, y = at[0] + dx - {"end": width, "middle": width / 2, "start": 0}[anchor], at[1] + dy
        box = (x0, y - 10, x0 + width, y + 2)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            taken.append(box)
            return [svg.text(at[0] + dx, y, words, "name", anchor)]
    return []
