"""Classification of texts and pairs of texts, and regression to a number.

The first hidden state of the encoder goes through a pooler and a linear head (Devlin et al. 2019, section 4.1).

Letters: B rows, T length, D width, C labels, E examples of a set.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import contracts, figures, metrics, models
from transformer_jax.contracts import Evaluation, Outputs, Prepared, Query, Sums
from transformer_jax.data import tables
from transformer_jax.errors import InputError
from transformer_jax.tasks import encoder
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.text import TextTask

PREDICT_ROWS = 32  # inputs in a batch of `predict`


@dataclass(frozen=True)
class Classification(TextTask):
    """Cross-entropy of the label, or the squared error of a value."""

    takes_pairs: ClassVar[bool] = True
    pipeline_tag: ClassVar[str] = "text-classification"

    labels: tuple[str, ...] = ("negative", "positive")
    """The names, in the order of the model's outputs; (): labels are numbers (regression)."""

    def __post_init__(self) -> None:
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise InputError(f"task.labels = {self.labels}: give two or more different names, or none for regression")

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return not self.labels

    def example(self, data: labelled.LabelledText) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example; only pairs have "types"."""
        row = jax.ShapeDtypeStruct((data.length,), np.int32)
        return (
            {"tokens": row}
            | ({"types": row} if data.source.pairs else {})
            | {
                "lengths": jax.ShapeDtypeStruct((), np.int32),
                "labels": jax.ShapeDtypeStruct((), np.float32 if self.is_regression else np.int32),
                "weights": jax.ShapeDtypeStruct((), np.float32),
            }
        )

    def sized(self, model_cfg: Any) -> Any:
        """`model_cfg` with an output for each label, or the one of regression, where the number is its default."""
        return contracts.fill(model_cfg, "num_labels", len(self.labels) or 1)

    def prepare(
        self, data: labelled.LabelledText, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None
    ) -> Prepared:
        """The tokenised rows of the training, validation and, if there is one, test set.

        Raises:
          InputError: a model without the head for these labels, a bad row, or a tokenizer with more ids than the model
            or without [CLS] and [SEP].
        """
        encoder.check_head(model_cfg, "classification", labels=len(self.labels) or 1)
        made = labelled.prepare(data, self.labels, seed=seed, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)
        facts: dict[str, Any] = {"vocabulary": made.tokenizer.vocab_size, **made.skipped}
        for name, examples in (("training", made.train), ("validation", made.validation), ("test", made.test)):
            if examples is not None:
                facts[f"{name}_examples"] = len(examples.labels)
                facts[f"{name}_examples_truncated_to_{data.length}_tokens"] = examples.truncated
        if not self.is_regression:
            counts = Counter(made.train.labels.tolist())
            facts["training_examples_of_each_label"] = ", ".join(
                f"{name} {counts[number]:,}" for number, name in enumerate(self.labels)
            )
        baselines = getattr(data.source, "baselines", None)
        facts |= baselines() if baselines else {}
        return Prepared(
            made.train,
            Evaluation(made.validation, made.validation.labels),
            facts,
            made.tokenizer,
            None if made.test is None else Evaluation(made.test, made.test.labels),
        )

    def logits(
        self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> Any:
        """The logits float32 [B, C] of a batch; C is 1 for regression.

        Args:
          params: the parameters of the encoder.
          model_cfg: the encoder.
          batch: see `example`.
          key: switches dropout on; None: no dropout.
        """
        return self.logits_and_states(params, model_cfg, batch, key=key)[0]

    def logits_and_states(
        self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> tuple[Any, Any, Any]:
        """(logits [B, C], hidden states [B, T, D], the mask of the tokens [B, T])."""
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        x_BTD = encoder.hidden(params, model_cfg, batch, key=trunk_key)
        reads_lengths = getattr(model_cfg, "pooling", "first") != "first"
        lengths = {"lengths": batch["lengths"]} if reads_lengths else {}
        logits_BC = models.family(model_cfg).classify(params, model_cfg, x_BTD, key=head_key, **lengths)
        return logits_BC, x_BTD, encoder.mask(batch)

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight), "accuracy": (right, examples)}) in nats, or squared errors."""
        return self._losses(self.logits(params, model_cfg, batch, key=key), batch)

    def _losses(self, logits_BC: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
        labels_B, weights_B = batch["labels"], batch["weights"]
        examples = jnp.sum(weights_B)
        if self.is_regression:
            plain = jnp.sum(weights_B * jnp.square(logits_BC[:, 0] - labels_B)), examples
            return (*plain, {"loss": plain})
        one_hot_BC = jax.nn.one_hot(labels_B, len(self.labels))
        nats_B = -jnp.sum(one_hot_BC * jax.nn.log_softmax(logits_BC), axis=-1)
        plain = jnp.sum(weights_B * nats_B), examples
        right = jnp.sum(weights_B * (jnp.argmax(logits_BC, axis=-1) == labels_B))
        return *plain, jax.lax.stop_gradient({"loss": plain, "accuracy": (right, examples)})

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss`, and {"logits": float32 [B, C]}."""
        logits_BC = self.logits(params, model_cfg, batch)
        return self._losses(logits_BC, batch)[2], {"logits": logits_BC}

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "mean_squared_error" if self.is_regression else "loss_nats_per_example"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The loss and the scores of `metrics.classification`, or the scores of `metrics.regression`."""
        if self.is_regression:
            return metrics.regression(outputs["logits"][:, 0], evaluation.reference)
        nats = sums["loss"][0] / sums["loss"][1]
        scores = metrics.classification(outputs["logits"], evaluation.reference, self.labels)
        return {"loss_nats_per_example": nats} | scores

    def records(self, outputs: Outputs, evaluation: Evaluation) -> dict[str, Sequence[Any]]:
        """The squared error; or the loss in nats, whether the answer is right, the label and the answer."""
        wanted_E = np.asarray(evaluation.reference)
        if self.is_regression:
            return {"mean_squared_error": np.square(outputs["logits"][:, 0] - wanted_E)}
        return metrics.by_example(outputs["logits"], wanted_E, self.labels)

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """The confusion matrix and a ROC curve: of the second of two labels, or of all one-vs-rest decisions."""
        if self.is_regression:
            return []
        logits_EC, labels_E = outputs["logits"], np.asarray(evaluation.reference)
        confusion, roc = folder / f"{name}_confusion.png", folder / f"{name}_roc.png"
        figures.confusion(labels_E, logits_EC.argmax(-1), self.labels, confusion)
        # A ROC curve needs more than one label, and finite scores.
        if len(np.unique(labels_E)) < 2 or not np.isfinite(logits_EC).all():
            return [confusion]
        if len(self.labels) == 2:
            figures.roc(logits_EC[:, 1] - logits_EC[:, 0], labels_E, roc)
        else:
            is_label_EC = labels_E[:, None] == np.arange(len(self.labels))
            figures.roc(_softmax(logits_EC).ravel(), is_label_EC.ravel().astype(int), roc)
        return [confusion, roc]

    def flops(self, model_cfg: Any, data: labelled.LabelledText) -> float:
        """The trunk's FLOPs of a training step on one example, forward and backward."""
        return encoder.flops(model_cfg, data.length)

    def snapshot_settings(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": self.labels}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> labelled.LabelledText:
        """A table that the user has to give."""
        length = min(model_cfg.max_length, 1024)
        return labelled.LabelledText(tables.Table(("labelled.tsv",)), tokenizer, length)

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[Query], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """For each text, or pair (a tuple, or a line with a TAB), a dict: the input, the label and its probability.

        {"text", "text_b" (pairs), "label", "probability", "top": [{"label", "probability"}, ...]}, or in regression
        {"text", "text_b", "value"}.
        """
        step = jax.jit(lambda params, batch: self.logits(params, model_cfg, batch))
        special, lines = labelled.around(tokenizer), iter(inputs)
        while group := list(itertools.islice(lines, PREDICT_ROWS)):
            pairs = [_pair(given) for given in group]
            framed = [_frame(pair, tokenizer, special, model_cfg.max_length) for pair in pairs]
            if long := sum(f.truncated for f in framed):
                message = f"{long} of {len(group)} inputs truncated to the model's {model_cfg.max_length} tokens"
                print(message, file=sys.stderr)
            logits_EC = np.asarray(step(params, _batch(framed, model_cfg.max_length)))[: len(group)]
            for (text, text_b), logits_C in zip(pairs, logits_EC, strict=True):
                given = {"text": text} | ({} if text_b is None else {"text_b": text_b})
                if not text.strip() or (text_b is not None and not text_b.strip()):
                    yield given | {"error": "an empty text; an input is a text, or two texts with a TAB between"}
                else:
                    yield given | self._answer(logits_C, top)

    def _answer(self, logits_C: np.ndarray, top: int) -> dict[str, Any]:
        if self.is_regression:
            return {"value": float(logits_C[0])}
        probability_C = _softmax(logits_C)
        order = np.argsort(-logits_C, kind="stable")[:top]
        best = [{"label": self.labels[c], "probability": float(probability_C[c])} for c in order]
        return best[0] | {"top": best}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One line: the labels or the value, then the beginning of the text."""
        text = " | ".join(prediction[name] for name in ("text", "text_b") if name in prediction)
        if self.is_regression:
            answers = f"{prediction['value']:.3f}"
        else:
            answers = ", ".join(f"{best['label']} {best['probability']:.1%}" for best in prediction["top"])
        return f"{answers}: {text if len(text) <= 100 else text[:99] + '…'}"


def _pair(given: Query) -> tuple[str, str | None]:
    texts = given.rstrip("\r\n").split("\t", 1) if isinstance(given, str) else given
    return texts[0], texts[1] if len(texts) > 1 else None


def _frame(pair: tuple[str, str | None], tokenizer: Any, special: labelled.Around, length: int) -> labelled.Framed:
    text, text_b = pair
    b = None if text_b is None else tokenizer.encode(text_b)
    return labelled.frame(tokenizer.encode(text), b, special, length)


def _batch(framed: list[labelled.Framed], max_length: int) -> dict[str, np.ndarray]:
    """A batch of 1 or PREDICT_ROWS rows and a multiple of 32 tokens, so that few shapes are compiled."""
    B = 1 if len(framed) == 1 else PREDICT_ROWS
    T = min(-(-max(len(f.ids) for f in framed) // 32) * 32, max_length)
    batch = {"tokens": np.zeros((B, T), np.int32), "types": np.zeros((B, T), np.int32), "lengths": np.ones(B, np.int32)}
    for b, f in enumerate(framed):
        batch["tokens"][b, : len(f.ids)] = f.ids
        batch["types"][b, f.first : len(f.ids)] = 1
        batch["lengths"][b] = len(f.ids)
    return batch


def _softmax(logits_EC: np.ndarray) -> np.ndarray:
    odds_EC = np.exp(logits_EC - logits_EC.max(-1, keepdims=True))
    return odds_EC / odds_EC.sum(-1, keepdims=True)
