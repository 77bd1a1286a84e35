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
    found = pages.unchecked(stated.read())
    assert not found, f"these need an entry in {stated.FILE}, or go (docs/verify.md): {found}"


def test_a_stated_number_is_seen():
    found = lambda text, all_=False: list(pages.of_page(text, all_))  # noqa: E731
    assert found("It takes 3 s (measured).\nAnd 4.") == ["It takes 3 s (measured). And 4."]
    assert found("*Measured* so:\n\n| a | b |\n|---|---|\n| x | 3 |\n\nSince 1990.") == ["| x | 3 |"]
    assert found("| a |\n|---|\n| 3 |") == [] and found("| a |\n|---|\n| 3 |", True) == ["| 3 |"]
    assert found("<!-- numbers: a -->\nmeasured 3\n<!-- /numbers -->\n\n```\nmeasured 3\n```\nNot measured: 4.") == []


def test_a_docstring_states_the_ranges_of_its_entries():
    entry = {"numbers": {"ap": {"holds": [0.55, 0.65]}, "accuracy": {"holds": [0.9, 0.96]}}}
    book = {"measured": {"a.b": entry}, "published": {"a.b.their": {"value": 41.5, "source": "a paper"}}}
    book["measured"]["a.bc"] = {"numbers": {"x": {"holds": [0.11, 0.12]}}}
    found = lambda text: [line.partition(" in:")[0] for line in pages.of_recipe(text, pages.known(book, "a.b"))]  # noqa: E731
    assert found("Expected: AP 0.55 to 0.65, 90 to 96 % (measured, 3 seeds); 41.5 (published, section 3.1).") == []
    assert found("Expected: AP 0.56 (measured).") == ["0.56"] and found("Expected: 0.11 (measured).") == ["0.11"]
    assert found("Takes 2.5 s, which was measured.") == ["2.5"] and found("Expected: 91 % (published).") == ["91"]
    assert found("Rate 0.3 of 7 layers. Expected: more than 1 (estimated).") == found("Not measured: 0.3.") == []


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


def test_order_and_what_fits(tmp_path, monkeypatch):
    seen = {"code": {}, "date": "2026-01-02"}
    stale = {"code": {"m": "0 a"}, "date": "2026-02-02"}
    book = {
        "measured": {"old": {"seen": seen, "minutes": 1}, "stale": {"seen": stale, "minutes": 1}, "new": {"minutes": 9}}
    }
    assert running.in_order(book, tmp_path) == ["new", "stale", "old"]
    assert running.why_not(ENTRY, 1) == "" and running.why_not(ENTRY, 0.9) == "takes 1 minutes"
    assert running.why_not(ENTRY | {"machine": "tpu"}, 1) == "is of a tpu"
    monkeypatch.setattr(running.os, "getloadavg", lambda: (0.6, 0.0, 0.0))
    assert "the load is 0.6" in running.why_not(ENTRY | {"quiet": True}, 1)
    monkeypatch.setattr(running.os, "getloadavg", lambda: (0.4, 9.0, 9.0))
    assert running.why_not(ENTRY | {"quiet": True}, 1) == ""
    monkeypatch.delenv("NO_SUCH_DATA", raising=False)
    assert running.why_not(ENTRY | {"needs": ["NO_SUCH_DATA"]}, 1) == "needs $NO_SUCH_DATA"


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


def test_an_entry_of_several_seeds(tmp_path, monkeypatch):
    """The command runs once for each; what it names of the environment is filled in."""
    (tmp_path / "s").mkdir()
    for seed, x in ((0, 1.0), (1, 1.5), (2, 1.7)):
        (tmp_path / f"s/{seed}.json").write_text(json.dumps({"report": {"x": x}}))
    monkeypatch.setenv("RESULTS", str(tmp_path / "s"))
    numbers = {how: {"path": "report.x", "of": how, "holds": [0.5, 1.6]} for how in ("mean", "min", "max")}
    entry = ENTRY | {"command": "tools/run tests.written_results $RESULTS {out}/r.json", "numbers": numbers}
    seen, failed = running.run("a", entry | {"seeds": [0, 1, 2]})
    assert seen["values"] == {"mean": 1.4, "min": 1.0, "max": 1.7}
    assert failed == ["a:max is 1.7, outside of [0.5, 1.6]"]
