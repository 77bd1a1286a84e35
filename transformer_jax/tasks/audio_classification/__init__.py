"""Classification of sounds: which of several classes a recording is.

The host sends samples as int16; augmentation and the model's features are part of the loss, on the device. Beside the
accuracy stands that of a linear classifier of the mean spectrum, which a model has to beat.

Letters: B rows, W samples, F frames, M mel bins, K classes, E sounds of a set.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import contracts, figures, metrics, models, sound
from transformer_jax.augment import speech as augmentations
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Prepared, Progress, Sums, Task, no_progress
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.data import waves
from transformer_jax.errors import InputError
from transformer_jax.tasks import encoder, pixels
from transformer_jax.tasks.audio_classification import sounds
from transformer_jax.tasks.image_classification import CONFUSION

NO_MASKS = augmentations.SpecAugment(bands=0, spans=0.0)
PREDICT_ROWS = 16  # sounds in a batch of `predict`


@dataclass(frozen=True)
class Classify:
    """The options of `predict`."""

    top: int
    """Classes to give for each sound."""
    file: str = ""
    """A text file with the path of a sound file on each line."""
    out: str = ""
    """Write the answers into this .csv or .jsonl file instead of printing them."""
    json: bool = False
    """One JSON object per line."""


@dataclass(frozen=True)
class AudioClassification(Task):
    """The cross-entropy of the class of a sound."""

    unit: ClassVar[str] = "sounds"
    pipeline_tag: ClassVar[str] = "audio-classification"

    labels: tuple[str, ...] = ()
    """The names, in the order of the model's outputs; (): those of the data, filled in when a run begins."""
    waves: tuple[augmentations.WaveAugmentation, ...] = ()
    """The augmentations of training waves, in this order, on the device."""
    masks: augmentations.SpecAugment = NO_MASKS
    """The bands and spans of training features that become 0; by default none."""
    label_smoothing: float = 0.0
    """The share of each target that is spread over all classes. The reported loss is without it."""

    def __post_init__(self) -> None:
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise InputError(f"task.labels = {self.labels}: give two or more different names, or none")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"task.label_smoothing = {self.label_smoothing}: must be in [0, 1)")

    # ------------------------------------------------------------------------------------------------------------ data

    def settle(self, data: sounds.Sounds) -> "AudioClassification":
        """This task, with the classes of the data if it has no labels."""
        return self if self.labels else dataclasses.replace(self, labels=data.classes())

    def sized(self, model_cfg: Any) -> Any:
        """`model_cfg` with as many classes as the labels, where the number is its default."""
        return contracts.fill(model_cfg, "num_classes", len(self.labels)) if self.labels else model_cfg

    def check(self, model_cfg: Any, data: sounds.Sounds) -> None:
        """Refuses a model that does not suit the sounds."""
        models.require(model_cfg, "task AudioClassification", ("features", "apply"), ("num_classes", "window"))
        contracts.require_data(data, "task AudioClassification", ("source", "samples", "memory", "classes"))
        if data.samples > model_cfg.window:
            seconds = model_cfg.window / waves.RATE
            raise InputError(f"data.seconds = {data.seconds:g} is longer than the {seconds:g} s that the model reads")
        if self.labels and model_cfg.num_classes != len(self.labels):
            raise InputError(
                f"model.num_classes is {model_cfg.num_classes}, but there are {len(self.labels)} classes "
                f"({', '.join(self.labels[:5])}{', ...' if len(self.labels) > 5 else ''}); "
                f"give --model.num-classes {len(self.labels)}"
            )

    def example(self, data: sounds.Sounds) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        return {
            "waves": jax.ShapeDtypeStruct((data.samples,), np.int16),
            "lengths": jax.ShapeDtypeStruct((), np.int32),
            "labels": jax.ShapeDtypeStruct((), np.int32),
            "weights": jax.ShapeDtypeStruct((), np.float32),
        }

    def prepare(self, data: sounds.Sounds, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The decoded sounds. There is no tokenizer.

        Raises:
          InputError: a model that does not suit the sounds, and what `sounds.prepare` refuses.
        """
        task = self.settle(data)
        task.check(model_cfg, data)
        return sounds.prepare(data, task.labels, seed=seed)

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight), "accuracy": (right, sounds)}) in nats; with a key, augmented."""
        return self._losses(self._logits(params, model_cfg, batch, key), batch)

    def _logits(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        model_key, *keys = (None,) if key is None else jax.random.split(key, 3)
        family = models.family(model_cfg)

        def prepared(waves_BW: jax.Array, lengths_B: jax.Array, *keys: jax.Array) -> tuple[jax.Array, ...]:
            waves_BW = sound.as_float(waves_BW)
            if keys:
                starts_B1 = jnp.zeros_like(lengths_B)[:, None]
                given = (keys[0], waves_BW, starts_B1, lengths_B[:, None], self.waves)
                waves_BW, lengths_B1 = augmentations.apply(*given)
                lengths_B = lengths_B1[:, 0]
            x_BFM = family.features(model_cfg, waves_BW, lengths_B)
            return (augmentations.masked(keys[1], x_BFM, self.masks) if keys else x_BFM,)

        given = (batch["waves"], batch["lengths"], *keys)
        shapes = jax.eval_shape(prepared, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given))
        (x_BFM,) = pixels.in_auto_mesh(prepared, *given, out=(("batch", None, None),), shapes=[shapes[0].shape])
        return family.apply(params, model_cfg, x_BFM, key=model_key)

    def _losses(self, logits_BK: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
        weights_B, K = batch["weights"], logits_BK.shape[-1]
        log_p_BK, targets_BK = jax.nn.log_softmax(logits_BK), jax.nn.one_hot(batch["labels"], K)
        smooth_BK = (1.0 - self.label_smoothing) * targets_BK + self.label_smoothing / K
        total, plain = (-jnp.sum(weights_B * jnp.sum(t_BK * log_p_BK, axis=-1)) for t_BK in (smooth_BK, targets_BK))
        count, right_B = jnp.sum(weights_B), jnp.argmax(logits_BK, axis=-1) == batch["labels"]
        sums = {"loss": (plain, count), "accuracy": (jnp.sum(weights_B * right_B), count)}
        return total, count, jax.lax.stop_gradient(sums)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss` without augmentation, and the logits of every sound."""
        logits_BK = self._logits(params, model_cfg, batch, None)
        return self._losses(logits_BK, batch)[2], {"logits": logits_BK}

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_sound"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The loss; the accuracy with its 95 % interval, and the baseline's, of the set and of each of its parts.

        Top-5 accuracy needs more than five classes.
        """
        known: sounds.Reference = evaluation.reference
        logits_EK = outputs["logits"]
        scores = {"loss_nats_per_sound": sums["loss"][0] / max(sums["loss"][1], 1e-9)}
        right_E = metrics.top(logits_EK, known.labels_E, 1)
        for name, is_own_E in _parts(known).items():
            own_E = right_E[is_own_E]
            low, high = metrics.wilson(int(own_E.sum()), len(own_E))
            scores |= {f"accuracy{name}": float(own_E.mean()), f"accuracy_low{name}": low, f"accuracy_high{name}": high}
            scores[f"baseline_accuracy{name}"] = float(known.baseline_E[is_own_E].mean())
        if logits_EK.shape[1] > 5:
            scores["accuracy_top5"] = float(metrics.top(logits_EK, known.labels_E, 5).mean())
        probability_EK = np.nan_to_num(_softmax(logits_EK))  # NaN if the model has diverged
        return scores | {"calibration_error": metrics.calibration(probability_EK.max(-1), right_E).error}

    def records(self, outputs: Outputs, evaluation: Evaluation) -> dict[str, Sequence[Any]]:
        """Of each sound the loss in nats, whether the answer is right, the label and the answer."""
        return metrics.by_example(outputs["logits"], evaluation.reference.labels_E, self.labels)

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """The confusion matrix, of up to 60 classes."""
        if len(self.labels) > CONFUSION:
            return []
        path = folder / f"{name}_confusion.png"
        figures.confusion(evaluation.reference.labels_E, outputs["logits"].argmax(-1), self.labels, path)
        return [path]

    # ------------------------------------------------------------------------------------------------------ throughput

    def flops(self, model_cfg: Any, data: sounds.Sounds) -> float:
        """The FLOPs of a training step on one sound, where the model has patches, without the features."""
        return encoder.image_flops(model_cfg) if hasattr(model_cfg, "num_patches") else 0.0

    # ------------------------------------------------------------------------------------------------------ prediction

    def snapshot_settings(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": self.labels}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> sounds.Sounds:
        """A folder that the user has to give."""
        return sounds.Sounds(sounds.Folders("sounds"), seconds=model_cfg.window // 160 / 100)

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Predict) -> None:
        """Refuses files that cannot be read."""
        for path in options.inputs:
            if isinstance(found := waves.tried(Path(path)), str):
                raise InputError(f"{path}: {found}")

    def predict_options(self, defaults: Predict) -> Classify:
        """The options of `predict`: how many classes."""
        return Classify(top=defaults.top)

    def read(self, given: Sequence[str], options: Classify) -> list[Input]:
        """The given sound files, and those in the given folders."""
        return inputs_lib.sounds(given, options.file)

    def answers(
        self, loaded: Any, asked: Sequence[Any], options: Classify, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """The classes of each sound."""
        return self.predict(loaded.params, loaded.config, None, asked, top=options.top)

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """For each sound file {"sound": its path, "label", "probability", "top": [{"label", "probability"}, ...]}.

        A sound that the model does not read whole has "seconds_unread" as well. A file without sound has {"sound",
        "error"}.

        Args:
          params: of the model.
          model_cfg: the model.
          tokenizer: not used.
          inputs: paths of sound files.
          top: classes for each sound.

        Raises:
          InputError: a model without a classification head.
        """
        if not model_cfg.num_classes:
            raise InputError("the model has no classification head; train one with --init-from")
        step = jax.jit(lambda params, batch: self._logits(params, model_cfg, batch, None))
        paths, size = iter(inputs), model_cfg.window
        while group := list(itertools.islice(paths, PREDICT_ROWS)):
            read = [waves.tried(Path(path)) for path in group]
            rows = 1 if len(group) == 1 else PREDICT_ROWS  # so that two shapes are compiled
            batch = {"waves": np.zeros((rows, size), np.int16), "lengths": np.zeros(rows, np.int32)}
            for b, found in enumerate(read):
                if isinstance(found, np.ndarray):
                    batch["lengths"][b] = len(found[:size])
                    batch["waves"][b, : len(found[:size])] = found[:size]
            probability_BK = _softmax(np.asarray(step(params, batch)))
            for path, found, probability_K in zip(group, read, probability_BK, strict=False):
                if isinstance(found, str):
                    yield {"sound": path, "error": found}
                    continue
                order = np.argsort(-probability_K, kind="stable")[:top]
                best = [{"label": self.labels[k], "probability": float(probability_K[k])} for k in order]
                answer: dict[str, Any] = {"sound": path, **best[0], "top": best}
                unread = max(0, len(found) - size) / waves.RATE
                yield answer | ({"seconds_unread": unread} if unread else {})

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One line: "stop 98.1%, up 1.2%: path"."""
        answers = ", ".join(f"{best['label']} {best['probability']:.1%}" for best in prediction["top"])
        more = prediction.get("seconds_unread")
        return f"{answers}: {prediction['sound']}" + (f" (but for its last {more:.1f} s)" if more else "")


def _parts(known: sounds.Reference) -> dict[str, np.ndarray]:
    """{suffix of a metric's name: bool [E]}: of the whole set, and of each of its parts."""
    whole = {"": np.ones(len(known.labels_E), bool)}
    return whole | {f"_{name}": known.part_E == part for part, name in enumerate(known.parts)}


def _softmax(logits_EK: np.ndarray) -> np.ndarray:
    odds_EK = np.exp(logits_EK.astype(np.float64) - logits_EK.max(-1, keepdims=True))
    return odds_EK / odds_EK.sum(-1, keepdims=True)
