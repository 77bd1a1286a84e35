"""Speech synthesis without autoregression, with durations from a recogniser's alignment (FastSpeech).

The recogniser, a model with a CTC head, is frozen. In training it aligns each utterance with its transcript: the best
path gives the steps of each token. At evaluation it listens: the set's texts are spoken, and the word error rate of
what it writes, the round trip, stands beside that of the real recordings.

Letters: B rows, S tokens, T steps, F frames, M mel bins, V labels and the blank, W samples.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import metrics, models, sound
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Prepared, Progress, Sums, Task, no_progress
from transformer_jax.data import waves
from transformer_jax.decoding import ctc as decoding
from transformer_jax.errors import InputError
from transformer_jax.tasks import encoder
from transformer_jax.tasks.speech_recognition import utterances
from transformer_jax.tasks.speech_synthesis import pictures

SPOKEN = 3  # utterances that are written as WAV
SLOWEST = 0.5  # seconds that a token of `predict` may last on average


@dataclass(frozen=True)
class Speak:
    """The options of `predict`."""

    out: str = ""
    """The .wav file to write; of several inputs each gets a number: a-1.wav, a-2.wav."""
    file: str = ""
    """A text file with one input per line."""
    seed: int = 0
    """Of the first phases of Griffin-Lim."""


@dataclass(frozen=True)
class SpeechSynthesis(Task):
    """The distance of mel spectrograms, and of the logarithms of durations."""

    reads_text: ClassVar[bool] = True
    unit: ClassVar[str] = "seconds"
    pipeline_tag: ClassVar[str] = "text-to-speech"
    writes: ClassVar[tuple[str, ...]] = (".wav",)

    listener: Any
    """The recogniser's Config, by which a compiler knows it before it is loaded."""
    recogniser: str = ""
    """The recogniser: a run or a step of `SpeechRecognition` with the same tokenizer and steps of the same length."""

    def check(self, model_cfg: Any, data: Any) -> None:
        """Refuses a model that does not suit the utterances or the recogniser."""
        functions = ("encode", "log_durations", "whole_durations", "decode", "features", "to_waves")
        models.require(model_cfg, "task SpeechSynthesis", functions, ("vocab_size", "step_samples"))
        if not hasattr(data, "per_row") or data.pack != 1:
            raise InputError("task SpeechSynthesis reads an utterances.Speech with --data.pack 1: one utterance a row")
        if self.listener.step_samples != model_cfg.step_samples:
            raise InputError(
                f"model.hop * model.stride is {model_cfg.step_samples} samples, and the recogniser's steps have "
                f"{self.listener.step_samples}; durations are counted in steps, so make them equal"
            )
        if data.samples % model_cfg.step_samples:
            raise InputError(f"data.seconds = {data.seconds:g} is no whole number of steps of the model")

    def frozen(self, model_cfg: Any) -> Mapping[str, tuple[str, Any]]:
        """The recogniser."""
        return {"recogniser": (self.recogniser, self.listener)}

    def example(self, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        return utterances.example(data)

    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The decoded utterances, each in a row."""
        self.check(model_cfg, data)
        made = utterances.prepare(data, self.listener, seed=seed, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)
        return made

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, Any], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, sums) per utterance: the mean distance of features, and the mean square of log durations.

        The sums are "loss", "mel_distance" and "duration_error", the mean distance in steps.
        """
        encode_key, decode_key = (None, None) if key is None else jax.random.split(key)
        family, weights_B = models.family(model_cfg), batch["weights"][:, 0]
        durations_BS, labels_BS, sizes_B = self._durations(batch)
        x_BSD = family.encode(params, model_cfg, labels_BS, sizes_B, key=encode_key)
        log_BS = family.log_durations(params, model_cfg, x_BSD)
        waves_BW = sound.as_float(batch["waves"])
        wanted_BFM = family.features(model_cfg, waves_BW)
        T = waves_BW.shape[1] // model_cfg.step_samples
        made_BFM = family.decode(params, model_cfg, x_BSD, durations_BS, steps=T, key=decode_key)
        wanted_BFM = wanted_BFM[:, : made_BFM.shape[1]]
        frames_B = jnp.maximum(durations_BS.sum(1) * (made_BFM.shape[1] // T), 1)
        inside_BF = jnp.arange(made_BFM.shape[1]) < frames_B[:, None]
        distance_B = (jnp.abs(made_BFM - wanted_BFM).mean(-1) * inside_BF).sum(1) / frames_B
        inside_BS, count_B = durations_BS > 0, jnp.maximum(sizes_B, 1)
        wanted_BS = jnp.log(jnp.maximum(durations_BS, 1).astype(jnp.float32))
        square_B = (jnp.square(log_BS - wanted_BS) * inside_BS).sum(1) / count_B
        off_B = (jnp.abs(family.whole_durations(log_BS, sizes_B) - durations_BS) * inside_BS).sum(1) / count_B
        total, weight = jnp.sum(weights_B * (distance_B + square_B)), jnp.sum(weights_B)
        sums = {"loss": total, "mel_distance": jnp.sum(weights_B * distance_B), "duration_error": weights_B @ off_B}
        return total, weight, jax.lax.stop_gradient({name: (value, weight) for name, value in sums.items()})

    def _durations(self, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(steps of each token int32 [B, S], 0 for padding; tokens [B, S]; their numbers [B])."""
        labels_BS, sizes_B = batch["labels"][:, 0], batch["sizes"][:, 0]
        logits_BTV = self._heard(batch, batch["waves"], batch["lengths"])
        listener = batch["recogniser"].config
        steps_B = models.family(listener).steps(listener, batch["lengths"][:, 0])
        log_p_BTV = jax.nn.log_softmax(logits_BTV)
        durations_BS = decoding.durations(log_p_BTV, steps_B, labels_BS, sizes_B, blank=listener.blank)
        return jax.lax.stop_gradient(durations_BS), labels_BS, sizes_B

    def _heard(self, batch: Mapping[str, Any], waves_BW: jax.Array, lengths_BU: jax.Array) -> jax.Array:
        """The recogniser's logits, float32 [B, T, V]."""
        params, cfg = batch["recogniser"].params, batch["recogniser"].config
        where = (jnp.zeros_like(lengths_BU), lengths_BU)
        family = models.family(cfg)
        return family.logits(params, cfg, family.features(cfg, sound.as_float(waves_BW), *where), *where)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """The sums of `loss`; of each row the transcripts of the spoken text and of the recording, and both
        durations and the spoken samples.
        """
        sums = self.loss(params, model_cfg, batch)[2]
        durations_BS, labels_BS, sizes_B = self._durations(batch)
        steps = batch["waves"].shape[1] // model_cfg.step_samples
        waves_BW, own_BS = _spoken(params, model_cfg, labels_BS, sizes_B, steps, jax.random.key(0))
        lengths_BU = (own_BS.sum(1) * model_cfg.step_samples)[:, None]
        blank = batch["recogniser"].config.blank
        made_BT = _path(self._heard(batch, waves_BW, lengths_BU), own_BS.sum(1), blank)
        cfg = batch["recogniser"].config
        real = self._heard(batch, batch["waves"], batch["lengths"])
        real_BT = _path(real, models.family(cfg).steps(cfg, batch["lengths"][:, 0]), blank)
        samples = jnp.round(jnp.clip(waves_BW, -1, 1) * 32767).astype(jnp.int16)
        outputs = {"path": made_BT, "path_of_recording": real_BT, "durations": durations_BS, "own_durations": own_BS}
        return sums, outputs | {"samples": samples}

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_per_utterance"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Word error rates of the round trip and of the recordings, the loss, distances of mels and of durations."""
        known: utterances.Reference = evaluation.reference
        scores: dict[str, float] = {}
        for name, path in (("round_trip", outputs["path"]), ("recordings", outputs["path_of_recording"])):
            rates = metrics.error_rates(_texts(path, known), known.texts)
            scores |= {f"{rate}_{name}": rates[rate] for rate in ("wer", "wer_low", "wer_high", "cer")}
        means = {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}
        return scores | {"loss_per_utterance": means.pop("loss"), **means}

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """Which token is spoken when, in the recording and by the model; and three utterances as WAV files."""
        known: utterances.Reference = evaluation.reference
        path = folder / f"{name}_alignment.png"
        pictures.plot(outputs["durations"], outputs["own_durations"], known.texts, path)
        paths = [path]
        for row in range(min(SPOKEN, len(known.texts))):
            steps = int(outputs["own_durations"][row].sum())
            paths.append(folder / f"{name}_{row + 1}.wav")
            waves.write(paths[-1], outputs["samples"][row][: steps * known.rows.step])
        return paths

    # ------------------------------------------------------------------------------------------------------ throughput

    def tokens(self, data: Any) -> int:
        """The seconds of a row, silence included."""
        return max(1, round(data.samples / waves.RATE))

    # ------------------------------------------------------------------------------------------------------ prediction

    def default_sample(self) -> Predict:
        """No text."""
        return Predict(top=1)

    def predict_options(self, defaults: Predict) -> Speak:
        """The options of `predict`: the file to write."""
        return Speak()

    def respond(
        self, loaded: Any, inputs: Sequence[Input], options: Speak, *, progress: Progress = no_progress
    ) -> Iterator[str]:
        """Writes each spoken text, and yields a line with the file and its duration.

        Raises:
          InputError: no file is named.
        """
        if not options.out:
            raise InputError("speech is written into a file; give --out a.wav")
        model = (loaded.params, loaded.config, loaded.tokenizer)
        answers = self.predict(*model, [str(one.query) for one in inputs], top=1, seed=options.seed)
        for number, answer in enumerate(answers, 1):
            if "error" in answer:
                yield f"(no answer: {answer['error']})\n"
                continue
            path = Path(options.out)
            path = path.with_stem(f"{path.stem}-{number}") if len(inputs) > 1 else path
            samples_W = answer["samples"]
            waves.write(path, samples_W)
            yield f"{path}: {len(samples_W) / waves.RATE:.2f} s\n"

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int, seed: int = 0
    ) -> Iterator[dict[str, Any]]:
        """For each text {"text", "seconds", "samples": int16 [W] at 16 kHz}; {"text", "error"} where it has no token.

        Args:
          params: the parameters of the model.
          model_cfg: the model.
          tokenizer: the tokenizer of the texts.
          inputs: texts.
          top: not used.
          seed: the seed of the first phases of Griffin-Lim.
        """
        speak = jax.jit(_spoken, static_argnums=(1, 4))
        for text in inputs:
            try:
                labels = np.asarray(tokenizer.encode(" ".join(text.split())))
            except InputError as error:
                yield {"text": text, "error": str(error)}
                continue
            if not len(labels):
                yield {"text": text, "error": "an empty text"}
                continue
            room = -(-len(labels) // 32) * 32  # few lengths are compiled
            row_BS = np.zeros((1, room), np.int32)
            row_BS[0, : len(labels)] = labels
            steps = int(room * SLOWEST * waves.RATE) // model_cfg.step_samples
            wave_BW, durations_BS = speak(
                params, model_cfg, row_BS, np.array([len(labels)], np.int32), steps, jax.random.key(seed)
            )
            count = int(durations_BS.sum()) * model_cfg.step_samples
            samples_W = waves.as_int16(np.asarray(wave_BW)[0, :count])
            yield {"text": text, "seconds": len(samples_W) / waves.RATE, "samples": samples_W}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The text and its duration."""
        return json.dumps({"text": prediction["text"], "seconds": prediction["seconds"]}, ensure_ascii=False)


def _spoken(
    params: Any, model_cfg: Any, labels_BS: jax.Array, sizes_B: jax.Array, steps: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(waves [B, W], silent after their end; the steps of each token [B, S])."""
    family = models.family(model_cfg)
    x_BSD = family.encode(params, model_cfg, labels_BS, sizes_B)
    durations_BS = family.whole_durations(family.log_durations(params, model_cfg, x_BSD), sizes_B)
    left_BS = steps - jnp.cumsum(durations_BS, axis=1) + durations_BS  # what is too long for the row is truncated
    durations_BS = jnp.clip(durations_BS, 0, jnp.maximum(left_BS, 0))
    waves_BW = family.to_waves(model_cfg, family.decode(params, model_cfg, x_BSD, durations_BS, steps=steps), key)
    inside_BW = jnp.arange(waves_BW.shape[1]) < durations_BS.sum(1)[:, None] * model_cfg.step_samples
    return jnp.where(inside_BW, waves_BW, 0.0), durations_BS


def _path(logits_BTV: jax.Array, steps_B: jax.Array, blank: int) -> jax.Array:
    """The most probable symbol of each step, int32 [B, T]; blank after the end."""
    inside_BT = jnp.arange(logits_BTV.shape[1]) < steps_B[:, None]
    return jnp.where(inside_BT, jnp.argmax(logits_BTV, axis=-1), blank).astype(jnp.int32)


def _texts(path_ET: np.ndarray, known: utterances.Reference) -> list[str]:
    written = [known.tokenizer.decode(decoding.collapsed(path_T, blank=known.blank)) for path_T in path_ET]
    by_utterance = dict(zip((int(known.rows.packed[row][0]) for row in known.rows.order), written, strict=False))
    return [by_utterance[p] for p in range(len(known.texts))]
