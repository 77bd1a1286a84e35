"""Transcription by an encoder-decoder over sound: Whisper's task, for its own checkpoints and for fine-tuning.

A text is written after a few first tokens, which say the language, the task and whether times are wanted. Training
minimises the cross-entropy of the text's tokens and of its end; features are part of the loss, on the device. Reported
are nats per token, and at the end the word error rate of the texts that the search finds.

Letters: B rows, W samples, T tokens of the decoder, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from transformer_jax import losses, models
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Progress, Sums, Task, no_progress
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.data import waves
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.tasks import text_to_text
from transformer_jax.tasks.transcription import windows
from transformer_jax.tasks.transcription.windows import Transcript, Wanted

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
    """The language that is spoken: "de"; "auto": the most probable one; "": the model knows one language alone."""
    translate: bool = False
    """The texts are English, whatever is spoken."""
    label_smoothing: float = 0.0
    """The share of each target that is spread over the vocabulary. The reported loss is without it."""
    beam: Beam = field(default_factory=lambda: Beam(1, max_new_tokens=444, early_stopping="first"))
    """The search. Without stop_ids, the end of text stops it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"task.label_smoothing = {self.label_smoothing}: must be in [0, 1)")

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

    # ---- Predictions

    def snapshot_settings(self) -> dict[str, Any]:
        """The search."""
        return {"beam": self.beam}

    def predict_options(self, defaults: Predict) -> Listen:
        """The language, the task and the search."""
        return Listen(self.language, self.translate, self.beam.width)

    def read(self, given: Sequence[str], options: Listen) -> list[Input]:
        """The given sound files, and those in the given folders."""
        paths = given if given and given != ["-"] else [str(one.query) for one in inputs_lib.lines(options.file or "-")]
        found: list[Input] = []
        for path in paths:
            inside = waves.below(Path(path)) if path and Path(path).is_dir() else None
            found += [inputs_lib.text(path, path)] if inside is None else [Input(str(f), str(f), {}) for f in inside]
        return found

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
          params: of the model.
          model_cfg: the model.
          tokenizer: with Whisper's special tokens.
          inputs: paths of sound files.
          top: not used: a file has one transcript.
          timestamps: whether times are wanted.
          progress: called with (files done, total).
        """
        paths = list(inputs)
        for first in range(0, len(paths), FILES):
            group = [(path, _read(path)) for path in paths[first : first + FILES]]
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


def _read(path: str) -> np.ndarray | str:
    """The samples of a file, or why there are none."""
    try:
        return waves.read(Path(path))
    except (OSError, waves.Broken) as error:
        return str(error)
