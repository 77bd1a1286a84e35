"""Speech recognition by connectionist temporal classification (CTC): what was spoken, and when.

The host sends samples as int16; augmentation and the model's features are part of the loss, on the device. Each row of
metrics has the label error rate of the greedy transcripts of its batch, which begins at 1 (nothing is written) and is
what says whether a run learns, and the share of frames that are blank.

Letters: B rows, W samples, U utterances of a row, F frames, M features, T steps, S labels, V labels and the blank.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from transformer_jax import contracts, files, metrics, models, sharding, sound
from transformer_jax.augment import speech as augmentations
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Prepared, Progress, Sums, Task, no_progress
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.data import waves
from transformer_jax.decoding import ctc as decoding
from transformer_jax.errors import InputError
from transformer_jax.losses import ctc
from transformer_jax.nn import config
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks.speech_recognition import pictures, utterances

NO_MASKS = augmentations.SpecAugment(bands=0, spans=0.0)
EXAMPLES = 5  # transcripts that a run prints beside their references
WINDOW = 30.0  # seconds of a longer file that `predict` reads at a time
MARGIN = 2.0  # seconds on both sides of a window that are read twice, for the transcript of the middle


@dataclass(frozen=True)
class Listen:
    """The options of `predict`."""

    top: int
    """Transcripts of each file; above 1 only with a beam."""
    beam: int = 1
    """Prefixes of the beam search; 1: the labels of the most probable path."""
    file: str = ""
    """A text file with the path of a sound file on each line."""
    out: str = ""
    """Write the answers into this .csv or .jsonl file instead of printing them."""
    json: bool = False
    """One JSON object per line."""


@dataclass(frozen=True)
class SpeechRecognition(Task):
    """The CTC loss of the transcripts' tokens; reported are word and character error rates."""

    reads_text: ClassVar[bool] = True
    unit: ClassVar[str] = "seconds"
    pipeline_tag: ClassVar[str] = "automatic-speech-recognition"

    waves: tuple[augmentations.WaveAugmentation, ...] = ()
    """The augmentations of training waves, in this order, on the device."""
    masks: augmentations.SpecAugment = NO_MASKS
    """The bands and spans of training features that become 0; by default none."""

    def check(self, model_cfg: Any, data: utterances.Speech) -> None:
        """Refuses a model that does not suit the utterances."""
        functions, settings = ("features", "logits", "steps"), ("vocab_size", "blank", "step_samples")
        models.require(model_cfg, "task SpeechRecognition", functions, settings)
        contracts.require_data(data, "task SpeechRecognition", ("samples", "pack", "seconds", "labels", "per_row"))
        longest, step = data.samples // data.pack, model_cfg.step_samples
        if longest % step:
            seconds = -(-longest // step) * step / waves.RATE
            raise InputError(
                f"data.seconds = {data.seconds:g} is no whole number of steps of the model; give {seconds:g}"
            )
        if data.pack > 1 and not hasattr(model_cfg, "gap"):
            raise InputError(f"data.pack = {data.pack}: {models.name(model_cfg)} reads one utterance a row; give 1")

    def example(self, data: utterances.Speech) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        return utterances.example(data)

    def prepare(self, data: utterances.Speech, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The decoded utterances, packed into rows."""
        self.check(model_cfg, data)
        made = utterances.prepare(data, model_cfg, seed=seed, tokenizer=workdir_tokenizer)
        return dataclasses.replace(made, facts={**made.facts, "baseline_wer_of_empty_transcripts": 1.0})

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, sums) in nats per utterance; with a key, waves and features are augmented.

        The sums are "loss", "loss_per_label", "label_error_rate" of the greedy transcripts, and "blank_rate".
        """
        logits_BTV, lengths_BU = self._logits(params, model_cfg, batch, key)
        return self._losses(model_cfg, logits_BTV, lengths_BU, batch)

    def _logits(
        self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """(logits [B, T, V], the utterances' lengths [B, U] after augmentation)."""
        model_key, *keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        family, wave_key = models.family(model_cfg), keys[0]

        def prepared(
            waves_BW: jax.Array, starts_BU: jax.Array, lengths_BU: jax.Array, *keys: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            waves_BW = sound.as_float(waves_BW)
            if keys:
                waves_BW, lengths_BU = augmentations.apply(keys[0], waves_BW, starts_BU, lengths_BU, self.waves)
            x_BFM = family.features(model_cfg, waves_BW, starts_BU, lengths_BU)
            return augmentations.masked(keys[1], x_BFM, self.masks) if keys else x_BFM, lengths_BU

        given = (batch["waves"], batch["starts"], batch["lengths"], *(keys if wave_key is not None else ()))
        x_BFM, lengths_BU = _anywhere(prepared, given, (("batch", None, None), ("batch", None)))
        logits_BTV = family.logits(params, model_cfg, x_BFM, batch["starts"], lengths_BU, key=model_key)
        return logits_BTV, lengths_BU

    def _losses(
        self, model_cfg: Any, logits_BTV: jax.Array, lengths_BU: jax.Array, batch: Mapping[str, jax.Array]
    ) -> Any:
        pack = max(1, batch["starts"].shape[1] // 2)  # rows are that many times as long as an utterance may be

        def of(logits_BTV: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
            starts_BU, lengths_BU, labels_BUS, sizes_BU, weights_BU = arrays
            steps_BU = models.family(model_cfg).steps(model_cfg, lengths_BU)
            each_NtV = _each(logits_BTV, starts_BU // model_cfg.step_samples, pack)
            steps_N, labels_NS, sizes_N, weights_N = (
                x.reshape(-1, *x.shape[2:]) for x in (steps_BU, labels_BUS, sizes_BU, weights_BU)
            )
            nats, weight, _ = ctc.ctc(each_NtV, steps_N, labels_NS, sizes_N, weights_N, blank=model_cfg.blank)
            path_Nt = jnp.argmax(each_NtV, axis=-1)
            inside_Nt = (jnp.arange(path_Nt.shape[1]) < steps_N[:, None]) * weights_N[:, None]
            wrong_N = _label_errors(
                jnp.where(inside_Nt > 0, path_Nt, model_cfg.blank), labels_NS, sizes_N, model_cfg.blank
            )
            blanks = jnp.sum(inside_Nt * (path_Nt == model_cfg.blank))
            return nats, weight, jnp.sum(wrong_N * weights_N), jnp.sum(sizes_N * weights_N), blanks, jnp.sum(inside_Nt)

        given = (logits_BTV, batch["starts"], lengths_BU, batch["labels"], batch["sizes"], batch["weights"])
        nats, weight, wrong, labels, blanks, steps = _anywhere(of, given, ((),) * 6)
        sums = {"loss": (nats, weight), "loss_per_label": (nats, labels), "label_error_rate": (wrong, labels)}
        return nats, weight, jax.lax.stop_gradient(sums | {"blank_rate": (blanks, steps)})

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss` without augmentation, and the most probable symbol of each step of every row."""
        logits_BTV, lengths_BU = self._logits(params, model_cfg, batch, None)
        sums = self._losses(model_cfg, logits_BTV, lengths_BU, batch)[2]
        return sums, {"path": jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32)}

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_utterance"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Word and character error rates of the greedy transcripts, the loss, and the share of steps that are blank.

        A set of several parts has the word error rate of each, too.
        """
        known: utterances.Reference = evaluation.reference
        written = _written(outputs["path"], known)
        scores = metrics.error_rates(written, known.texts)
        for part, name in enumerate(known.parts):
            own = np.flatnonzero(known.part_P == part).tolist()
            rates = metrics.error_rates([written[p] for p in own], [known.texts[p] for p in own])
            scores |= {f"{rate}_{name}": rates[rate] for rate in ("wer", "wer_low", "wer_high", "cer")}
        nats, blank = sums["loss"], sums["blank_rate"]
        return scores | {
            "loss_nats_per_utterance": nats[0] / max(nats[1], 1e-9),
            "blank_rate": blank[0] / max(blank[1], 1e-9),
        }

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """The alignment of three utterances; the transcripts are written beside it, a line for each."""
        known: utterances.Reference = evaluation.reference
        for kind, texts in (("hypotheses", _written(outputs["path"], known)), ("references", known.texts)):
            files.write(folder / f"{name}.{kind}.txt", "".join(f"{text}\n" for text in texts))
        path = folder / f"{name}_alignment.png"
        pictures.plot(_paths(outputs["path"], known), known, path)
        return [path]

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
        """No further numbers; logs five transcripts beside their references."""
        known: utterances.Reference = evaluation.reference
        if jax.process_count() > 1:  # the parameters are on several hosts, and `report` has the numbers
            return {}
        chosen = sorted(set(np.linspace(0, len(known.texts) - 1, EXAMPLES).astype(int).tolist()))
        given = [known.rows.samples_of(p) for p in chosen]
        with jax.set_mesh(sharding.make_mesh(devices=jax.local_devices()[:1])):  # a row does not divide over devices
            found = list(self._transcribed(jax.device_get(params), model_cfg, tokenizer, given, 1, 1))
        for p, best in zip(chosen, found, strict=True):
            log(f"said     {known.texts[p]}\n    written  {best[0][0]}")
        return {}

    # ------------------------------------------------------------------------------------------------------ throughput

    def tokens(self, data: utterances.Speech) -> int:
        """The seconds of a row, silence included."""
        return max(1, round(data.samples / waves.RATE))

    def flops(self, model_cfg: Any, data: utterances.Speech) -> float:
        """The FLOPs of a training step on one row, forward and backward, without the features (PaLM, appendix B)."""
        T = data.samples // model_cfg.step_samples
        scores = config.attention_width(model_cfg) * T * T
        return params_lib.flops(models.family(model_cfg).declare(model_cfg), lambda path: float(T), scores)

    # ------------------------------------------------------------------------------------------------------ prediction

    def default_data(self, tokenizer: Any, model_cfg: Any) -> utterances.Speech:
        """A table that the user has to give."""
        from transformer_jax.tasks.speech_recognition import recordings

        seconds = 16.0 // (model_cfg.step_samples / waves.RATE) * model_cfg.step_samples / waves.RATE
        return utterances.Speech(recordings.Recordings(("recordings.tsv",)), tokenizer, seconds=seconds)

    def default_sample(self) -> Predict:
        """One transcript."""
        return Predict(top=1)

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Predict) -> None:
        """Refuses files that cannot be read."""
        for path in options.inputs:
            utterances.decoded(utterances.Utterance(Path(path), "", path))

    def predict_options(self, defaults: Predict) -> Listen:
        """The options of `predict`: the beam, and how many transcripts."""
        return Listen(top=defaults.top)

    def read(self, given: Sequence[str], options: Listen) -> list[Input]:
        """The given sound files, and those in the given folders."""
        return inputs_lib.sounds(given, options.file)

    def answers(
        self, loaded: Any, queries: Sequence[Any], options: Listen, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """The transcripts of each file."""
        if options.top > max(1, options.beam):
            raise InputError(f"--top {options.top} of --beam {options.beam}: give at most as many as the beam holds")
        model = (loaded.params, loaded.config, loaded.tokenizer)
        return self.predict(*model, queries, top=options.top, beam=options.beam)

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int, beam: int = 1
    ) -> Iterator[dict[str, Any]]:
        """For each sound file {"sound": its path, "text", "seconds"}, and of several {"texts", "log_probabilities"}.

        A file that has no sound to read has {"sound", "error"}.

        Args:
          params: the parameters of the model.
          model_cfg: the model.
          tokenizer: decodes the labels.
          inputs: paths of sound files.
          top: transcripts of each; at most `beam`.
          beam: prefixes of the beam search; 1: the labels of the most probable path.
        """
        for path in inputs:
            if isinstance(samples_W := waves.tried(Path(path)), str):
                yield {"sound": path, "error": samples_W}
                continue
            (found,) = self._transcribed(params, model_cfg, tokenizer, [samples_W], beam, top)
            answer: dict[str, Any] = {"sound": path, "text": found[0][0], "seconds": len(samples_W) / waves.RATE}
            if top > 1:
                answer |= {"texts": [text for text, _ in found], "log_probabilities": [score for _, score in found]}
            yield answer

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The transcripts, each on a line."""
        return "\n".join(prediction.get("texts", (prediction["text"],)))

    def _transcribed(
        self, params: Any, model_cfg: Any, tokenizer: Any, given: Sequence[np.ndarray], beam: int, top: int
    ) -> Iterator[list[tuple[str, float]]]:
        """The `top` transcripts and their log probabilities for each of the given samples."""

        @jax.jit
        def log_probabilities(params: Any, waves_BW: jax.Array, lengths_BU: jax.Array) -> jax.Array:
            rows = {"waves": waves_BW, "starts": jnp.zeros_like(lengths_BU), "lengths": lengths_BU}
            return jax.nn.log_softmax(self._logits(params, model_cfg, rows, None)[0])

        for samples_W in given:
            parts = [
                np.asarray(log_probabilities(params, *_row(part_W, model_cfg)))[0, first:end]
                for part_W, first, end in _windows(samples_W, model_cfg)
            ]
            log_p_TV = np.concatenate(parts)
            if beam > 1:
                found = decoding.prefix_beam(log_p_TV, blank=model_cfg.blank, width=beam, nbest=top)
                yield [(tokenizer.decode(one.labels), one.score) for one in found]
            else:
                yield [
                    (tokenizer.decode(decoding.greedy(log_p_TV, blank=model_cfg.blank)), float(log_p_TV.max(-1).sum()))
                ]


# ---- Helpers of the loss -------------------------------------------------------------------------------------------


def _anywhere(
    f: Callable[..., tuple[jax.Array, ...]], given: Sequence[jax.Array], out: Sequence[sharding.Axes]
) -> tuple[jax.Array, ...]:
    """f(*given), which is written without regard to sharding: in an Explicit mesh the compiler shards inside it.

    Args:
      f: must not close over arrays.
      given: its arguments.
      out: the logical axes of each result.
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return tuple(sharding.constrain(x, axes) for x, axes in zip(f(*given), out, strict=True))
    shapes = jax.eval_shape(f, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given))  # without their shardings
    specs = tuple(sharding.specs(axes, x.shape)[1] for axes, x in zip(out, shapes, strict=True))
    return jax.sharding.auto_axes(f, out_sharding=specs)(*given)


def _each(logits_BTV: jax.Array, first_BU: jax.Array, pack: int) -> jax.Array:
    """The logits of each utterance by itself, [B * U, T // pack, V]; what follows it in its row is not removed."""
    if first_BU.shape[1] == 1:
        return logits_BTV
    B, T, V = logits_BTV.shape
    at_BUt = jnp.minimum(first_BU[..., None] + jnp.arange(T // pack), T - 1)
    return jnp.take_along_axis(logits_BTV, at_BUt.reshape(B, -1, 1), axis=1).reshape(-1, T // pack, V)


def _label_errors(path_NT: jax.Array, labels_NS: jax.Array, sizes_N: jax.Array, blank: int) -> jax.Array:
    """The edit distance from the labels that a path spells to the given ones, float32 [N].

    Args:
      path_NT: the most probable symbols; blank after the end.
      labels_NS: the labels.
      sizes_N: how many they are.
      blank: the symbol of the blank.
    """
    before_NT = jnp.concatenate([jnp.full_like(path_NT[:, :1], blank), path_NT[:, :-1]], axis=1)
    steps_S = jnp.arange(labels_NS.shape[1] + 1)

    def read(row_NS: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        symbol_N, says_N = xs
        best_NS = jnp.minimum(row_NS[:, 1:] + 1, row_NS[:, :-1] + (labels_NS != symbol_N[:, None]))
        next_NS = jnp.concatenate([row_NS[:, :1] + 1, best_NS], axis=1)
        next_NS = steps_S + jax.lax.cummin(next_NS - steps_S, axis=1)
        return jnp.where(says_N[:, None], next_NS, row_NS), None

    says_NT = (path_NT != blank) & (path_NT != before_NT)
    begin_NS = jnp.broadcast_to(steps_S, (len(path_NT), len(steps_S)))
    row_NS, _ = jax.lax.scan(read, begin_NS, (path_NT.T, says_NT.T))
    return jnp.take_along_axis(row_NS, sizes_N[:, None], axis=1)[:, 0].astype(jnp.float32)


# ---- Helpers of the report -----------------------------------------------------------------------------------------


def _paths(path_ET: np.ndarray, known: utterances.Reference) -> dict[int, np.ndarray]:
    """{utterance: the most probable symbol of each of its steps}.

    Args:
      path_ET: the path of every row.
      known: the set.
    """
    made = known.rows
    found = {}
    for row, path_T in zip(made.order, path_ET, strict=False):
        start = 0
        for p in made.packed[row]:
            steps = -(-int(made.lengths_P[p]) // made.step)
            found[int(p)] = path_T[start : start + steps]
            start += int(made.slots_P[p])
    return found


def _written(path_ET: np.ndarray, known: utterances.Reference) -> list[str]:
    """The greedy transcript of each utterance."""
    paths = _paths(path_ET, known)
    return [known.tokenizer.decode(decoding.collapsed(paths[p], blank=known.blank)) for p in range(len(known.texts))]


# ---- Helpers of prediction -----------------------------------------------------------------------------------------


def _windows(samples_W: np.ndarray, model_cfg: Any) -> Iterator[tuple[np.ndarray, int, int]]:
    """(samples, the first and the end of the steps that are kept) of each window of a recording.

    A recording of up to `WINDOW` seconds is one window. Of a longer one the steps in the margins are dropped, which the
    window before or after has with more around them.
    """
    step = model_cfg.step_samples
    size, margin = (int(seconds * waves.RATE) // step * step for seconds in (WINDOW, MARGIN))
    begin, W = 0, len(samples_W)
    while True:
        part_W = samples_W[begin : begin + size]
        is_last = begin + size >= W
        first = 0 if begin == 0 else margin // step
        yield part_W, first, -(-len(part_W) // step) if is_last else (size - margin) // step
        if is_last:
            return
        begin += size - 2 * margin


def _row(samples_W: np.ndarray, model_cfg: Any) -> tuple[np.ndarray, np.ndarray]:
    """(a row [1, W] of one utterance, padded so that few lengths are compiled; its length [1, 1])."""
    step, second = model_cfg.step_samples, 2 * waves.RATE
    wanted = -(-max(len(samples_W), 1) // second) * second
    row_W = np.zeros(-(-wanted // step) * step, np.int16)
    row_W[: len(samples_W)] = samples_W
    return row_W[None], np.array([[len(samples_W)]], np.int32)
