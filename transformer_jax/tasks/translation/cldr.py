"""Parallel text that every machine can generate: dates, amounts and names in two languages.

    source = Cldr()                                      # English -> German
    for pair in source.pairs("test"): ...                # Pair("May 7 – 9, 2026", "7.–9. Mai 2026", where)

The Unicode CLDR, which Babel packages, has for some hundred languages the formats of dates, times, numbers, money,
measures and lists, and the names of countries, languages and currencies. A phrase here is a random tree of these, which
both languages express. They are combined only by patterns that each language has (lists, date with time, intervals) and
by parentheses, as in CLDR's names of locales, "German (Austria)". So no phrase needs further grammar, and both sides
are as correct as CLDR.

A target phrase is on one side only. The names and formats of a test phrase occur in training; its numbers, dates and
combinations do not, so it cannot be memorised.
"""

import datetime
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from transformer_jax import extras
from transformer_jax.data import source_files
from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError
from transformer_jax.tasks.translation import bitext
from transformer_jax.tasks.translation.bitext import Pair, Pairs, in_memory

Phrase = tuple[Any, ...]  # ("kind", its content, ...), independent of language; `_express` has the kinds


@dataclass(frozen=True)
class Cldr:
    """Phrases of Babel's CLDR in two of its locales, such as "en", "de", "pt_BR" and "zh_Hant".

    The phrases are the same for all languages; their text depends on Babel's version of CLDR. Duplicates are dropped,
    and so are sources with two translations (English has one plural where the target has two). A language without data
    for a kind of phrase, such as the names of large numbers, has no such phrases.
    """

    source_language: str = "en"
    """The locale of the source."""
    target_language: str = "de"
    """The locale of the target."""
    train: int = 60000
    """Training pairs."""
    validation: int = 1000
    """Pairs that choose the checkpoint."""
    test: int = 1000
    """Pairs that the chosen checkpoint is reported on."""

    has_test = True

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 1:
                raise InputError(f"data.source.{name} = {getattr(self, name)}: must be 1 or more")
        if self.source_language == self.target_language:
            raise InputError(f"data.source: {self.source_language!r} is both source_language and target_language")

    def of_files(self, files: tuple[str, ...]) -> bitext.Lines | bitext.Columns:
        return bitext.of_files(files)

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: Babel is not installed or lacks a locale, or there are fewer phrases than pairs.
        """
        origin = f"CLDR {self.source_language}-{self.target_language} ({side})"
        drawn = _draw(self)[side]
        return in_memory((Pair(*texts, f"{origin}:{number}") for number, texts in enumerate(drawn, 1)), origin)


@functools.lru_cache(maxsize=2)  # one draw gives all sides and takes seconds
def _draw(cldr: Cldr) -> dict[Side, list[tuple[str, str]]]:
    """The (source, target) pairs of each side."""
    fields = ("source_language", "target_language")
    source_locale, target_locale = (_locale(getattr(cldr, field), field) for field in fields)
    codes, rng = _codes(source_locale, target_locale), random.Random(0)
    total = cldr.train + cldr.validation + cldr.test
    translations: dict[str, set[str]] = {}
    # Draw more than needed, because some phrases are duplicates and the sizes of the sides are random.
    for _ in range(5 * total // 4 + 1000):
        phrase = _pick(rng, FRAMES)(rng, codes)
        try:
            source, target = _express(phrase, source_locale), _express(phrase, target_locale)
        except (KeyError, AttributeError, NotImplementedError):  # Babel lacks the data
            continue
        translations.setdefault(source, set()).add(target)
    drawn: dict[Side, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for source, targets in translations.items():
        if len(targets) == 1:
            target = next(iter(targets))
            share = total * source_files.position(target)
            side: Side = (
                "test" if share < cldr.test else "validation" if share < cldr.test + cldr.validation else "train"
            )
            drawn[side].append((source, target))
    for side, pairs in drawn.items():
        if len(pairs) < (wanted := getattr(cldr, side)):
            raise InputError(
                f"data.source: {wanted:,} {side} pairs are needed, but CLDR {cldr.source_language}-"
                f"{cldr.target_language} gave {len(pairs):,} different ones; ask for fewer, or for more to train on"
            )
        del pairs[wanted:]
    return drawn


def _locale(name: str, field: str) -> Any:
    """Babel's `Locale`."""
    extras.need("babel", "the phrases of CLDR")
    import babel

    try:
        return babel.Locale.parse(name.replace("-", "_"))
    except (babel.UnknownLocaleError, ValueError):
        raise InputError(
            f"data.source.{field} = {name!r} is not a locale of Babel {babel.__version__}; give one such as de, pt_BR "
            "or zh_Hant"
        ) from None


