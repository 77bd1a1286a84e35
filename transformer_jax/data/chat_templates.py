"""Conversations as tokens, and which of these the assistant says.

    template = chat_templates.of(Template(), tokenizer)      # the tokenizer's own; or a Template of an experiment
    template.encode(tokenizer, conversations)                # Encoded(ids, trained), one or more per conversation
    template.prompts(tokenizer, [messages])                  # ids that the assistant's reply follows
    template.end_id(tokenizer)                               # the token that ends the reply

A mask of the wrong tokens trains without an error, so it is never guessed. A `Template` encodes every message by
itself. A Jinja2 template is rendered twice for each reply: before it, as when the model replies, and with it. These
texts, and their tokens, must be beginnings of what is trained, or the conversation is refused. A template with
{% generation %} blocks states the assistant's text itself.
"""

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from transformer_jax import extras
from transformer_jax.data.conversations import Conversation, Message
from transformer_jax.data.jinja_process import MARKS, SECONDS
from transformer_jax.data.tokenizers import special
from transformer_jax.errors import InputError

BATCH = 1000  # texts that one process renders
FIXED_DATE = "2024-07-26"  # what templates write as today's date in training: a resumed run reads the same tokens
PROBE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


class Encoded(NamedTuple):
    """A conversation as tokens.

    Attributes:
      ids: int32 [n].
      trained: bool [n], whether the assistant says the token.
    """

    ids: np.ndarray
    trained: np.ndarray


class Renders(Protocol):
    """What converts messages into tokens: a `Template`, or the `FolderTemplate` of a tokenizer."""

    def encode(self, tokenizer: Any, conversations: Sequence[Conversation]) -> list[list[Encoded]]: ...
    def prompts(self, tokenizer: Any, begun: Sequence[Sequence[Message]]) -> list[np.ndarray]: ...
    def end_id(self, tokenizer: Any) -> int: ...


def of(template: "Template", tokenizer: Any) -> Renders:
    """The template of an experiment where it states one, otherwise the tokenizer's own.

    Args:
      template: the template of the experiment.
      tokenizer: the tokenizer of the run.

    Raises:
      InputError: there is neither, or no token ends a reply.
    """
    if template.end:
        template.end_id(tokenizer)
        return template
    own = FolderTemplate.read(tokenizer)
    if own is None:
        raise InputError(
            "the tokenizer has no chat_template, and task.template is empty; give one, such as "
            '--task.template.user "<|user|>" --task.template.assistant "<|assistant|>" --task.template.end "<|end|>"'
        )
    own.end_id(tokenizer)
    return own


