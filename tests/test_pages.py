"""HTML pages: nothing of a run becomes markup, curves are where the numbers are, and every picture has its words."""

import html
import html.parser
import math
import re

import pytest

from transformer_jax import pages

EVIL = '<script>alert("1")</script>&\x00'
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


class Elements(html.parser.HTMLParser):
    """The elements of a page, checked for balance, and its text."""

    VOID = ("meta", "img", "path", "rect", "circle")

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def whole():
    lines = [
        pages.Line(EVIL, [(1, 4.0), (2, math.nan), (3, 2.0), (4, None)], marks=True),
        pages.Line("b", [(1, 1.0), (4, 3.0)], band=[(1, 0.5, 1.5), (4, math.inf, 3.5)]),
    ]
    sections = [
        pages.section(
            "Curves", pages.grid(pages.curves(EVIL, lines, x=EVIL, y=EVIL), pages.shares(f"Time {EVIL}", {EVIL: 1.0}))
        ),
        pages.section("Tables", pages.table(EVIL, [EVIL, "n"], [[EVIL, 12345.678], [1, None]], hidden=True)),
        pages.section("Samples", pages.sheet([(EVIL, EVIL)]), pages.picture(PNG, EVIL), pages.note(EVIL)),
    ]
    return pages.page(EVIL, sections, lead=EVIL, footer=EVIL)


def test_a_text_never_becomes_markup():
    text = whole()
    page = Elements(text)
    assert "script" not in [tag for tag, _ in page.found] and "\x00" not in text
    assert page.text.count('<script>alert("1")</script>&\ufffd') >= 12
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert {attributes["src"][:10] for tag, attributes in page.found if tag == "img"} == {"data:image"}
    assert "default-src 'none'" in text and "http:" not in text and "https:" not in text


def test_a_reader_without_eyes_or_mouse():
    page = Elements(whole())
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.found:
        if tag == "svg" and "aria-hidden" not in attributes:
            assert {attributes["aria-labelledby"], attributes["aria-describedby"]} <= set(ids)
        if tag == "img":
            assert attributes["alt"]
        if attributes.get("class") == "wide":
            assert attributes["tabindex"] == "0" and attributes["aria-label"]
    tags = [tag for tag, _ in page.found]
    assert tags.count("caption") == tags.count("table") == 1 and tags.count("h1") == 1 and tags.count("main") == 1
    assert [a["scope"] for tag, a in page.found if tag == "th"] == ["col", "col", "row", "row"]


def test_a_curve_is_where_its_numbers_are():
    """Two points span the picture; the middle of a logarithmic axis is the geometric mean."""

    def path(log):
        points = [(0, 1.0), (5, 10.0), (10, 100.0)]
        svg = pages.curves("t", [pages.Line("a", points)], x="step", log=log)
        drawn = re.search(r'd="(M[^"]+)" style="fill: none', svg)[1]
        return [tuple(map(float, pair.split())) for pair in re.split("[ML]", drawn)[1:]]

    for log, share in ((False, 1 - 9 / 99), (True, 0.5)):
        (x0, y0), (x1, y1), (x2, y2) = path(log)
        assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 > y1 > y2
        assert (y1 - y2) / (y0 - y2) == pytest.approx(share, abs=0.01)


def test_parallel_coordinates():
    """The best is highest where its number is; a number over two orders of magnitude is on a logarithmic axis."""
    items = {"a": [1e-4, "adam", True, 2.0], "b": [1e-2, "lion", False, 3.0], "c": [1e-3, [1], None, math.nan]}
    svg = pages.parallel("t", ["rate", "kind", "flag", EVIL], items | {EVIL: [1e-3, EVIL, True, 2.5]})
    Elements(svg)
    drawn = {re.search("<title>(.)", line)[1]: line for line in re.findall("<path d=.*?</path>", svg)}
    heights = {name: [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", line)] for name, line in drawn.items()}
    assert heights["a"][0] > heights["c"][0] > heights["b"][0] and len(heights["a"]) == 4
    assert heights["c"][0] == pytest.approx((heights["a"][0] + heights["b"][0]) / 2, abs=0.1)
    assert len(heights["c"]) == 2, "neither a flag nor a number"
    assert "stroke: var(--c0)" in drawn["a"] and "a: rate 0.0001, kind adam" in svg
    assert "Nothing to draw" in pages.parallel("t", ["only"], {"a": [1]})


def test_what_is_not_drawn_is_said():
    svg = pages.curves("t", [pages.Line("a", [(1, 2.0), (2, math.nan), (3, 1.0)])], x="step")
    assert "a: from 2 at 1 to 1 at 3, lowest 1 at 3, highest 2 at 1; 1 values that are not finite are not drawn" in svg
    assert len(re.findall("M", re.search(r'd="(M[^"]+)" style="fill: none', svg)[1])) == 2, "a gap"
    empty = pages.curves("t", [pages.Line("a", [(1, math.inf)])], x="step")
    assert "<svg" not in empty and "Nothing to draw" in empty
    assert "-2" not in pages.curves("t", [pages.Line("a", [(1, -2.0), (2, 5.0)])], x="step", log=True).split("<desc")[0]


@pytest.mark.parametrize("points", [[(3, 7.0)], [(1, 0.0), (2, 0.0)], [(1, -1e308), (2, 1e308)], [(1, 1e-300)] * 2])
def test_any_range_is_drawn(points):
    svg = pages.curves("t", [pages.Line("a", points)], x="step")
    assert "<svg" in svg and "nan" not in svg and "inf" not in svg


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.123456, "0.12346"), (5e-5, "5e-05"), (math.nan, "not finite"), (1e308, "beyond")],
)
def test_numbers(value, text):
    assert pages.number(value).startswith(text)


def test_only_pictures_are_embedded():
    assert pages.image_type(PNG) == "image/png" and pages.image_type(b"<svg onload=x>") is None
    assert "<img" not in pages.picture(b"<svg>", "evil")
