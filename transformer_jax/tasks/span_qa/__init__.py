"""Extractive question answering: predict the first and the last token of the answer in a context.

(Devlin et al. 2019, section 4.2.) The answer is the span with the highest sum of start and end logit over all windows
of a context. It reports exact match and F1 in percent, as the official SQuAD v1.1 script.

E windows, T length, M the longest answer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import losses, metrics, models, sharding
from transformer_jax.contracts import Answers, Evaluation, Input, Outputs, Prepared, Query, Sums
from transformer_jax.data import text_files
from transformer_jax.errors import InputError
from transformer_jax.tasks import encoder
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.text import TextTask

WINDOW, STRIDE = 384, 128  # tokens, for `predict`; the values of BERT's script for SQuAD
ROWS = 64  # windows whose spans are scored together


@dataclass(frozen=True)
class Reference:
    """The questions of a set, their tokens, and their windows."""

    asked: Sequence[questions.Question]
    encoded: Sequence[questions.Encoded]
    windows: Sequence[questions.Window]


@dataclass(frozen=True)
class SpanQA(TextTask):
    """The mean of two cross-entropies: of the answer's first and last token."""

    takes_pairs: ClassVar[bool] = True
    pipeline_tag: ClassVar[str] = "question-answering"

    max_answer_tokens: int = 30
    """The most tokens of an answer."""

    def __post_init__(self) -> None:
        if self.max_answer_tokens < 1:
            raise InputError(f"task.max_answer_tokens = {self.max_answer_tokens}: must be 1 or more")

    def example(self, data: questions.Questions) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        row, number = jax.ShapeDtypeStruct((data.length,), np.int32), jax.ShapeDtypeStruct((), np.int32)
        numbers = {"lengths": number, "starts": number, "ends": number}
        return {"tokens": row, "types": row, **numbers, "weights": jax.ShapeDtypeStruct((), np.float32)}

    def prepare(
        self, data: questions.Questions, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None
    ) -> Prepared:
        """The tokenised questions, in memory.

        Raises:
          InputError: bad data (`questions.prepare`), or a model without the head or the ids.
        """
        encoder.check_head(model_cfg, "span")
        made = questions.prepare(data, seed=seed, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)

        def evaluation(examples: questions.Examples, side: str) -> Evaluation:
            return Evaluation(examples, Reference(made.questions[side], examples.encoded, examples.windows))

        facts = {"vocabulary": made.tokenizer.vocab_size, **made.facts}
        test = None if made.test is None else evaluation(made.test, "test")
        return Prepared(made.train, evaluation(made.validation, "validation"), facts, made.tokenizer, test)

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight)}) in nats over the windows."""
        return self._scored(self._logits(params, model_cfg, batch, key), batch)

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss`, and {"start_logits", "end_logits": float32 [B, T]}."""
        logits_B2T = self._logits(params, model_cfg, batch, None)
        return self._scored(logits_B2T, batch)[2], {"start_logits": logits_B2T[:, 0], "end_logits": logits_B2T[:, 1]}

    def _logits(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """Start and end logits [B, 2, T]. Those of the question and of padding are masked."""
        x_BTD = encoder.hidden(params, model_cfg, batch, key=key)
        logits_B2T = jnp.moveaxis(models.family(model_cfg).spans(params, model_cfg, x_BTD), 2, 1)
        at_T = jnp.arange(x_BTD.shape[1])
        allowed_BT = (at_T == 0) | ((batch["types"] == 1) & (at_T < batch["lengths"][:, None]))
        return jnp.where(allowed_BT[:, None], logits_B2T, jnp.finfo(jnp.float32).min)

    def _scored(self, logits_B2T: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
        with sharding.replicated_length():  # the head has two labels, start and end
            labels_B2 = jnp.stack([batch["starts"], batch["ends"]], axis=1)
            weights_B2 = jnp.repeat(batch["weights"][:, None] / 2, 2, axis=1)
            total, weight, _ = losses.cross_entropy(logits_B2T, labels_B2, weights_B2)
        return total, weight, {"loss": (total, weight)}

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_window"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats per window, and exact match and F1 of the questions in percent."""
        answers = self._answers(outputs, evaluation.reference)
        return {
            "loss_nats_per_window": sums["loss"][0] / max(sums["loss"][1], 1.0),
            **metrics.squad(answers, [question.answers for question in evaluation.reference.asked]),
        }

    def records(self, outputs: Outputs, evaluation: Evaluation) -> dict[str, Sequence[Any]]:
        """Of each question exact match and F1 in percent, the first right answer and the answer."""
        asked = evaluation.reference.asked
        answers = self._answers(outputs, evaluation.reference)
        scores = [metrics.squad([answer], [one.answers]) for answer, one in zip(answers, asked, strict=True)]
        return {
            **{name: [score[name] for score in scores] for name in ("exact_match_percent", "f1_percent")},
            "label": [one.answers[0] for one in asked],
            "predicted": answers,
        }

    def _answers(self, outputs: Outputs, reference: Any) -> list[str]:
        """The answer to each question: the best span of all its windows."""
        answers, best = [""] * len(reference.asked), np.full(len(reference.asked), -np.inf)
        for at in range(0, len(reference.windows), ROWS):
            some = reference.windows[at : at + ROWS]
            rows = slice(at, at + len(some))
            scores_ETM = span_scores(
                outputs["start_logits"][rows], outputs["end_logits"][rows], some, self.max_answer_tokens
            )
            for scores_TM, window in zip(scores_ETM, some, strict=True):
                first, extra = np.unravel_index(scores_TM.argmax(), scores_TM.shape)
                number = window.question
                if scores_TM[first, extra] > best[number]:
                    best[number], context = scores_TM[first, extra], reference.asked[number].context
                    start, end = place(reference.encoded[number].offsets, window, int(first), int(extra), context)
                    answers[number] = context[start:end]
        return answers

    def flops(self, model_cfg: Any, data: questions.Questions) -> float:
        """The trunk's FLOPs of a training step on one example, forward and backward."""
        return encoder.flops(model_cfg, data.length)

    def default_data(self, tokenizer: Any, model_cfg: Any) -> questions.Questions:
        """A file that the user must provide."""
        length = min(model_cfg.max_length, 1024)
        return questions.Questions(questions.SquadJson("squad.json", "squad.json"), tokenizer, length, length // 4)

    def read(self, given: Sequence[str], options: Answers) -> list[Input] | None:
        """The questions of a file in SQuAD's format; they need no answers."""
        return questions.inputs(options.file) if text_files.suffix(options.file) == ".json" else None

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[Query], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """For each (question, context), or line with a TAB, the answer and its probability.

        {"question", "answer", "probability", "start", "end", "others"}: start and end are characters of the context.
        The probability is among all spans of at most `max_answer_tokens`, each with its highest score in any window.
        "others" has the top - 1 next answers that do not overlap a better one, without "question" and "others".
        """
        length = min(WINDOW, model_cfg.max_length)
        around, kept = labelled.around(tokenizer), questions.question_tokens(length)
        stride = min(STRIDE, length - questions.SPECIAL_TOKENS - kept)
        logits = jax.jit(lambda params, batch: self._logits(params, model_cfg, batch, None))
        for given in inputs:
            texts = given.split("\t", 1) if isinstance(given, str) else given
            question, context = (*texts, "")[:2]
            if not (question.strip() and context.strip()):
                error = "no question or no context; give a question, a TAB and the context that holds its answer"
                yield {"question": question, "error": error}
                continue
            encoded = questions.Encoded(tokenizer.encode(question)[:kept], *tokenizer.encode_with_offsets(context))
            if not len(encoded.context):
                yield {"question": question, "error": "the tokenizer has no token for anything in the context"}
                continue
            windows = questions.windows(0, encoded.asked, encoded.context, around, length, stride)
            examples = questions.Examples([encoded], windows, range(len(windows)), around, length)
            scored = []
            for i in range(len(windows)):  # one at a time: one compilation for all contexts
                batch = {name: array[None] for name, array in examples[i].items()}
                scored.append(np.asarray(logits(params, batch)))
            logits_E2T = np.concatenate(scored)
            scores_ETM = span_scores(logits_E2T[:, 0], logits_E2T[:, 1], windows, self.max_answer_tokens)
            yield {"question": question, **_answers(scores_ETM, windows, encoded.offsets, context, top)}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The question, the answer and its probability, then a line for each other answer."""
        lines = [f"{prediction['question']} {prediction['answer']} ({prediction['probability']:.1%})"]
        lines += [f"    {other['answer']} ({other['probability']:.1%})" for other in prediction["others"]]
        return "\n".join(lines)


def span_scores(
    starts_ET: np.ndarray, ends_ET: np.ndarray, windows: Sequence[questions.Window], max_tokens: int
) -> np.ndarray:
    """The scores [E, T, M]: the start logit of token t plus the end logit of token t + m, -inf outside of the context.

    Args:
      starts_ET: start logits.
      ends_ET: end logits.
      windows: the windows of the rows.
      max_tokens: M, the most tokens of an answer.
    """
    begin_E1 = np.array([window.begin for window in windows])[:, None]
    past_E1 = begin_E1 + np.array([window.size for window in windows])[:, None]
    at_T = np.arange(starts_ET.shape[1])
    inside_ET = (at_T >= begin_E1) & (at_T < past_E1)
    starts_ET, ends_ET = (np.where(inside_ET, np.asarray(x, np.float32), -np.inf) for x in (starts_ET, ends_ET))
    ends_ET = np.pad(ends_ET, ((0, 0), (0, max_tokens - 1)), constant_values=-np.inf)
    return starts_ET[:, :, None] + np.lib.stride_tricks.sliding_window_view(ends_ET, max_tokens, axis=1)


def place(offsets: np.ndarray, window: questions.Window, first: int, extra: int, context: str) -> tuple[int, int]:
    """(start, end) of an answer in characters of the context, without white space at its ends.

    Args:
      offsets: int32 [n, 2], the character spans of the context's tokens.
      window: that holds the answer.
      first: the position of the answer's first token in the window.
      extra: how many tokens follow the first.
      context: the text.
    """
    token = first - window.begin + window.first
    start, end = int(offsets[token, 0]), int(offsets[token + extra, 1])
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))


def _answers(
    scores_ETM: np.ndarray, windows: Sequence[questions.Window], offsets: np.ndarray, context: str, top: int
) -> dict[str, Any]:
    """The best span, and as "others" the top - 1 next best without a token in common with a better one.

    A span in several windows is one answer, with its highest score.
    """
    N, M = len(offsets), scores_ETM.shape[2]
    scores_NM = np.full((N, M), -np.inf)
    for scores_TM, window in zip(scores_ETM, windows, strict=True):
        shown = slice(window.first, window.first + window.size)
        scores_NM[shown] = np.maximum(scores_NM[shown], scores_TM[window.begin : window.begin + window.size])
    shares_NM = np.exp(scores_NM - scores_NM.max())
    shares_NM /= shares_NM.sum()
    first_N1 = np.arange(N)[:, None]
    last_NM = first_N1 + np.arange(M)
    whole = questions.Window(0, first=0, size=N, begin=0)
    answers: list[dict[str, Any]] = []
    while len(answers) < top and shares_NM.max() > 0:
        first, extra = (int(i) for i in np.unravel_index(shares_NM.argmax(), shares_NM.shape))
        start, end = place(offsets, whole, first, extra, context)
        probability = float(shares_NM[first, extra])
        answers.append({"answer": context[start:end], "probability": probability, "start": start, "end": end})
        shares_NM[(first_N1 <= first + extra) & (last_NM >= first)] = 0
    return {**answers[0], "others": answers[1:]}
