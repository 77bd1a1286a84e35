"""Masked language modelling: predict hidden tokens from both sides of the context (Devlin et al. 2019).

The output projection runs only on the P masked positions of each row. With pairs, the model also predicts whether the
second passage follows the first. It reports nats, perplexity and accuracy per masked token, beside a unigram baseline:
the frequencies of the training text on the same tokens.

Letters: B rows, T length, P predictions of a row, D width, E embedding width, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import losses, models, sharding
from transformer_jax.contracts import Evaluation, Outputs, Prepared, Sums
from transformer_jax.data import corpus, token_store
from transformer_jax.errors import InputError
from transformer_jax.nn import layers
from transformer_jax.objectives.masking import Masking
from transformer_jax.tasks import encoder
from transformer_jax.tasks.masked_lm import filling, masked
from transformer_jax.tasks.masked_lm.filling import pseudo_log_likelihood as pseudo_log_likelihood
from transformer_jax.tasks.text import TextTask

Pairs = Literal["none", "next_sentence", "sentence_order"]

COUNTED = 1 << 27  # tokens of the training text that are counted for the unigram baseline, at most


@dataclass(frozen=True)
class Unigram:
    """The unigram baseline on the masked tokens of the validation set.

    Attributes:
      loss: nats per masked token under the frequencies of tokens in the training text, each plus one.
      accuracy: the share of masked tokens that are the most frequent token.
    """

    loss: float
    accuracy: float


@dataclass(frozen=True)
class MaskedLM(TextTask):
    """The cross-entropy of the hidden tokens, and of the label of a pair."""

    pipeline_tag: ClassVar[str] = "fill-mask"
    masking: Masking = field(default_factory=Masking)
    """Which tokens are hidden, and what replaces them."""
    pairs: Pairs = "none"
    """Rows of two passages: BERT's next-sentence prediction or ALBERT's sentence order; none: one passage."""
    packed: bool = False
    """True: rows of whole documents that do not attend to each other; False: rows span documents (RoBERTa)."""

    def __post_init__(self) -> None:
        if self.pairs not in get_args(Pairs):
            raise InputError(f"task.pairs = {self.pairs!r}: must be one of {', '.join(get_args(Pairs))}")
        if self.packed and self.pairs != "none":
            raise InputError(f"task.packed with task.pairs = {self.pairs!r}: a row has one pair; remove one of them")

    @property
    def layout(self) -> masked.Layout:
        """The layout of a row in `masked`."""
        if self.pairs != "none":
            return self.pairs
        return "packed" if self.packed else "full"

    def example(self, data: corpus.TextCorpus) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        T, P = data.length, self.masking.count(data.length)
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            **{"tokens": ((T,), np.int32), "positions": ((P,), np.int32), "labels": ((P,), np.int32)},
            "weights": ((P,), np.float32),
        }
        if self.packed:
            shapes["segments"] = ((T,), np.int32)
        if self.pairs != "none":
            shapes |= {"types": ((T,), np.int32), "lengths": ((), np.int32)}
            shapes |= {"pair": ((), np.int32), "pair_weights": ((), np.float32)}
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}

    def prepare(self, data: corpus.TextCorpus, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The rows of the corpus, which is tokenised on first use, and the unigram baseline.

        Raises:
          InputError: a model without the heads, a tokenizer without [CLS], [SEP] or [MASK] or with more ids than the
            model, or a missing, empty or too short corpus.
        """
        for head in ("mlm", "pair") if self.pairs != "none" else ("mlm",):
            encoder.check_head(model_cfg, head)
        made = masked.prepare(data, self.masking, self.layout, seed=seed, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)
        labels = _labels(made.validation)
        if not len(labels):
            raise InputError(f"{made.validation_origin} has no token to mask; give more text")
        baseline = unigram(made.train_tokens.tokens, made.vocabulary.ordinary, labels)
        facts = {
            "vocabulary": made.tokenizer.vocab_size,
            "training_tokens": len(made.train_tokens.tokens),
            "training_rows": len(made.train.rows),
            "validation_tokens": len(made.validation_tokens.tokens),
            "validation_masked_tokens": len(labels),
            "unigram_loss_nats_per_masked_token": baseline.loss,
            "unigram_accuracy": baseline.accuracy,
        }
        identity = made.train_tokens.content + made.validation_tokens.content
        return Prepared(made.train, Evaluation(made.validation, baseline), facts, made.tokenizer, identity=identity)

    # ---- Loss ----

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, sums). sum / weight is the mean over masked tokens, plus with pairs the mean over pairs.

        sums: {"loss": ...} in nats over masked tokens; with pairs also {"pair_loss": ..., "pair_accuracy": ...}.
        """
        return self._losses(params, model_cfg, batch, key)[0]

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss` and {"accuracy": ...}, for which the logits are recomputed."""
        (_, _, sums), h_BPE = self._losses(params, model_cfg, batch, None)
        kernel_EV, bias_V = models.family(model_cfg).mlm_kernel(params, model_cfg)
        right = _right(h_BPE, kernel_EV, bias_V, batch["labels"], batch["weights"])
        return sums | {"accuracy": (right, jnp.sum(batch["weights"]))}, {}

    def logits_and_states(
        self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> tuple[Any, Any, Any]:
        """(logits [B, P, V] of the masked tokens, hidden states [B, T, D], the mask of the tokens [B, T])."""
        family = models.family(model_cfg)
        x_BTD = encoder.hidden(params, model_cfg, batch, key=key)
        x_BPD = layers.gather(x_BTD, batch["positions"], out=("batch", None, None))
        kernel_EV, bias_V = family.mlm_kernel(params, model_cfg)
        with sharding.replicated_length():
            h_BPE = family.mlm_states(params, model_cfg, x_BPD)
            return losses.logits(h_BPE, kernel_EV, bias_V), x_BTD, encoder.mask(batch)

    def _losses(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Any:
        """((sum, weight, sums), h_BPE)."""
        family = models.family(model_cfg)
        x_BTD = encoder.hidden(params, model_cfg, batch, key=key)
        x_BPD = layers.gather(x_BTD, batch["positions"], out=("batch", None, None))
        kernel_EV, bias_V = family.mlm_kernel(params, model_cfg)
        with sharding.replicated_length():
            h_BPE = family.mlm_states(params, model_cfg, x_BPD)
            nats, weight, _ = losses.linear_cross_entropy(
                h_BPE, kernel_EV, batch["labels"], batch["weights"], bias_V=bias_V
            )
        sums = {"loss": (nats, weight)}
        if self.pairs == "none":
            return (nats, weight, sums), h_BPE
        logits_B2 = family.pair(params, model_cfg, x_BTD)  # without dropout, as in BERT's and ALBERT's pre-training
        pair_B, weights_B = batch["pair"], batch["pair_weights"]
        with sharding.replicated_length():
            pair_nats, count, _ = losses.cross_entropy(logits_B2[:, None], pair_B[:, None], weights_B[:, None])
        right = jnp.sum(weights_B * (jnp.argmax(logits_B2, axis=-1) == pair_B))
        sums |= {"pair_loss": (pair_nats, count), "pair_accuracy": (right, count)}
        total = nats + pair_nats * weight / jnp.maximum(count, 1.0)
        return (total, weight, jax.lax.stop_gradient(sums)), h_BPE

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_masked_token"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats, perplexity and accuracy per masked token, those of the baseline, and the pairs' loss and accuracy."""
        nats = sums["loss"][0] / sums["loss"][1]
        report = {
            "loss_nats_per_masked_token": nats,
            "perplexity_per_masked_token": math.exp(min(nats, 700.0)),
            "accuracy": sums["accuracy"][0] / sums["accuracy"][1],
            "unigram_loss_nats_per_masked_token": evaluation.reference.loss,
            "unigram_accuracy": evaluation.reference.accuracy,
        }
        if self.pairs != "none":
            report["pair_loss_nats"] = sums["pair_loss"][0] / sums["pair_loss"][1]
            report["pair_accuracy"] = sums["pair_accuracy"][0] / sums["pair_accuracy"][1]
        return report

    def flops(self, model_cfg: Any, data: corpus.TextCorpus) -> float:
        """The FLOPs of a training step on one example, forward and backward: the trunk, and the head at P positions."""
        D, E = model_cfg.width, model_cfg.embed_features
        head = (D * E + E * model_cfg.vocab_size) * self.masking.count(data.length)
        return encoder.flops(model_cfg, data.length) + 6.0 * head

    # ---- Prediction ----

    def default_data(self, tokenizer: Any, model_cfg: Any) -> corpus.TextCorpus:
        """The embedded corpus."""
        return corpus.TextCorpus(tokenizer=tokenizer, length=min(model_cfg.max_length, 1024))

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """For each text {"text", "masks": [[{"token", "probability"}, ...], ...], "pseudo_perplexity_per_token"}.

        "masks" has the `top` tokens for each mask token in the text, in the tokenizer's spelling ("[MASK]", "<mask>").
        Of a text that is too long, the part around the masks is used. A text without a mask is scored:
        "pseudo_perplexity_per_token" is exp of minus the mean of `pseudo_log_likelihood`; with masks it is null. A text
        without a token, with masks too far apart or with the mask of another tokenizer has {"text", "error"}.
        """
        known = masked.vocabulary(tokenizer)
        for text in inputs:
            try:
                yield filling.fill(params, model_cfg, tokenizer, known, text, min(top, model_cfg.vocab_size))
            except InputError as error:
                yield {"text": text, "error": str(error)}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The text, then a line for each mask or the text's score."""
        if not prediction["masks"]:
            score = prediction["pseudo_perplexity_per_token"]
            return f"{prediction['text']}\n  pseudo-perplexity {score:.2f} per token (it has no mask token to fill in)"
        lines = [
            f"  mask {number}: " + ", ".join(f"{best['token']!r} {best['probability']:.1%}" for best in answers)
            for number, answers in enumerate(prediction["masks"], start=1)
        ]
        return "\n".join([prediction["text"], *lines])


def _right(
    h_BPE: jax.Array, kernel_EV: jax.Array, bias_V: jax.Array, labels_BP: jax.Array, weights_BP: jax.Array
) -> jax.Array:
    """The number of labels with the highest logit, one position at a time, so that only [B, V] logits are in memory."""

    def one(x: tuple[jax.Array, jax.Array]) -> jax.Array:
        h_BE, labels_B = x
        kernel = kernel_EV.astype(h_BE.dtype)
        logits_BV = sharding.einsum("BE,EV->BV", h_BE, kernel, out=("batch", "vocab"), dtype=jnp.float32) + bias_V
        return jnp.argmax(logits_BV, axis=-1) == labels_B

    right_PB = jax.lax.map(one, (jnp.moveaxis(h_BPE, 1, 0), labels_BP.T))
    return jnp.sum(right_PB.T * weights_BP)


def _labels(examples: masked.Examples) -> np.ndarray:
    """The labels of a finite set, concatenated."""
    rows = (examples[i] for i in range(len(examples)))
    return np.concatenate([row["labels"][row["weights"] == 1] for row in rows])


def unigram(tokens: np.ndarray | token_store.Stream, ordinary_V: np.ndarray, labels: np.ndarray) -> Unigram:
    """The unigram baseline of some labels. Special tokens have probability 0, because they are never labels.

    Args:
      tokens: the tokens of the training text; the first `COUNTED` are used.
      ordinary_V: bool [V], whether a token is not special.
      labels: int32, the masked tokens of the validation set.
    """
    counts_V = np.bincount(tokens[:COUNTED], minlength=len(ordinary_V)) + 1.0
    counts_V[~ordinary_V] = 0.0
    nats = math.log(counts_V.sum()) - np.log(counts_V[labels]).mean()
    return Unigram(float(nats), float((labels == np.argmax(counts_V)).mean()))
