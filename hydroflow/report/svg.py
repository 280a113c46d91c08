"""Small plots as SVG text: axes, points, lines, bars, with colours from the page's style sheet.

A figure made here follows the page into dark mode, prints, scales without blur and has a tooltip on every mark
(``<title>``, which the page's script turns into a quicker one). Series are CSS classes ``s0`` … ``s7``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from hydroflow.report.words import number

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """A numeric axis from `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], log: bool = False, include: Sequence[float] = (), pad: float = 0.06) -> Scale:
        """The axis that holds all finite values and `include`, with some room; logarithmic axes take only positive ones."""
        kept = [v for v in (*values, *include) if v is not None and math.isfinite(v) and (v > 0 or not log)]
        if not kept:
            return cls(0.1, 1.0, True) if log else cls(0.0, 1.0)
        low, high = min(kept), max(kept)
        if log:
            stretch = max((high / low) ** pad, 1.15)
            return cls(low / stretch, high * stretch, True)
        if low == high and low in include:
            return cls(low, low + (abs(low) or 1.0))  # every value is the wanted bound
        room = (high - low or abs(high) or 1.0) * pad
        # an axis that starts at a wanted bound (zero, mostly) should start exactly there
        return cls(low if low in include else low - room, high if high in include else high + room)

    def __call__(self, value: float) -> float:
        """Position from 0 to 1."""
        if self.log:
            return math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the axis."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for factors in ((1,), (1, 3), (1, 2, 5)):
                found = [f * 10.0**e for e in range(first, last + 1) for f in factors]
                found = [t for t in found if self.low <= t <= self.high]
                if len(found) >= 3:
                    return found[:: -(-len(found) // 8)]
            if len(found) >= 2:
                return found
        raw = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw)
        start = math.ceil(self.low / step - 1e-9)
        return [(start + i) * step for i in range(100) if (start + i) * step <= self.high + 1e-9 * step]


def text(x: float, y: float, words: str, css: str = "", anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}" {extra}>{escape(words)}</text>'


def tip(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""


def dot(x: float, y: float, css: str, words: str = "", radius: float = 3.5) -> str:
    """A circle in pixel coordinates with a tooltip."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{css}">{tip(words)}</circle>'


def drawing(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """The finished picture; `label` is what a screen reader says."""
    return (f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{escape(label, quote=True)}">'
            f'{"".join(parts)}</svg>')


@dataclass
class Plot:
    """Axes that marks are added to; all coordinates are data values.

    `x_names` replaces a numeric x axis by names at 0, 1, 2, …, `x_ticks` by names with grid lines at the given values.
    """

    x: Scale
    y: Scale
    x_label: str = ""
    y_label: str = ""
    width: float = 420
    height: float = 280
    x_names: Sequence[str] | None = None
    x_ticks: Mapping[float, str] | None = None
    left: float = 58
    right: float = 14
    top: float = 14
    bottom: float = 46
    _below: list[str] = field(default_factory=list)
    _marks: list[str] = field(default_factory=list)

    # ---- coordinates ------------------------------------------------------------------------------------------------
    def px(self, value: float) -> float:
        return self.left + self.x(value) * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        return self.height - self.bottom - self.y(value) * (self.height - self.top - self.bottom)

    # ---- marks ------------------------------------------------------------------------------------------------------
    def line(self, points: Iterable[Point], css: str, words: str = "") -> None:
        """A polyline; None or infinite values break it."""
        runs: list[list[str]] = [[]]
        for a, b in points:
            if b is None or not math.isfinite(b) or (self.y.log and b <= 0):
                runs.append([])
            else:
                runs[-1].append(f"{self.px(a):.1f},{self.py(b):.1f}")
        self._marks += [f'<polyline points="{" ".join(r)}" class="line {css}">{tip(words)}</polyline>'
                        for r in runs if len(r) > 1]

    def area(self, points: Sequence[Point], css: str) -> None:
        """Filled down to the lower end of the y axis."""
        if len(points) < 2:
            return
        base = self.height - self.bottom
        path = [f"{self.px(points[0][0]):.1f},{base:.1f}", *(f"{self.px(a):.1f},{self.py(b):.1f}" for a, b in points),
                f"{self.px(points[-1][0]):.1f},{base:.1f}"]
        self._marks.append(f'<polygon points="{" ".join(path)}" class="area {css}"/>')

    def dot(self, a: float, b: float, css: str, words: str = "", radius: float = 3.5) -> None:
        self._marks.append(dot(self.px(a), self.py(b), f"dot {css}", words, radius))

    def whisker(self, a: float, low: float, high: float, css: str) -> None:
        """A vertical error bar."""
        self._marks.append(f'<line x1="{self.px(a):.1f}" x2="{self.px(a):.1f}" y1="{self.py(low):.1f}" '
                           f'y2="{self.py(high):.1f}" class="whisker {css}"/>')

    def bar(self, a: float, low: float, high: float, css: str, words: str = "", half: float = 0.36) -> None:
        """An upright bar around x = `a` from `low` to `high`."""
        x0, x1, y0, y1 = self.px(a - half), self.px(a + half), self.py(low), self.py(high)
        self._marks.append(f'<rect x="{x0:.1f}" y="{y1:.1f}" width="{x1 - x0:.1f}" height="{max(y0 - y1, 0):.1f}" '
                           f'class="bar {css}">{tip(words)}</rect>')

    def rule(self, *, x: float | None = None, y: float | None = None, words: str = "") -> None:
        """A dashed threshold across the plot, with a word at its end."""
        if x is not None:
            at = self.px(x)
            self._marks.append(f'<path d="M{at:.1f} {self.top}V{self.height - self.bottom}" class="rule"/>')
            left_half = self.x(x) < 0.6
            self._marks.append(text(at + (4 if left_half else -4), self.top + 10, words, "note", "start" if left_half else "end"))
        if y is not None:
            at = self.py(y)
            self._marks.append(f'<path d="M{self.left} {at:.1f}H{self.width - self.right}" class="rule"/>')
            if words:
                self._marks.append(text(self.width - self.right - 2, at + 13, words, "note", "end"))

    def band(self, x0: float, x1: float, words: str, css: str = "band") -> None:
        """A shaded stretch of the x axis with a name on top."""
        a, b = self.px(x0), self.px(x1)
        self._below.append(f'<rect x="{a:.1f}" y="{self.top}" width="{b - a:.1f}" '
                           f'height="{self.height - self.top - self.bottom}" class="{css}"/>')
        self._below.append(text((a + b) / 2, self.top - 4, words, "note", "middle"))

    def key(self, entries: Sequence[tuple[str, str]]) -> None:
        """What each kind of line is, above the frame: (class of the line, its name). The top margin grows by a row where a name
        does not fit any more, so call this before any mark."""
        at, row = self.left, 0
        for css, words in entries:
            need = 20 + 6 * len(words)
            if at > self.left and at + need > self.width:
                at, row = self.left, row + 1
            y = 7 + 14 * row
            self._below.append(f'<line x1="{at:.1f}" x2="{at + 14:.1f}" y1="{y}" y2="{y}" class="line {css}"/>')
            self._below.append(text(at + 18, y + 4, words, "note"))
            at += need + 10
        grown = 14 * (row + 1)
        self.top, self.height = self.top + grown, self.height + grown

    def raw(self, svg: str) -> None:
        self._marks.append(svg)

    # ---- the whole --------------------------------------------------------------------------------------------------
    def render(self, label: str) -> str:
        bottom, right = self.height - self.bottom, self.width - self.right
        parts = [*self._below]
        for t in self.y.ticks():
            at = self.py(t)
            parts.append(f'<line x1="{self.left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
            parts.append(text(self.left - 6, at + 4, number(t), "tick", "end"))
        if self.x_names is None:
            named = self.x_ticks if self.x_ticks is not None else {
                t: number(t) for t in self.x.ticks(max(3, int(self.width // 75)))}
            for t, name in named.items():
                at = self.px(t)
                parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{self.top}" y2="{bottom}" class="grid"/>')
                parts.append(text(at, bottom + 16, name, "tick", "middle"))
        else:
            every = max(1, math.ceil(len(self.x_names) * 26 / (right - self.left)))
            for i, name in list(enumerate(self.x_names))[::every]:
                parts.append(text(self.px(i), bottom + 16, name, "tick", "middle"))
        parts.append(f'<path d="M{self.left} {self.top}V{bottom}H{right}" class="axis"/>')
        parts.append(text((self.left + right) / 2, self.height - 8, self.x_label, "label", "middle"))
        middle = (self.top + bottom) / 2
        parts.append(text(0, 0, self.y_label, "label", "middle", f'transform="translate(13 {middle:.1f}) rotate(-90)"'))
        return drawing(self.width, self.height, [*parts, *self._marks], label)
