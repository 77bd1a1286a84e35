"""Conversations, from lines of {"messages": [{"role": "user", "content": "..."}, ...]}.

    Messages       files of records (.jsonl, .parquet), the format of OpenAI's fine-tuning and of TRL

A user's own source implements `Source`. Conversations are read into memory and checked one by one; an error names the
file and the line. `chat_templates` makes tokens of them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from transformer_jax.data import records, source_files, sources
from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError

Message = dict[str, Any]
"""{"role": "user", "content": "..."}; a chat template may read further keys."""
One = TypeVar("One")


class Conversation(NamedTuple):
    """A conversation; `where` names it in messages: "chats.jsonl:17"."""

    messages: list[Message]
    where: str


class Source(Protocol):
    """A source of conversations: a frozen dataclass."""

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return False

    def conversations(self, side: Side) -> Sequence[Conversation]:
        """The conversations of a side.

        Args:
          side: "train", "validation" or, with `has_test`, "test".
        """
        ...


@dataclass(frozen=True)
class Messages:
    """Files of conversations, one in each record, such as a line of .jsonl.

    Without `validation`, each conversation is split by a hash of its record, so duplicates are on one side.
    """

    train: tuple[str, ...]
    """Files, globs, or folders."""
    validation: tuple[str, ...] = ()
    """Files that choose the checkpoint; empty: a part of `train`."""
    test: tuple[str, ...] = ()
    """Files that the chosen checkpoint is reported on; empty: none."""
    field: str = "messages"
    """The key of the list of messages."""
    validation_fraction: float = 0.1
    """The share of the records held out of `train` where there is no `validation`."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "train", "validation", "test")

    @property
    def has_test(self) -> bool:
        return bool(self.test)

    def of_files(self, files: tuple[str, ...]) -> "Messages":
        """The source that reads these files on both sides.

        Args:
          files: files, folders or globs.
        """
        return Messages(files, validation=files, field=self.field)

    def conversations(self, side: Side) -> list[Conversation]:
        """The conversations of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: a bad record, or no conversations.
        """
        return side_of(self, side, lambda record, where: Conversation(checked(record, self.field, where), where))


def side_of(source: Any, side: Side, read: Callable[[dict[str, Any], str], One]) -> list[One]:
    """What `read` makes of each record of a side of files.

    Args:
      source: has `train`, `validation`, `test` and `validation_fraction`.
      side: "train", "validation" or "test".
      read: (a record, its name) -> what it holds.

    Raises:
      InputError: a bad record, or a side without records.
    """
    own = getattr(source, side)
    made, skipped = [], Counter[str]()
    for _, path in source_files.find_files(own or source.train, side, records.SUFFIXES, skipped):
        for number, record in records.read(path, headed=True, skipped=skipped):
            if source.validation or side == "test":
                made.append(read(record, f"{path}:{number}"))
                continue
            place = source_files.position(json.dumps(record, sort_keys=True, default=str))
            held_out = place < source.validation_fraction
            if held_out == (side == "validation"):
                made.append(read(record, f"{path}:{number}"))
    if not made:
        raise InputError(f"{', '.join(own or source.train)} ({side}): no records; add some, or name another file")
    return made


def checked(record: dict[str, Any], key: str, where: str) -> list[Message]:
    """The list of messages in a record.

    Args:
      record: as `records.read` gives it.
      key: the key of the list in the record.
      where: names the record.

    Raises:
      InputError: no list of messages with a role and a text.
    """
    if key not in record:
        raise records.no_column(record, key, where, "--data.source.field")
    messages = record[key]
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: {key!r} must be a list of messages, at least one")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f'{where}: message {number} must be an object with a "role", "user" or "assistant"')
        if not isinstance(message.get("content"), str):
            kind = type(message.get("content")).__name__
            raise InputError(f'{where}: the "content" of message {number} is a {kind}, and only texts are read')
        records.string(message, "content", f"{where}: message {number}", key)
    return messages


def identity(conversations: Sequence[Conversation]) -> str:
    """A hash that changes with the messages.

    Args:
      conversations: to hash.
    """
    digest = hashlib.sha256()
    for one in conversations:
        digest.update(json.dumps(one.messages, default=str).encode())
    return digest.hexdigest()


def documents(conversations: Sequence[Conversation], origin: str) -> sources.Documents:
    """The texts of the messages, to train a tokenizer on.

    Args:
      conversations: the conversations of the training side.
      origin: names them.
    """

    def read() -> Iterator[tuple[str, str]]:
        for one in conversations:
            yield from ((one.where, message["content"]) for message in one.messages)

    nbytes = sum(len(message["content"]) for one in conversations for message in one.messages)
    return sources.Documents(origin, read, lambda: identity(conversations), nbytes)
