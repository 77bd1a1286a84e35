"""The numbers of README and the site are those of docs/numbers.json, which tools/verify alone has filled in."""

import json

import pytest

from tools import stated
from tools.stated import __main__ as verify
from tools.stated import pages, running
from transformer_jax.errors import InputError


def test_the_numbers_are_sound_and_the_pages_are_made_of_them():
    book = stated.read()
    for page in book["blocks"]:
        text = (stated.ROOT / page).read_text(encoding="utf-8")
        assert pages.generated(book, page, text) == text, f"{page} differs from its entries: tools/verify --tables"


def test_every_measurement_has_an_entry():
    """What is older than the rule is counted, paragraphs and rows of tables; a page may lose them, and gain none."""
    allowed = stated.read()["unchecked"]
    assert "README.md" not in allowed
    for page, lines in pages.unchecked().items():
        more = len(lines) - allowed.get(page, 0)
        assert more <= 0, f"{page} has {more} measurements more than {stated.FILE} allows (docs/verify.md): {lines}"


def test_a_stated_number_is_seen():
    found = lambda text, all_=False: list(pages.of_page(text, all_))  # noqa: E731
    assert found("It takes 3 s (measured).\nAnd 4.") == ["It takes 3 s (measured). And 4."]
    assert found("*Measured* so:\n\n| a | b |\n|---|---|\n| x | 3 |\n\nSince 1990.") == ["| x | 3 |"]
    assert found("| a |\n|---|\n| 3 |") == [] and found("| a |\n|---|\n| 3 |", True) == ["| 3 |"]
    assert found("<!-- numbers: a -->\nmeasured 3\n<!-- /numbers -->\n\n```\nmeasured 3\n```\nNot measured: 4.") == []


ENTRY = {
    "file": "{out}/r.json",
    "minutes": 1,
    "machine": running.kind(),
    "numbers": {"x": {"path": "report.x", "holds": [1, 2], "as": ".2f"}, "s": {"path": "s", "as": "time"}},
}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with one entry, whose command copies a file of results, and a page of it."""
    source = tmp_path / "results.json"
    source.write_text('{"report": {"x": 1.23456}, "s": 83.2}')
    command = f"tools/run tests.written_results {source} {{out}}/r.json"
    lines = ["Line.", "| {a:x} in {a:s} | {a:where} | {b:value}, {b:source} |"]
    book = {
        "measured": {"a": ENTRY | {"command": command}},
        "published": {"b": {"value": 93.5, "source": "a paper"}},
        "blocks": {"docs/p.md": {"t": lines}},
        "unchecked": {},
    }
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/p.md").write_text("Text.\n\n<!-- numbers: t -->\n<!-- /numbers -->\nMore.\n")
    stated.write(book, tmp_path)
    return tmp_path


def test_an_entry_is_run_and_its_record_makes_the_page(checkout):
    book = stated.read(checkout)
    assert pages.write(book, checkout) == ["docs/p.md"] and pages.write(book, checkout) == []
    assert (checkout / "docs/p.md").read_text() == "Text.\n\n<!-- numbers: t -->\nLine.\n<!-- /numbers -->\nMore.\n"
    seen, failed = running.run("a", book["measured"]["a"])
    assert failed == [] and seen["values"] == {"x": 1.23456, "s": 83.2}
    assert "written_results" not in str(seen["code"]) and "files" in seen["code"]["transformer_jax"].split()
    book["measured"]["a"]["seen"] = seen
    stated.write(book, checkout)
    again = stated.read(checkout)
    assert again == book and pages.write(again, checkout) == ["docs/p.md"]
    where = f"{seen['date']}, `{seen['commit']}`, {seen['machine']}"
    assert (
        f"| 1.23 in 1:23 | {where} | 93.5, a paper |\n<!-- /numbers -->\nMore." in (checkout / "docs/p.md").read_text()
    )
    for change in ({"values": {"x": 1.5, "s": 83.2}}, {"date": "2030-01-01"}, {"results": "0"}):  # by hand
        (checkout / stated.FILE).write_text(
            json.dumps(book | {"measured": {"a": book["measured"]["a"] | {"seen": seen | change}}})
        )
        with pytest.raises(InputError, match="not written by tools/verify"):
            stated.read(checkout)
    (checkout / "results.json").write_text('{"report": {"x": 3}, "s": 1}')
    assert running.run("a", book["measured"]["a"])[1] == ["a:x is 3, outside of [1, 2]"]
    (checkout / "results.json").write_text('{"report": 3, "s": 1}')
    with pytest.raises(InputError, match="in place of a number at report.x"):
        running.run("a", book["measured"]["a"])


def test_code_that_has_changed_is_named_and_words_are_no_code(tmp_path):
    (tmp_path / "m").mkdir()
    file = tmp_path / "m/a.py"
    file.write_text('"""Words."""\n\nx = 1  # why\n')
    seen = {"code": stated.code(["m/a.py"], tmp_path)}
    file.write_text('"""Other\nwords."""\n# a comment\nx = 1  # why\n\n\n')
    assert stated.changed(seen, tmp_path) == []
    file.write_text("x = 2  # why\n")
    assert stated.changed(seen, tmp_path) == ["m"]
    file.unlink()
    assert stated.changed(seen, tmp_path) == ["m"]


def test_order_and_what_fits(tmp_path):
    seen = {"code": {}, "date": "2026-01-02"}
    stale = {"code": {"m": "0 a"}, "date": "2026-02-02"}
    book = {
        "measured": {"old": {"seen": seen, "minutes": 1}, "stale": {"seen": stale, "minutes": 1}, "new": {"minutes": 9}}
    }
    assert running.in_order(book, tmp_path) == ["new", "stale", "old"]
    assert running.fits(ENTRY, 1) and not running.fits(ENTRY, 0.9) and not running.fits(ENTRY | {"machine": "?"}, 1)


def test_what_cannot_be_is_refused(checkout, capsys):
    assert verify.main(["no.such.entry"]) == 2
    assert "no entry 'no.such.entry'" in capsys.readouterr().err
    book = stated.read(checkout)
    for name, change, message in (
        ("a", {"machine": "abacus"}, "one of cpu, gpu, tpu"),
        ("a", {"command": "rm -r /"}, "tools/run MODULE"),
        ("a", {"minutes": "1"}, "no valid 'minutes'"),
    ):
        broken = book | {"measured": {name: book["measured"][name] | change}}
        stated.write(broken, checkout)
        with pytest.raises(InputError, match=message):
            stated.read(checkout)
    with pytest.raises(InputError, match="which no entry has"):
        pages.filled(book, "{a:y}")
    with pytest.raises(InputError, match="marks the blocks"):
        pages.generated(book, "docs/p.md", "no marks")
