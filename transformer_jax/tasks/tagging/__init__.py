"""Tagging: a tag for each word, such as the entities of CoNLL-2003 (Devlin et al. 2019, section 5.3).

It reports precision, recall and F1 of entities, as conlleval, and the share of words with the right tag. Every word of
the set counts: a word that was truncated, or that the tokenizer drops, gets the tag "O".
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import contracts, figures, losses, metrics, models, words
from transformer_jax.contracts import Answers, Evaluation, Input, Outputs, Prepared, Query, Sums
from transformer_jax.data import text_files
from transformer_jax.tasks import encoder
from transformer_jax.tasks.tagging import tagged
from transformer_jax.tasks.text import TextTask

CONLL_SUFFIXES = (".conll", ".bio", ".iob", ".iob2")
CONLL_2003 = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")

# `predict` tags a text in parts of at most PART tokens, padded to a multiple of COLUMNS, so that texts of similar
# lengths share one compilation.
PART, COLUMNS = 128, 64


@dataclass(frozen=True)
class Reference:
    """The right tags of a set.

    Attributes:
      wanted: int32 [words] of each sentence, the numbers of the tags.
      first: int32 [words] of each sentence, the position of each word's first token; -1: it has none.
    """

    wanted: Sequence[np.ndarray]
    first: Sequence[np.ndarray]


@dataclass(frozen=True)
class Tagging(TextTask):
    """The cross-entropy of each word's tag at its first token."""

    pipeline_tag: ClassVar[str] = "token-classification"
    labels: tuple[str, ...] = CONLL_2003
    """The tags, in the order of the model's outputs: "O", and "B-TYPE" and "I-TYPE" of each type (IOB2)."""

    def __post_init__(self) -> None:
        tagged.check_labels(self.labels)

    def example(self, data: tagged.TaggedWords) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        T = data.length
        return {
            "tokens": jax.ShapeDtypeStruct((T,), np.int32),
            "lengths": jax.ShapeDtypeStruct((), np.int32),
            "labels": jax.ShapeDtypeStruct((T,), np.int32),
            "weights": jax.ShapeDtypeStruct((T,), np.float32),
        }

    def sized(self, model_cfg: Any) -> Any:
        """`model_cfg` with an output for each label, where the number is its default."""
        return contracts.fill(model_cfg, "num_labels", len(self.labels))

    def prepare(
        self, data: tagged.TaggedWords, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None
    ) -> Prepared:
        """The tokenised sentences, in memory.

        Raises:
          InputError: bad data (`tagged.prepare`), or a model without the head, the labels or the ids.
        """
        encoder.check_head(model_cfg, "tokens", labels=len(self.labels))
        made = tagged.prepare(data, self.labels, seed=seed, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)

        def evaluation(examples: tagged.Examples) -> Evaluation:
            return Evaluation(examples, Reference(examples.labels, [s.first for s in examples.sentences]))

        facts = {"vocabulary": made.tokenizer.vocab_size, "labels": len(self.labels), **made.facts}
        test = None if made.test is None else evaluation(made.test)
        return Prepared(made.train, evaluation(made.validation), facts, made.tokenizer, test)

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight), "token_accuracy": (right, weight)}) in nats over the words."""
        logits_BTC = self.logits_and_states(params, model_cfg, batch, key=key)[0]
        return self._scored(logits_BTC, batch)

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss`, and {"tags": int32 [B, T]}, the likeliest tag of each token."""
        logits_BTC = self.logits_and_states(params, model_cfg, batch)[0]
        return self._scored(logits_BTC, batch)[2], {"tags": jnp.argmax(logits_BTC, -1).astype(jnp.int32)}

    def logits_and_states(
        self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> tuple[Any, Any, Any]:
        """(logits [B, T, C], hidden states [B, T, D], the mask of the tokens [B, T])."""
        trunk_key, head_key = (None, None) if key is None else jax.random.split(key)
        x_BTD = encoder.hidden(params, model_cfg, batch, key=trunk_key)
        return models.family(model_cfg).tag(params, model_cfg, x_BTD, key=head_key), x_BTD, encoder.mask(batch)

    def _scored(self, logits_BTC: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
        total, weight, _ = losses.cross_entropy(logits_BTC, batch["labels"], batch["weights"])
        right = jnp.sum(batch["weights"] * (jnp.argmax(logits_BTC, -1) == batch["labels"]))
        return total, weight, {"loss": (total, weight), "token_accuracy": (right, weight)}

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_word"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats per word with a token, conlleval's scores of the entities, and the share of words with the right tag."""
        got = self._tags(outputs, evaluation.reference)
        wanted = evaluation.reference.wanted
        right = sum(int((a == b).sum()) for a, b in zip(got, wanted, strict=True))
        return {
            "loss_nats_per_word": sums["loss"][0] / max(sums["loss"][1], 1.0),
            **metrics.entities([self._names(tags) for tags in got], [self._names(tags) for tags in wanted]),
            "token_accuracy": right / sum(map(len, wanted)),
        }

    def records(self, outputs: Outputs, evaluation: Evaluation) -> dict[str, Sequence[Any]]:
        """Of each sentence the words with the right tag, the entities' F1 as counts, and the tags, right and found."""
        wanted = [self._names(tags) for tags in evaluation.reference.wanted]
        got = [self._names(tags) for tags in self._tags(outputs, evaluation.reference)]
        spans = [(set(metrics.entity_spans(a)), set(metrics.entity_spans(b))) for a, b in zip(got, wanted, strict=True)]
        same = [sum(x == y for x, y in zip(a, b, strict=True)) for a, b in zip(got, wanted, strict=True)]
        return {
            "token_accuracy": [(right, len(tags)) for right, tags in zip(same, wanted, strict=True)],
            "entity_f1": [(2 * len(a & b), len(a) + len(b)) for a, b in spans],
            "label": [" ".join(tags) for tags in wanted],
            "predicted": [" ".join(tags) for tags in got],
        }

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """The confusion matrix of the words' tags."""
        path = folder / f"{name}_confusion.png"
        got, wanted = self._tags(outputs, evaluation.reference), evaluation.reference.wanted
        figures.confusion(np.concatenate(wanted), np.concatenate(got), self.labels, path)
        return [path]

    def _tags(self, outputs: Outputs, reference: Reference) -> list[np.ndarray]:
        """The predicted tag of each word: that of its first token, or "O" if it has none."""
        outside = self.labels.index("O")
        return [
            np.where(first < 0, outside, tags_T[first])
            for tags_T, first in zip(outputs["tags"], reference.first, strict=True)
        ]

    def _names(self, tags: np.ndarray) -> list[str]:
        return [self.labels[tag] for tag in tags]

    def flops(self, model_cfg: Any, data: tagged.TaggedWords) -> float:
        """The trunk's FLOPs of a training step on one example, forward and backward."""
        return encoder.flops(model_cfg, data.length)

    def snapshot_settings(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": self.labels}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> tagged.TaggedWords:
        """A file that the user must provide."""
        length = min(model_cfg.max_length, 1024)
        return tagged.TaggedWords(tagged.Conll("words.conll", "words.conll"), tokenizer, length)

    def read(self, given: Sequence[str], options: Answers) -> list[Input] | None:
        """The words of the sentences in a CoNLL file, tagged or not."""
        return tagged.inputs(options.file) if text_files.suffix(options.file) in CONLL_SUFFIXES else None

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[Query], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """For each text or tuple of words {"text", "entities": [{"text", "type", "start", "end", "probability"}]}.

        start and end are characters of the text. The probability is the product of those of the words' tags. `top` is
        ignored, because a word has one tag.
        """
        length = min(PART, model_cfg.max_length)
        compiled = jax.jit(lambda params, batch: jax.nn.softmax(self.logits_and_states(params, model_cfg, batch)[0]))
        shares = partial(compiled, params)
        for given in inputs:
            text, places = _placed(given)
            made = self._tag_words([text[start:end] for start, end in places], tokenizer, length, shares)
            entities = []
            for kind, first, past in metrics.entity_spans([tag for tag, _ in made]):
                start, end = places[first][0], places[past - 1][1]
                probability = math.prod(probability for _, probability in made[first:past])
                entity = {"text": text[start:end], "type": kind, "start": start, "end": end, "probability": probability}
                entities.append(entity)
            yield {"text": text, "entities": entities}

    def _tag_words(
        self, sentence: Sequence[str], tokenizer: Any, length: int, shares: Callable[[Any], jax.Array]
    ) -> list[tuple[str, float]]:
        """(tag, probability) of each word, from parts of at most `length` tokens."""
        made: list[tuple[str, float]] = []
        while len(made) < len(sentence):
            ids, first, truncated = tagged.encode(sentence[len(made) : len(made) + length], tokenizer, length)
            columns = min(-(-len(ids) // COLUMNS) * COLUMNS, length)
            tokens_BT, lengths_B = np.pad(ids, (0, columns - len(ids)))[None], np.array([len(ids)], np.int32)
            shares_TC = np.asarray(shares({"tokens": tokens_BT, "lengths": lengths_B})[0])
            whole = np.max(np.flatnonzero(first >= 0), initial=0) + 1 if truncated else len(first)
            for at in first[:whole]:  # a word that the tokenizer drops is in no entity
                best = int(shares_TC[at].argmax())
                made.append((self.labels[best], float(shares_TC[at, best])) if at >= 0 else ("O", 1.0))
        return made

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The text, each entity in brackets with its type: "[Jim Henson PER] was a puppeteer"."""
        pieces, at = [], 0
        for entity in prediction["entities"]:
            pieces += [prediction["text"][at : entity["start"]], f"[{entity['text']} {entity['type']}]"]
            at = entity["end"]
        return "".join([*pieces, prediction["text"][at:]])


def _placed(given: Query) -> tuple[str, list[tuple[int, int]]]:
    """(text, character spans of its words); words are given, or found by `words.spans`."""
    if isinstance(given, str):
        return given, words.spans(given)
    ends = itertools.accumulate(len(word) + 1 for word in given)
    return " ".join(given), [(end - 1 - len(word), end - 1) for word, end in zip(given, ends, strict=True)]