def _codes(*locales: Any) -> dict[str, list[str]]:
    """The codes of territories, languages and currencies for which all the locales have names.

    Only two-letter codes count, which excludes continents and rare languages, and currencies in use today.
    """
    extras.need("babel", "the phrases of CLDR")
    from babel import core

    today = {
        code
        for histories in core.get_global("territory_currencies").values()
        for code, _, until, tender in histories
        if until is None and tender
    }

    def shared(kind: str) -> set[str]:
        return set.intersection(*(set(getattr(locale, kind)) for locale in locales))

    return {
        "territory": sorted(code for code in shared("territories") if len(code) == 2 and code.isalpha()),
        "language": sorted(code for code in shared("languages") if len(code) == 2),
        "currency": sorted(shared("currencies") & today),
    }


# ---- Random phrases ------------------------------------------------------------------------------------------------


def _pick(rng: random.Random, options: Sequence[Any]) -> Any:
    """A random option. Python guarantees only for `random()` that it is the same in every version."""
    return options[int(rng.random() * len(options))]


def _between(rng: random.Random, low: int, high: int) -> int:
    """A random integer from `low` to `high`, both included."""
    return low + int(rng.random() * (high - low + 1))


def _decimal(rng: random.Random, places: int) -> Decimal:
    """A number of one to six digits before the point, all lengths equally likely, and at most `places` after it."""
    places = _between(rng, 0, places)
    return Decimal(_between(rng, 1, 10 ** _between(rng, 1, 6) * 10**places - 1)).scaleb(-places)


def _day(rng: random.Random) -> datetime.date:
    return datetime.date(1950, 1, 1) + datetime.timedelta(days=_between(rng, 0, 36523))


def _clock(rng: random.Random) -> datetime.time:
    return datetime.time(_between(rng, 0, 23), _between(rng, 0, 59), _between(rng, 0, 59))


Codes = dict[str, list[str]]


def _date(rng: random.Random, codes: Codes) -> Phrase:
    # Not CLDR's "medium", because in English it equals "long" in May.
    return "date", _day(rng), _pick(rng, ("full", "long", "short", *SKELETONS))


def _time(rng: random.Random, codes: Codes) -> Phrase:
    return "time", _clock(rng), _pick(rng, ("short", "medium"))


def _moment(rng: random.Random, codes: Codes) -> Phrase:
    style = _pick(rng, ("full", "long", "short"))
    return "moment", style, ("date", _day(rng), style), _time(rng, codes)


def _interval(rng: random.Random, codes: Codes) -> Phrase:
    if rng.random() < 0.3:
        begin, end = sorted((_clock(rng).replace(second=0), _clock(rng).replace(second=0)))
        return "hours", begin, end
    begin_day = _day(rng)
    return "days", begin_day, begin_day + datetime.timedelta(days=_between(rng, 1, _pick(rng, (9, 99, 999))))


def _relative(rng: random.Random, codes: Codes) -> Phrase:
    unit = _pick(rng, ("year", "month", "week", "day", "hour", "minute", "second"))
    return "relative", _pick(rng, (1, -1)) * _between(rng, 1, 99), unit


def _number(rng: random.Random, codes: Codes) -> Phrase:
    kind = _pick(rng, ("decimal", "percent", "compact"))
    if kind == "compact":  # such as "1.2 million"
        return kind, _between(rng, 10, 9999) * 10 ** _pick(rng, (2, 5, 8, 11))
    return kind, _pick(rng, (1, 1, 1, -1)) * _decimal(rng, 3 if kind == "decimal" else 1)


def _money(rng: random.Random, codes: Codes) -> Phrase:
    return "money", _decimal(rng, 2), _pick(rng, codes["currency"]), _pick(rng, ("standard", "name"))


def _measure(rng: random.Random, codes: Codes) -> Phrase:
    return "measure", _decimal(rng, 2), _pick(rng, UNITS), _pick(rng, ("long", "short"))


def _territory(rng: random.Random, codes: Codes) -> Phrase:
    return "territory", _pick(rng, codes["territory"])


def _language(rng: random.Random, codes: Codes) -> Phrase:
    return "language", _pick(rng, codes["language"])


def _currency(rng: random.Random, codes: Codes) -> Phrase:
    return "currency", _pick(rng, codes["currency"])


def _month(rng: random.Random, codes: Codes) -> Phrase:
    return "month", _between(rng, 1, 12)


def _weekday(rng: random.Random, codes: Codes) -> Phrase:
    return "weekday", _between(rng, 0, 6)


def _note(rng: random.Random, codes: Codes) -> Phrase:
    """Peru (12.5%)"""
    outer, inner = _pick(rng, NOTES)
    return "note", outer(rng, codes), inner(rng, codes)


def _list(rng: random.Random, codes: Codes) -> Phrase:
    """Peru, Chile, or Kenya"""
    item, size = _pick(rng, ITEMS), _between(rng, 2, 4)
    items: list[Phrase] = []
    while len(items) < size:
        items += [another] if (another := item(rng, codes)) not in items else []
    return "list", _pick(rng, ("standard", "standard", "or")), items


