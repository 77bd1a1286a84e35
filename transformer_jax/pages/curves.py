"""Curves and shares as SVG inside the page, with their descriptions in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformer_jax.pages.frame import Html, element, join, number, slug

WIDTH, HEIGHT = 460, 260  # units of the picture; a letter is 13 of them
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 22, 40
COLOURS = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MOST = 2000  # points of a line that are drawn


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
      name: for the legend.
      points: (x, y) in the order of x; where y is None or not finite, the line has a gap.
      band: (x, low, high) in the order of x, drawn behind the line: an interval, or the extremes of thinned points.
      marks: whether each point has a mark, with its value as a tooltip.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    band: Sequence[tuple[float, float, float]] = ()
    marks: bool = False


def curves(title: str, lines: Sequence[Line], *, x: str, y: str = "", log: bool = False) -> Html:
    """Lines over a common axis: a figure with a legend, and a description with each line's first, last and extreme
    values.

    Args:
      title: the title of the figure; unique in its page.
      lines: what is drawn; a line without a finite point is only described.
      x: the name of the horizontal axis.
      y: the name of the vertical axis.
      log: whether the vertical axis is logarithmic; values of 0 or less are then not drawn.
    """
    drawn = [(i, line, _finite(line.points, log)) for i, line in enumerate(lines)]
    bands = [value for line in lines for _, *edges in line.band for value in edges if _is_drawn(value, log)]
    xs = [point[0] for _, _, points in drawn for point in points]
    ys = [point[1] for _, _, points in drawn for point in points] + bands
    words = " ".join(_describe(line, points, log) for _, line, points in drawn)
    name = slug(title)
    if not xs:
        return element("figure", element("h3", title), element("figcaption", f"Nothing to draw. {words}"))
    across, up = _axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, False), _axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log)
    parts = [
        element("title", title, id=f"{name}-name"),
        element("desc", words, id=f"{name}-words"),
        *_frame(across, up, x, y),
    ]
    for i, line, points in drawn:
        parts += _line(line, points, i, across, up, log)
    box = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img"}
    svg = element("svg", join(parts, "\n"), **box, aria_labelledby=f"{name}-name", aria_describedby=f"{name}-words")
    legend = [element("li", _swatch(i), line.name) for i, line, _ in drawn]
    return element("figure", element("h3", title), svg, element("figcaption", element("ul", *legend, class_="legend")))


def shares(title: str, parts: Mapping[str, float], *, unit: str = "") -> Html:
    """Parts of a whole as one bar, and the same in words.

    Args:
      title: the title of the figure; unique in its page.
      parts: {name: size}; those that are not finite and positive are left out.
      unit: the unit of the sizes.
    """
    known = {name: size for name, size in parts.items() if math.isfinite(size) and size > 0}
    total = sum(known.values())
    if not total:
        return element("figure", element("h3", title), element("figcaption", "Nothing to draw."))
    words = [f"{name} {size / total:.1%} ({number(size)} {unit})" for name, size in known.items()]
    bars, at = [], 0.0
    for i, size in enumerate(known.values()):
        width = WIDTH * size / total
        tip = element("title", words[i])
        fill = f"fill: var(--c{i % COLOURS})"
        bars.append(element("rect", tip, x=f"{at:.1f}", y=0, width=f"{max(width, 0.5):.1f}", height=24, style=fill))
        at += width
    name = slug(title)
    head = (element("title", title, id=f"{name}-name"), element("desc", "; ".join(words), id=f"{name}-words"))
    svg = element(
        "svg",
        *head,
        *bars,
        viewBox=f"0 0 {WIDTH} 24",
        preserveAspectRatio="none",
        class_="bar",
        role="img",
        aria_labelledby=f"{name}-name",
        aria_describedby=f"{name}-words",
    )
    legend = [element("li", _block(i), text) for i, text in enumerate(words)]
    return element("figure", element("h3", title), svg, element("figcaption", element("ul", *legend, class_="legend")))


@dataclass(frozen=True)
class _Axis:
    """From values to units of the picture, and the ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _axis(low: float, high: float, start: float, end: float, log: bool) -> _Axis:
    if log:
        low, high = math.log10(low), math.log10(high)
    # Values beyond 1e300 could make the width infinite.
    low, high = max(low, -1e300), min(high, 1e300)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(low) * 0.05 or 1.0
        low, high = low - room, high + room
    if log:
        ticks = tuple(10.0**k for k in range(math.ceil(low), math.floor(high) + 1))
        if len(ticks) < 2:
            return _Axis(low, high, start, end, True, tuple(10**value for value in _nice(low, high, 5)))
        return _Axis(low, high, start, end, True, ticks[:: math.ceil(len(ticks) / 6)])
    return _Axis(low, high, start, end, False, _nice(low, high, 5))