# ---- A template as a value -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """How a conversation is written: the text before each role's message, and the token that ends every message.

    All empty: the tokenizer's own chat template. ChatML is Template("<|im_start|>user\\n", "<|im_start|>assistant\\n",
    "<|im_end|>", system="<|im_start|>system\\n", between="\\n").
    """

    user: str = ""
    """Before what the user says."""
    assistant: str = ""
    """Before what the assistant says."""
    end: str = ""
    """Ends every message; one special token of the tokenizer."""
    system: str = ""
    """Before a system message; empty: there is none."""
    between: str = ""
    """After `end`, before the next message."""

    def __post_init__(self) -> None:
        if any(given := (self.user, self.assistant, self.end)) and not all(given):
            raise InputError(
                f"task.template has user {self.user!r}, assistant {self.assistant!r} and end {self.end!r}; give all "
                "three, or none for the tokenizer's own chat template"
            )

    def encode(self, tokenizer: Any, conversations: Sequence[Conversation]) -> list[list[Encoded]]:
        """The tokens of each conversation.

        Special tokens that are spelled in a message are text.

        Args:
          tokenizer: encodes the messages.
          conversations: to encode.
        """
        contents = [message["content"] for one in conversations for message in one.messages]
        encoded = iter(_literal(tokenizer).encode_batch(contents))
        return [[self._one(tokenizer, one.messages, encoded, one.where)] for one in conversations]

    def prompts(self, tokenizer: Any, begun: Sequence[Sequence[Message]]) -> list[np.ndarray]:
        """The ids that the assistant's next reply follows, of each conversation.

        Args:
          tokenizer: encodes the messages.
          begun: the messages so far.
        """
        encoded = self.encode(tokenizer, [Conversation(list(messages), "the conversation") for messages in begun])
        opening = self._fixed(tokenizer, self.assistant)
        return [np.concatenate([one.ids, opening]) for (one,) in encoded]

    def end_id(self, tokenizer: Any) -> int:
        """The token that ends a message.

        Args:
          tokenizer: that has it.

        Raises:
          InputError: `end` is not one special token.
        """
        ids = tokenizer.encode_prompt(self.end)
        if len(ids) != 1 or self.end not in tokenizer.special_spellings:
            raise InputError(
                f"task.template.end = {self.end!r} is no special token of the tokenizer, which has "
                f"{', '.join(tokenizer.special_spellings[:8]) or 'none'}; add it to data.tokenizer.special"
            )
        return int(ids[0])

    def _one(self, tokenizer: Any, messages: Sequence[Message], contents: Any, where: str) -> Encoded:
        before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        parts, trained = [np.array(before, np.int32)], [np.zeros(len(before), bool)]
        for message in messages:
            role = message["role"]
            head = {"user": self.user, "assistant": self.assistant, "system": self.system}.get(role, "")
            if not head:
                raise InputError(f"{where}: a message of the role {role!r}, for which task.template has no text")
            content = np.concatenate([next(contents), self._fixed(tokenizer, self.end)])
            for ids, is_trained in (
                (self._fixed(tokenizer, head), False),
                (content, role == "assistant"),
                (self._fixed(tokenizer, self.between), False),
            ):
                parts.append(ids)
                trained.append(np.full(len(ids), is_trained))
        return Encoded(np.concatenate(parts).astype(np.int32), np.concatenate(trained))

    @staticmethod
    def _fixed(tokenizer: Any, text: str) -> np.ndarray:
        return tokenizer.encode_prompt(text) if text else np.zeros(0, np.int32)


# ---- The template of a folder --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderTemplate:
    """A tokenizer's own chat template, which is a program of Jinja2."""

    text: str
    special: dict[str, str]
    """{"bos_token": "<s>", ...}: what the template may write."""
    date: str = FIXED_DATE

    @staticmethod
    def read(tokenizer: Any) -> "FolderTemplate | None":
        """The template in the files of a tokenizer: chat_template.jinja, or in tokenizer_config.json; None: no such.

        Args:
          tokenizer: the tokenizer of a Hugging Face folder.

        Raises:
          InputError: a template that is not a text.
        """
        files = getattr(tokenizer, "files", {})
        settings = json.loads(files.get("special_tokens_map.json", b"{}"))
        settings |= json.loads(files.get("tokenizer_config.json", b"{}"))
        text = settings.get("chat_template")
        if isinstance(text, list):  # several by name, in old folders
            text = next((one.get("template") for one in text if one.get("name") == "default"), None)
        if "chat_template.jinja" in files:
            text = files["chat_template.jinja"].decode()
        if text is None:
            return None
        if not isinstance(text, str):
            raise InputError(f"the tokenizer's chat_template is a {type(text).__name__}, not a text")
        named = {key: special.content(value, key) for key, value in settings.items() if key.endswith("_token")}
        return FolderTemplate(text, {key: value for key, value in named.items() if value})

    def encode(self, tokenizer: Any, conversations: Sequence[Conversation]) -> list[list[Encoded]]:
        """The tokens of each conversation, as Transformers' `apply_chat_template` gives them.

        One example for each conversation. Where the template changes a reply when others follow, as Qwen3's
        drops earlier thoughts, there is one for each reply, with that reply trained.

        Args:
          tokenizer: the tokenizer of the folder.
          conversations: to encode.

        Raises:
          InputError: a conversation that the template refuses, or of which it is not certain what the assistant says.
        """
        marked = re.search(r"\{%[-+]?\s*generation\b", self.text) is not None
        spans = self._marked_spans(conversations) if marked else self._spans(conversations)
        parts_before = [text[:at] for parts in spans for text, found in parts for span in found for at in span]
        texts = [text for parts in spans for text, _ in parts]
        encoded = _reading(tokenizer).encode_batch([*texts, *parts_before])
        whole, beginnings = iter(encoded[: len(texts)]), iter(encoded[len(texts) :])
        made, endings = [], _special_ids(tokenizer)
        for one, parts in zip(conversations, spans, strict=True):
            made.append([_masked(next(whole), found, beginnings, endings, one.where) for _, found in parts])
        return made

    def prompts(self, tokenizer: Any, begun: Sequence[Sequence[Message]]) -> list[np.ndarray]:
        """The ids that the assistant's next reply follows, of each conversation.

        Args:
          tokenizer: the tokenizer of the folder.
          begun: the messages so far.
        """
        today = FolderTemplate(self.text, self.special, datetime.date.today().isoformat())
        texts = today._render([(list(messages), True) for messages in begun], ["the conversation"] * len(begun))
        return _reading(tokenizer).encode_batch([_unmarked(text)[0] for text in texts])

    def end_id(self, tokenizer: Any) -> int:
        """The token that ends a reply.

        Args:
          tokenizer: the tokenizer of the folder.

        Raises:
          InputError: a reply ends with no special token.
        """
        (((ids, trained),),) = self.encode(tokenizer, [Conversation(PROBE, "the chat template")])
        last = int(ids[np.flatnonzero(trained)[-1]]) if trained.any() else -1
        if last not in _special_ids(tokenizer):
            raise InputError(
                "the chat template ends the assistant's reply with no special token, so that a reply would not end; "
                "state task.template"
            )
        return last

    def _spans(self, conversations: Sequence[Conversation]) -> list[list[tuple[str, list[tuple[int, int]]]]]:
        """For each conversation (text, [(begin, end) of each reply in it]): once, or once for each reply."""
        jobs: list[tuple[list[Message], bool]] = []
        wheres: list[str] = []
        for one in conversations:
            for i in _replies(one.messages):
                jobs += [(one.messages[:i], True), (one.messages[: i + 1], False)]
            jobs.append((one.messages, False))
            wheres += [one.where] * (len(jobs) - len(wheres))
        texts, found = iter(self._render(jobs, wheres)), []
        for one in conversations:
            replies = [(next(texts), next(texts)) for _ in _replies(one.messages)]
            whole = next(texts)
            for number, (before, behind) in enumerate(replies, 1):
                if not behind.startswith(before):
                    raise InputError(
                        f"{one.where}: the chat template writes reply {number} with another beginning than it prompts "
                        "for, so which tokens are the assistant's is not certain; use a template with {% generation %} "
                        "blocks, or state task.template"
                    )
            spans = [(len(before), len(behind)) for before, behind in replies]
            if all(whole.startswith(behind) for _, behind in replies):
                found.append([(whole, spans)])
            else:
                found.append([(behind, [span]) for (_, behind), span in zip(replies, spans, strict=True)])
        return found

    def _marked_spans(self, conversations: Sequence[Conversation]) -> list[list[tuple[str, list[tuple[int, int]]]]]:
        """As `_spans`, from the {% generation %} blocks."""
        texts = self._render([(one.messages, False) for one in conversations], [one.where for one in conversations])
        return [[_unmarked(text)] for text in texts]

    def _render(self, jobs: Sequence[tuple[list[Message], bool]], wheres: Sequence[str]) -> list[str]:
        extras.need("jinja2", "the tokenizer's chat template")
        texts: list[str] = []
        for first in range(0, len(jobs), BATCH):
            task = {"template": self.text, "special": self.special, "date": self.date}
            answer = _process(task | {"jobs": jobs[first : first + BATCH]})
            if "error" in answer:
                raise InputError(f"{wheres[first + answer['job']]}: the chat template fails: {answer['error']}")
            texts += answer["texts"]
        return texts


