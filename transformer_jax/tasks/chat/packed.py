"""Conversations as random-access examples: whole ones, several in a row, each in a segment of its own.

An example: {"inputs", "targets", "segments": int32[T], "weights": float32[T]}. A target has weight 1 where the
assistant says it. Segments are counted from 1; 0 is padding.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax.data import chat_templates, conversations, pipeline, tokenizers, tokens
from transformer_jax.data.chat_templates import Encoded, Renders
from transformer_jax.data.conversations import Conversation
from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError
from transformer_jax.objectives import packing

SHOWN = 800  # characters of the first example that are printed


@dataclass(frozen=True)
class Chats:
    """The data of a chat experiment: the conversations, the tokenizer, the rows."""

    source: conversations.Source
    """The conversations."""
    tokenizer: tokenizers.Spec
    """Encodes their texts."""
    length: int = 1024
    """T, tokens in a row. Longer conversations are dropped and counted."""

    def __post_init__(self) -> None:
        if self.length < 8:
            raise InputError(f"data.length = {self.length}: must be 8 or more")


@dataclass(frozen=True, eq=False)
class Rows(pipeline.Examples):
    """Random-access examples."""

    ids: np.ndarray
    """int32: the tokens of all conversations."""
    trained: np.ndarray
    """bool: whether the assistant says each."""
    begins: np.ndarray
    """int64: the position of each conversation's first token."""
    packing: packing.Packing
    """The conversations of each row, by the number of their targets."""
    length: int
    order: Sequence[int]
    """Example -> row."""

    def example(self, i: int) -> dict[str, np.ndarray]:
        """Example i, a dict of arrays.

        Args:
          i: in [0, len(self)).
        """
        row = {name: np.zeros(self.length, np.int32) for name in ("inputs", "targets", "segments")}
        weights, at = np.zeros(self.length, np.float32), 0
        for segment, (which, _, size) in enumerate(self.packing[self.order[i]], 1):
            begin, put = self.begins[which], slice(at, at + size)
            row["inputs"][put] = self.ids[begin : begin + size]
            row["targets"][put] = self.ids[begin + 1 : begin + 1 + size]
            row["segments"][put] = segment
            weights[put] = self.trained[begin + 1 : begin + 1 + size]
            at += size
        return row | {"weights": weights}

    def padding_share(self) -> float:
        """The share of padding in all rows."""
        return 1 - float(self.packing.pieces[:, 2].sum()) / (len(self.packing) * self.length)


@dataclass(frozen=True, eq=False)
class Packed:
    """Prepared `Chats`. `sides["train"]` is endless."""

    tokenizer: Any
    template: Renders
    sides: dict[Side, Rows]
    conversations: dict[Side, list[Conversation]]
    unigram_nats: dict[Side, float]
    """The cross-entropy of the assistant's tokens by their share in training: what a model without a context has."""
    facts: dict[str, Any]
    identity: str


def prepare(
    data: Chats, template: chat_templates.Template, *, seed: int, train_all: bool, tokenizer: Any = None
) -> Packed:
    """The encoded and packed conversations of every side, in memory.

    Args:
      data: the conversations, the tokenizer and the rows.
      template: the template of the experiment.
      seed: the seed of the order of training rows.
      train_all: whether training predicts every token, not the assistant's alone.
      tokenizer: the one of the run or checkpoint that is continued; None: `data.tokenizer` is built.

    Raises:
      InputError: a conversation without a trained token, or that the template refuses; no conversation fits.
    """
    sides: tuple[Side, ...] = ("train", "validation", "test") if data.source.has_test else ("train", "validation")
    found = {side: list(data.source.conversations(side)) for side in sides}
    documents = conversations.documents(found["train"], "the training conversations")
    tokenizer = tokenizers.build(data.tokenizer, documents, tokens.cache_dir(), given=tokenizer)
    renders = chat_templates.of(template, tokenizer)
    facts: dict[str, Any] = {"vocabulary": tokenizer.vocab_size}
    made, by_assistant, digest = {}, {}, hashlib.sha256()
    for side in sides:
        examples = encode(renders, tokenizer, found[side])
        kept = [one for one in examples if len(one.ids) <= data.length + 1]
        if not kept:
            shortest = min(len(one.ids) for one in examples)
            raise InputError(
                f"all {len(examples):,} conversations ({side}) are longer than data.length = {data.length}; the "
                f"shortest has {shortest} tokens"
            )
        if side == "train":
            facts["first_example"] = f"(what is in «» is trained) {shown(tokenizer, kept[0])}"
        facts |= {
            f"{side}_conversations": len(found[side]),
            f"{side}_examples": len(kept),
            f"{side}_examples_dropped_too_long": len(examples) - len(kept),
            f"{side}_assistant_tokens": int(sum(one.trained.sum() for one in kept)),
        }
        made[side] = rows(kept, data.length, train_all=train_all and side == "train")
        by_assistant[side] = np.concatenate([one.ids[one.trained] for one in kept])
        digest.update(made[side].ids.tobytes() + made[side].trained.tobytes())
    counts = np.bincount(by_assistant["train"], minlength=tokenizer.vocab_size) + 1.0
    nats = np.log(counts.sum()) - np.log(counts)
    unigram = {side: float(nats[ids].mean()) for side, ids in by_assistant.items()}
    made["train"] = dataclasses.replace(made["train"], order=pipeline.epochs(len(made["train"].packing), seed))
    facts["train_padding_share"] = made["train"].padding_share()
    return Packed(tokenizer, renders, made, found, unigram, facts, digest.hexdigest())


def encode(template: Renders, tokenizer: Any, found: Sequence[Conversation]) -> list[Encoded]:
    """The examples of conversations.

    Args:
      template: writes them.
      tokenizer: encodes them.
      found: the conversations.

    Raises:
      InputError: a conversation without a trained token.
    """
    encoded = template.encode(tokenizer, found)
    for one, parts in zip(found, encoded, strict=True):
        if not any(part.trained[1:].any() for part in parts):
            raise InputError(
                f"{one.where}: no token of this conversation is the assistant's, so nothing would be trained; it has "
                f"the roles {', '.join(dict.fromkeys(message['role'] for message in one.messages))}"
            )
    return [part for parts in encoded for part in parts]


def rows(examples: Sequence[Encoded], length: int, *, train_all: bool = False) -> Rows:
    """Rows of whole conversations, in order.

    Args:
      examples: each of 2 to length + 1 tokens.
      length: T.
      train_all: whether every target has weight 1.
    """
    sizes = np.array([len(one.ids) for one in examples], np.int64)
    trained = np.concatenate([one.trained for one in examples])
    packed = packing.pack(sizes - 1, length)
    return Rows(
        np.concatenate([one.ids for one in examples]),
        np.ones_like(trained) if train_all else trained,
        np.cumsum(sizes) - sizes,
        packed,
        length,
        range(len(packed)),
    )


def shown(tokenizer: Any, one: Encoded) -> str:
    """The text of an example on one line, with the trained tokens in «».

    Args:
      tokenizer: decodes it.
      one: the example.
    """
    borders = [0, *(np.flatnonzero(np.diff(one.trained)) + 1), len(one.ids)]
    parts = []
    for begin, end in itertools.pairwise(borders):
        text = tokenizer.decode(one.ids[begin:end]).replace("\n", "\\n")
        parts.append(f"«{text}»" if one.trained[begin] else text)
    text = "".join(parts)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
