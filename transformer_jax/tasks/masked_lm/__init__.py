"""Masked language modelling: predict the tokens that were hidden from the model, from both sides (Devlin et al. 2019).

The vocabulary's projection runs on the P hidden positions of each row and nowhere else. With pairs, the model also says
whether the second passage follows the first. Reported are nats, perplexity and accuracy per masked token, beside what
the training text's word frequencies alone would score on the very same tokens.

Letters: B rows, T length, P predictions of a row, D width, E embedding width, V vocabulary.
"""

import functools
import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import losses, models, sharding
from transformer_jax.contracts import Evaluation, Outputs, Prepared, Sums
from transformer_jax.data import corpus
from transformer_jax.errors import InputError
from transformer_jax.nn import layers
from transformer_jax.objectives.masking import Masking
from transformer_jax.tasks import encoder
from transformer_jax.tasks.masked_lm import masked
from transformer_jax.tasks.text import TextTask

Pairs = Literal["none", "next_sentence", "sentence_order"]

COUNTED = 1 << 27  # tokens of the training text that the unigram baseline is counted on, at most
ANY_MASK = re.compile(r"<mask>|\[MASK\]", re.IGNORECASE)  # as most tokenizers spell their mask token
PREDICT_ROWS = 32  # rows that are computed together in `predict` and `pseudo_log_likelihood`


