"""From ids to text, streamed, for the decoders of the `tokenizers` library.

The joined pieces of a stream equal `decode(all ids)`. Each kind of decoder streams in its own way: by token (WordPiece,
Metaspace), by character (byte-level BPE), or by run of byte tokens (Llama). For any other decoder, the text is one
piece at the end.
"""

import codecs
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformer_jax import words
from transformer_jax.errors import InputError

# What Transformers' `clean_up_tokenization_spaces` replaces, in this order.
CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s")),
    *((" 've", "'ve"), (" 're", "'re")),
)
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def stream(inner: Any, decoder: Any, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids, in pieces as they arrive.

    Args:
      inner: the library's tokenizer.
      decoder: its decoder in tokenizer.json.
      ids: below the vocabulary's size; ids without a token are ignored.
    """
    tokens = (token for id in ids if (token := inner.id_to_token(id)) is not None)
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "ByteLevel":
        return whole_characters(token_bytes(token) for token in tokens)
    if kind in ("WordPiece", "Metaspace"):
        return _one_by_one(inner.decoder, tokens)
    if kind == "Sequence" and (steps := _llama_steps(decoder["decoders"])) is not None:
        return _bytes_and_text(tokens, *steps)
    return _at_the_end(inner, ids)


def whole_characters(parts: Iterable[bytes]) -> Iterator[str]:
    """The UTF-8 text of bytes in parts, one piece per finished character; invalid bytes become U+FFFD.

    Args:
      parts: the bytes of each token.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def token_bytes(spelled: str) -> bytes:
    """The bytes of a token of byte-level BPE.

    Args:
      spelled: the token in GPT-2's spelling.
    """
    table = _byte_of_letter()
    if all(letter in table for letter in spelled):
        return bytes(table[letter] for letter in spelled)
    return spelled.encode("utf-8", "surrogatepass")  # an added token


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's spelling of bytes: a printable byte is its own character, the others are the characters from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _one_by_one(decoder: Any, tokens: Iterable[str]) -> Iterator[str]:
    """The pieces of a decoder that treats the first token in its own way and every other one independently."""
    first = True
    for token in tokens:
        if text := decoder.decode([token]) if first else decoder.decode(["x", token])[1:]:
            yield text
        first = False


def _llama_steps(steps: list[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], bool, int] | None:
    """(replacements, whether byte tokens are joined, leading spaces to remove); None for other steps."""
    replaced, bytes_too, strip = [], False, 0
    for at, step in enumerate(steps):
        match step:
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if not bytes_too:
                replaced.append((pattern, content))
            case {"type": "ByteFallback"} if not bytes_too:
                bytes_too = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": start, "stop": 0} if steps[at - 1].get("type") == "Fuse":
                strip += start
            case _:
                return None
    return replaced, bytes_too, strip


def _bytes_and_text(
    tokens: Iterable[str], replaced: list[tuple[str, str]], bytes_too: bool, strip: int
) -> Iterator[str]:
    """The pieces of Llama and Gemma: a run of byte tokens is decoded together; invalid UTF-8 is one U+FFFD per byte."""

    def parts() -> Iterator[str]:
        run = b""
        for token in tokens:
            for pattern, content in replaced:
                token = token.replace(pattern, content)
            if bytes_too and BYTE.fullmatch(token):
                run += bytes([int(token[3:5], 16)])
                continue
            if run:
                yield _bytes_as_text(run)
                run = b""
            yield token
        if run:
            yield _bytes_as_text(run)

    for part in parts():
        while strip and part.startswith(" "):
            part, strip = part[1:], strip - 1
        if part:
            strip = 0
            yield part


def _bytes_as_text(run: bytes) -> str:
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


def _at_the_end(inner: Any, ids: Iterable[int]) -> Iterator[str]:
    if text := inner.decode(list(ids), skip_special_tokens=False):
        yield text


def clean_up(text: str) -> str:
    """A text without the spaces before punctuation, as Transformers' `clean_up_tokenization_spaces`.

    Args:
      text: the decoded text.
    """
    for spaced, joined in CLEANED:
        text = text.replace(spaced, joined)
    return text


def clean_up_stream(pieces: Iterable[str]) -> Iterator[str]:
    """`clean_up` of a text in pieces. The end of the text is withheld while it may still be replaced.

    Args:
      pieces: the pieces of the decoded text.
    """
    held = ""
    for piece in pieces:
        held += piece
        # Every pattern begins with a space, so a space is a safe border unless an apostrophe is next to it.
        safe = max((found.start() for found in re.finditer(r"(?<![ '])(?= [^ '])", held)), default=0)
        if safe:
            yield clean_up(held[:safe])
            held = held[safe:]
    if text := clean_up(held):
        yield text


def continues(
    vocabulary: Mapping[str, int], kind: str, prefix: str | None, byte_level: bool
) -> Iterator[tuple[int, bool]]:
    """(id, whether the token continues a word) for each token of a vocabulary.

    "##ing" of WordPiece does. A token of byte-level BPE does unless it begins with "Ġ" or other white space; one of
    Metaspace (Unigram, Llama) does unless it begins with "▁". Only the token counts, so the first token of a text may
    continue. A character of a script without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) begins a word, as in
    BERT.

    Args:
      vocabulary: {token: id}.
      kind: the kind of the model: "WordLevel", "BPE", ...
      prefix: the prefix of tokens that continue a word, such as "##"; None: there is none.
      byte_level: whether tokens are in GPT-2's spelling.

    Raises:
      InputError: the vocabulary does not mark words.
    """
    if kind == "WordLevel":  # each token is a word, such as a residue of a protein
        yield from ((id, False) for id in vocabulary.values())
    elif prefix:
        yield from ((id, token.startswith(prefix)) for token, id in vocabulary.items())
    elif byte_level:
        yield from ((id, not _begins_word(token_bytes(token))) for token, id in vocabulary.items())
    elif any(token.startswith("▁") for token in vocabulary):
        yield from (
            (id, not (token.startswith("▁") or _begins_word(token.encode("utf-8", "surrogatepass"))))
            for token, id in vocabulary.items()
        )
    else:
        raise InputError(
            f"this {kind} tokenizer does not mark where words begin, so whole words cannot be masked; mask tokens "
            "instead, or use WordPiece, byte-level BPE or Unigram"
        )


def _begins_word(spelled: bytes) -> bool:
    """Whether UTF-8 begins with white space, or with a character of a script without spaces between words.

    A character may be split into several tokens. Then its first byte decides: E3 to E9 are Japanese and Chinese.
    """
    if spelled[:1].isspace():
        return True
    first = spelled[:4].decode("utf-8", "ignore")[:1] if spelled[:1] >= b"\xc0" else ""
    return words.unspaced_share(first) > 0 if first else b"\xe3" <= spelled[:1] <= b"\xe9"
