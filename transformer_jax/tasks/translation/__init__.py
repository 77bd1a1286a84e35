"""Translation, summarisation, and other tasks from text to text, trained on parallel text.

Training minimises the label-smoothed cross-entropy of the target's tokens. It reports nats and perplexity per token,
which depend on the tokenizer. Scores of text, which are comparable, come at the end: beam search translates each source
of a set, and the hypotheses are written line by line beside the sources and references.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax import extras, figures, files, metrics, models, sharding, words
from transformer_jax.contracts import Evaluation, Outputs, Predict, Prepared, Progress, Sums, no_progress
from transformer_jax.decoding import translate
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.tasks import encoder, text_to_text
from transformer_jax.tasks.text import TextTask
from transformer_jax.tasks.translation import bitext, parallel

Metric = Literal["bleu", "chrf", "rouge", "exact_match"]

EXAMPLES = 10  # how many translations `score` logs
MAIN = {"rouge": "rougeL"}  # metric -> the one of its numbers that is reported for each part of a mixture
PREDICT_LINES = 4096  # inputs that `predict` sorts by length and searches together


@dataclass(frozen=True)
class Search:
    """The options of `predict`."""

    beam: int
    """The number of beams; 1: greedy."""
    length_penalty: float
    """A log-probability is divided by the length to this power; larger values prefer longer hypotheses."""
    max_new_tokens: int
    """The most target tokens; 0: those of the source plus the task's `extra_tokens`."""
    nbest: int = 1
    """Hypotheses of each input; above 1, each on a line "score<TAB>text", with an empty line after them."""
    file: str = ""
    """A text file with one input per line, or a table (.csv, .tsv, .jsonl) with one per row."""
    text: str = ""
    """The column of the source in the table; empty: the column that the run was trained on."""
    out: str = ""
    """Write the answers and the other columns of the table into this .csv or .jsonl file instead of printing them."""
    json: bool = False
    """One JSON object per line: source, hypotheses, scores."""