@dataclass(frozen=True)
class Unigram:
    """What the frequencies of tokens in the training text, each plus one, score on the masked tokens of the validation
    set: `loss` in nats per masked token, and how often the most frequent token is the right one."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class MaskedLM(TextTask):
    """Cross-entropy of the hidden tokens, and of whether a pair follows."""

    masking: Masking = field(default_factory=Masking)
    """Which tokens are hidden, and what stands in their place."""
    pairs: Pairs = "none"
    """What a row holds two passages for: BERT's next-sentence prediction, ALBERT's sentence order, or nothing."""
    packed: bool = False
    """Rows of whole documents that do not see each other; off: rows run over the borders of documents (RoBERTa)."""

    def __post_init__(self) -> None:
        if self.pairs not in get_args(Pairs):
            raise InputError(f"task.pairs = {self.pairs!r}: must be one of {', '.join(get_args(Pairs))}")
        if self.packed and self.pairs != "none":
            raise InputError(f"task.packed with task.pairs = {self.pairs!r}: a row holds one pair; drop either")

    @property
    def layout(self) -> masked.Layout:
        """How `masked` lays out a row."""
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
        """Tokenises the corpus (once: it is cached), lays out its rows and scores the unigram baseline.

        Arguments:
          workdir_tokenizer: the one that the parameters were trained with; None: as `data.tokenizer` says.
        Errors: `InputError` for a model without the heads, a tokenizer without [CLS], [SEP] or [MASK] or with more ids
          than the model, and a missing, empty or too short corpus.
        """
        for head in ("mlm", "pair") if self.pairs != "none" else ("mlm",):
            encoder.check_head(model_cfg, head)
        made = masked.prepare(data, self.masking, self.layout, seed=seed, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)
        labels = _labels(made.validation)
        if not len(labels):
            raise InputError(f"{data.source.documents('validation').origin} has no token to mask; give more text")
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
        """(sum, weight, sums): sum / weight is the mean over masked tokens, plus the mean over pairs where there are.

        sums: {"loss": ...} in nats over masked tokens; with pairs also {"pair_loss": ..., "pair_accuracy": ...}.
        Dropout only with a key.
        """
        return self._losses(params, model_cfg, batch, key)[0]

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss`, and {"accuracy": ...}, which takes the logits once more."""
        (_, _, sums), h_BPE = self._losses(params, model_cfg, batch, None)
        kernel_EV, bias_V = models.family(model_cfg).mlm_kernel(params, model_cfg)
        right = _right(h_BPE, kernel_EV, bias_V, batch["labels"], batch["weights"])
        return sums | {"accuracy": (right, jnp.sum(batch["weights"]))}, {}

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
        logits_B2 = family.pair(params, model_cfg, x_BTD)  # without dropout, as BERT's and ALBERT's own pre-training
        pair_B, weights_B = batch["pair"], batch["pair_weights"]
        with sharding.replicated_length():
            pair_nats, count, _ = losses.cross_entropy(logits_B2[:, None], pair_B[:, None], weights_B[:, None])
        right = jnp.sum(weights_B * (jnp.argmax(logits_B2, axis=-1) == pair_B))
        sums |= {"pair_loss": (pair_nats, count), "pair_accuracy": (right, count)}
        total = nats + pair_nats * weight / jnp.maximum(count, 1.0)
        return (total, weight, jax.lax.stop_gradient(sums)), h_BPE

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The numbers of an evaluation, from the sums over the whole validation set, and the baseline's."""
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
        """FLOPs of one training step on one example, forward and backward: the trunk's, and the masked-LM head's for
        the P positions that go through it."""
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

        "masks" has the `top` tokens for each mask token in the text, which is written as the tokenizer spells it
        ("[MASK]", "<mask>"); of a text that is too long, the part around the masks is read. A text without one is
        scored instead: its "pseudo_perplexity_per_token" is exp of minus the mean of `pseudo_log_likelihood`, and null
        in a text with masks. Errors: `InputError` for a text without a token, with masks that are too far apart, and
        with the mask of another tokenizer.
        """
        known = masked.vocabulary(tokenizer)
        for text in inputs:
            try:
                yield self._filled(params, model_cfg, tokenizer, known, text, min(top, model_cfg.vocab_size))
            except InputError as error:
                yield {"text": text, "error": str(error)}

    def _filled(
        self, params: Any, model_cfg: Any, tokenizer: Any, known: masked.Vocabulary, text: str, top: int
    ) -> dict[str, Any]:
        ids = _around_masks(tokenizer.encode_prompt(text), known.mask, model_cfg.max_length - 2)
        if not len(ids):
            raise InputError("it has no token; give some text")
        at = np.flatnonzero(ids == known.mask) + 1
        if not len(at):
            if other := ANY_MASK.search(text):
                spelled = tokenizer.decode([known.mask]).strip()
                raise InputError(f"{other[0]} is text here; the mask token is {spelled}")
            (log_probs,) = pseudo_log_likelihood(params, model_cfg, tokenizer, [text])
            return {"text": text, "masks": [], "pseudo_perplexity_per_token": math.exp(-float(log_probs.mean()))}
        tokens_BT, lengths_B = _rows([ids], 1, known, model_cfg.max_length)
        positions_BP = np.zeros((1, -(-len(at) // 8) * 8), np.int32)  # few shapes, so few compilations
        positions_BP[0, : len(at)] = at
        log_probs_BPK, ids_BPK = jax.device_get(_likeliest(params, model_cfg, tokens_BT, lengths_B, positions_BP, top))
        masks = [
            [{"token": tokenizer.decode([i]), "probability": math.exp(p)} for i, p in zip(*answers, strict=True)]
            for answers in zip(ids_BPK[0, : len(at)].tolist(), log_probs_BPK[0, : len(at)].tolist(), strict=True)
        ]
        return {"text": text, "masks": masks, "pseudo_perplexity_per_token": None}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The text, and below it a line for each mask; or the text's score."""
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
    """How many labels have the highest logit. One prediction of each row at a time: logits are [B, V] at most."""

    def one(x: tuple[jax.Array, jax.Array]) -> jax.Array:
        h_BE, labels_B = x
        kernel = kernel_EV.astype(h_BE.dtype)
        logits_BV = sharding.einsum("BE,EV->BV", h_BE, kernel, out=("batch", "vocab"), dtype=jnp.float32) + bias_V
        return jnp.argmax(logits_BV, axis=-1) == labels_B

    right_PB = jax.lax.map(one, (jnp.moveaxis(h_BPE, 1, 0), labels_BP.T))
    return jnp.sum(right_PB.T * weights_BP)


def _labels(examples: masked.Examples) -> np.ndarray:
    """What there is to predict in a finite set, one after the other."""
    rows = (examples[i] for i in range(len(examples)))
    return np.concatenate([row["labels"][row["weights"] == 1] for row in rows])


def unigram(tokens: np.ndarray, ordinary_V: np.ndarray, labels: np.ndarray) -> Unigram:
    """Scores labels by the counts of tokens in the training text (its first `COUNTED`), each plus one; special tokens
    have no share, because they are never labels."""
    counts_V = np.bincount(tokens[:COUNTED], minlength=len(ordinary_V)) + 1.0
    counts_V[~ordinary_V] = 0.0
    nats = math.log(counts_V.sum()) - np.log(counts_V[labels]).mean()
    return Unigram(float(nats), float((labels == counts_V.argmax()).mean()))


# ---- Texts ---------------------------------------------------------------------------------------------------------


