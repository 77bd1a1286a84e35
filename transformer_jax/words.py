"""The words of a text, in any script.

A word is a run of letters and digits with their combining marks, and with single punctuation marks inside ("AT&T",
"3-1", "U.S", "10:30"; a comma between digits). Every other punctuation mark is a word of its own. In scripts without
spaces between words (Han, kana, Thai, Lao, Khmer, Burmese, ...) each letter is a word, as in corpora of Chinese
entities and in scores of Chinese answers.
"""

import functools
import re
import unicodedata

UNSPACED = (
    *("CJK ", "KANGXI", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "THAI", "LAO"),
    *("KHMER", "MYANMAR", "TAI ", "NEW TAI ", "BALINESE", "JAVANESE"),
)
# A pattern over the kinds of characters (`_kind`): l letter, d digit, u letter of an unspaced script, m combining mark,
# j punctuation that may join, c comma, p other punctuation, s space.
WORD = re.compile("(?:[ld]m*)+(?:(?:j|(?<=d)c(?=d))(?:[ld]m*)+)*|[ujcpm]m*")


def spans(text: str) -> list[tuple[int, int]]:
    """(first character, one past the last) of each word of `text`."""
    return [found.span() for found in WORD.finditer("".join(map(_kind, text)))]


def split(text: str) -> list[str]:
    """The words of `text`."""
    return [text[start:end] for start, end in spans(text)]


def spoken(text: str) -> list[str]:
    """The words of `text` that begin with a letter or a digit, in lower case, for scores that ignore punctuation."""
    return [word.lower() for word in split(text) if _kind(word[0]) in "ldu"]


def unspaced_share(text: str) -> float:
    """The share of the letters of `text` in scripts without spaces between words; 0 for a text without letters."""
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