@dataclass(frozen=True)
class Translation(TextTask):
    """The label-smoothed cross-entropy of the target's tokens; the final scores are those of beam search."""

    pipeline_tag: ClassVar[str] = "translation"
    label_smoothing: float = 0.1
    """The share of each target that is spread over the vocabulary (Szegedy et al. 2016, section 7). The reported loss
    is without it."""
    metrics: tuple[Metric, ...] = ("bleu", "chrf")
    """The final scores: sacreBLEU's BLEU and chrF2, ROUGE for summaries, exact match; (): no translation at the end."""
    beam: Beam = field(
        default_factory=lambda: Beam(4, max_new_tokens=1024, length_penalty=0.6, length_convention="gnmt")
    )
    """The search. Without stop_ids and forced_first, they are the special tokens around the tokenizer's targets."""
    extra_tokens: int = 50
    """A hypothesis has at most this many more tokens than its source (Vaswani et al. 2017, section 6.1), and at most
    beam.max_new_tokens."""
    prefix: str = ""
    """Text before every source, such as T5's "translate English to German: "."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"task.label_smoothing = {self.label_smoothing}: must be in [0, 1)")
        if self.extra_tokens < 0:
            raise InputError(f"task.extra_tokens = {self.extra_tokens}: must be 0 or more")
        for metric in self.metrics:
            if metric not in get_args(Metric):
                raise InputError(f"task.metrics has {metric!r}; there are {', '.join(get_args(Metric))}")

    def example(self, data: parallel.ParallelText) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        return text_to_text.example(data.source_length, data.target_length)

    def prepare(
        self, data: parallel.ParallelText, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None
    ) -> Prepared:
        """The filtered, encoded and packed pairs.

        Raises:
          InputError: a model that is not an encoder-decoder, a tokenizer with more ids than the model, and what
            `parallel.prepare` refuses.
        """
        text_to_text.check(model_cfg)
        metrics.need(self.metrics)
        made = parallel.prepare(data, model_cfg, seed=seed, prefix=self.prefix, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)
        test = None if made.test is None else Evaluation(made.test.rows, made.test)
        validation = Evaluation(made.validation.rows, made.validation)
        return Prepared(made.train, validation, made.facts, made.tokenizer, test, made.identity)

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight)}), see `text_to_text.loss`."""
        return text_to_text.loss(params, model_cfg, batch, label_smoothing=self.label_smoothing, key=key)

    def logits_and_states(
        self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> tuple[Any, Any, Any]:
        """See `text_to_text.logits_and_states`."""
        return text_to_text.logits_and_states(params, model_cfg, batch, key=key)

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats and perplexity per target token."""
        return text_to_text.report(sums)

    def tokens(self, data: parallel.ParallelText) -> int:
        """The number of target tokens of one example, padding included."""
        return data.target_length

    def flops(self, model_cfg: Any, data: parallel.ParallelText) -> float:
        """The FLOPs of a training step on one example, forward and backward (PaLM, appendix B)."""
        return text_to_text.flops(model_cfg, data.source_length, data.target_length)

    # ---- Text ----

    def score(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        evaluation: Evaluation,
        folder: Path,
        name: str,
        *,
        mesh: Mesh,
        log: Callable[[str], None],
        progress: Progress = no_progress,
    ) -> dict[str, float | str]:
        """The `metrics` of the best hypotheses for a set's sources, against its references.

        Writes FOLDER/NAME.sources.txt, .references.txt and .hypotheses.txt, which agree line by line (a line break in a
        text becomes a space), and NAME_by_length.png. Logs ten examples. Each process translates a part of the sources
        on its own devices, with a copy of the parameters.
        """
        if not self.metrics:
            return {}
        held = evaluation.reference
        count, process = jax.process_count(), jax.process_index()
        if count > 1:
            from jax.experimental import multihost_utils

            params = multihost_utils.process_allgather(params, tiled=True)
            mesh = sharding.make_mesh(devices=jax.local_devices())
        mine = held.sources[process::count]
        lines, too_long = self._encode(tokenizer, model_cfg, mine)
        if too_long:
            log(_truncation_notice(too_long, len(mine), model_cfg))
        with jax.set_mesh(mesh):
            found = self._search(params, model_cfg, tokenizer, lines, self.beam, mesh, progress)
            best = [texts[0][0] if texts else "" for texts in found]
        hypotheses = _gathered(best)
        sources, references = ([one_line(text) for text in texts] for texts in (held.sources, held.references))
        scores: dict[str, float | str] = {}
        for metric in self.metrics:
            scores |= getattr(metrics, metric)(hypotheses, references)
            for part, of in enumerate(held.names):
                rows = [i for i, other in enumerate(held.parts) if other == part]
                found_of, wanted = [hypotheses[i] for i in rows], [references[i] for i in rows]
                scores[f"{metric}_{of}"] = getattr(metrics, metric)(found_of, wanted)[MAIN.get(metric, metric)]
        if process == 0:
            for kind, texts in (("sources", sources), ("references", references), ("hypotheses", hypotheses)):
                files.write(folder / f"{name}.{kind}.txt", "".join(f"{text}\n" for text in texts))
            picture, words_E = folder / f"{name}_by_length.png", np.array([len(words.spoken(text)) for text in sources])
            try:
                figures.by_length(getattr(metrics, self.metrics[0]), words_E, hypotheses, references, picture)
            except extras.Missing as missing:
                log(f"not written: {missing}")
        for i in sorted(set(np.linspace(0, len(sources) - 1, EXAMPLES).astype(int).tolist())):
            log(f"source      {sources[i]}\n    reference   {references[i]}\n    hypothesis  {hypotheses[i]}")
        log(f"{len(hypotheses):,} hypotheses: {folder / name}.hypotheses.txt; by length: {folder / name}_by_length.png")
        return scores

    def default_sample(self) -> Predict:
        """The best hypothesis."""
        return Predict(top=1)

    def snapshot_settings(self) -> dict[str, Any]:
        """The search."""
        return {"beam": self.beam}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> parallel.ParallelText:
        """A table that the user must provide."""
        length = min(model_cfg.max_length, 1024)
        pairs = bitext.Columns(("pairs.tsv",), ("pairs.tsv",))
        return parallel.ParallelText(pairs, tokenizer, source_length=length, target_length=length)

    def predict_options(self, defaults: Predict) -> "Search":
        """The search of the task."""
        search = self.beam
        return Search(beam=search.width, length_penalty=search.length_penalty, max_new_tokens=search.max_new_tokens)

    def answers(
        self, loaded: Any, asked: Sequence[Any], options: Search, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """The best hypotheses of each source."""
        if not 1 <= options.nbest <= options.beam:
            raise InputError(
                f"--nbest {options.nbest} of --beam {options.beam}: give at most as many as there are beams"
            )
        beam = dataclasses.replace(
            self.beam, width=options.beam, length_penalty=options.length_penalty, max_new_tokens=options.max_new_tokens
        )
        task, top = dataclasses.replace(self, beam=beam), options.nbest
        return task.predict(loaded.params, loaded.config, loaded.tokenizer, asked, top=top, progress=progress)

    def show(self, answer: Mapping[str, Any], options: Search) -> str:
        """The best hypothesis on a line, empty if there is none.

        With `nbest` above 1, each hypothesis is a line SCORE<TAB>TEXT, and an empty line follows the last one.
        """
        if options.nbest == 1:
            return self.describe(answer) + "\n"
        found = zip(answer.get("scores", ()), answer.get("hypotheses", ()), strict=True)
        return "".join(f"{score:.4f}\t{text}\n" for score, text in found) + "\n"

    def predict(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        inputs: Iterable[str],
        *,
        top: int,
        progress: Progress = no_progress,
    ) -> Iterator[dict[str, Any]]:
        """For each text {"source", "hypotheses": [...], "scores": [...]}: the `top` best hypotheses, best first.

        A score is the sum of log-probabilities, divided by the length penalty. A blank text has no hypotheses. Texts
        longer than the model's positions are truncated; stderr reports how many.

        Args:
          params: the parameters of the encoder-decoder.
          model_cfg: the encoder-decoder.
          tokenizer: the tokenizer of both sides.
          inputs: the sources.
          top: hypotheses of each source.
          progress: called with (done, total).
        """
        texts = list(inputs)
        lines, too_long = self._encode(tokenizer, model_cfg, texts)
        if too_long:
            print(_truncation_notice(too_long, len(texts), model_cfg), file=sys.stderr)
        beam = dataclasses.replace(self.beam, nbest=top, width=max(self.beam.width, top))
        for first in range(0, len(texts), PREDICT_LINES):
            part = slice(first, first + PREDICT_LINES)

            def so_far(done: int, total: int, first: int = first) -> None:
                progress(first + done, len(texts))

            found = self._search(params, model_cfg, tokenizer, lines[part], beam, None, so_far)
            for text, hypotheses in zip(texts[part], found, strict=True):
                made, scores = [made for made, _ in hypotheses], [score for _, score in hypotheses]
                yield {"source": text, "hypotheses": made, "scores": scores}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The best hypothesis, on one line."""
        return next(iter(prediction.get("hypotheses", ())), "")

    def _encode(
        self, tokenizer: Any, model_cfg: Any, texts: Sequence[str]
    ) -> tuple[list[np.ndarray | None], list[int]]:
        """(the encoder's input for each text, None for a blank one; the lengths of those that were too long)."""
        framing = parallel.framing(tokenizer, model_cfg)
        asked = [self.prefix + text for text in texts if text.strip()]
        encoded, too_long = iter(tokenizer.encode_batch(asked)), []

        def line(text: str) -> np.ndarray | None:
            if not text.strip():
                return None
            ids = next(encoded)
            framed = framing.source(ids)
            over = len(framed) - model_cfg.max_length
            if over > 0:
                too_long.append(len(framed))
                framed = framing.source(ids[: len(ids) - over])
            return framed

        return [line(text) for text in texts], too_long

    def _search(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        lines: Sequence[np.ndarray | None],
        beam: Beam,
        mesh: Mesh | None,
        progress: Progress,
    ) -> Iterator[list[tuple[str, float]]]:
        """Yields (text, score) of the best hypotheses of each line, best first; none for a blank line."""
        framing, spoken = parallel.framing(tokenizer, model_cfg), tokenizer.target
        around = [*framing.start, *framing.target_around[0], *framing.target_around[1]]
        silent = {*around, *spoken.special.present().values()}
        if not beam.stop_ids:
            beam = dataclasses.replace(beam, stop_ids=tuple(framing.target_around[1][-1:]))
        if beam.forced_first is None:
            beam = dataclasses.replace(beam, forced_first=framing.forced_first)
        model_cfg = config.for_decoding(model_cfg)
        found = translate.translate(
            models.family(model_cfg),
            params,
            model_cfg,
            [ids for ids in lines if ids is not None],
            beam,
            start=framing.start,
            extra_tokens=self.extra_tokens,
            mesh=mesh,
            progress=progress,
        )
        for ids in lines:
            if ids is None:
                yield []
            else:
                yield [
                    (one_line(spoken.decode(i for i in tokens.tolist() if i not in silent)), score)
                    for tokens, score in next(found)
                ]


def one_line(text: str) -> str:
    """The text with a space in place of each line break.

    Args:
      text: any text.
    """
    return re.sub(r"[\r\n]+", " ", text)


def _truncation_notice(lengths: Sequence[int], total: int, model_cfg: Any) -> str:
    return (
        f"{len(lengths)} of {total:,} sources exceed the model's {model_cfg.max_length} tokens, the longest with "
        f"{max(lengths):,}: they are truncated"
    )


def _gathered(texts: list[str]) -> list[str]:
    """The texts of all processes in order, on every process; text i is from process i % n."""
    if jax.process_count() == 1:
        return texts
    from jax.experimental import multihost_utils

    mine = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(mine)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(mine)] = mine
    shares = [
        json.loads(row[:size].tobytes())
        for row, size in zip(multihost_utils.process_allgather(padded), sizes, strict=True)
    ]
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]