SKELETONS = ("yMMMMd", "yMMMM", "MMMMd", "yMMMEd", "yQQQQ")
UNITS = (
    *("angle-degree", "area-acre", "area-hectare", "area-square-foot", "area-square-kilometer", "area-square-meter"),
    *("digital-gigabyte", "digital-megabyte", "digital-terabyte", "duration-hour", "duration-minute", "duration-month"),
    *("duration-second", "duration-week", "duration-year", "electric-ampere", "electric-volt", "energy-kilocalorie"),
    *("energy-kilowatt-hour", "frequency-gigahertz", "frequency-hertz", "length-centimeter", "length-foot"),
    *("length-inch", "length-kilometer", "length-light-year", "length-meter", "length-mile", "length-millimeter"),
    *("length-nautical-mile", "length-yard", "mass-gram", "mass-kilogram", "mass-milligram", "mass-ounce"),
    *("mass-pound", "mass-tonne", "power-horsepower", "power-kilowatt", "power-megawatt", "pressure-hectopascal"),
    *("speed-kilometer-per-hour", "speed-knot", "speed-meter-per-second", "speed-mile-per-hour"),
    *("temperature-celsius", "temperature-fahrenheit", "volume-cubic-meter", "volume-gallon", "volume-liter"),
    *("volume-milliliter", "volume-tablespoon", "volume-teaspoon"),
)
Kind = Callable[[random.Random, Codes], Phrase]
NOTES: tuple[tuple[Kind, Kind], ...] = (
    *((_territory, _currency), (_territory, _money), (_territory, _number), (_territory, _interval)),
    *((_language, _territory), (_language, _number), (_currency, _territory), (_measure, _measure), (_money, _money)),
    *((_date, _relative), (_money, _date), (_measure, _relative), (_territory, _list)),
)
ITEMS: tuple[Kind, ...] = (
    *(_territory, _territory, _language, _language, _currency, _measure, _money, _month, _weekday, _note),
)
FRAMES: tuple[Kind, ...] = (
    *(_date, _moment, _moment, _interval, _interval, _relative, _number, _number, _money, _money, _measure, _measure),
    *(_list, _list, _list, _list, _note, _note, _note, _note),
)


# ---- Phrases in a language -----------------------------------------------------------------------------------------


def _express(phrase: Phrase, locale: Any) -> str:
    """The text of a phrase in a locale. If Babel lacks the data, it raises KeyError, AttributeError or
    NotImplementedError."""
    extras.need("babel", "the phrases of CLDR")
    from babel import dates, lists, numbers, units

    match phrase:
        case "date", day, style if style in SKELETONS:
            return dates.format_skeleton(style, day, locale=locale)
        case "date", day, style:
            return dates.format_date(day, style, locale=locale)
        case "time", time, style:
            return dates.format_time(time, style, locale=locale)
        case "moment", style, date, time:
            pattern = str(dates.get_datetime_format(style, locale=locale))  # "{1}, {0}"
            return pattern.format(_express(time, locale), _express(date, locale))
        case "days", begin, end:
            return dates.format_interval(begin, end, "yMMMd", locale=locale)
        case "hours", begin, end:
            twelve = "h" in dates.get_time_format("short", locale=locale).pattern
            return dates.format_interval(begin, end, "hm" if twelve else "Hm", locale=locale)
        case "relative", count, unit:
            span = datetime.timedelta(seconds=count * dict(dates.TIMEDELTA_UNITS)[unit])
            return dates.format_timedelta(span, unit, threshold=10**9, add_direction=True, locale=locale)
        case "decimal", value:
            return numbers.format_decimal(value, locale=locale)
        case "percent", value:
            return numbers.format_percent(value / 100, locale=locale, decimal_quantization=False)
        case "compact", value:
            return numbers.format_compact_decimal(value, format_type="long", locale=locale, fraction_digits=1)
        case "money", value, currency, style:
            return numbers.format_currency(value, currency, locale=locale, format_type=style)
        case "measure", value, unit, style:
            text = units.format_unit(value, unit, style, locale=locale)
            if unit in text:  # "4.05 duration-year": Babel's fallback if the locale lacks this plural form of the unit
                raise KeyError(unit)
            return text
        case "territory", code:
            return locale.territories[code]
        case "language", code:
            return locale.languages[code]
        case "currency", code:
            return locale.currencies[code]
        case "month", number:
            return locale.months["stand-alone"]["wide"][number]
        case "weekday", number:
            return locale.days["stand-alone"]["wide"][number]
        case "note", outer, inner:
            return f"{_express(outer, locale)} ({_express(inner, locale)})"
        case "list", style, items:
            return lists.format_list([_express(item, locale) for item in items], style, locale=locale)
    raise ValueError(f"no such phrase: {phrase!r}")
