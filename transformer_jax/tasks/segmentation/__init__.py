"""Semantic segmentation: the class of each pixel, by a model with `segment` (`vit`).

The host sends pixels and labels as uint8. Augmentation, which moves the labels with the pixels, normalisation and
bilinear upsampling of the logits are part of the loss, on the device. Each row of metrics says whether the model
learns: "iou" is the number of pixels of objects that are named right over those that are an object's or are named one.

Letters: B rows, Y and X pixels, C channels, K classes, the background's included where it is one.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import augment as augmentations
from transformer_jax import contracts, extras, files, models
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Prepared, Progress, Sums, Task, no_progress
from transformer_jax.data import image_files, masks
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.tasks import encoder, pixels

DEFAULT = Preprocess()  # the published ViT's
SHEET = 16  # images in the picture of overlays
ROW = ("loss", "pixel_accuracy", "iou")


@dataclass(frozen=True)
class Look:
    """The options of `predict`."""

    draw: str = ""
    """A folder for pictures of the images under their classes, NAME_overlay.png, and of the classes themselves,
    NAME_labels.png, whose pixels are the numbers of `task.classes`; empty: none are written."""
    file: str = ""
    """A text file with the path of an image on each line."""
    out: str = ""
    """Write the answers into this .csv or .jsonl file instead of printing them."""
    json: bool = False
    """One JSON object per line."""


@dataclass(frozen=True)
class Segmentation(Task):
    """The cross-entropy of each pixel's class; the mean intersection over union."""

    unit: ClassVar[str] = "images"
    pipeline_tag: ClassVar[str] = "image-segmentation"

    labels: tuple[str, ...] = ()
    """The names of the classes, without the background's; (): those of the data, filled in when a run begins."""
    background: bool = True
    """Whether pixels without a class are a class of their own, the first; False: they do not count."""
    preprocess: Preprocess = DEFAULT
    """How an image is resized and normalised. Both its sides are resized to those of the model's input."""
    augment: tuple[augmentations.Augmentation, ...] = ()
    """The augmentations of training images and their labels, in this order, on the device."""

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels):
            raise InputError(f"task.labels = {self.labels}: give different names, or none")
        augmentations.check_moves(self.augment)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in the order of the model's outputs."""
        return ("background", *self.labels) if self.background else self.labels

    def settle(self, data: Any) -> Self:
        """This task, with the classes of the data if it has no labels."""
        return self if self.labels else dataclasses.replace(self, labels=data.source.classes())

    def sized(self, model_cfg: Any) -> Any:
        """`model_cfg` with as many classes as there are, where the number is its default."""
        return contracts.fill(model_cfg, "num_classes", len(self.classes)) if self.labels else model_cfg

    def check(self, model_cfg: Any, data: Any) -> None:
        """Refuses a model that does not suit the images."""
        models.require(model_cfg, "task Segmentation", ("segment",), ("image_size", "channels", "num_classes", "pool"))
        contracts.require_data(data, "task Segmentation", ("source", "memory"))
        if model_cfg.pool != "mean" or getattr(model_cfg, "detector", "none") != "none":
            raise InputError(f"model.pool is {model_cfg.pool!r}; segmentation needs 'mean', and no detector")
        pixels.check(model_cfg, self.preprocess)
        if self.labels and model_cfg.num_classes != len(self.classes):
            raise InputError(
                f"model.num_classes is {model_cfg.num_classes}, but there are {len(self.classes)} classes, the "
                f"background's included; give --model.num-classes {len(self.classes)}"
            )

    def example(self, data: masks.MaskSet) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        return {
            "images": jax.ShapeDtypeStruct(self.preprocess.shape, np.uint8),
            "labels": jax.ShapeDtypeStruct(self.preprocess.sides, np.uint8),
            "weights": jax.ShapeDtypeStruct((), np.float32),
        }

    def prepare(self, data: masks.MaskSet, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The images with their labels, decoded if they fit into memory. There is no tokenizer.

        Raises:
          InputError: a model that does not suit the images, and what `masks.prepare` refuses.
        """
        task = self.settle(data)
        task.check(model_cfg, data)
        made = masks.prepare(data, self.preprocess, task.labels, seed=seed)
        test = None if made.test is None else Evaluation(made.test, task.classes)
        return Prepared(made.train, Evaluation(made.validation, task.classes), made.facts, test=test)

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {name: (sum, weight)}), a mean over pixels in nats; the names are those of `ROW`."""
        images_BYXC, labels_BYX = batch["images"].astype(jnp.float32) / 255.0, batch["labels"].astype(jnp.int32)
        if key is not None and self.augment:
            key, augment_key = jax.random.split(key)
            layout = (("batch", None, None, None), ("batch", None, None))
            images_BYXC, labels_BYX = pixels.in_auto_mesh(
                self._augmented, augment_key, images_BYXC, labels_BYX, out=layout
            )
        sums = self._sums(self._logits(params, model_cfg, images_BYXC, key=key), labels_BYX, batch["weights"])[0]
        return *sums["loss"], jax.lax.stop_gradient(sums)

    def _augmented(self, key: jax.Array, images_BYXC: jax.Array, labels_BYX: jax.Array) -> tuple[jax.Array, ...]:
        moving = augmentations.Moving(labels=labels_BYX)
        images_BYXC, moved = augmentations.apply_moving(key, images_BYXC, self.augment, moving, fill=masks.IGNORED)
        return images_BYXC, moved.labels

    def _logits(self, params: Any, model_cfg: Any, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> Any:
        """The logits of each pixel, float32 [B, Y, X, K], for images float32 in [0, 1]."""
        mean_C, std_C = (jnp.array(x, jnp.float32) for x in (self.preprocess.mean, self.preprocess.std))
        coarse = models.family(model_cfg).segment(params, model_cfg, (images_BYXC - mean_C) / std_C, key=key)
        shape = (*images_BYXC.shape[:3], coarse.shape[-1])
        enlarge = lambda x: (jax.image.resize(x, shape, "bilinear"),)  # noqa: E731
        return pixels.in_auto_mesh(enlarge, coarse, out=(("batch", None, None, None),), shapes=(shape,))[0]

    def _sums(self, logits_BYXK: jax.Array, labels_BYX: jax.Array, weights_B: jax.Array) -> tuple[Any, jax.Array]:
        """({name: (sum, weight)}, the predicted class of each pixel [B, Y, X])."""
        first = 0 if self.background else 1  # the label of the first class
        counted_BYX = (labels_BYX >= first) & (labels_BYX != masks.IGNORED)
        wanted_BYX = jnp.where(counted_BYX, labels_BYX - first, 0)
        log_p_BYXK = jax.nn.log_softmax(logits_BYXK)
        nats_BYX = -jnp.sum(log_p_BYXK * jax.nn.one_hot(wanted_BYX, logits_BYXK.shape[-1]), axis=-1)
        says_BYX = jnp.argmax(logits_BYXK, axis=-1)
        weight_BYX = counted_BYX * weights_B[:, None, None]
        right_BYX = says_BYX == wanted_BYX
        object_BYX = (wanted_BYX > 0) | (says_BYX > 0) if self.background else jnp.ones_like(right_BYX)
        terms = {
            "loss": (nats_BYX, weight_BYX),
            "pixel_accuracy": (right_BYX, weight_BYX),
            "iou": (right_BYX & object_BYX, weight_BYX * object_BYX),
        }
        return {name: (jnp.sum(x * weight_BYX), jnp.sum(weight)) for name, (x, weight) in terms.items()}, says_BYX

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss` without augmentation, and the predicted and true class of each pixel."""
        logits_BYXK = self._logits(params, model_cfg, batch["images"].astype(jnp.float32) / 255.0)
        sums, says_BYX = self._sums(logits_BYXK, batch["labels"].astype(jnp.int32), batch["weights"])
        return sums, {"predicted": says_BYX.astype(jnp.uint8), "labels": batch["labels"]}

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_pixel"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The loss, the accuracy, and the mean over the classes of the intersection over union."""
        means = {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}
        miou = mean_iou(self._confusion(outputs["predicted"], outputs["labels"], len(evaluation.reference)))
        return {"loss_nats_per_pixel": means.pop("loss"), **means, "mean_iou": miou}

    def _confusion(self, predicted: np.ndarray, labels: np.ndarray, K: int) -> np.ndarray:
        """Pixels of each true class (row) that are named each class (column), int [K, K]."""
        wanted = labels.astype(np.int64) - (not self.background)
        counted = (wanted >= 0) & (labels != masks.IGNORED)
        return np.bincount(wanted[counted] * K + predicted[counted], minlength=K * K).reshape(K, K)

    def score(self, params: Any, model_cfg: Any, tokenizer: Any, evaluation: Evaluation, *_: Any, **__: Any) -> Any:
        """What naming every pixel the most common class would reach, to compare with."""
        K = len(evaluation.reference)
        examples = (evaluation.examples[i]["labels"] for i in range(len(evaluation.examples)))
        counts_KK = sum(self._confusion(np.zeros_like(one), one, K) for one in examples)
        counts_K = np.asarray(counts_KK).sum(axis=1)
        constant_KK = np.zeros((K, K))
        constant_KK[:, counts_K.argmax()] = counts_K
        return {"baseline_mean_iou_of_one_class": mean_iou(constant_KK)}

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """A sheet of the first images, each beside its predicted and its true classes."""
        path, shown = folder / f"{name}_overlays.png", range(min(SHEET, len(outputs["predicted"])))
        first = not self.background
        rows = []
        for e in shown:
            true = np.where(outputs["labels"][e] == masks.IGNORED, 0, outputs["labels"][e])
            image = evaluation.examples[e]["images"]
            rows.append((image, overlay(image, outputs["predicted"][e] + first), overlay(image, true)))
        plot_sheet(rows, path)
        return [path]

    # ------------------------------------------------------------------------------------------------------ throughput

    def tokens(self, data: masks.MaskSet) -> int:
        """1, since throughput is in images."""
        return 1

    def flops(self, model_cfg: Any, data: masks.MaskSet) -> float:
        """The FLOPs of a training step on one image, forward and backward, where the model is a Vision Transformer."""
        return encoder.image_flops(model_cfg) if hasattr(model_cfg, "num_patches") else 0.0

    # ------------------------------------------------------------------------------------------------------ prediction

    def snapshot_settings(self) -> dict[str, Any]:
        """The labels and the preprocessing."""
        return {"labels": self.classes, "preprocess": self.preprocess}

    def predict_options(self, defaults: Predict) -> Look:
        """The options of `predict`: where to draw."""
        return Look()

    def read(self, given: Sequence[str], options: Look) -> list[Input]:
        """The given image files, and those in the given folders."""
        paths = given if given and given != ["-"] else [str(one.query) for one in inputs_lib.lines(options.file or "-")]
        return inputs_lib.images(paths)

    def answers(
        self, loaded: Any, asked: Sequence[Any], options: Look, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """The classes of each image; writes the pictures where the options say so.

        Raises:
          InputError: the folder for pictures does not exist.
        """
        if options.draw and not Path(options.draw).is_dir():
            raise InputError(f"--draw {options.draw} is not a folder; make it, or name another")
        return self.predict(loaded.params, loaded.config, None, asked, top=len(self.classes), draw=options.draw)

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int, draw: str = ""
    ) -> Iterator[dict[str, Any]]:
        """For each image file {"image": its path, "shares": {class: its share of the pixels}}, the largest first.

        A file that cannot be read or decoded has {"image", "error"}.
        """
        step = jax.jit(lambda p, x: jnp.argmax(self._logits(p, model_cfg, x.astype(jnp.float32) / 255.0), axis=-1))
        for path in inputs:
            try:
                image = image_files.upright(Path(path).read_bytes(), channels=len(self.preprocess.mean), side=1 << 15)
                small = image_files.pixels(np.asarray(image), self.preprocess)
            except (OSError, image_files.Broken, SyntaxError, ValueError) as error:
                yield {"image": path, "error": f"the image cannot be read ({error})"}
                continue
            says_YX = np.asarray(step(params, small[None]))[0]
            counts_K = np.bincount(says_YX.ravel(), minlength=len(self.classes))
            best = [k for k in np.argsort(-counts_K, kind="stable")[:top] if counts_K[k]]
            answer: dict[str, Any] = {
                "image": path, "shares": {self.classes[k]: float(counts_K[k] / says_YX.size) for k in best}
            }  # fmt: skip
            if draw:
                whole = masks.nearest(says_YX, (image.height, image.width))
                pixels = np.asarray(image)
                pixels = pixels if pixels.ndim == 3 else pixels[..., None]
                stem = Path(draw) / Path(path).stem
                answer["pictures"] = [f"{stem}_overlay.png", f"{stem}_labels.png"]
                write_png(overlay(pixels, whole + (not self.background)), Path(answer["pictures"][0]))
                write_png(whole, Path(answer["pictures"][1]))
            yield answer

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One line: "background 80.1%, 3 10.0%: path"."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in prediction["shares"].items())
        drawn = f" ({', '.join(prediction['pictures'])})" if "pictures" in prediction else ""
        return f"{shares}: {prediction['image']}{drawn}"


def mean_iou(confusion_KK: np.ndarray) -> float:
    """The mean over the classes that occur, true or predicted, of the intersection over union.

    Args:
      confusion_KK: pixels of each true class (row) that are named each class (column).
    """
    both_K = np.diagonal(confusion_KK)
    either_K = confusion_KK.sum(0) + confusion_KK.sum(1) - both_K
    some_K = either_K > 0
    return float((both_K[some_K] / either_K[some_K]).mean()) if some_K.any() else 0.0


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An image under the colours of its labels, uint8 [Y, X, 3]; label 0 has none.

    Args:
      image: uint8 [Y, X, C].
      labels: int [Y, X].
    """
    turns = np.arange(256) * 0.381966  # golden-ratio steps around the colour circle, so that neighbours differ
    angles = 2 * np.pi * (turns[:, None] + np.array([0, 1 / 3, 2 / 3]))
    colours = (127.5 + 127.5 * np.cos(angles)).astype(np.float32)
    rgb = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    return np.where((labels > 0)[..., None], 0.45 * rgb + 0.55 * colours[labels], rgb).astype(np.uint8)


def plot_sheet(rows: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Draws triples of images, four triples in a row, as a PNG.

    Args:
      rows: (image, predicted, true) each, uint8 [Y, X, C].
      path: the PNG file that is written.
    """
    gap = 2
    triples = []
    for triple in rows:
        parts = [np.broadcast_to(one, (*one.shape[:2], 3)) for one in triple]
        triples.append(np.pad(np.concatenate(parts, axis=1), ((0, gap), (0, 3 * gap), (0, 0))))
    triples += [np.zeros_like(triples[0])] * (-len(triples) % 4)
    lines = [np.concatenate(triples[i : i + 4], axis=1) for i in range(0, len(triples), 4)]
    write_png(np.concatenate(lines, axis=0), path)


def write_png(pixels: np.ndarray, path: Path) -> None:
    """Writes `pixels`, uint8 [Y, X] or [Y, X, 3], as a PNG at `path`."""
    extras.need("PIL", "a picture of the classes")
    from PIL import Image

    with files.replacing(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")
