"""A model in EleutherAI's lm-evaluation-harness (`pip install 'transformer-jax[harness]'`).

    import lm_eval, transformer_jax
    from transformer_jax.tasks.few_shot import harness

    model = harness.language_model(transformer_jax.load("runs/a"))
    lm_eval.simple_evaluate(model, tasks=["lambada_openai", "hellaswag"])

The three requests are answered as by the harness's own backend of Hugging Face models (`hf`, without `add_bos_token`).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax import extras, models
from transformer_jax.decoding import decode, sets
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.tasks.few_shot import scoring

MAX_NEW_TOKENS = 256  # the most tokens of an answer, where the task states no number; the harness's default


def language_model(loaded: Any, *, batch_size: int = 16) -> Any:
    """The model as an `lm_eval.api.model.LM`.

    Args:
      loaded: a `restore.Loaded` of a language model with a tokenizer.
      batch_size: rows that are computed together.

    Raises:
      InputError: the harness is not installed, or the model is no language model or has no tokenizer.
    """
    extras.need("lm_eval", "the evaluation harness")
    from lm_eval.api.model import LM

    models.require(loaded.config, "the evaluation harness", ("hidden", "head"), ("max_length",))
    if loaded.tokenizer is None:
        raise InputError("the model has no tokenizer, so a text means nothing to it; add its tokenizer.json")
    tokenizer, max_length = loaded.tokenizer, loaded.config.max_length

    def scored(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[scoring.Score]:
        return scoring.continuations(loaded.family, loaded.params, loaded.config, pairs, batch_size=batch_size)

    class LanguageModel(LM):  # type: ignore[misc]
        """The three requests of the harness."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            pairs = [scoring.encode_pair(tokenizer, *request.args) for request in requests]
            return [tuple(score) for score in scored(pairs)]  # type: ignore[misc]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            parts = [
                list(_windows(tokenizer.encode_prompt(request.args[0]), scoring.prefix(tokenizer), max_length))
                for request in requests
            ]
            scores = iter(scored([pair for pairs in parts for pair in pairs]))
            return [sum(next(scores).log_likelihood for _ in pairs) for pairs in parts]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            made: list[str] = [""] * len(requests)
            alike: dict[str, list[int]] = defaultdict(list)
            for number, request in enumerate(requests):
                alike[repr(sorted(request.args[1].items()))].append(number)
            for numbers in alike.values():
                settings = requests[numbers[0]].args[1]
                texts = _generated(loaded, [requests[number].args[0] for number in numbers], settings, batch_size)
                for number, text in zip(numbers, texts, strict=True):
                    made[number] = text
            return made

    return LanguageModel()


def _windows(tokens: Sequence[int], prefix: list[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Pairs of context and continuation that cover a text once, with as much context as the model has positions."""
    ids = [int(id) for id in tokens]
    if ids:
        yield prefix, ids[:length]
    for begin in range(length, len(ids), length):
        end = min(begin + length, len(ids))
        yield ids[end - length - 1 : begin], ids[begin:end]


def _generated(loaded: Any, prompts: Sequence[str], settings: dict[str, Any], batch_size: int) -> list[str]:
    """The texts that follow the prompts, up to the first of the `until` texts."""
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else until
    drawn = settings.get("do_sample", False) and settings.get("temperature", 1.0) > 0
    sampling = decode.Sampling(
        max_new_tokens=int(settings.get("max_gen_toks", MAX_NEW_TOKENS)),
        temperature=float(settings.get("temperature", 1.0)) if drawn else 0.0,
        top_k=int(settings.get("top_k", 0)) if drawn else 0,
        top_p=float(settings.get("top_p", 1.0)) if drawn else 1.0,
        stop_ids=() if loaded.tokenizer.eos_id is None else (loaded.tokenizer.eos_id,),
    )
    found = sets.continuations(
        loaded.family,
        loaded.params,
        config.for_decoding(loaded.config),
        [np.array(loaded.tokenizer.encode_prompt(prompt), np.int32) for prompt in prompts],
        sampling,
        key=jax.random.key(0),
        batch_size=batch_size,
    )
    texts = [loaded.tokenizer.decode(ids) for ids in found]
    return [min((text.split(stop)[0] for stop in until if stop), key=len, default=text) for text in texts]
