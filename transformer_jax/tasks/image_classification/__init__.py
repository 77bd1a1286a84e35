"""Classification of images.

The host sends pixels as uint8. Augmentation, mixing of images and labels, and normalisation are part of the loss, on
the device.

Letters: B rows, Y and X pixels, C channels, K classes, E images of a set.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import augment as augmentations
from transformer_jax import contracts, figures, metrics, models
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Prepared, Progress, Sums, Task, no_progress
from transformer_jax.data import image_files, image_sources, images
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.tasks import encoder, pixels
from transformer_jax.tasks.image_classification import pictures

PUBLISHED = Preprocess()  # the published ViT's
PREDICT_ROWS = 32  # the images of a batch of `predict`
MISTAKES = 40  # the most images in the picture of the worst mistakes
CONFUSION = 60  # a confusion matrix with more classes cannot be read, and is not drawn


@dataclass(frozen=True)
class Look:
    """The options of `predict`."""

    top: int
    """Labels to give for each image."""
    attention: bool = False
    """Draw the attention of the model into FOLDER/NAME_attention.png."""
    folder: str = "."
    """The folder for these pictures."""
    file: str = ""
    """A text file with the path of an image on each line."""
    out: str = ""
    """Write the answers into this .csv or .jsonl file instead of printing them."""
    json: bool = False
    """One JSON object per line."""


@dataclass(frozen=True)
class ImageClassification(Task):
    """The cross-entropy of the class of an image, or of each class independently."""

    unit: ClassVar[str] = "images"
    pipeline_tag: ClassVar[str] = "image-classification"

    labels: tuple[str, ...] = ()
    """The names, in the order of the model's outputs; (): those of the data, filled in when a run begins."""
    preprocess: Preprocess = PUBLISHED
    """The preprocessing at evaluation; training uses its normalisation."""
    objective: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: one of several classes; sigmoid: each class independently, summed over them (Beyer et al. 2020)."""
    augment: tuple[augmentations.Augmentation, ...] = ()
    """The augmentations of training images, in this order, on the device."""
    mixup: float = 0.0
    """MixUp's alpha: images and targets of two rows are blended (Zhang et al. 2018); 0: off."""
    cutmix: float = 0.0
    """CutMix's alpha: a box is replaced by another image's (Yun et al. 2019); 0: off. With MixUp, each row has one."""
    label_smoothing: float = 0.0
    """The share of each target that is spread over all classes (Szegedy et al. 2016)."""

    def __post_init__(self) -> None:
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise InputError(f"task.labels = {self.labels}: give two or more different names, or none")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"task.label_smoothing = {self.label_smoothing}: must be in [0, 1)")
        if min(self.mixup, self.cutmix) < 0:
            raise InputError(f"task.mixup = {self.mixup}, task.cutmix = {self.cutmix}: must be 0 (off) or more")
        if len(self.preprocess.mean) not in (1, 3):
            raise InputError(f"task.preprocess.mean = {self.preprocess.mean}: images have 1 channel (grey) or 3 (RGB)")

    def settle(self, data: images.ImageSet) -> "ImageClassification":
        """This task, with the classes of the data if it has no labels."""
        return self if self.labels else dataclasses.replace(self, labels=data.source.classes())

    def sized(self, model_cfg: Any) -> Any:
        """`model_cfg` with as many classes as the labels, where the number is its default."""
        return contracts.fill(model_cfg, "num_classes", len(self.labels)) if self.labels else model_cfg

    def check(self, model_cfg: Any, data: Any) -> None:
        """Refuses a model that does not suit the images."""
        models.require(model_cfg, "task ImageClassification", ("apply",), ("image_size", "channels", "num_classes"))
        reads = ("source", "train_crop", "crop_area", "broken", "memory")
        contracts.require_data(data, "task ImageClassification", reads)
        pixels.check(model_cfg, self.preprocess)
        if getattr(model_cfg, "detector", "none") != "none":
            raise InputError(f"model.detector is {model_cfg.detector!r}; classification needs 'none'")
        if self.labels and model_cfg.num_classes != len(self.labels):
            raise InputError(
                f"model.num_classes is {model_cfg.num_classes}, but there are {len(self.labels)} classes "
                f"({', '.join(self.labels[:5])}{', ...' if len(self.labels) > 5 else ''}); "
                f"give --model.num-classes {len(self.labels)}"
            )

    def example(self, data: images.ImageSet) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        return {
            "images": jax.ShapeDtypeStruct(self.preprocess.shape, np.uint8),
            "labels": jax.ShapeDtypeStruct((), np.int32),
            "weights": jax.ShapeDtypeStruct((), np.float32),
        }

    def prepare(self, data: images.ImageSet, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The images, decoded if they fit into memory. There is no tokenizer.

        Raises:
          InputError: a model that does not suit the images, and what `images.prepare` refuses.
        """
        task = self.settle(data)
        task.check(model_cfg, data)
        made = images.prepare(data, self.preprocess, task.labels, seed=seed)
        test = None if made.test is None else Evaluation(made.test, task.labels)
        return Prepared(made.train, Evaluation(made.validation, task.labels), made.facts, test=test)

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight), "accuracy": (right, images)}) in nats.

        With a key, images are augmented and mixed; the accuracy is then that of the class with the largest share. The
        loss in the dict is without label smoothing.
        """
        images_BYXC = batch["images"].astype(jnp.float32) / 255.0
        targets_BK = jax.nn.one_hot(batch["labels"], model_cfg.num_classes)
        weights_B, model_key = batch["weights"], None
        if key is not None:
            model_key, *keys = jax.random.split(key, 3)
            layout = (("batch", None, None, None), ("batch", None), ("batch",))
            images_BYXC, targets_BK, weights_B = pixels.in_auto_mesh(
                self._augmented, *keys, images_BYXC, targets_BK, weights_B, out=layout
            )
        logits_BK = self._logits(params, model_cfg, images_BYXC, key=model_key)
        return self._losses(logits_BK, targets_BK, weights_B)

    def _augmented(
        self,
        augment_key: jax.Array,
        mix_key: jax.Array,
        images_BYXC: jax.Array,
        targets_BK: jax.Array,
        weights_B: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """Augmented and mixed images, targets and weights. A row mixed with a skipped image (weight 0) has weight 0."""
        images_BYXC = augmentations.apply(augment_key, images_BYXC, self.augment)
        if self.mixup or self.cutmix:
            weights_B = weights_B * jnp.roll(weights_B, 1)
        alphas = {"mixup_alpha": self.mixup, "cutmix_alpha": self.cutmix}
        return *augmentations.mix(mix_key, images_BYXC, targets_BK, **alphas), weights_B

    def _logits(self, params: Any, model_cfg: Any, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> Any:
        """The logits float32 [B, K] of images float32 in [0, 1]."""
        mean_C, std_C = (jnp.array(x, jnp.float32) for x in (self.preprocess.mean, self.preprocess.std))
        return models.family(model_cfg).apply(params, model_cfg, (images_BYXC - mean_C) / std_C, key=key)

    def _losses(self, logits_BK: jax.Array, targets_BK: jax.Array, weights_B: jax.Array) -> Any:
        K = logits_BK.shape[-1]
        smooth_BK = (1.0 - self.label_smoothing) * targets_BK + self.label_smoothing / K
        images_, nats = jnp.sum(weights_B), self._nats(logits_BK)
        right_B = jnp.argmax(logits_BK, axis=-1) == jnp.argmax(targets_BK, axis=-1)
        total, plain = (jnp.sum(weights_B * nats(targets)) for targets in (smooth_BK, targets_BK))
        sums = {"loss": (plain, images_), "accuracy": (jnp.sum(weights_B * right_B), images_)}
        return total, images_, jax.lax.stop_gradient(sums)

    def _nats(self, logits_BK: jax.Array) -> Any:
        """A function from targets [B, K] to cross-entropies [B]."""
        if self.objective == "softmax":
            log_p_BK = jax.nn.log_softmax(logits_BK)
            return lambda targets_BK: -jnp.sum(targets_BK * log_p_BK, axis=-1)
        yes_BK, no_BK = jax.nn.log_sigmoid(logits_BK), jax.nn.log_sigmoid(-logits_BK)
        return lambda targets_BK: -jnp.sum(targets_BK * yes_BK + (1.0 - targets_BK) * no_BK, axis=-1)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss` without augmentation, and the logits, label and weight of every image."""
        logits_BK = self._logits(params, model_cfg, batch["images"].astype(jnp.float32) / 255.0)
        targets_BK = jax.nn.one_hot(batch["labels"], model_cfg.num_classes)
        outputs = {"logits": logits_BK, "labels": batch["labels"], "weights": batch["weights"]}
        return self._losses(logits_BK, targets_BK, batch["weights"])[2], outputs

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_image"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The loss, the accuracy with its 95 % interval, top-5 accuracy, and expected calibration error in 15 bins.

        Top-5 accuracy needs more than five classes. Images that could not be decoded do not count.
        """
        logits_EK, labels_E = _counted(outputs)
        right_E = metrics.top(logits_EK, labels_E, 1)
        low, high = metrics.wilson(int(right_E.sum()), max(len(labels_E), 1))
        scores = {
            "loss_nats_per_image": sums["loss"][0] / max(sums["loss"][1], 1e-9),
            "accuracy": float(right_E.mean()) if len(labels_E) else 0.0,
            "accuracy_low": low,
            "accuracy_high": high,
        }
        if logits_EK.shape[1] > 5:
            scores["accuracy_top5"] = float(metrics.top(logits_EK, labels_E, 5).mean()) if len(labels_E) else 0.0
        return scores | {"calibration_error": self._calibration(logits_EK, right_E).error}

    def records(self, outputs: Outputs, evaluation: Evaluation) -> dict[str, Sequence[Any]]:
        """Of each image whether the answer is right, the label and the answer; the loss too where it is a softmax's."""
        found = metrics.by_example(outputs["logits"], outputs["labels"], evaluation.reference)
        numbers = ("loss", "accuracy") if self.objective == "softmax" else ("accuracy",)
        weights_E = outputs["weights"]
        pairs: dict[str, Any] = {
            name: np.stack([np.where(weights_E > 0, found[name], 0), weights_E], 1) for name in numbers
        }
        return {**pairs, "label": found["label"], "predicted": found["predicted"]}

    def _calibration(self, logits_EK: np.ndarray, right_E: np.ndarray) -> metrics.Calibration:
        confidence_E = np.nan_to_num(self._probabilities(logits_EK).max(-1))  # NaN if the model has diverged
        return metrics.calibration(confidence_E, right_E)

    def _probabilities(self, logits_EK: np.ndarray) -> np.ndarray:
        logits_EK = logits_EK.astype(np.float64)
        if self.objective == "sigmoid":
            return 1.0 / (1.0 + np.exp(-logits_EK))
        odds_EK = np.exp(logits_EK - logits_EK.max(-1, keepdims=True))
        return odds_EK / odds_EK.sum(-1, keepdims=True)

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """The confusion matrix (of up to 60 classes), the reliability curve, and the most confident mistakes."""
        labels, counted = evaluation.reference, np.flatnonzero(outputs["weights"] > 0)
        logits_EK, labels_E = _counted(outputs)
        predicted_E, probability_EK = logits_EK.argmax(-1), np.nan_to_num(self._probabilities(logits_EK))
        paths = [folder / f"{name}_{what}.png" for what in ("reliability", "mistakes")]
        pictures.plot_reliability(self._calibration(logits_EK, predicted_E == labels_E), paths[0])
        wrong = np.flatnonzero(predicted_E != labels_E)
        worst = wrong[np.argsort(-probability_EK[wrong, predicted_E[wrong]], kind="stable")][:MISTAKES]
        titles = [
            f"{labels[predicted_E[e]]} {probability_EK[e, predicted_E[e]]:.0%}\nis {labels[labels_E[e]]}" for e in worst
        ]
        pictures.plot_mistakes([evaluation.examples[int(counted[e])]["images"] for e in worst], titles, paths[1])
        if len(labels) <= CONFUSION:
            paths.insert(0, folder / f"{name}_confusion.png")
            figures.confusion(labels_E, predicted_E, labels, paths[0])
        return paths

    # ------------------------------------------------------------------------------------------------------ throughput

    def tokens(self, data: images.ImageSet) -> int:
        """1, since throughput is in images."""
        return 1

    def flops(self, model_cfg: Any, data: images.ImageSet) -> float:
        """The FLOPs of a training step on one image, forward and backward: `encoder.image_flops`."""
        return encoder.image_flops(model_cfg)

    # ------------------------------------------------------------------------------------------------------ prediction

    def snapshot_settings(self) -> dict[str, Any]:
        """The labels and the preprocessing."""
        return {"labels": self.labels, "preprocess": self.preprocess}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> images.ImageSet:
        """A folder that the user must provide."""
        return images.ImageSet(image_sources.Folder("images"))

    def adopt(self, theirs: Any, log: Callable[[str], None], origin: str) -> "ImageClassification":
        """With the normalisation of the images that the checkpoint's parameters were trained on. Where the size is
        another and `resize` is still the checkpoint's, `resize` is scaled with the size."""
        ours, found = self.preprocess, theirs.preprocess
        resize = ours.resize
        if ours.size != found.size and ours.resize == found.resize:
            resize = found.scaled(ours.size).resize
            log(f"pictures are resized to {resize} pixels for a size of {ours.size}, as {found.resize} in {origin}")
        if (ours.mean, ours.std) != (found.mean, found.std):
            log(f"images are normalised by mean {found.mean}, std {found.std} as in {origin}")
        adopted = dataclasses.replace(ours, resize=resize, mean=found.mean, std=found.std)
        return dataclasses.replace(self, preprocess=adopted)

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Predict) -> None:
        """Tries to read the images; `predict` reports those that cannot be decoded."""
        for path in options.inputs:
            _read(path, self.preprocess)

    def predict_options(self, defaults: Predict) -> Look:
        """The options of `predict`: how many labels to give per image, and whether to plot the attention weights."""
        return Look(top=defaults.top)

    def read(self, given: Sequence[str], options: Look) -> list[Input]:
        """The given image files, and those in the given folders."""
        paths = given if given and given != ["-"] else [str(one.query) for one in inputs_lib.lines(options.file or "-")]
        return inputs_lib.images(paths)

    def answers(
        self, loaded: Any, asked: Sequence[Any], options: Look, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """The labels of each image.

        Raises:
          InputError: the folder for pictures of the attention does not exist.
        """
        folder = Path(options.folder) if options.attention else None
        if folder is not None and not folder.is_dir():
            raise InputError(f"--folder {folder} is not a folder; make it, or name another")
        return self.predict(loaded.params, loaded.config, None, asked, top=options.top, attention=folder)

    def predict(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        inputs: Iterable[str],
        *,
        top: int,
        attention: Path | None = None,
    ) -> Iterator[dict[str, Any]]:
        """For each image file {"image": its path, "label", "probability", "top": [{"label", "probability"}, ...]}.

        A file that cannot be read or decoded has {"image", "error"}.

        Args:
          params: the parameters of the model.
          model_cfg: the model.
          tokenizer: not used.
          inputs: paths of image files.
          top: labels for each image.
          attention: a folder for pictures of the model's attention (`vit.rollout`), named STEM_attention.png. An answer
            then has "attention", the path of its picture. None: no pictures.

        Raises:
          InputError: a model without a classification head.
        """
        if not model_cfg.num_classes:
            raise InputError("the model has no classification head; train one with --init-from")
        family = models.family(model_cfg)
        step = jax.jit(lambda params, x_BYXC: self._logits(params, model_cfg, x_BYXC.astype(jnp.float32) / 255.0))
        attend = jax.jit(lambda params, x_BYXC: self._attention(family, params, model_cfg, x_BYXC))
        paths = iter(inputs)
        used: set[str] = set()
        while group := list(itertools.islice(paths, PREDICT_ROWS)):
            read = [_read(path, self.preprocess) for path in group]
            pixels = [found for found in read if isinstance(found, np.ndarray)] or [self._blank()]
            filled = pixels if len(group) == 1 else pixels + pixels[:1] * (PREDICT_ROWS - len(pixels))
            probability_EK = iter(self._probabilities(np.asarray(step(params, np.stack(filled)))))
            for path, found in zip(group, read, strict=True):
                if isinstance(found, str):
                    yield {"image": path, "error": found}
                    continue
                probability_K = next(probability_EK)
                order = np.argsort(-probability_K, kind="stable")[:top]
                best = [{"label": self.labels[k], "probability": float(probability_K[k])} for k in order]
                answer: dict[str, Any] = {"image": path, **best[0], "top": best}
                if attention is not None:
                    picture = _unused(attention, Path(path).stem, used)
                    flow = np.asarray(attend(params, found[None]))[0]
                    title = f"{best[0]['label']} {best[0]['probability']:.1%}"
                    pictures.plot_attention(found, flow, title, picture)
                    answer["attention"] = str(picture)
                yield answer

    def _blank(self) -> np.ndarray:
        return np.zeros(self.preprocess.shape, np.uint8)

    def _attention(self, family: Any, params: Any, model_cfg: Any, x_BYXC: jax.Array) -> jax.Array:
        mean_C, std_C = (jnp.array(x, jnp.float32) for x in (self.preprocess.mean, self.preprocess.std))
        weights = family.attention_weights(params, model_cfg, (x_BYXC.astype(jnp.float32) / 255.0 - mean_C) / std_C)
        return family.rollout(weights, model_cfg)

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One line: "cat 98.1%, dog 1.2%: path"."""
        answers = ", ".join(f"{best['label']} {best['probability']:.1%}" for best in prediction["top"])
        drawn = f" ({prediction['attention']})" if "attention" in prediction else ""
        return f"{answers}: {prediction['image']}{drawn}"


def _counted(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    counted_E = outputs["weights"] > 0
    return outputs["logits"][counted_E], outputs["labels"][counted_E]


def _read(path: str, preprocess: Preprocess) -> np.ndarray | str:
    """The pixels of a file, or why there are none."""
    try:
        return image_files.pixels(Path(path).read_bytes(), preprocess)
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    except image_files.Broken as error:
        return str(error)


def _unused(folder: Path, stem: str, used: set[str]) -> Path:
    """FOLDER/STEM_attention.png, numbered if several images have one name."""
    name = next(n for n in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))) if n not in used)
    used.add(name)
    return folder / f"{name}_attention.png"