def _process(task: dict[str, Any]) -> dict[str, Any]:
    """The answer of `jinja_process`."""
    command = [sys.executable, "-m", "transformer_jax.data.jinja_process"]
    try:
        done = subprocess.run(
            command, input=json.dumps(task, default=str).encode(), capture_output=True, timeout=10 * SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it takes more than {10 * SECONDS} s", "job": 0}
    if done.returncode < 0:
        return {"error": f"it takes more than {SECONDS} s of processor time", "job": 0}
    try:
        return json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return {"error": f"its process ended with {done.returncode}: {last[:300]}", "job": 0}


def _masked(ids: np.ndarray, spans: Any, beginnings: Any, endings: set[int], where: str) -> Encoded:
    """The tokens of a text with those of the spans marked, each up to its last special token."""
    trained = np.zeros(len(ids), bool)
    for number, _ in enumerate(spans, 1):
        before, behind = next(beginnings), next(beginnings)
        for part in (before, behind):
            if not np.array_equal(ids[: len(part)], part):
                raise InputError(
                    f"{where}: a token of the text reaches over the border of reply {number}, so the model would be "
                    "prompted with other tokens than it is trained on; state task.template"
                )
        inside = range(len(before), len(behind))
        last = max((i for i in inside if int(ids[i]) in endings), default=len(behind) - 1)
        trained[len(before) : last + 1] = True
    return Encoded(ids.astype(np.int32), trained)


def _unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """(the text without `MARKS`, [(begin, end) of each marked part])."""
    parts = re.split(f"({MARKS[0]}|{MARKS[1]})", text)
    plain, spans, begin = "", [], 0
    for part in parts:
        if part == MARKS[0]:
            begin = len(plain)
        elif part == MARKS[1]:
            spans.append((begin, len(plain)))
        else:
            plain += part
    return plain, [(begin, end) for begin, end in spans if end > begin]


def _replies(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def _special_ids(tokenizer: Any) -> set[int]:
    ids = (tokenizer.encode_prompt(spelled) for spelled in tokenizer.special_spellings)
    return {int(found[0]) for found in ids if len(found) == 1}


def _reading(tokenizer: Any) -> Any:
    """The tokenizer that encodes special tokens spelled in a text as tokens."""
    return tokenizer.replace(literal=False) if getattr(tokenizer, "literal", False) else tokenizer


def _literal(tokenizer: Any) -> Any:
    """The tokenizer that encodes special tokens spelled in a text as text."""
    return tokenizer.replace(literal=True) if getattr(tokenizer, "literal", None) is False else tokenizer
