"""k-shot evaluation (Brown et al. 2020, section 2.4): k solved examples stand before each question, nothing is trained.

A record of a local task: {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}, whose choices are compared by
their likelihood after the prompt; or {"question": ..., "answer": "4"}, which is generated greedily to the line's end.

    acc             the likeliest choice is right
    acc_norm        the same, with log-likelihoods divided by the UTF-8 bytes of the choices
    exact_match     the generated line is the answer
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax import metrics, models
from transformer_jax.data import records, tokenizers
from transformer_jax.decoding import decode, sets
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.tasks.causal_lm import DECODES
from transformer_jax.tasks.few_shot import scoring


class Item(NamedTuple):
    """A question with its answer; `choices` is empty where the answer is generated."""

    question: str
    choices: tuple[str, ...]
    answer: str
    where: str


@dataclass(frozen=True)
class FewShot:
    """How prompts are made."""

    shots: tuple[int, ...] = (0,)
    """Solved examples in a prompt; each number is reported."""
    examples: str = ""
    """A file to draw them from; empty: the other records of the task."""
    between: str = " "
    """Between a question and its answer."""
    after: str = "\n"
    """After an answer; a generated one ends with it."""
    max_new_tokens: int = 64
    """Of a generated answer."""
    limit: int = 0
    """Records to ask; 0: all."""
    seed: int = 0
    """Draws the examples of each record."""
    batch_size: int = 16
    """Prompts that are computed together."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0:
            raise InputError(f"--shots {self.shots}: give numbers of examples, such as 0 4")
        if min(self.max_new_tokens, self.batch_size) < 1 or self.limit < 0 or not self.after:
            raise InputError(
                "--max-new-tokens and --batch-size must be 1 or more, --limit 0 or more, --after not empty"
            )


def read(path: str) -> list[Item]:
    """The records of a task.

    Args:
      path: a file of records, such as .jsonl.

    Raises:
      InputError: a bad record, or none.
    """
    found = []
    for line, record in records.read(Path(path), headed=True):
        where = f"{path}:{line}"
        question = records.string(record, "question", where, "its key")
        choices, answer = record.get("choices", []), record.get("answer")
        if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
            raise InputError(f'{where}: "choices" must be a list of texts that are not empty')
        if type(answer) is int and 0 <= answer < len(choices):
            answer = choices[answer]
        if not isinstance(answer, str) or not answer or (choices and answer not in choices):
            raise InputError(f'{where}: "answer" is {answer!r}; it must be one of the choices, or its number from 0 on')
        found.append(Item(question, tuple(choices), answer, where))
    if not found:
        raise InputError(f"{path}: no records; add some, or name another file")
    if len({bool(item.choices) for item in found}) > 1:
        raise InputError(f"{path}: some records have choices and some have none; make two files of them")
    return found


def prompts(items: Sequence[Item], pool: Sequence[Item], shots: int, options: FewShot) -> list[str]:
    """The text before the answer of each item: `shots` solved examples and the question.

    Args:
      items: the questions.
      pool: what examples are drawn from; an item is never an example of its own question.
      shots: examples in each prompt.
      options: how they are written.

    Raises:
      InputError: the pool has too few examples.
    """
    made = []
    for number, item in enumerate(items):
        others = [one for one in pool if one.question != item.question] if shots else []
        if len(others) < shots:
            raise InputError(f"--shots {shots}: there are {len(others)} other records to draw from")
        drawn = random.Random(f"{options.seed} {number}").sample(others, shots)
        solved = [f"{one.question}{options.between}{one.answer}{options.after}" for one in drawn]
        made.append("".join(solved) + item.question)
    return made


def evaluate(
    loaded: Any,
    items: Sequence[Item],
    pool: Sequence[Item],
    options: FewShot,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """{"acc_4_shot": ...}: the scores of a language model for each number of shots.

    Args:
      loaded: a `restore.Loaded`.
      items: the questions.
      pool: what examples are drawn from.
      options: how prompts are made.
      progress: called with (done, total) for each number of shots.

    Raises:
      InputError: the model is no language model, or the pool has too few examples.
    """
    models.require(loaded.config, "few-shot evaluation", ("hidden", "head"), ("max_length",))
    scores: dict[str, float] = {}
    for shots in options.shots:
        asked = prompts(items, pool, shots, options)
        score = _choose if items[0].choices else _generate
        found = score(loaded, items, asked, options, progress)
        scores |= {f"{name}_{shots}_shot": value for name, value in found.items()}
    return scores


def _choose(
    loaded: Any, items: Sequence[Item], asked: Sequence[str], options: FewShot, progress: Any
) -> dict[str, float]:
    pairs = [
        scoring.encode_pair(loaded.tokenizer, prompt, options.between + choice)
        for item, prompt in zip(items, asked, strict=True)
        for choice in item.choices
    ]
    found = iter(
        scoring.continuations(
            loaded.family, loaded.params, loaded.config, pairs, batch_size=options.batch_size, progress=progress
        )
    )
    right = np.zeros(2)
    for item in items:
        nats = np.array([next(found).log_likelihood for _ in item.choices])
        bytes_ = np.array([len(choice.encode()) for choice in item.choices])
        right += [item.choices[np.argmax(x)] == item.answer for x in (nats, nats / bytes_)]
    acc, acc_norm = (right / len(items)).tolist()
    return {"acc": acc, "acc_norm": acc_norm}


def _generate(
    loaded: Any, items: Sequence[Item], asked: Sequence[str], options: FewShot, progress: Any
) -> dict[str, float]:
    models.require(loaded.config, "a generated answer", DECODES)
    tokenizer = loaded.tokenizer
    eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    found = sets.continuations(
        loaded.family,
        loaded.params,
        config.for_decoding(loaded.config),
        [np.array(tokenizers.prompt_ids(tokenizer, prompt + options.between.rstrip()), np.int32) for prompt in asked],
        decode.Sampling(options.max_new_tokens, temperature=0.0, stop_ids=eos),
        key=jax.random.key(0),
        batch_size=options.batch_size,
        progress=progress,
    )
    lines = [tokenizer.decode(ids).partition(options.after)[0].strip() for ids in found]
    return metrics.exact_match(lines, [item.answer for item in items])
