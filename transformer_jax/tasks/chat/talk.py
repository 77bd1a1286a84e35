"""A conversation with a model: the user's turns come from the terminal, or are given; the replies are streamed."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax import models
from transformer_jax.contracts import Input
from transformer_jax.data import chat_templates, tokenizers
from transformer_jax.data.chat_templates import Template
from transformer_jax.decoding import decode
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.tasks.causal_lm import DECODES

SHORTEST = 64  # columns that a prompt is padded to at least, so that the first turns share one compilation
PROMPT = "> "


def respond(
    loaded: Any,
    inputs: Sequence[Input],
    options: Any,
    *,
    template: Template | None = None,
    stop_ids: tuple[int, ...] = (),
) -> Iterator[str]:
    """Yields the text of a conversation, as the command `predict` prints it.

    Args:
      loaded: a `restore.Loaded`.
      inputs: what the user says, turn by turn; one "-" for the turns of the terminal.
      options: as for `converse`.
      template: the template of the run; None: the tokenizer's own.
      stop_ids: further tokens that end a reply.

    Raises:
      InputError: there is no template, and what `converse` refuses.
    """
    written = chat_templates.of(template or Template(), loaded.tokenizer)
    turns = terminal() if inputs[0].query == "-" else given([str(one.query) for one in inputs])
    stop_ids = stops(written, loaded.tokenizer, stop_ids)
    return converse(loaded.params, loaded.config, loaded.tokenizer, written, turns, options, stop_ids=stop_ids)


def stops(template: Any, tokenizer: Any, more: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The tokens that end a reply: the template's, the tokenizer's end of text, and `more`.

    Args:
      template: writes the conversation.
      tokenizer: has the tokens.
      more: further stop tokens of the task, as ids.
    """
    eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return tuple(dict.fromkeys((template.end_id(tokenizer), *more, *eos)))


def terminal() -> Iterator[tuple[str, str]]:
    """Yields (text to print, what the user says) for each line of stdin, until it ends; blank lines are skipped."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print(PROMPT, end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield "" if is_terminal else f"{PROMPT}{line.strip()}\n", line.strip()


def given(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (text to print, what the user says) for each of the texts; a single one is not printed again.

    Args:
      texts: the user's turns.
    """
    for text in texts:
        yield "" if len(texts) == 1 else f"{PROMPT}{text}\n", text


def converse(
    params: Any,
    model_cfg: Any,
    tokenizer: Any,
    template: Any,
    turns: Iterable[tuple[str, str]],
    options: Any,
    *,
    stop_ids: tuple[int, ...],
) -> Iterator[str]:
    """Yields the text of a conversation in pieces: each turn of the user, and the model's reply as it is generated.

    Where the conversation outgrows the model's positions, its oldest turns are forgotten; stderr reports it.

    Args:
      params: the parameters of a model that decodes.
      model_cfg: its Config.
      tokenizer: the tokenizer of the model.
      template: writes the conversation.
      turns: (text to print, what the user says).
      options: the sampling settings, `max_new_tokens`, `seed` and `system`.
      stop_ids: end a reply.

    Raises:
      InputError: a model that cannot decode, or a turn that alone is longer than its positions.
    """
    models.require(model_cfg, "a conversation", DECODES)
    if options.max_new_tokens < 1:
        raise InputError("--max-new-tokens 0: a reply needs 1 or more")
    model_cfg = config.for_decoding(model_cfg)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    first = len(messages)  # the first message that may be forgotten
    for number, (shown, text) in enumerate(turns):
        yield shown
        messages.append({"role": "user", "content": text})
        (ids,) = template.prompts(tokenizer, [messages])
        forgotten = 0
        while len(ids) + min(options.max_new_tokens, model_cfg.max_length // 4) > model_cfg.max_length + 1:
            if len(messages) - first < 3:
                raise InputError(
                    f"this turn has {len(ids)} tokens, and the model has {model_cfg.max_length} positions; shorten it"
                )
            del messages[first : first + 2]
            forgotten += 1
            (ids,) = template.prompts(tokenizer, [messages])
        if forgotten:
            print(f"the {forgotten} oldest turns do not fit into the model's positions: forgotten", file=sys.stderr)
        pieces = []
        reply = _reply(params, model_cfg, ids, options, number, stop_ids)
        for piece in tokenizers.stream_decode(tokenizer, reply, after=ids.tolist()):
            pieces.append(piece)
            yield piece
        yield "\n"
        messages.append({"role": "assistant", "content": "".join(pieces)})


def _reply(
    params: Any, model_cfg: Any, ids: np.ndarray, options: Any, number: int, stop_ids: tuple[int, ...]
) -> Iterator[int]:
    """Yields the tokens of a reply as they are generated, without the one that ends it."""
    family, length = models.family(model_cfg), model_cfg.max_length
    new = min(options.max_new_tokens, length + 1 - len(ids))
    columns = SHORTEST
    while columns < len(ids):
        columns *= 2
    columns = min(columns, length + 1 - new)
    tokens_B = decode.stream(
        family,
        params,
        model_cfg,
        family.init_cache(model_cfg, 1, columns + new - 1),
        decode.left_pad([ids], length=columns),
        decode.row_keys(jax.random.fold_in(jax.random.key(options.seed), number), 1),
        options.sampling(max_new_tokens=new, stop_ids=stop_ids),
    )
    return itertools.takewhile(lambda token: token not in stop_ids, (int(token_B[0]) for token_B in tokens_B))
