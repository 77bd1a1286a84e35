"""What a stranger's tokenizer.json may ask for: expressions that end, and texts that stay of their size."""

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer_jax import patterns
from transformer_jax.errors import InputError

GROWTH = 1000  # characters that all replacements together may make of one
STAGES = ("normalizer", "pre_tokenizer", "decoder")


def refuse_exploding(settings: dict[str, Any], path: Path) -> None:
    """Raises `InputError` for regular expressions that take for ever, and for replacements that fill the memory."""
    growth = 1
    for part in _parts([settings.get(stage) for stage in STAGES]):
        pattern = part.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            patterns.refuse_exploding(pattern["Regex"], str(path), limited=True)
        for name in ("content", "prepend", "replacement", "prefix", "suffix"):
            if isinstance(part.get(name), str):
                growth *= max(1, len(part[name]))
        if isinstance(charsmap := part.get("precompiled_charsmap"), str):
            with contextlib.suppress(ValueError):  # the library says so
                growth *= longest(base64.b64decode(charsmap))
    refuse_growth(growth, path)


def refuse_growth(growth: int, path: Path) -> None:
    if growth > GROWTH:
        raise InputError(f"{path}: its replacements can make {growth:,} characters of one; {GROWTH:,} are allowed")


def longest(charsmap: bytes) -> int:
    """The most bytes that SentencePiece's map of characters makes of one: a table's size, the table, and strings that
    end in 0."""
    strings = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
    return max(1, *map(len, strings))


@contextlib.contextmanager
def outlasting() -> Iterator[None]:
    """Makes an `InputError` of the panic that the library ends in when an expression takes too many steps."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # which is no Exception
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the tokenizers library gave up ({reason}); use another tokenizer, or other text") from None


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in what JSON holds."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _parts(child)
