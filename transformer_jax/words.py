"""Where the words of a running text are, in any script.

A word is a run of letters and digits with the combining marks on them, and with single marks inside ("AT&T", "3-1",
"U.S", "10:30"; a comma between digits). Every other mark is a word of its own. Where a script puts no space between
words (Han, kana, Thai, Lao, Khmer, Burmese, ...), each letter is a word: so corpora of Chinese entities are tagged, and
so scores of Chinese answers are counted.
"""

import functools
import re
import unicodedata

UNSPACED = (
    *("CJK ", "KANGXI", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "THAI", "LAO"),
    *("KHMER", "MYANMAR", "TAI ", "NEW TAI ", "BALINESE", "JAVANESE"),
)
# Over the letters that `_kind` gives: l a letter, d a digit, u a letter of an unspaced script, m a mark on the one
# before, j a mark that may join, c a comma, p another mark, s a space.
WORD = re.compile("(?:[ld]m*)+(?:(?:j|(?<=d)c(?=d))(?:[ld]m*)+)*|[ujcpm]m*")


def spans(text: str) -> list[tuple[int, int]]:
    """(first character, one past the last) of each word."""
    return [found.span() for found in WORD.finditer("".join(map(_kind, text)))]


def split(text: str) -> list[str]:
    """The words of a text."""
    return [text[start:end] for start, end in spans(text)]


def spoken(text: str) -> list[str]:
    """The words of a text that are letters or digits, in lower case: what scores of texts compare."""
    return [word.lower() for word in split(text) if _kind(word[0]) in "ldu"]


def unspaced_share(text: str) -> float:
    """The share of a text's letters that belong to scripts without spaces between words; 0 for a text without any."""
    kinds = "".join(map(_kind, text))
    letters = kinds.count("l") + kinds.count("u")
    return kinds.count("u") / letters if letters else 0.0


@functools.lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category.startswith("M") or character in "\u200c\u200d\u00ad":  # joiners and the soft hyphen
        return "m"
    if character.isspace() or category in ("Cc", "Cf"):
        return "s"
    if character.isdigit():
        return "d"
    if character.isalnum() or character == "_":
        return "u" if unicodedata.name(character, "").startswith(UNSPACED) else "l"
    return "c" if character == "," else "j" if character in "&'’.-‐‑/:@+·" else "p"
