"""Classification of images: what is in the picture?

The host hands over bytes, uint8; everything that is a matter of numbers is done on the device, inside the loss:
augmentation, keyed like dropout, mixing of images and labels, normalisation.

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
from jax.sharding import AxisType

from transformer_jax import augment as augmentations
from transformer_jax import metrics, models, sharding
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Prepared, Progress, Sums, Task, no_progress
from transformer_jax.data import image_files, image_sources, images
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks.image_classification import pictures

PUBLISHED = Preprocess()  # the first ViT's
PREDICT_ROWS = 32  # images that `predict` computes together
MISTAKES = 40  # images on the sheet of the worst ones
CONFUSION = 60  # classes at most whose confusion matrix can be read


@dataclass(frozen=True)
class Look:
    """The options of `predict`."""

    top: int
    """Labels to give for each image."""
    attention: bool = False
    """Draw what the model looked at into FOLDER/NAME_attention.png."""
    folder: str = "."
    """The folder of these pictures."""
    file: str = ""
    """A text file with the path of an image on each line."""
    out: str = ""
    """Write the answers into this file, .csv or .jsonl, and print none."""
    json: bool = False
    """One JSON object a line."""


@dataclass(frozen=True)
class ImageClassification(Task):
    """Cross-entropy of the class of an image, or of each class on its own."""

    unit: ClassVar[str] = "images"

    labels: tuple[str, ...] = ()
    """The names, in the order of the model's outputs; (): those of the data, which are put here when a run begins."""
    preprocess: Preprocess = PUBLISHED
    """What an image goes through before the model sees it; also the normalisation in training."""
    objective: Literal["softmax", "sigmoid"] = "softmax"
    """One class of several, or for each class whether it is there (Beyer et al. 2020), summed over the classes."""
    augment: tuple[augmentations.Augmentation, ...] = ()
    """What is done to the images in training, in this order, on the device."""
    mixup: float = 0.0
    """MixUp's alpha: images and targets of two rows are blended (Zhang et al. 2018); 0: off."""
    cutmix: float = 0.0
    """CutMix's alpha: a box of an image is another's (Yun et al. 2019); 0: off. With both, each row has one of them."""
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
        """With the classes of the data, where it has none of its own. Errors: `InputError` of the data's source."""
        return self if self.labels else dataclasses.replace(self, labels=data.source.classes())

    def check(self, model_cfg: Any, data: Any) -> None:
        """Errors: `InputError` where model and images do not fit together."""
        if not hasattr(model_cfg, "image_size") or not isinstance(data, images.ImageSet):
            raise InputError("task ImageClassification needs a model of images, vit.Config, and an images.ImageSet")
        if model_cfg.image_size != self.preprocess.size:
            raise InputError(
                f"model.image_size is {model_cfg.image_size}, task.preprocess.size {self.preprocess.size}; set the one "
                "to the other"
            )
        if model_cfg.channels != len(self.preprocess.mean):
            raise InputError(
                f"model.channels is {model_cfg.channels}, task.preprocess.mean {self.preprocess.mean}; "
                "give one for each channel"
            )
        if self.labels and model_cfg.num_classes != len(self.labels):
            raise InputError(
                f"model.num_classes is {model_cfg.num_classes}, but there are {len(self.labels)} classes "
                f"({', '.join(self.labels[:5])}{', ...' if len(self.labels) > 5 else ''}); "
                f"give --model.num-classes {len(self.labels)}"
            )

    def example(self, data: images.ImageSet) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        shape = (self.preprocess.size, self.preprocess.size, len(self.preprocess.mean))
        return {
            "images": jax.ShapeDtypeStruct(shape, np.uint8),
            "labels": jax.ShapeDtypeStruct((), np.int32),
            "weights": jax.ShapeDtypeStruct((), np.float32),
        }

    def prepare(self, data: images.ImageSet, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """Finds and, where they fit into memory, decodes the images. There is no tokenizer.

        Errors: `InputError` for a model that does not fit, and what `images.prepare` finds wrong with the data.
        """
        task = self.settle(data)
        task.check(model_cfg, data)
        made = images.prepare(data, self.preprocess, task.labels, seed=seed)
        test = None if made.test is None else Evaluation(made.test, task.labels)
        return Prepared(made.train, Evaluation(made.validation, task.labels), made.facts, test=test)

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight), "accuracy": (right, images)}), in nats per image.

        With a key, images are augmented and mixed; then the accuracy is of the class with the largest share. The loss
        in the dict is without label smoothing.
        """
        images_BYXC = batch["images"].astype(jnp.float32) / 255.0
        targets_BK = jax.nn.one_hot(batch["labels"], model_cfg.num_classes)
        weights_B, model_key = batch["weights"], None
        if key is not None:
            model_key, *keys = jax.random.split(key, 3)
            layout = (("batch", None, None, None), ("batch", None), ("batch",))
            images_BYXC, targets_BK, weights_B = in_auto_mesh(
                self._changed, *keys, images_BYXC, targets_BK, weights_B, out=layout
            )
        logits_BK = self._logits(params, model_cfg, images_BYXC, key=model_key)
        return self._losses(logits_BK, targets_BK, weights_B)

    def _changed(
        self,
        augment_key: jax.Array,
        mix_key: jax.Array,
        images_BYXC: jax.Array,
        targets_BK: jax.Array,
        weights_B: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """Augmented and mixed. Mixed with an image that was left out (weight 0), a row is left out as well."""
        images_BYXC = augmentations.apply(augment_key, images_BYXC, self.augment)
        if self.mixup or self.cutmix:
            weights_B = weights_B * jnp.roll(weights_B, 1)
        alphas = {"mixup_alpha": self.mixup, "cutmix_alpha": self.cutmix}
        return *augmentations.mix(mix_key, images_BYXC, targets_BK, **alphas), weights_B

    def _logits(self, params: Any, model_cfg: Any, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> Any:
        """float32 [B, K] of images float32 in [0, 1]."""
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
        """targets [B, K] -> cross-entropy [B]."""
        if self.objective == "softmax":
            log_p_BK = jax.nn.log_softmax(logits_BK)
            return lambda targets_BK: -jnp.sum(targets_BK * log_p_BK, axis=-1)
        yes_BK, no_BK = jax.nn.log_sigmoid(logits_BK), jax.nn.log_sigmoid(-logits_BK)
        return lambda targets_BK: -jnp.sum(targets_BK * yes_BK + (1.0 - targets_BK) * no_BK, axis=-1)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss` without augmentation, and of every image its logits, label and weight."""
        logits_BK = self._logits(params, model_cfg, batch["images"].astype(jnp.float32) / 255.0)
        targets_BK = jax.nn.one_hot(batch["labels"], model_cfg.num_classes)
        outputs = {"logits": logits_BK, "labels": batch["labels"], "weights": batch["weights"]}
        return self._losses(logits_BK, targets_BK, batch["weights"])[2], outputs

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The loss, accuracy with its 95 % interval, of more than five classes that of the first five, and the expected
        calibration error in 15 bins. Images that could not be decoded are not counted."""
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

    def _calibration(self, logits_EK: np.ndarray, right_E: np.ndarray) -> metrics.Calibration:
        confidence_E = np.nan_to_num(self._probabilities(logits_EK).max(-1))  # of a model that has diverged
        return metrics.calibration(confidence_E, right_E)

    def _probabilities(self, logits_EK: np.ndarray) -> np.ndarray:
        logits_EK = logits_EK.astype(np.float64)
        if self.objective == "sigmoid":
            return 1.0 / (1.0 + np.exp(-logits_EK))
        odds_EK = np.exp(logits_EK - logits_EK.max(-1, keepdims=True))
        return odds_EK / odds_EK.sum(-1, keepdims=True)

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """The confusion matrix (of up to 60 classes), the reliability curve, and the mistakes that were the surest."""
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
            metrics.plot_confusion(labels_E, predicted_E, labels, paths[0])
        return paths

    # ------------------------------------------------------------------------------------------------------ throughput

    def tokens(self, data: images.ImageSet) -> int:
        """One: throughput is in images."""
        return 1

    def flops(self, model_cfg: Any, data: images.ImageSet) -> float:
        """FLOPs of one training step on one image, forward and backward (PaLM, appendix B): for each token 6 for each
        parameter of a block's kernels and 12 L N H T for attention, and 6 for each of the patches' kernel and patch.
        What the last layer of a model with a class token leaves out (`vit.apply`) is counted, by that convention."""
        T, patches = model_cfg.max_length, model_cfg.grid**2

        def tokens(path: str) -> float:
            return T if path.startswith("blocks/") else patches * (path == "embed/patch/kernel")

        scores = config.attention_width(model_cfg) * T * T
        return params_lib.flops(models.family(model_cfg).declare(model_cfg), tokens, scores)

    # ------------------------------------------------------------------------------------------------------ prediction

    def snapshot_settings(self) -> dict[str, Any]:
        """The labels, and what an image goes through."""
        return {"labels": self.labels, "preprocess": self.preprocess}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> images.ImageSet:
        """A folder that the user has to give."""
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
        """Raises `InputError` for an image that cannot be read."""
        for path in options.inputs:
            _read(path, self.preprocess)

    def predict_options(self, defaults: Predict) -> Look:
        """How many labels, and whether to draw attention."""
        return Look(top=defaults.top)

    def read(self, given: Sequence[str], options: Look) -> list[Input]:
        """The image files that are named, and those in the folders that are."""
        paths = given if given and given != ["-"] else [str(one.query) for one in inputs_lib.lines(options.file or "-")]
        return inputs_lib.images(paths)

    def answers(
        self, loaded: Any, asked: Sequence[Any], options: Look, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """The labels of each image. Raises `InputError` for a folder that is not there."""
        folder = Path(options.folder) if options.attention else None
        if folder is not None and not folder.is_dir():
            raise InputError(f"--folder {folder} is no folder; make it, or name another")
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
        """For each image file: {"image": its path, "label", "probability", "top": [{"label", "probability"}, ...]}.

        Arguments:
          attention: a folder for a picture of each image with what the model looked at (`vit.rollout`), STEM.png; the
            answer then has "attention", its path.
        A file that cannot be read or decoded has {"image", "error"}. Errors: `InputError` for a model without a head.
        """
        if not model_cfg.num_classes:
            raise InputError("the model has no head that tells classes apart; train one, with --init-from")
        family = models.family(model_cfg)
        step = jax.jit(lambda params, x_BYXC: self._logits(params, model_cfg, x_BYXC.astype(jnp.float32) / 255.0))
        look = jax.jit(lambda params, x_BYXC: self._looked_at(family, params, model_cfg, x_BYXC))
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
                    flow = np.asarray(look(params, found[None]))[0]
                    title = f"{best[0]['label']} {best[0]['probability']:.1%}"
                    pictures.plot_attention(found, flow, title, picture)
                    answer["attention"] = str(picture)
                yield answer

    def _blank(self) -> np.ndarray:
        return np.zeros((self.preprocess.size, self.preprocess.size, len(self.preprocess.mean)), np.uint8)

    def _looked_at(self, family: Any, params: Any, model_cfg: Any, x_BYXC: jax.Array) -> jax.Array:
        mean_C, std_C = (jnp.array(x, jnp.float32) for x in (self.preprocess.mean, self.preprocess.std))
        weights = family.attention_weights(params, model_cfg, (x_BYXC.astype(jnp.float32) / 255.0 - mean_C) / std_C)
        return family.rollout(weights, model_cfg)

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """cat 98.1%, dog 1.2%: path."""
        answers = ", ".join(f"{best['label']} {best['probability']:.1%}" for best in prediction["top"])
        drawn = f" ({prediction['attention']})" if "attention" in prediction else ""
        return f"{answers}: {prediction['image']}{drawn}"


def in_auto_mesh(f: Callable[..., Any], *arrays: jax.Array, out: Sequence[sharding.Axes]) -> tuple[jax.Array, ...]:
    """The results of f, which is written without regard to sharding: in an Explicit mesh the compiler shards inside it.

    Args:
      f: gives a tuple of arrays with the shapes of the last arguments; it must not close over arrays.
      *arrays: f's arguments.
      out: the logical axes of each result.
    """
    if AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        pairs = zip(out, arrays[-len(out) :], strict=True)
        specs = tuple(sharding.specs(axes, x.shape)[1] for axes, x in pairs)
        return jax.sharding.auto_axes(f, out_sharding=specs)(*arrays)
    return tuple(sharding.constrain(x, axes) for x, axes in zip(f(*arrays), out, strict=True))


def _counted(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    counted_E = outputs["weights"] > 0
    return outputs["logits"][counted_E], outputs["labels"][counted_E]


def _read(path: str, preprocess: Preprocess) -> np.ndarray | str:
    """The pixels of a file, or why there are none."""
    try:
        return image_files.pixels(Path(path).read_bytes(), preprocess)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except image_files.Broken as error:
        return str(error)


def _unused(folder: Path, stem: str, used: set[str]) -> Path:
    """FOLDER/STEM_attention.png; of several images with one name, numbered."""
    name = next(n for n in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))) if n not in used)
    used.add(name)
    return folder / f"{name}_attention.png"
