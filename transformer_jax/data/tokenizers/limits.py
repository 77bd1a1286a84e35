"""Refuses a tokenizer.json whose expressions never end or whose replacements fill the memory."""

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer_jax import patterns
from transformer_jax.errors import InputError

GROWTH = 1000  # characters that all replacements together may make from one
STAGES = ("normalizer", "pre_tokenizer", "decoder")


def refuse_exploding(settings: dict[str, Any], path: Path) -> None:
    """Refuses regular expressions that take exponential time and replacements that fill the memory.

    Args:
      settings: the object in tokenizer.json.
      path: names the file in the message.

    Raises:
      InputError: there is one.
    """
    growth = 1
    for part in _parts([settings.get(stage) for stage in STAGES]):
        pattern = part.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            patterns.refuse_exploding(pattern["Regex"], str(path), limited=True)
        for name in ("content", "prepend", "replacement", "prefix", "suffix"):
            if isinstance(part.get(name), str):
                growth *= max(1, len(part[name]))
        if isinstance(charsmap := part.get("precompiled_charsmap"), str):
            with contextlib.suppress(ValueError):  # the library refuses bad base64 itself
                growth *= longest(base64.b64decode(charsmap))
    refuse_growth(growth, path)


def refuse_growth(growth: int, path: Path) -> None:
    """Refuses replacements that make a text more than GROWTH times as long.

    Args:
      growth: characters made from one.
      path: names the file in the message.

    Raises:
      InputError: it is more than GROWTH.
    """
    if growth > GROWTH:
        raise InputError(f"{path}: its replacements can make {growth:,} characters from one; {GROWTH:,} are allowed")


def longest(charsmap: bytes) -> int:
    """The most bytes that SentencePiece's character map makes from one character, 1 or more.

    Args:
      charsmap: the size of a table, the table, and replacements that end in a zero byte.
    """
    strings = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
    return max(1, *map(len, strings))


@contextlib.contextmanager
def outlasting() -> Iterator[None]:
    """A context that converts the library's panic, for an expression with too many steps, into an `InputError`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # it is a BaseException, not an Exception
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the tokenizers library gave up ({reason}); use another tokenizer, or other text") from None


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON tree."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _parts(child)