def pseudo_log_likelihood(params: Any, model_cfg: Any, tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """For each text the log-probability of each of its tokens given all the others, float32 [n]: that token is masked,
    and no other (Salazar et al. 2020, sections 2.1 and 2.2).

    The sum is the text's pseudo-log-likelihood; exp of minus the mean over a corpus' tokens is its pseudo-perplexity. A
    text of n tokens takes n forward passes. Texts longer than the model's positions are cut, and stderr says how many.
    Errors: `InputError` for a text without a token.
    """
    known = masked.vocabulary(tokenizer)
    encoded = _cut(tokenizer.encode_batch(list(texts)), model_cfg.max_length - 2)
    for text, ids in zip(texts, encoded, strict=True):
        if not len(ids):
            raise InputError(f"text {text!r} has no token to score; give some text")

    asked = ((ids, at) for ids in encoded for at in range(len(ids)))
    scores: list[float] = []
    while group := list(itertools.islice(asked, PREDICT_ROWS)):
        tokens_BT, lengths_B = _rows([ids for ids, _ in group], PREDICT_ROWS, known, model_cfg.max_length)
        at_B, labels_B = np.zeros(PREDICT_ROWS, np.int32), np.zeros(PREDICT_ROWS, np.int32)
        for b, (ids, at) in enumerate(group):
            at_B[b], labels_B[b], tokens_BT[b, at + 1] = at + 1, ids[at], known.mask
        found_B = _scores(params, model_cfg, tokens_BT, lengths_B, at_B, labels_B)
        scores += np.asarray(found_B)[: len(group)].tolist()
    return np.split(np.array(scores, np.float32), np.cumsum([len(ids) for ids in encoded])[:-1])


# Functions of the module, not of a call: `predict` scores text after text, and each shape is compiled once.
@functools.partial(jax.jit, static_argnames="model_cfg")
def _scores(
    params: Any, model_cfg: Any, tokens_BT: jax.Array, lengths_B: jax.Array, positions_B: jax.Array, labels_B: jax.Array
) -> jax.Array:
    """The log-probability of one token of each row, float32 [B]."""
    log_probs_B1V = _log_probabilities(params, model_cfg, tokens_BT, lengths_B, positions_B[:, None])
    return jnp.take_along_axis(log_probs_B1V[:, 0], labels_B[:, None], axis=-1)[:, 0]


@functools.partial(jax.jit, static_argnames=("model_cfg", "top"))
def _likeliest(
    params: Any, model_cfg: Any, tokens_BT: jax.Array, lengths_B: jax.Array, positions_BP: jax.Array, top: int
) -> tuple[jax.Array, jax.Array]:
    """The K = `top` highest log-probabilities at each position, float32 [B, P, K], and their tokens."""
    return jax.lax.top_k(_log_probabilities(params, model_cfg, tokens_BT, lengths_B, positions_BP), top)


def _log_probabilities(
    params: Any, model_cfg: Any, tokens_BT: jax.Array, lengths_B: jax.Array, positions_BP: jax.Array
) -> jax.Array:
    """float32 [B, P, V]."""
    family = models.family(model_cfg)
    x_BTD = family.apply(params, model_cfg, tokens_BT, lengths=lengths_B)
    x_BPD = layers.gather(x_BTD, positions_BP, out=("batch", None, None))
    with sharding.replicated_length():
        return jax.nn.log_softmax(family.mlm(params, model_cfg, x_BPD))


def _cut(encoded: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """Every text's first `room` tokens."""
    if over := sum(len(ids) > room for ids in encoded):
        print(f"{over} of {len(encoded)} texts cut to the model's {room} tokens", file=sys.stderr)
    return [ids[:room] for ids in encoded]


def _around_masks(ids: np.ndarray, mask: int, room: int) -> np.ndarray:
    """At most `room` tokens: the first ones, or later ones where the masks would be cut off."""
    at = np.flatnonzero(ids == mask)
    if not len(at) or len(ids) <= room:
        return _cut([ids], room)[0]
    apart = int(at[-1] - at[0]) + 1
    if apart > room:
        raise InputError(f"its masks stand {apart} tokens apart, and the model reads {room}")
    (first,) = _cut([ids], room)
    middle = int(np.clip(at[0] - (room - apart) // 2, 0, len(ids) - room))
    return first if at[-1] < room else ids[middle : middle + room]


def _rows(
    texts: Sequence[np.ndarray], rows: int, known: masked.Vocabulary, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] text [SEP] in rows of a multiple of 32 tokens, and their lengths; rows left over hold one token."""
    T = min(-(-(max(len(ids) for ids in texts) + 2) // 32) * 32, max_length)
    tokens_BT, lengths_B = np.zeros((rows, T), np.int32), np.ones(rows, np.int32)
    for b, ids in enumerate(texts):
        tokens_BT[b, 0], tokens_BT[b, 1 : len(ids) + 1], tokens_BT[b, len(ids) + 1] = known.cls, ids, known.sep
        lengths_B[b] = len(ids) + 2
    return tokens_BT, lengths_B
