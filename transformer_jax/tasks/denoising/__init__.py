"""Denoising: fill the gaps of a text, as in the pre-training of T5 and BART.

The objective (`objectives.spans`) chooses what is hidden and what the decoder must predict. It reports nats and
perplexity per target token, sentinels and end-of-text tokens included, beside the loss of a unigram baseline: the
frequencies of tokens in training targets.

Letters: B rows, S source length, T target length, V vocabulary.
"""

import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from transformer_jax import models
from transformer_jax.contracts import Evaluation, Outputs, Prepared, Sums
from transformer_jax.data import corpus
from transformer_jax.decoding import translate
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.objectives import spans
from transformer_jax.tasks import encoder, text_to_text
from transformer_jax.tasks.denoising import corrupted
from transformer_jax.tasks.text import TextTask

# For a type checker it is Any, because `dataclasses.replace` on a union has no type.
if typing.TYPE_CHECKING:
    Objective: typing.TypeAlias = Any
else:
    Objective = spans.SpanCorruption | spans.TextInfilling | spans.PrefixLM

COUNTED = 1000  # rows of each set for the unigram baseline, at most
WIDTH = 4  # beams of a prediction, unless more answers are needed


@dataclass(frozen=True)
class Denoising(TextTask):
    """The cross-entropy of the tokens that fill the gaps."""

    pipeline_tag: ClassVar[str] = "text2text-generation"
    objective: Objective = field(default_factory=spans.SpanCorruption)
    """Chooses the gaps and the target."""

    def example(self, data: corpus.TextCorpus) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        _, S, T = self.objective.sizes(data.length)
        return text_to_text.example(S, T)

    def prepare(self, data: corpus.TextCorpus, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The rows of the corpus, which is tokenised on first use, and the loss of the unigram baseline.

        Raises:
          InputError: a model that is not an encoder-decoder or is too short, a tokenizer without the special
            tokens of the objective or with other ids, or a missing or too short corpus.
        """
        text_to_text.check(model_cfg)
        sizes = self.objective.sizes(data.length)
        if max(sizes.source, sizes.target) > model_cfg.max_length:
            raise InputError(
                f"data.length = {data.length} gives sources of {sizes.source} and targets of {sizes.target} tokens, "
                f"but model.max_length is {model_cfg.max_length}; lower the one or raise the other"
            )
        made = corrupted.prepare(data, self.objective, model_cfg, seed=seed, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)
        baseline = unigram(made.train, made.validation, made.tokenizer.vocab_size)
        facts = {
            "vocabulary": made.tokenizer.vocab_size,
            "training_tokens": len(made.train_tokens.tokens),
            "training_rows": len(made.train_tokens.tokens) // sizes.raw,
            "validation_tokens": len(made.validation_tokens.tokens),
            "validation_rows": len(made.validation),
            "text_tokens_per_row": sizes.raw,
            "unigram_loss_nats_per_token": baseline,
        }
        identity = made.train_tokens.content + made.validation_tokens.content
        return Prepared(made.train, Evaluation(made.validation, baseline), facts, made.tokenizer, identity=identity)

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight)}) in nats over the target tokens of a batch."""
        return text_to_text.loss(params, model_cfg, batch, key=key)

    def logits_and_states(
        self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> tuple[Any, Any, Any]:
        """See `text_to_text.logits_and_states`."""
        return text_to_text.logits_and_states(params, model_cfg, batch, key=key)

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats and perplexity per target token, and the baseline's nats."""
        return text_to_text.report(sums) | {"unigram_loss_nats_per_token": evaluation.reference}

    def tokens(self, data: corpus.TextCorpus) -> int:
        """The number of source and target tokens of one example."""
        _, S, T = self.objective.sizes(data.length)
        return S + T

    def flops(self, model_cfg: Any, data: corpus.TextCorpus) -> float:
        """The FLOPs of a training step on one example, forward and backward."""
        _, S, T = self.objective.sizes(data.length)
        return text_to_text.flops(model_cfg, S, T)

    # ---- Prediction ----

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """For each text {"text", "answers": [{"text", "score"}, ...]}: the `top` likeliest answers by beam search.

        Gaps are spelled as the tokenizer does: "<extra_id_0>", "<extra_id_1>", ... in this order for span corruption,
        "<mask>" for text infilling, none for a prefix. An answer is the whole text with filled gaps. Its score is the
        mean log-probability of the generated tokens. A text without a token has {"text", "error"}.

        Raises:
          InputError: a text longer than the model.
        """
        texts = list(inputs)
        known = corrupted.marks(tokenizer, self.objective, model_cfg, raw=2)
        asked = [tokenizer.encode_prompt(text) for text in texts]
        sources = [known.frame(ids) for ids in asked if len(ids)]
        model_cfg = config.for_decoding(model_cfg)
        found = translate.translate(
            models.family(model_cfg),
            params,
            model_cfg,
            sources,
            Beam(width=max(WIDTH, top), nbest=top, stop_ids=(model_cfg.eos_id,)),
            start=(model_cfg.decoder_start_id, *known.begin),
        )
        framed = iter(sources)
        for text, ids in zip(texts, asked, strict=True):
            if not len(ids):
                yield {"text": text, "error": "it has no token; give some text"}
                continue
            source, hypotheses = next(framed), next(found)
            answers = [
                {"text": tokenizer.decode(self.objective.restore(source, made, known)), "score": score}
                for made, score in hypotheses
            ]
            yield {"text": text, "answers": answers}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The text, then a line for each answer."""
        lines = [f"  {answer['score']:6.2f}  {answer['text']!r}" for answer in prediction["answers"]]
        return "\n".join([prediction["text"], *lines])


def unigram(train: Any, validation: Any, vocab_size: int) -> float:
    """The nats per token of validation targets under the frequencies of tokens in training targets, each plus one.

    Args:
      train: examples; the first `COUNTED` are used.
      validation: examples; the first `COUNTED` are used.
      vocab_size: the vocabulary size of the tokenizer.
    """

    def targets(examples: Any) -> np.ndarray:
        rows = (examples[i] for i in range(min(COUNTED, len(examples))))
        return np.concatenate([row["targets"][row["weights"] == 1] for row in rows])

    counts_V = np.bincount(targets(train), minlength=vocab_size) + 1.0
    return float(math.log(counts_V.sum()) - np.log(counts_V[targets(validation)]).mean())
