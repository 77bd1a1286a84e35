"""Parallel coordinates: a vertical axis for each of several quantities, a line across them for each item."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformer_jax.pages.curves import COLOURS, DASHES, HEIGHT, WIDTH
from transformer_jax.pages.frame import Html, element, join, number, slug

HALO = "paint-order: stroke; stroke: var(--panel); stroke-width: 4px"  # a label is readable across a line
TOP, BOTTOM, SIDE = 24, 46, 46
MOST_ITEMS, MOST_AXES = 200, 12
LOG_SPAN = 100.0  # an axis whose largest value is this many times its smallest, above 0, is logarithmic


def parallel(title: str, axes: Sequence[str], items: Mapping[str, Sequence[Any]]) -> Html:
    """A figure of items that differ in several quantities, such as the runs of a sweep, the best first.

    Axes of numbers are linear, or logarithmic where the numbers span two orders of magnitude; the values of any other
    axis stand below each other in their order. Where a value is None or not finite, the line has a gap.

    Args:
      title: the title of the figure; unique in its page.
      axes: the names of the quantities.
      items: {name: a value for each axis}. The first items have colours, the others are grey.
    """
    axes, items = list(axes)[:MOST_AXES], dict(list(items.items())[:MOST_ITEMS])
    if len(axes) < 2 or not items:
        return element("figure", element("h3", title), element("figcaption", "Nothing to draw."))
    places = [_places([row[i] for row in items.values()]) for i in range(len(axes))]
    across = [SIDE + i * (WIDTH - 2 * SIDE) / (len(axes) - 1) for i in range(len(axes))]
    words = "; ".join(
        f"{name}: {', '.join(f'{axis} {_text(x)}' for axis, x in zip(axes, row, strict=False))}"
        for name, row in items.items()
    )
    parts = [
        element("title", title, id=f"{slug(title)}-name"),
        element("desc", words, id=f"{slug(title)}-words"),
        *(_rule(x) for x in across[: len(axes)]),
    ]
    for i, (name, row) in reversed(list(enumerate(items.items()))):  # the best is drawn last, above the others
        parts.append(_line(f"{name}: {_text(row[-1])}", row, i, across, places))
    parts += [part for i, axis in enumerate(axes) for part in _labels(axis, i, across[i], places[i])]
    svg = element(
        "svg",
        join(parts, "\n"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{slug(title)}-name",
        aria_describedby=f"{slug(title)}-words",
    )
    best = next(iter(items))
    caption = f"A line is an item; the {min(COLOURS, len(items))} best have colours. The best: {best}."
    return element("figure", element("h3", title), svg, element("figcaption", caption))


def _places(values: Sequence[Any]) -> dict[Any, float]:
    """{value: its height, 0 to 1}; without those that are None or not finite."""
    known = [x for x in values if x is not None and not (isinstance(x, float) and not math.isfinite(x))]
    if known and all(isinstance(x, int | float) and not isinstance(x, bool) for x in known):
        low, high = min(known), max(known)
        scale = math.log if low > 0 and high / low >= LOG_SPAN else float
        width = scale(high) - scale(low)
        return {x: (scale(x) - scale(low)) / width if width else 0.5 for x in known}
    names = list(dict.fromkeys(map(str, known)))
    return {name: i / (len(names) - 1) if len(names) > 1 else 0.5 for i, name in enumerate(names)}


def _place(value: Any, places: Mapping[Any, float]) -> float | None:
    """The height of a value on its axis; None where it has none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return places[value] if is_number and value in places else places.get(str(value))


def _y(height: float) -> float:
    return HEIGHT - BOTTOM - height * (HEIGHT - BOTTOM - TOP)


def _rule(x: float) -> Html:
    return Html(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" style="stroke: var(--rule); stroke-width: 2"/>')


def _labels(name: str, i: int, x: float, places: Mapping[Any, float]) -> list[Html]:
    """The lowest and highest value of an axis, or up to six others, and its name below."""
    parts = []
    shown = sorted(places.items(), key=lambda pair: pair[1])
    shown = shown if len(shown) <= 6 else [shown[0], shown[-1]]
    short = {"style": f"font-size: 11px; {HALO}", "text_anchor": "middle"}
    for value, height in shown:
        parts.append(element("text", _text(value)[:14], x=f"{x:.1f}", y=f"{_y(height) - 3:.1f}", **short))
    if i == 0:  # its axis is near the left edge
        x, short["text_anchor"] = 4, "start"
    parts.append(element("text", name[-22:], x=f"{x:.1f}", y=HEIGHT - (8 if i % 2 else 24), **short))
    return parts


def _line(tip: str, row: Sequence[Any], i: int, across: Sequence[float], places: Sequence[Mapping[Any, float]]) -> Html:
    """The line of item `i`, with its name as a tooltip."""
    path, joined = [], False
    for x, value, of_axis in zip(across, row, places, strict=False):
        height = _place(value, of_axis)
        if height is not None:
            path.append(f"{'L' if joined else 'M'}{x:.1f} {_y(height):.1f}")
        joined = height is not None
    colour = f"var(--c{i})" if i < COLOURS else "var(--faint)"
    style = (
        f"fill: none; stroke: {colour}; stroke-width: {2.4 if i == 0 else 1.4}; opacity: {1 if i < COLOURS else 0.4}"
    )
    style += f"; stroke-dasharray: {DASHES[i // 2 % len(DASHES)]}" if 1 < i < COLOURS else ""
    return element("path", element("title", tip), d="".join(path), style=style)


def _text(value: Any) -> str:
    return "none" if value is None else number(value)