def _nice(low: float, high: float, count: int) -> tuple[float, ...]:
    """Round values between `low` and `high`, about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return tuple((first + i) * step for i in range(int(math.floor(high / step) - first) + 1))


def _frame(across: _Axis, up: _Axis, x: str, y: str) -> list[Html]:
    """The grid, the ticks and the names of the axes."""
    parts = []
    for value in up.ticks:
        at = f"{up(value):.1f}"
        rule = Html(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" style="stroke: var(--rule)"/>')
        parts += [rule, element("text", _tick(value, up), x=LEFT - 6, y=f"{up(value) + 4:.1f}", text_anchor="end")]
    for value in across.ticks:
        anchor = "end" if across(value) > WIDTH - RIGHT - 20 else "middle"
        parts.append(
            element("text", _tick(value, across), x=f"{across(value):.1f}", y=HEIGHT - BOTTOM + 16, text_anchor=anchor)
        )
    parts.append(element("text", x, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
    if y:
        parts.append(element("text", y, x=LEFT, y=TOP - 8))
    return parts


def _tick(value: float, axis: _Axis) -> str:
    """A round value, short: "0.5", "2k", "1e-5"."""
    wide = 0.0 if axis.log else (axis.high - axis.low) * 1e-9
    if abs(value) <= wide:
        return "0"
    if 1e4 <= abs(value) < 1e15:
        power, letter = next((p, s) for p, s in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= p)
        return f"{value / power:.4g}{letter}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}".replace("e-0", "e-").replace("e+", "e")


def _line(line: Line, points: Sequence[tuple[float, float]], i: int, across: _Axis, up: _Axis, log: bool) -> list[Html]:
    colour, dash = f"var(--c{i % COLOURS})", _dash(i)
    parts: list[Html] = []
    edges = [(x, low, high) for x, low, high in line.band if _is_drawn(low, log) and _is_drawn(high, log)]
    if len(edges) > 1:
        there = [f"{across(x):.1f} {up(high):.1f}" for x, _, high in edges]
        back = [f"{across(x):.1f} {up(low):.1f}" for x, low, _ in reversed(edges)]
        parts.append(Html(f'<path d="M{"L".join(there + back)}Z" style="fill: {colour}; opacity: 0.2"/>'))
    stroke = f"fill: none; stroke: {colour}; stroke-width: 1.8; stroke-linejoin: round"
    stroke += f"; stroke-dasharray: {dash}" if dash else ""
    path, joined = [], False
    for x, y in line.points[:: math.ceil(len(line.points) / MOST) or 1]:
        if _is_drawn(y, log) and math.isfinite(x):
            path.append(f"{'L' if joined else 'M'}{across(x):.1f} {up(float(y)):.1f}")  # type: ignore[arg-type]
        joined = _is_drawn(y, log)
    parts.append(Html(f'<path d="{"".join(path)}" style="{stroke}"/>'))
    if line.marks or len(points) == 1:
        for x, y in points[:: math.ceil(len(points) / 100) or 1]:
            tip = element("title", f"{line.name}: {number(y)} at {number(x)}")
            style = f"fill: {colour}"
            parts.append(element("circle", tip, cx=f"{across(x):.1f}", cy=f"{up(y):.1f}", r=3.2, style=style))
    return parts


def _dash(i: int) -> str:
    """The dashes of line `i`, so that no two of 32 lines have the same colour and the same dashes."""
    return DASHES[(i // 2 + i // COLOURS) % len(DASHES)]


def _swatch(i: int) -> Html:
    dash = _dash(i)
    style = f"stroke: var(--c{i % COLOURS}); stroke-width: 3" + (f"; stroke-dasharray: {dash}" if dash else "")
    return Html(f'<svg viewBox="0 0 32 8" aria-hidden="true"><path d="M0 4H32" style="{style}"/></svg>')


def _block(i: int) -> Html:
    fill = f"fill: var(--c{i % COLOURS})"
    return Html(f'<svg viewBox="0 0 32 8" aria-hidden="true"><rect width="32" height="8" style="{fill}"/></svg>')


def _is_drawn(y: float | None, log: bool) -> bool:
    return y is not None and math.isfinite(y) and (y > 0 or not log)


def _finite(points: Sequence[tuple[float, float | None]], log: bool) -> list[tuple[float, float]]:
    return [(x, float(y)) for x, y in points if y is not None and math.isfinite(x) and _is_drawn(y, log)]


def _describe(line: Line, points: Sequence[tuple[float, float]], log: bool) -> str:
    """A line in words."""
    missing = len(line.points) - len(points)
    gaps = f"; {missing:,} values that are not {'positive' if log else 'finite'} are not drawn" if missing else ""
    if not points:
        return f"{line.name}: no value{gaps}."
    (x0, first), (x1, last) = points[0], points[-1]
    if len(points) == 1:
        return f"{line.name}: {number(first)} at {number(x0)}{gaps}."
    low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
    edges = [value for _, *ends in line.band for value in ends if _is_drawn(value, log)]
    around = f"; the band around it spans {number(min(edges))} to {number(max(edges))}" if edges else ""
    return (
        f"{line.name}: from {number(first)} at {number(x0)} to {number(last)} at {number(x1)}, "
        f"lowest {number(low[1])} at {number(low[0])}, highest {number(high[1])} at {number(high[0])}{around}{gaps}."
    )
