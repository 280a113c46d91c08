"""How the report writes formulas, numbers and names."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from html import escape
from typing import Any

_SUBSCRIPTS = str.maketrans("0123456789.", "₀₁₂₃₄₅₆₇₈₉.")

FILTERS: dict[str, tuple[str, Callable[[float], str]]] = {
    "searched": ("searched", lambda v: f"{v:g}"),
    "ehull_lam": ("hull distance, model", lambda v: f"≤ {1000 * v:g} meV/atom"),
    "spacegroup": ("space group", lambda v: f"number > {v:g}"),
    "atomic_hydrogen": ("atomic hydrogen", lambda v: f"fraction > {100 * v:g} %"),
    "phonons": ("phonons, model", lambda v: f"lowest ≥ {number(v)} THz"),
    "ehull_dft": ("hull distance, DFT", lambda v: f"≤ {1000 * v:g} meV/atom"),
}
"""The filters of the funnel as people say them, with their thresholds; other names are shown as they are."""


def filter_name(name: str) -> str:
    return FILTERS[name][0] if name in FILTERS else name.replace("_", " ")


def threshold(name: str, value: Any) -> str:
    """A filter's threshold in words; empty where there is none."""
    if value is None or value == "":
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return FILTERS[name][1](float(value)) if name in FILTERS else f"{value:g}"
    return str(value)


def number(value: float | None, digits: int = 3, missing: str = "–") -> str:
    """Significant digits with a real minus sign; where they do not reach the decimal point, a whole number."""
    if value is None:
        return missing
    words = f"{value + 0.0:.{digits}g}"  # minus zero is zero
    return count(value) if "e+" in words else words.replace("-", "−")


def fixed(value: float | None, decimals: int = 1, missing: str = "–", scale: float = 1.0) -> str:
    """Fixed decimals with a real minus sign; minus zero is zero."""
    if value is None:
        return missing
    words = f"{scale * value:.{decimals}f}"
    return words.lstrip("-") if not words.strip("-0.") else words.replace("-", "−")


def count(value: float | None, missing: str = "–") -> str:
    """A whole number, thousands apart."""
    return missing if value is None else f"{value:,.0f}".replace(",", "\u2009").replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def moment(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC") if time else "–"


def formula(plain: str) -> str:
    """``CaYH12`` with Unicode subscripts, for figures."""
    return re.sub(r"(?<=[A-Za-z)])[\d.]+", lambda m: m.group().translate(_SUBSCRIPTS), plain)


def formula_html(plain: str) -> str:
    return re.sub(r"(?<=[A-Za-z)])[\d.]+", lambda m: f"<sub>{m.group()}</sub>", escape(plain))


def spacegroup_html(symbol: str | None, group: int | None) -> str:
    """Hermann–Mauguin symbol with overbars and screw axes, and the number."""
    if not symbol:
        return f"{group}" if group else "–"
    words = re.sub(r"-(\d)", r'<span class="over">\1</span>', escape(symbol))
    words = re.sub(r"_(\d)", r"<sub>\1</sub>", words)
    return f"<i>{words}</i> <small>({group})</small>" if group else f"<i>{words}</i>"


def spacegroup(symbol: str | None, group: int | None) -> str:
    return " ".join(w for w in (symbol, f"({group})" if group else "") if w)
