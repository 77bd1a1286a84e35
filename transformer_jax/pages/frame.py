"""The frame of a page: escaping, sections, the style for screens and paper."""

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --faint: #5a6572; --paper: #ffffff; --panel: #f4f6f8;
  --rule: #d5dbe1; --link: #0b57a4; --c0: #0067a5; --c1: #c1440e; --c2: #007a5a; --c3: #8e4585; --c4: #8a6a00;
  --c5: #3d3d8f; --c6: #a8324a; --c7: #46626e; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --faint: #a3adb8; --paper: #14181c;
  --panel: #1d2329; --rule: #3a434c; --link: #7db8f0; --c0: #62b0e8; --c1: #f28e5c; --c2: #4cc3a0; --c3: #d29ac9;
  --c4: #d9b84a; --c5: #a3a3ee; --c6: #f08a9b; --c7: #9bb8c4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; padding-top: 0.5rem; border-top: 1px solid var(--rule); }
a { color: var(--link); }
a:focus-visible, [tabindex]:focus-visible, summary:focus-visible { outline: 3px solid var(--c1); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; padding: 0; margin: 0.5rem 0; list-style: none; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.pictures img { width: auto; max-height: 36rem; }
figure { margin: 0; padding: 0.75rem; background: var(--panel); border-radius: 0.4rem; min-width: 0; }
figure h3, h3 { font-size: 1rem; margin: 0 0 0.25rem; overflow-wrap: anywhere; }
figcaption { font-size: 0.875rem; color: var(--faint); overflow-wrap: anywhere; }
svg { display: block; width: 100%; max-width: 46rem; height: auto; } svg.bar { height: 1.5rem; max-width: none; }
svg text { fill: var(--faint); font-size: 13px; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 0.2rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; margin: 0.25rem 0 0; padding: 0; list-style: none; }
.legend svg { display: inline-block; width: 2rem; height: 0.6rem; margin-right: 0.3rem; vertical-align: middle; }
.wide { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.25rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; min-width: 4rem; }
thead th { color: var(--faint); font-weight: 600; overflow-wrap: break-word; }
tbody th { font-weight: 400; overflow-wrap: break-word; min-width: 5.5rem; }
td.number, th.number { text-align: right; } td.number, th.number, td.short { white-space: nowrap; }
pre, code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Noto Sans Mono", monospace; font-size: 0.875rem; }
pre { background: var(--panel); padding: 0.75rem; border-radius: 0.4rem; white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 30rem; overflow-y: auto; }
details { margin: 0.25rem 0; } summary { cursor: pointer; }
.note { border-left: 4px solid var(--c1); padding: 0.25rem 0.75rem; margin: 0.5rem 0; background: var(--panel);
  overflow-wrap: anywhere; }
footer { margin-top: 2rem; color: var(--faint); font-size: 0.875rem; }
@media print { nav, .skip { display: none; } body { max-width: none; padding: 0; font-size: 10pt; }
  figure, pre, table { break-inside: avoid; } pre { max-height: none; } .grid { grid-template-columns: 1fr 1fr; }
  details::details-content { content-visibility: visible; display: block; } h2 { break-after: avoid; } }
"""


class Html(str):
    """Markup: a text that is not escaped again."""

    __slots__ = ()


def escaped(value: Any) -> Html:
    """Any `value` as markup: `Html` as it is, another text escaped; control characters become U+FFFD."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", str(value))))


def join(parts: Iterable[Any], between: str = "") -> Html:
    """The parts one after the other.

    Args:
      parts: texts, escaped, and markup.
      between: a text between two parts, escaped.
    """
    return Html(escaped(between).join(escaped(part) for part in parts))


def element(name: str, *content: Any, **attributes: Any) -> Html:
    """An element: `element("p", "a < b", lang="en")` is `<p lang="en">a &lt; b</p>`.

    Args:
      name: the name of the element.
      *content: texts, escaped, and markup.
      **attributes: the attributes of the element; "class_" is class, "aria_label" aria-label. None: the attribute is
        left out.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    head = "".join(f' {key}="{escaped(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{head}>{join(content)}</{name}>")


def link(text: Any, target: str) -> Html:
    """`text` as a link to `target`, a place in the page or a page of the same server."""
    return element("a", text, href=target)


def slug(text: str) -> str:
    """An id made of a `text`: "Loss by step" is "loss-by-step"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def number(value: Any) -> str:
    """A `value` for people: numbers with five significant digits and separators of thousands."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if abs(value) >= 1e15:
        return f"{value:.4e}" if abs(value) < 1e300 else "beyond 1e300"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.5g}"


def note(*content: Any) -> Html:
    """A remark that a reader should not miss, made of `*content`."""
    return element("p", *content, class_="note")


def section(title: str, *content: Any) -> tuple[str, Html]:
    """A section of a page: its title, and its content with the heading.

    Args:
      title: unique in its page.
      *content: texts, escaped, and markup.
    """
    heading = element("h2", title, id=f"{slug(title)}-title")
    body = element("section", heading, *content, id=slug(title), aria_labelledby=f"{slug(title)}-title")
    return title, body


def page(
    title: str, sections: Sequence[tuple[str, Html]], *, lead: Any = "", footer: Any = "", refresh: int = 0
) -> str:
    """A whole page in one file.

    Args:
      title: the title of the page.
      sections: in their order, each from `section`.
      lead: what stands below the title.
      footer: the last line.
      refresh: seconds after which the browser loads the page again; 0: never.
    """
    places = [element("li", link(name, f"#{slug(name)}")) for name, _ in sections]
    again = Html(f'<meta http-equiv="refresh" content="{refresh:d}">\n') if refresh else Html("")
    body = (
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", element("h1", title), lead),
        element("nav", element("ul", *places), aria_label="Sections"),
        element("main", *(body for _, body in sections), id="content"),
        element("footer", footer),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{again}'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
