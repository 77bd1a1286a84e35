"""Pairs of replies to one prompt, one better than the other, as random-access examples.

A record: {"prompt": ..., "chosen": ..., "rejected": ...}, the format of TRL. Each is a text, which the user or the
assistant says, or a list of messages. The two conversations may begin with the prompt themselves.

An example: {"chosen_inputs", "chosen_targets": int32[T], "chosen_weights": float32[T]}, the same three of the rejected
reply, and "weights", 1. A target has weight 1 where the assistant says it in the reply.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from transformer_jax.data import chat_templates, conversations, pipeline, source_files, tokenizers, tokens
from transformer_jax.data.chat_templates import Encoded, Template
from transformer_jax.data.conversations import Conversation, Message
from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError

REPLIES = ("chosen", "rejected")


class Pair(NamedTuple):
    """Two conversations that differ in their last messages; `where` names the pair."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    where: str


class Source(Protocol):
    """A source of pairs: a frozen dataclass."""

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return False

    def pairs(self, side: Side) -> Sequence[Pair]:
        """The pairs of a side.

        Args:
          side: "train", "validation" or, with `has_test`, "test".
        """
        ...


@dataclass(frozen=True)
class Ranked:
    """Files of pairs. Without `validation`, each pair is split by a hash of its record."""

    train: tuple[str, ...]
    """Files, globs, or folders."""
    validation: tuple[str, ...] = ()
    """Files that choose the checkpoint; empty: a part of `train`."""
    test: tuple[str, ...] = ()
    """Files that the chosen checkpoint is reported on; empty: none."""
    validation_fraction: float = 0.1
    """The share of the records held out of `train` where there is no `validation`."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "train", "validation", "test")

    @property
    def has_test(self) -> bool:
        return bool(self.test)

    def of_files(self, files: tuple[str, ...]) -> "Ranked":
        """The source that reads these files on both sides.

        Args:
          files: files, folders or globs.
        """
        return Ranked(files, validation=files)

    def pairs(self, side: Side) -> list[Pair]:
        """The pairs of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: a bad record, or no pairs.
        """
        return conversations.side_of(self, side, _pair)


@dataclass(frozen=True)
class Preferences:
    """The data of an experiment with preferences: the pairs, the tokenizer, the rows."""

    source: Source
    """The pairs."""
    tokenizer: tokenizers.Spec
    """Encodes their texts."""
    length: int = 1024
    """T, tokens of a prompt with a reply. Longer pairs are dropped and counted."""

    def __post_init__(self) -> None:
        if self.length < 8:
            raise InputError(f"data.length = {self.length}: must be 8 or more")


@dataclass(frozen=True, eq=False)
class Examples(pipeline.Examples):
    """Random-access examples."""

    encoded: Sequence[dict[str, Encoded]]
    """{"chosen": ..., "rejected": ...} of each pair."""
    length: int
    order: Sequence[int]
    """Example -> pair."""

    def example(self, i: int) -> dict[str, np.ndarray]:
        """Example i, a dict of arrays.

        Args:
          i: in [0, len(self)).
        """
        row: dict[str, np.ndarray] = {"weights": np.float32(1)}  # type: ignore[dict-item]
        for name, (ids, trained) in self.encoded[self.order[i]].items():
            size = len(ids) - 1
            for what, values, dtype in (
                ("inputs", ids[:-1], np.int32),
                ("targets", ids[1:], np.int32),
                ("weights", trained[1:], np.float32),
            ):
                row[f"{name}_{what}"] = np.zeros(self.length, dtype)
                row[f"{name}_{what}"][:size] = values
        return row


@dataclass(frozen=True, eq=False)
class Prepared:
    """Prepared `Preferences`. `sides["train"]` is endless."""

    tokenizer: Any
    sides: dict[Side, Examples]
    facts: dict[str, Any]
    identity: str


def prepare(data: Preferences, template: Template, *, seed: int, tokenizer: Any = None) -> Prepared:
    """The encoded pairs of every side, in memory.

    Args:
      data: the pairs, the tokenizer and the length.
      template: the template of the experiment.
      seed: the seed of the order of training pairs.
      tokenizer: the one of the run or checkpoint that is continued; None: `data.tokenizer` is built.

    Raises:
      InputError: a pair of equal replies, or one that the template refuses; no pair fits.
    """
    sides: tuple[Side, ...] = ("train", "validation", "test") if data.source.has_test else ("train", "validation")
    found = {side: list(data.source.pairs(side)) for side in sides}
    chosen = [Conversation(pair.prompt + pair.chosen, pair.where) for pair in found["train"]]
    documents = conversations.documents(chosen, "the training pairs")
    tokenizer = tokenizers.build(data.tokenizer, documents, tokens.cache_dir(), given=tokenizer)
    renders = chat_templates.of(template, tokenizer)
    facts: dict[str, Any] = {"vocabulary": tokenizer.vocab_size}
    made, digest = {}, hashlib.sha256()
    for side in sides:
        encoded = _encoded(renders, tokenizer, found[side])
        kept = [pair for pair in encoded if max(len(one.ids) for one in pair.values()) <= data.length + 1]
        if not kept:
            raise InputError(f"all {len(encoded):,} pairs ({side}) are longer than data.length = {data.length}")
        facts |= {f"{side}_pairs": len(kept), f"{side}_pairs_dropped_too_long": len(encoded) - len(kept)}
        made[side] = Examples(kept, data.length, range(len(kept)))
        for pair in kept:
            digest.update(b"".join(one.ids.tobytes() + one.trained.tobytes() for one in pair.values()))
    order = pipeline.epochs(len(made["train"].encoded), seed)
    made["train"] = dataclasses.replace(made["train"], order=order)
    return Prepared(tokenizer, made, facts, digest.hexdigest())


def _encoded(renders: Any, tokenizer: Any, pairs: Sequence[Pair]) -> list[dict[str, Encoded]]:
    """The tokens of both replies of each pair, with those after the common beginning marked."""
    whole = {
        name: renders.encode(
            tokenizer, [Conversation(pair.prompt + getattr(pair, name), f"{pair.where} ({name})") for pair in pairs]
        )
        for name in REPLIES
    }
    made = []
    for i, pair in enumerate(pairs):
        both = {name: whole[name][i][-1] for name in REPLIES}  # the last of several is that of the last reply
        first, second = (both[name].ids for name in REPLIES)
        shortest = min(len(first), len(second))
        differs = np.flatnonzero(first[:shortest] != second[:shortest])
        if np.array_equal(first, second):
            raise InputError(f"{pair.where}: the chosen reply equals the rejected one; remove the pair")
        border = int(differs[0]) if len(differs) else shortest
        for name, (ids, trained) in both.items():
            # The reply begins with the last run of the assistant's tokens that reaches the first difference.
            before = np.flatnonzero(~trained[: border + 1])
            begin = int(before[-1]) + 1 if len(before) else 0
            both[name] = Encoded(ids, trained & (np.arange(len(ids)) >= begin))
            if not both[name].trained[1:].any():
                raise InputError(f"{pair.where}: the {name} reply has no token that the assistant says")
        made.append(both)
    return made


def _pair(record: dict[str, Any], where: str) -> Pair:
    for name in REPLIES:
        if name not in record:
            raise InputError(f"{where}: no {name!r}; a record has prompt, chosen and rejected")
    prompt = _messages(record, "prompt", "user", where)
    chosen, rejected = (_messages(record, name, "assistant", where) for name in REPLIES)
    if prompt and all(reply[: len(prompt)] == prompt for reply in (chosen, rejected)):
        prompt = []  # in UltraFeedback both conversations begin with it
    return Pair(prompt, chosen, rejected, where)


def _messages(record: dict[str, Any], name: str, role: str, where: str) -> list[Message]:
    """The messages under a name; a text is what `role` says."""
    value = record.get(name, [])
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return conversations.checked(record, name, where) if value else []
