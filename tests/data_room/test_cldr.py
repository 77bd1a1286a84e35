"""Phrases of CLDR: what German writes, checked against strings written by hand; sides that share no target."""

import datetime
import hashlib
import os
import subprocess
import sys
from decimal import Decimal

import pytest

from transformer_jax.errors import InputError
from transformer_jax.tasks.translation import cldr
from transformer_jax.tasks.translation.cldr import Cldr

SMALL = Cldr(train=3000, validation=100, test=100)
SIDES = ("train", "validation", "test")
DAY, TIME = datetime.date(2026, 5, 7), datetime.time(15, 3, 9)


@pytest.mark.parametrize(
    ("phrase", "english", "german"),
    [
        (("date", DAY, "full"), "Thursday, May 7, 2026", "Donnerstag, 7. Mai 2026"),
        (("date", DAY, "short"), "5/7/26", "07.05.26"),
        (("date", DAY, "yMMMEd"), "Thu, May 7, 2026", "Do., 7. Mai 2026"),
        (("date", DAY, "yQQQQ"), "2nd quarter 2026", "2. Quartal 2026"),
        (("time", TIME, "short"), "3:03 PM", "15:03"),
        (("moment", "short", ("date", DAY, "short"), ("time", TIME, "short")), "5/7/26, 3:03 PM", "07.05.26, 15:03"),
        (("days", DAY, datetime.date(2026, 5, 9)), "May 7 – 9, 2026", "7.–9. Mai 2026"),
        (("hours", TIME, datetime.time(17, 5)), "3:03 – 5:05 PM", "15:03–17:05 Uhr"),
        (("relative", 3, "day"), "in 3 days", "in 3 Tagen"),
        (("relative", -1, "year"), "1 year ago", "vor 1 Jahr"),
        (("decimal", Decimal("-1234.5")), "-1,234.5", "-1.234,5"),
        (("percent", Decimal("12.5")), "12.5%", "12,5 %"),
        (("compact", 1_000_000), "1 million", "1 Million"),
        (("compact", 1_200_000), "1.2 million", "1,2 Millionen"),
        (("money", Decimal("1234.5"), "EUR", "standard"), "€1,234.50", "1.234,50 €"),
        (("money", Decimal("2"), "CHF", "name"), "2.00 Swiss francs", "2,00 Schweizer Franken"),
        (("measure", Decimal("1.5"), "length-kilometer", "long"), "1.5 kilometers", "1,5 Kilometer"),
        (("measure", Decimal("20"), "temperature-celsius", "short"), "20°C", "20 °C"),
        (("note", ("language", "de"), ("territory", "AT")), "German (Austria)", "Deutsch (Österreich)"),
        (("list", "or", [("month", 3), ("weekday", 0), ("currency", "USD")]),
         "March, Monday, or US Dollar", "März, Montag oder US-Dollar"),
    ],
)  # fmt: skip
def test_a_phrase_in_two_languages(phrase, english, german):
    for name, wanted in (("en", english), ("de", german)):
        said = cldr._express(phrase, cldr._locale(name, "a field"))
        assert " ".join(said.split()) == wanted  # spaces that do not break, and thin ones, are spaces here


def test_no_target_is_on_two_sides_and_no_pair_is_there_twice():
    pairs = {side: list(SMALL.pairs(side)) for side in SIDES}
    assert [len(pairs[side]) for side in SIDES] == [3000, 100, 100]
    targets = {side: {pair.target for pair in held} for side, held in pairs.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not targets[one] & targets[other]
    sources = [pair.source for held in pairs.values() for pair in held]
    assert len(set(sources)) == len(sources)  # so one has one translation
    assert len({pair.where for held in pairs.values() for pair in held}) == len(sources)


def test_what_two_sources_share_is_on_one_side(monkeypatch):
    """Both "2 bytes" and "2 byte" are "2 Byte" in German: the target decides the side, not the source."""

    def measure(rng, codes):
        return "measure", cldr._between(rng, 2, 500), "digital-byte", cldr._pick(rng, ("long", "short"))

    monkeypatch.setattr(cldr, "FRAMES", (measure,))
    source = Cldr(train=200, validation=50, test=50)
    sources, targets = ([{pair[i] for pair in source.pairs(side)} for side in SIDES] for i in (0, 1))
    assert sum(map(len, targets)) < sum(map(len, sources)) - 30
    assert sum(map(len, targets)) == len(set.union(*targets))


def test_what_a_phrase_is_made_of_is_seen_in_training():
    """Most of the test's words: three thousand pairs have most names, sixty thousand have all."""

    def words(side):
        return [word for pair in SMALL.pairs(side) for word in pair.target.split() if word.isalpha()]

    seen = set(words("train"))
    assert sum(word in seen for word in words("test")) > 0.9 * len(words("test"))


def test_pairs_are_the_same_in_every_process():
    texts = [pair[:2] for side in SIDES for pair in SMALL.pairs(side)]
    # In a process that orders sets and hashes strings in another way.
    code = (
        "import hashlib\n"
        "from transformer_jax.data.cldr import Cldr\n"
        "source = Cldr(train=3000, validation=100, test=100)\n"
        "texts = [pair[:2] for side in ('train', 'validation', 'test') for pair in source.pairs(side)]\n"
        "print(hashlib.sha256(repr(texts).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == hashlib.sha256(repr(texts).encode()).hexdigest()


@pytest.mark.parametrize("pair", [("en", "fr"), ("en", "ar"), ("ja", "zh-Hant"), ("pt_BR", "sw")], ids="-".join)
def test_other_languages(pair):
    """Those that lack something, such as Japanese names of large numbers, have phrases of the other kinds."""
    source = Cldr(*pair, train=100, validation=10, test=10)
    texts = [text for side in SIDES for pair in source.pairs(side) for text in pair[:2]]
    assert len(texts) == 240 and all(text.strip() for text in texts)
    assert not any(unit in text for text in texts for unit in cldr.UNITS)


def test_refused(monkeypatch):
    with pytest.raises(InputError, match=r"source_language = 'klingon' is not a locale of Babel [\d.]+; .* pt_BR"):
        Cldr("klingon").pairs("train")
    with pytest.raises(InputError, match=r"'de' is both source_language and target_language"):
        Cldr("de", "de")
    with pytest.raises(InputError, match=r"data.source.test = 0"):
        Cldr(test=0)
    with monkeypatch.context() as patch:
        patch.setattr(cldr, "FRAMES", (cldr._weekday,))
        with pytest.raises(InputError, match=r"50 train pairs are needed, but CLDR en-nl gave \d different ones"):
            Cldr("en", "nl", train=50, validation=1, test=1).pairs("train")
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(InputError, match=r"Babel is not installed; pip install 'transformer-jax\[data\]'"):
        Cldr("en", "da").pairs("train")
