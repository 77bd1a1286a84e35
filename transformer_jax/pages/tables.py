"""Tables, sheets of samples and embedded pictures."""

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformer_jax.pages.frame import Html, element, join, note, number

_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


def table(caption: str, header: Sequence[Any], rows: Iterable[Sequence[Any]], *, hidden: bool = False) -> Html:
    """A table with a caption. Numbers are right-aligned; the first cell of a row is its header.

    Args:
      caption: says what the table holds.
      header: the names of the columns.
      rows: cells: numbers, texts (escaped) and markup; None: an empty cell.
      hidden: folded into one line with the caption, which a reader opens.
    """
    rows = [list(row) for row in rows]
    numeric = [any(_is_number(row[i]) for row in rows if i < len(row)) for i in range(len(header))]
    kind = ["number" if found and i else None for i, found in enumerate(numeric)]
    head = [element("th", name, scope="col", class_=kind[i]) for i, name in enumerate(header)]
    body = []
    for first, *rest in rows:
        cells = [
            element(
                "td",
                number(x) if _is_number(x) else "" if x is None else x,
                class_="number" if _is_number(x) else "short" if _is_short(x) else None,
            )
            for x in rest
        ]
        body.append(element("tr", element("th", number(first) if _is_number(first) else first, scope="row"), *cells))
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", join(body, "\n")),
    )
    wide = element("div", made, class_="wide", tabindex=0, role="region", aria_label=caption)
    return element("details", element("summary", caption), wide) if hidden else wide


def _is_short(value: Any) -> bool:
    """Whether a cell is a formatted number or an interval, whose line is not broken."""
    return isinstance(value, str) and re.fullmatch(r"[-+\d.,%:e\[\] ]{1,30}", value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def pictures(*content: Html) -> Html:
    """`picture`s side by side, each as large as it is, or as the page where it is larger."""
    return element("div", *content, class_="pictures")


def grid(*content: Html) -> Html:
    """Figures, `*content`, beside each other, as many as the width allows."""
    return element("div", *content, class_="grid")


def sheet(items: Iterable[tuple[str, Any]], *, opened: int = 1) -> Html:
    """Samples below each other, each with its caption.

    Args:
      items: (caption, text); a text keeps its lines; markup, such as a `picture`, stands as it is.
      opened: how many of the last are open; a reader opens the others.
    """
    items = list(items)
    parts = []
    for i, (caption, content) in enumerate(items):
        body = content if isinstance(content, Html) else element("pre", content, tabindex=0)
        is_open = "open" if i >= len(items) - opened else None
        parts.append(element("details", element("summary", caption), body, open=is_open))
    return join(parts, "\n")


def image_type(data: bytes) -> str | None:
    """The media type of a picture by the first bytes of `data`; None: it is no PNG, JPEG, GIF or WebP."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for magic, name in _IMAGES if data.startswith(magic)), None)


def picture(data: bytes, alt: str, *, caption: Any = "") -> Html:
    """A picture inside the page.

    Args:
      data: the file's bytes.
      alt: what it shows, in words.
      caption: stands below it.
    """
    kind = image_type(data)
    if kind is None:
        return note(f"{alt}: not a PNG, JPEG, GIF or WebP picture, so it is not shown")
    image = element("img", src=f"data:{kind};base64,{base64.b64encode(data).decode()}", alt=alt)
    return element("figure", Html(image.removesuffix("</img>")), element("figcaption", caption or alt))
