"""SentencePiece's normaliser: its compiled character map, its treatment of spaces, and "▁" for a space.

The map is a double-array trie (Aoe 1989, in the layout of darts-clone) over the UTF-8 bytes of the texts to replace,
and a blob of their replacements, each ended by a zero byte. At each position of a text the longest matching entry is
replaced; user-defined pieces are kept. Few texts hold an entry of two or more characters. So these are found first, by
their first pair of characters, and the rest is translated character by character.
"""

import itertools
import re
import struct
from collections.abc import Iterator

from transformer_jax.errors import InputError

SPACE = "▁"


class Normalizer:
    """Normalises a text for SentencePiece.

    Args:
      charsmap: the compiled character map; empty: none.
      user_defined: pieces that the map does not change.
      dummy_prefix: whether a space is added before the text.
      one_space: whether the text is stripped and runs of spaces are collapsed.
    """

    def __init__(self, charsmap: bytes, user_defined: tuple[str, ...], dummy_prefix: bool, one_space: bool):
        self._units, self._blob = _parse(charsmap)
        longest_first = sorted(user_defined, key=len, reverse=True)
        self._user = re.compile("|".join(map(re.escape, longest_first))) if user_defined else None
        self._prefix, self._one_space = dummy_prefix, one_space
        self._letters: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], bool] = {}

    def __call__(self, text: str) -> str:
        mapped = self._mapped(text)
        if self._one_space:
            mapped = re.sub(" {2,}", " ", mapped).strip(" ")
        if not mapped:
            return ""
        return (SPACE * self._prefix) + mapped.replace(" ", SPACE)

    def aligned(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """(normalised text, for each of its characters the span of characters in `text` that it came from).

        Args:
          text: to normalise.
        """
        made: list[tuple[str, int, int]] = []
        for start, end, replacement in self._steps(text):
            for letter in replacement:
                if not (self._one_space and letter == " " and (not made or made[-1][0] == " ")):
                    made.append((letter, start, end))
        while self._one_space and made and made[-1][0] == " ":
            made.pop()
        if made and self._prefix:
            made.insert(0, (" ", *made[0][1:]))
        for i in range(len(made) - 2, -1, -1):
            if made[i][0] == " ":  # a space has the span of the word after it
                made[i] = (" ", *made[i + 1][1:])
        letters = "".join(letter for letter, _, _ in made).replace(" ", SPACE)
        return letters, [(start, end) for _, start, end in made]

    def _steps(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(start, end, replacement) of each step, from left to right."""
        at = 0
        while at < len(text):
            if self._user is not None and (found := self._user.match(text, at)):
                yield at, found.end(), found[0]
                at = found.end()
                continue
            length, replacement = self._longest(text[at : at + 32])
            yield at, at + length, replacement
            at += length

    def _mapped(self, text: str) -> str:
        if self._user is None:
            return self._replaced(text)
        parts, at = [], 0
        for found in self._user.finditer(text):
            parts += [self._replaced(text[at : found.start()]), found[0]]
            at = found.end()
        return "".join([*parts, self._replaced(text[at:])])

    def _replaced(self, text: str) -> str:
        if not self._units or not text:
            return text
        alone = {ord(letter): made for letter in set(text) if (made := self._alone(letter)) != letter}
        pairs = {pair for pair in set(itertools.pairwise(text)) if self._goes_on(*pair)}
        if not pairs:
            return text.translate(alone) if alone else text
        several = re.compile("|".join(re.escape(a) + re.escape(b) for a, b in pairs))
        parts, at = [], 0
        while found := several.search(text, at):
            length, replacement = self._longest(text[found.start() : found.start() + 32])
            parts += [text[at : found.start()].translate(alone), replacement]
            at = found.start() + length
        return "".join([*parts, text[at:].translate(alone)])

    def _alone(self, letter: str) -> str:
        if letter not in self._letters:
            self._letters[letter] = self._longest(letter)[1]
        return self._letters[letter]

    def _goes_on(self, first: str, second: str) -> bool:
        """Whether an entry begins with these two characters."""
        if (first, second) not in self._pairs:
            self._pairs[first, second] = self._walk((first + second).encode("utf-8", "surrogatepass"))[1]
        return self._pairs[first, second]

    def _longest(self, text: str) -> tuple[int, str]:
        """(characters replaced at the beginning of a text, their replacement)."""
        data = text.encode("utf-8", "surrogatepass")
        (size, value), _ = self._walk(data)
        if not size:
            return 1, text[0]
        end = self._blob.index(b"\0", value)
        return len(data[:size].decode("utf-8", "replace")), self._blob[value:end].decode("utf-8", "replace")

    def _walk(self, data: bytes) -> tuple[tuple[int, int], bool]:
        """((bytes of the longest entry that `data` begins with, its value), whether all of `data` is in the trie)."""
        units, found = self._units, (0, 0)
        if not units:
            return found, False
        at = _offset(units[0])
        for i, byte in enumerate(data):
            at ^= byte
            if at >= len(units) or units[at] & 0x800000FF != byte:
                return found, False
            leaf = units[at] >> 8 & 1
            at ^= _offset(units[at])
            if leaf:
                found = i + 1, units[at] & 0x7FFFFFFF
        return found, True


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)


def _parse(charsmap: bytes) -> tuple[tuple[int, ...], bytes]:
    """(the trie's units, the blob). Refuses a truncated map."""
    if not charsmap:
        return (), b""
    size = int.from_bytes(charsmap[:4], "little")
    if size % 4 or len(charsmap) < 4 + size:
        raise InputError(f"the character map is truncated: it has {len(charsmap)} bytes, its trie alone {size}")
    return struct.unpack(f"<{size // 4}I", charsmap[4 : 4 + size]), charsmap[4 + size :]
