"""Axes and hull figures: what cannot be seen by opening one page."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from hydroflow.report.figures import funnel, learning
from hydroflow.report.svg import Scale
from hydroflow.report.ternary import systems, ternary, tie_lines
from hydroflow.report.words import fixed, formula, formula_html, spacegroup_html

finite = st.floats(-1e6, 1e6).map(lambda v: round(v, 6))


@example([0.0, 0.0], False, [0.0])  # a candidate without a Tc at any broadening
@given(st.lists(finite, min_size=1, max_size=5), st.booleans(), st.sampled_from([[], [0.0]]))
def test_axes_hold_their_values_and_have_ticks(values: list[float], log: bool, include: list[float]) -> None:
    kept = [v for v in values if v > 0] if log else values
    scale = Scale.around(values, log=log, include=include)
    assert all(0 <= scale(v) <= 1 for v in kept)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(scale.low * (1 - 1e-9) - 1e-6 <= t <= scale.high * (1 + 1e-9) + 1e-6 for t in ticks)


def test_funnel_of_the_paper_is_logarithmic_and_keeps_zero() -> None:
    steps = [{"name": "searched", "count": 36_292_030}, {"name": "ehull_lam", "count": 262_985, "threshold": 0.05},
             {"name": "spacegroup", "count": 0, "threshold": 75}]
    svg = funnel(steps) or ""
    assert "36\u2009292\u2009030" in svg and "≤ 50 meV/atom" in svg and "number &gt; 75" in svg and "logarithm" in svg
    assert 'width="0.0"' in svg
    short = [{"name": "phonons", "count": 24}, {"name": "ehull_dft", "count": 8, "rejected": 1, "undetermined": 2, "waiting": 13}]
    assert "33.3 % kept, 2 not computed, 13 waiting" in (funnel(short) or ""), "what waits for DFT was not rejected by it"
    assert "logarithm" not in (funnel([{"name": "a", "count": 40}, {"name": "b", "count": 10}]) or "")


def test_learning_curves_with_missing_errors() -> None:
    """An iteration that met its goal trains nothing; a stage 2 that found nothing to compare has no error."""
    iterations = [
        {"stage": "bootstrap", "index": 0, "explored": {"structures": 4}, "labelled": 4, "errors": {}, "goal": {}},
        {"stage": "stage2", "index": 1, "explored": {}, "labelled": 0, "errors": {"enthalpy_mev_atom": None},
         "goal": {"name": "x", "value": None, "target": 40.0}},
    ]
    assert [title for title, _ in learning(iterations)] == ["Labels by DFT"]
    assert learning([]) == []


def entry(name: str, x: dict[str, float], enthalpy: float, on_hull: bool = True, ehull: float = 0.0) -> dict:
    return {"formula": name, "x": x, "enthalpy_ev_atom": enthalpy, "on_hull": on_hull, "ehull_ev": ehull}


ENDS = [entry("Ca", {"Ca": 1.0}, -3.0), entry("Y", {"Y": 1.0}, -5.0), entry("H", {"H": 1.0}, -1.0)]
CAH6 = entry("CaH6", {"Ca": 1 / 7, "H": 6 / 7}, -1.8)
CAYH12 = entry("CaYH12", {"Ca": 1 / 14, "Y": 1 / 14, "H": 12 / 14}, -2.3)


def test_tie_lines_are_the_edges_of_the_lower_hull() -> None:
    elements = ("Ca", "Y", "H")
    assert tie_lines([*ENDS, CAYH12], elements) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    edges = tie_lines([*ENDS, CAYH12, CAH6], elements)
    assert (3, 4) in edges and (0, 2) not in edges  # CaH6 now lies between Ca and H
    assert tie_lines([*ENDS[:2], CAYH12], elements) == []  # no hydrogen phase: nothing to measure against


def test_ternary_draws_the_lowest_of_a_composition_once() -> None:
    higher = entry("CaYH12", CAYH12["x"], -2.2, on_hull=False, ehull=0.1)
    entries = [*ENDS, higher, CAYH12, entry("LaH10", {"La": 1 / 11, "H": 10 / 11}, -1.5)]
    assert systems(entries) == [("Ca", "Y")]
    svg = ternary(entries, ("Ca", "Y"))
    assert svg.count("CaYH₁₂: on the hull") == 2  # whole triangle and corner
    assert "above the hull" not in svg and "LaH" not in svg


def test_words() -> None:
    assert formula("CaYH12") == "CaYH₁₂" and formula_html("Ca2YH18") == "Ca<sub>2</sub>YH<sub>18</sub>"
    assert spacegroup_html("P6_3/mmc", 194) == "<i>P6<sub>3</sub>/mmc</i> <small>(194)</small>"
    assert spacegroup_html("Fm-3m", 225).startswith('<i>Fm<span class="over">3</span>m</i>')
    assert fixed(-0.04, 1) == "0.0" and fixed(-3.25, 1) == "−3.2"
