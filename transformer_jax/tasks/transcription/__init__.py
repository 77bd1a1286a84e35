"""Transcription by an encoder-decoder over sound: Whisper's task, for its own checkpoints and for fine-tuning.

A text is written after a few first tokens, which say the language, the task and whether times are wanted. Training
minimises the cross-entropy of the text's tokens and of its end; features are part of the loss, on the device. Reported
are nats per token, and at the end the word error rate of the texts that the search finds.

Letters: B rows, W samples, T tokens of the decoder, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from transformer_jax import contracts, files, losses, metrics, models, sharding
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Prepared, Progress, Sums, Task, no_progress
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.data import pipeline, waves
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.tasks import encoder, text_to_text
from transformer_jax.tasks.speech_recognition import utterances
from transformer_jax.tasks.transcription import windows
from transformer_jax.tasks.transcription.windows import Transcript, Wanted

PROMPT = 4  # the most first tokens: start, language, task, no times
EXAMPLES = 5  # transcripts that a run prints beside their references
FILES = 16  # files that `predict` reads and transcribes together


@dataclass(frozen=True)
class Listen:
    """The options of `predict`."""

    language: str
    """The language that is spoken: "de"; "auto": the most probable one; "": the model knows one language alone."""
    translate: bool
    """Write English, whatever is spoken."""
    beam: int
    """The number of beams; 1: greedy."""
    timestamps: bool = False
    """Write each segment on a line, with its times."""
    file: str = ""
    """A text file with the path of a sound file on each line."""
    out: str = ""
    """Write the answers into this .csv or .jsonl file instead of printing them."""
    json: bool = False
    """One JSON object per line."""


@dataclass(frozen=True)
class Transcription(Task):
    """The cross-entropy of the transcripts' tokens; the final numbers are word and character error rates."""

    reads_text: ClassVar[bool] = True
    unit: ClassVar[str] = "seconds"
    pipeline_tag: ClassVar[str] = "automatic-speech-recognition"

    language: str = ""
    """The language that is spoken: "de"; "auto": the most probable one; "": the model knows one alone."""
    translate: bool = False
    """The texts are English, whatever is spoken."""
    label_smoothing: float = 0.0
    """The share of each target that is spread over the vocabulary. The reported loss is without it."""
    beam: Beam = field(default_factory=lambda: Beam(1, max_new_tokens=444, early_stopping="first"))
    """The search. Without stop_ids, the end of text stops it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"task.label_smoothing = {self.label_smoothing}: must be in [0, 1)")

    # ---- Data

    def check(self, model_cfg: Any, data: utterances.Speech) -> None:
        """Refuses a model that does not transcribe, and utterances that do not fit into its window."""
        needed = ("features", "encode", "decode", "head", "head_bias", "init_cache", "prefill", "decode_step")
        settings = ("window", "max_length", "eos_id", "decoder_start_id")
        models.require(model_cfg, "task Transcription", needed, settings)
        contracts.require_data(data, "task Transcription", ("samples", "pack", "seconds", "labels"))
        if data.pack != 1:
            raise InputError(f"data.pack = {data.pack}: a window holds one utterance; give 1")
        if data.samples > model_cfg.window:
            seconds = model_cfg.window / waves.RATE
            raise InputError(f"data.seconds = {data.seconds:g} is longer than the model's window of {seconds:g} s")
        if data.labels + PROMPT > model_cfg.max_length:
            raise InputError(
                f"data.labels = {data.labels} and {PROMPT} first tokens are more than model.max_length = "
                f"{model_cfg.max_length}; give at most {model_cfg.max_length - PROMPT}"
            )
        if self.language == "auto":
            raise InputError('task.language = "auto" cannot be trained; name the language that is spoken')

    def example(self, data: utterances.Speech) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        T = data.labels + PROMPT
        tokens = {name: jax.ShapeDtypeStruct((T,), np.int32) for name in ("inputs", "targets")}
        return {
            "waves": jax.ShapeDtypeStruct((data.samples,), np.int16),
            "lengths": jax.ShapeDtypeStruct((), np.int32),
            **tokens,
            "weights": jax.ShapeDtypeStruct((T,), np.float32),
        }

    def prepare(self, data: utterances.Speech, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The decoded utterances, one in each row, and their texts after the first tokens."""
        self.check(model_cfg, data)
        sides: tuple[utterances.Side, ...] = ("train", "validation", "test")
        found = {side: data.source.utterances(side) for side in sides[: 3 if data.source.has_test else 2]}
        tokenizer = utterances.build_tokenizer(data, found["train"], workdir_tokenizer)
        encoder.check_ids(model_cfg, tokenizer)
        known = windows.special(tokenizer, model_cfg)
        start = windows.prompt(known, Wanted(self.language, self.translate), self.language)
        facts: dict[str, Any] = {"vocabulary": tokenizer.vocab_size, "baseline_wer_of_empty_transcripts": 1.0}
        sets = {}
        for side, one in found.items():
            rows, dropped = utterances.rows(
                one,
                data,
                tokenizer,
                step=1,
                gap=0,
                steps=lambda samples: samples,
                needed=len,
                seed=seed if side == "train" else None,
            )
            facts |= {f"{side}_utterances": len(rows.packed)} | {f"{side}_{name}": n for name, n in dropped.items()}
            sets[side] = Evaluation(_Texts(rows, start, known.end), (rows, utterances.texts(one, data.case)))
        return Prepared(sets["train"].examples, sets["validation"], facts, tokenizer, sets.get("test"))

    # ---- Numbers

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight)}) in nats over the tokens of the texts and their ends."""
        family = models.family(model_cfg)
        encode_key, decode_key = (None, None) if key is None else jax.random.split(key)
        x_BTM = family.features(model_cfg, batch["waves"], lengths=batch["lengths"])
        x_BSD = family.encode(params, model_cfg, x_BTM, key=encode_key)
        total, weight, plain = losses.linear_cross_entropy(
            family.decode(params, model_cfg, x_BSD, batch["inputs"], key=decode_key),
            family.head(params, model_cfg),
            batch["targets"],
            batch["weights"],
            bias_V=family.head_bias(params, model_cfg),
            label_smoothing=self.label_smoothing,
        )
        return total, weight, {"loss": (plain, weight)}

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats and perplexity per token of the texts; both depend on the tokenizer."""
        return text_to_text.report(sums)

    def score(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        evaluation: Evaluation,
        folder: Path,
        name: str,
        *,
        mesh: Any,
        log: Callable[[str], None],
        progress: Progress = no_progress,
    ) -> dict[str, float | str]:
        """Word and character error rates of the texts that the search finds; five of them are logged.

        Writes FOLDER/NAME.references.txt and .hypotheses.txt, which agree line by line. Of several hosts each
        transcribes the whole set.
        """
        rows, texts = evaluation.reference
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            params = multihost_utils.process_allgather(params, tiled=True)
            mesh = sharding.make_mesh(devices=jax.local_devices())
        recordings = [rows.samples_of(p) for p in range(len(texts))]
        found = self._transcripts(params, model_cfg, tokenizer, recordings, mesh=mesh, progress=progress)
        written = [one.text.replace("\n", " ") for one in found]
        if jax.process_index() == 0:
            for kind, lines in (("references", texts), ("hypotheses", written)):
                files.write(folder / f"{name}.{kind}.txt", "".join(f"{line}\n" for line in lines))
        for p in np.unique(np.linspace(0, len(texts) - 1, EXAMPLES).astype(int)):
            log(f"said     {texts[p]}\n    written  {written[p]}")
        return dict(metrics.error_rates(written, texts))

    def tokens(self, data: utterances.Speech) -> int:
        """The seconds of a row, silence included."""
        return max(1, round(data.samples / waves.RATE))

    def flops(self, model_cfg: Any, data: utterances.Speech) -> float:
        """The FLOPs of a training step on one row, forward and backward, without the features (PaLM, appendix B)."""
        return text_to_text.flops(model_cfg, model_cfg.max_frames, data.labels + PROMPT)

    # ---- Predictions

    def snapshot_settings(self) -> dict[str, Any]:
        """The search."""
        return {"beam": self.beam}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> utterances.Speech:
        """A table that the user has to give."""
        from transformer_jax.tasks.speech_recognition import recordings

        seconds, labels = model_cfg.window / waves.RATE, model_cfg.max_length - PROMPT
        return utterances.Speech(recordings.Recordings(("recordings.tsv",)), tokenizer, seconds=seconds, labels=labels)

    def predict_options(self, defaults: Predict) -> Listen:
        """The language, the task and the search."""
        return Listen(self.language, self.translate, self.beam.width)

    def read(self, given: Sequence[str], options: Listen) -> list[Input]:
        """The given sound files, and those in the given folders."""
        return inputs_lib.sounds(given, options.file)

    def answers(
        self, loaded: Any, asked: Sequence[Any], options: Listen, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """The transcript of each file."""
        beam = dataclasses.replace(self.beam, width=options.beam, nbest=1)
        task = dataclasses.replace(self, beam=beam, language=options.language, translate=options.translate)
        return task.predict(
            loaded.params,
            loaded.config,
            loaded.tokenizer,
            asked,
            top=1,
            timestamps=options.timestamps,
            progress=progress,
        )

    def predict(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        inputs: Iterable[str],
        *,
        top: int,
        timestamps: bool = False,
        progress: Progress = no_progress,
    ) -> Iterator[dict[str, Any]]:
        """For each sound file {"sound": its path, "text", "seconds"}; a file that has no sound has {"sound", "error"}.

        "language" is there where the model has several, "segments" [{"start", "end", "text"}] where times are wanted.

        Args:
          params: the parameters of the model.
          model_cfg: the model.
          tokenizer: with Whisper's special tokens.
          inputs: paths of sound files.
          top: not used: a file has one transcript.
          timestamps: whether times are wanted.
          progress: called with (files done, total).
        """
        paths = list(inputs)
        for first in range(0, len(paths), FILES):
            group = [(path, waves.tried(Path(path))) for path in paths[first : first + FILES]]
            recordings = [found for _, found in group if not isinstance(found, str)]
            made = iter(self._transcripts(params, model_cfg, tokenizer, recordings, timestamps=timestamps))
            for path, found in group:
                if isinstance(found, str):
                    yield {"sound": path, "error": found}
                    continue
                one = next(made)
                answer: dict[str, Any] = {"sound": path, "text": one.text, "seconds": len(found) / waves.RATE}
                answer |= {"language": one.language} if one.language else {}
                if timestamps:
                    names = ("start", "end", "text")
                    answer["segments"] = [dict(zip(names, segment, strict=True)) for segment in one.segments]
                yield answer
            progress(first + len(group), len(paths))

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The text, or each segment on a line with its times."""
        if "segments" not in prediction:
            return str(prediction["text"])
        return "\n".join(f"[{s['start']:.2f} - {s['end']:.2f}] {s['text']}" for s in prediction["segments"])

    def _transcripts(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        recordings: Sequence[np.ndarray],
        *,
        timestamps: bool = False,
        mesh: Any = None,
        progress: Progress = no_progress,
    ) -> list[Transcript]:
        if not recordings:
            return []
        model_cfg = config.for_decoding(model_cfg)
        wanted = Wanted(self.language, self.translate, timestamps)
        arguments = (models.family(model_cfg), params, model_cfg, tokenizer, recordings, self.beam, wanted)
        return windows.transcripts(*arguments, mesh=mesh, progress=progress)


@dataclass(frozen=True, eq=False)
class _Texts(pipeline.Examples):
    """Rows of one utterance: its wave, and its text after the first tokens, as the decoder reads and writes it."""

    rows: utterances.Rows
    start: Sequence[int]
    end: int

    @property
    def order(self) -> Sequence[int]:  # type: ignore[override]
        return self.rows.order

    def example(self, i: int) -> dict[str, np.ndarray]:
        row = self.rows.example(i)
        T = row["labels"].shape[1] + PROMPT
        text = row["labels"][0, : row["sizes"][0]].tolist()
        inputs, targets = [*self.start, *text], [*self.start[1:], *text, self.end]
        made = {"waves": row["waves"], "lengths": row["lengths"][0]}
        made |= {name: np.zeros(T, np.int32) for name in ("inputs", "targets")}
        made["inputs"][: len(inputs)], made["targets"][: len(targets)] = inputs, targets
        made["weights"] = np.zeros(T, np.float32)
        made["weights"][len(self.start) - 1 : len(targets)] = 1
        return made
