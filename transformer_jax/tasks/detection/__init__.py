"""Detection of objects: the class and the box of each, by a model that predicts a set (`losses.sets`).

The host sends pixels as uint8. Augmentation, which moves the boxes with the pixels, and normalisation are part of the
loss, on the device. Each row of metrics says whether the model learns to find objects: "matched_iou", the overlap of
each object with its prediction; "class_accuracy", how often that prediction names its class; and "empty_share", the
share of predictions that say "no object". A model that has learned nothing yet stays near 0, at chance and near 1.

Letters: B rows, Y and X pixels, C channels, M objects of an image, Q predictions, K classes, E images, N boxes.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import augment as augmentations
from transformer_jax import contracts, files, models
from transformer_jax.contracts import Evaluation, Input, Outputs, Predict, Prepared, Progress, Sums, Task, no_progress
from transformer_jax.data import boxes, image_files
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.losses import sets
from transformer_jax.tasks import encoder, pixels
from transformer_jax.tasks.detection import coco, pictures

SHEET = 32  # images in the picture of detections
DRAWN = 0.5  # the least score of a detection that is drawn there
DEFAULT = Preprocess()  # the published ViT's
DETR = sets.Costs()
ROW = ("loss", "nats", "l1", "matched_iou", "class_accuracy", "empty_share")


@dataclass(frozen=True)
class Look:
    """The options of `predict`."""

    top: int = 100
    """The most objects to give for each image."""
    threshold: float = 0.5
    """The least score of an object to give."""
    draw: str = ""
    """A folder for pictures of the images with their boxes, NAME_boxes.png; empty: none are drawn."""
    coco: str = ""
    """Write the detections into this file as COCO's JSON."""
    file: str = ""
    """A text file with the path of an image on each line."""
    out: str = ""
    """Write the answers into this .csv or .jsonl file instead of printing them."""
    json: bool = False
    """One JSON object per line."""


@dataclass(frozen=True)
class Detection(Task):
    """The set loss of an image's objects; COCO's average precision."""

    unit: ClassVar[str] = "images"
    pipeline_tag: ClassVar[str] = "object-detection"

    labels: tuple[str, ...] = ()
    """The names, in the order of the model's outputs; (): those of the data, filled in when a run begins."""
    preprocess: Preprocess = DEFAULT
    """How an image is resized and normalised. Both its sides are resized to those of the model's input."""
    augment: tuple[augmentations.Augmentation, ...] = ()
    """The augmentations of training images and their boxes, in this order, on the device."""
    costs: sets.Costs = DETR
    """The weights of the matching's costs and of the loss's terms."""

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels):
            raise InputError(f"task.labels = {self.labels}: give different names, or none")
        augmentations.check_moves(self.augment)

    def settle(self, data: boxes.BoxSet) -> "Detection":
        """This task, with the classes of the data if it has no labels."""
        return self if self.labels else dataclasses.replace(self, labels=data.source.classes())

    def sized(self, model_cfg: Any) -> Any:
        """`model_cfg` with as many classes as the labels, where the number is its default."""
        return contracts.fill(model_cfg, "num_classes", len(self.labels)) if self.labels else model_cfg

    def check(self, model_cfg: Any, data: Any) -> None:
        """Refuses a model that does not suit the images."""
        settings = ("image_size", "channels", "num_classes", "num_predictions")
        models.require(model_cfg, "task Detection", ("detect",), settings)
        contracts.require_data(data, "task Detection", ("source", "most_objects", "bad_boxes", "memory"))
        if not model_cfg.num_predictions:
            raise InputError("the model predicts no objects; give it a detector, model.detector, or model.num_queries")
        pixels.check(model_cfg, self.preprocess)
        if data.most_objects > model_cfg.num_predictions:
            raise InputError(
                f"data.most_objects is {data.most_objects}, but the model predicts {model_cfg.num_predictions} objects "
                "of an image; give it more queries or patches, or lower data.most_objects"
            )
        if self.labels and model_cfg.num_classes != len(self.labels):
            raise InputError(
                f"model.num_classes is {model_cfg.num_classes}, but there are {len(self.labels)} classes; "
                f"give --model.num-classes {len(self.labels)}"
            )

    def example(self, data: boxes.BoxSet) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        M = data.most_objects
        return {
            "images": jax.ShapeDtypeStruct(self.preprocess.shape, np.uint8),
            "boxes": jax.ShapeDtypeStruct((M, 4), np.float32),
            "classes": jax.ShapeDtypeStruct((M,), np.int32),
            "objects": jax.ShapeDtypeStruct((M,), np.float32),
            "weights": jax.ShapeDtypeStruct((), np.float32),
        }

    def prepare(self, data: boxes.BoxSet, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The images with their boxes, decoded if they fit into memory. There is no tokenizer.

        Raises:
          InputError: a model that does not suit the images, and what `boxes.prepare` refuses.
        """
        task = self.settle(data)
        task.check(model_cfg, data)
        made = boxes.prepare(data, self.preprocess, task.labels, seed=seed)
        test = None if made.test is None else _evaluation(made.test, task.labels)
        return Prepared(made.train, _evaluation(made.validation, task.labels), made.facts, test=test)

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {name: (sum, weight)}), a mean over images; the names are those of `ROW`.

        The loss of a model that predicts after several layers is the sum of theirs; the others are of the last alone.
        """
        images_BYXC = batch["images"].astype(jnp.float32) / 255.0
        boxes_BM4, objects_BM, model_key = batch["boxes"], batch["objects"], None
        if key is not None and self.augment:
            key, augment_key = jax.random.split(key)
            images_BYXC, boxes_BM4, objects_BM = pixels.in_auto_mesh(
                self._augmented,
                augment_key,
                images_BYXC,
                boxes_BM4,
                objects_BM,
                out=(("batch", None, None, None), ("batch", None, None), ("batch", None)),
            )
        model_key = key
        found = self._detections(params, model_cfg, images_BYXC, key=model_key)
        wanted = boxes_BM4, batch["classes"], objects_BM, batch["weights"]
        sums = self._sums(found, *wanted)
        total = sums["loss"][0]
        if found.earlier is not None:
            total += self._earlier(found.earlier, *wanted)
        return total, sums["loss"][1], jax.lax.stop_gradient(sums)

    def _augmented(
        self, key: jax.Array, images_BYXC: jax.Array, boxes_BM4: jax.Array, objects_BM: jax.Array
    ) -> tuple[jax.Array, ...]:
        moving = augmentations.Moving(boxes_BM4, objects_BM)
        images_BYXC, moved = augmentations.apply_moving(key, images_BYXC, self.augment, moving)
        return images_BYXC, moved.boxes, moved.weights

    def _detections(self, params: Any, model_cfg: Any, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> Any:
        """The model's (logits [B, Q, K + 1], boxes [B, Q, 4]) for images float32 in [0, 1]."""
        mean_C, std_C = (jnp.array(x, jnp.float32) for x in (self.preprocess.mean, self.preprocess.std))
        return models.family(model_cfg).detect(params, model_cfg, (images_BYXC - mean_C) / std_C, key=key)

    def _sums(self, found: Any, boxes_BM4: Any, classes_BM: Any, objects_BM: Any, weights_B: Any) -> dict[str, Any]:
        """{name: (sum, weight)} of a batch; the overlap and the accuracy are means over objects."""
        B, Q = found.boxes.shape[:2]
        (terms_BS,) = pixels.in_auto_mesh(
            functools.partial(_terms, self.costs),
            *(found.logits, found.boxes, boxes_BM4, classes_BM, objects_BM),
            out=(("batch", None),),
            shapes=((B, len(ROW)),),
        )
        totals = jnp.sum(terms_BS * weights_B[:, None], axis=0)
        images_, objects = jnp.sum(weights_B), jnp.sum(objects_BM * weights_B[:, None])
        weights = {"l1": objects, "matched_iou": objects, "class_accuracy": objects, "empty_share": Q * images_}
        return {name: (totals[i], weights.get(name, images_)) for i, name in enumerate(ROW)}

    def _earlier(self, found: Any, boxes_BM4: Any, classes_BM: Any, objects_BM: Any, weights_B: Any) -> jax.Array:
        """The loss of the predictions after earlier layers, summed over the layers and the batch."""

        def losses(logits_LBQK: Any, boxes_LBQ4: Any, *objects: Any) -> tuple[jax.Array]:
            of = sets.Objects(*objects)
            loss = lambda logits_BQK, boxes_BQ4: sets.set_loss(logits_BQK, boxes_BQ4, of, self.costs).loss  # noqa: E731
            return (jnp.sum(jax.vmap(loss)(logits_LBQK, boxes_LBQ4), axis=0),)

        operands = found.logits, found.boxes, boxes_BM4, classes_BM, objects_BM
        (losses_B,) = pixels.in_auto_mesh(losses, *operands, out=(("batch",),), shapes=(weights_B.shape,))
        return jnp.sum(losses_B * weights_B)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss` without augmentation, and each image's detections: scores, classes and boxes."""
        found = self._detections(params, model_cfg, batch["images"].astype(jnp.float32) / 255.0)
        sums = self._sums(found, *(batch[name] for name in ("boxes", "classes", "objects", "weights")))
        scores_BQ, classes_BQ = _scored(found.logits)
        outputs = {"scores": scores_BQ, "classes": classes_BQ, "boxes": found.boxes.astype(jnp.float32)}
        return sums, outputs | {"weights": batch["weights"]}

    def best_metric(self) -> str:
        """The set loss of the validation set."""
        return "loss_per_image"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The means of the loss's terms, and COCO's average precision."""
        truth = evaluation.reference[1]
        means = {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}
        scores = coco.average_precision(truth, _found(outputs, truth), len(evaluation.reference[0]))
        return {"loss_per_image": means.pop("loss"), **means, **scores}

    def score(self, params: Any, model_cfg: Any, tokenizer: Any, evaluation: Evaluation, *_: Any, **__: Any) -> Any:
        """The average precision of the same boxes in every image, to compare with."""
        labels, truth = evaluation.reference
        scores = coco.average_precision(truth, coco.constant_boxes(truth, len(labels)), len(labels))
        return {f"baseline_{name}_of_constant_boxes": scores[name] for name in ("ap", "ap50")}

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """A sheet of the first images with their detections of a score of at least 0.5."""
        labels, truth = evaluation.reference
        found, path = _found(outputs, truth), folder / f"{name}_detections.png"
        images = [evaluation.examples[e]["images"] for e in range(min(SHEET, len(truth)))]
        drawn, wanted = [], []
        for image, one, of in zip(images, found, truth, strict=False):
            scale = np.tile(np.divide(image.shape[1::-1], of.size[::-1]), 2)  # from the stored image to the shown one
            some = one.scores >= DRAWN
            drawn.append(coco.Found(one.boxes[some] * scale, one.classes[some], one.scores[some]))
            wanted.append(coco.Found(of.boxes * scale, of.classes, np.ones(len(of.boxes))))
        pictures.plot_sheet(images, drawn, wanted, labels, path)
        return [path]

    # ------------------------------------------------------------------------------------------------------ throughput

    def tokens(self, data: boxes.BoxSet) -> int:
        """1, since throughput is in images."""
        return 1

    def flops(self, model_cfg: Any, data: boxes.BoxSet) -> float:
        """The FLOPs of a training step on one image, forward and backward, where the model is a Vision Transformer."""
        return encoder.image_flops(model_cfg) if hasattr(model_cfg, "num_patches") else 0.0

    # ------------------------------------------------------------------------------------------------------ prediction

    def snapshot_settings(self) -> dict[str, Any]:
        """The labels and the preprocessing."""
        return {"labels": self.labels, "preprocess": self.preprocess}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> boxes.BoxSet:
        """COCO's files, which the user must provide."""
        from transformer_jax.data import box_files

        return boxes.BoxSet(box_files.Coco("annotations/instances_train2017.json", "train2017"))

    def adopt(self, theirs: Any, log: Any, origin: str) -> "Detection":
        """With the normalisation of the images that the checkpoint's parameters were trained on."""
        found = theirs.preprocess
        if (self.preprocess.mean, self.preprocess.std) != (found.mean, found.std):
            log(f"images are normalised by mean {found.mean}, std {found.std} as in {origin}")
        adopted = dataclasses.replace(self.preprocess, mean=found.mean, std=found.std)
        return dataclasses.replace(self, preprocess=adopted)

    def predict_options(self, defaults: Predict) -> Look:
        """The options of `predict`: which objects to give, and where to draw and write them."""
        return Look()

    def read(self, given: Sequence[str], options: Look) -> list[Input]:
        """The given image files, and those in the given folders."""
        paths = given if given and given != ["-"] else [str(one.query) for one in inputs_lib.lines(options.file or "-")]
        return inputs_lib.images(paths)

    def answers(
        self, loaded: Any, asked: Sequence[Any], options: Look, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """The objects of each image; draws and writes them where the options say so.

        Raises:
          InputError: the folder for pictures does not exist, or the file's folder.
        """
        if options.draw and not Path(options.draw).is_dir():
            raise InputError(f"--draw {options.draw} is not a folder; make it, or name another")
        if options.coco and not Path(options.coco).absolute().parent.is_dir():
            raise InputError(f"--coco {options.coco}: its folder does not exist; make it, or name another file")
        described: list[dict[str, Any]] = []
        found: list[coco.Found] = []
        for answer, one, size in self._answered(loaded.params, loaded.config, asked, options):
            yield answer
            if "error" not in answer:
                described.append(
                    {"id": len(described) + 1, "file_name": answer["image"], "width": size[1], "height": size[0]}
                )
                found.append(one)
        if options.coco:
            files.write(Path(options.coco), json.dumps(coco.as_json(described, found, self.labels), indent=1) + "\n")

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """For each image file {"image": its path, "objects": [{"label", "score", "box"}, ...]}, the best first.

        A box is [left, top, width, height] in pixels. A file that cannot be read or decoded has {"image", "error"}.
        """
        return (answer for answer, _, _ in self._answered(params, model_cfg, inputs, Look(top=top)))

    def _answered(
        self, params: Any, model_cfg: Any, paths: Iterable[str], options: Look
    ) -> Iterator[tuple[dict[str, Any], coco.Found, tuple[int, int]]]:
        """(answer, detections, rows and columns) of each image file."""

        @jax.jit
        def step(params: Any, images_BYXC: jax.Array) -> Any:
            found = self._detections(params, model_cfg, images_BYXC.astype(jnp.float32) / 255.0)
            return *_scored(found.logits), found.boxes

        used: set[str] = set()
        for path in paths:
            try:
                image = image_files.upright(Path(path).read_bytes(), channels=len(self.preprocess.mean), side=1 << 15)
                small = image_files.pixels(np.asarray(image), self.preprocess)
            except (OSError, image_files.Broken, SyntaxError, ValueError) as error:
                nothing = coco.Found(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
                yield {"image": path, "error": f"the image cannot be read ({error})"}, nothing, (0, 0)
                continue
            size = (image.height, image.width)
            scores_Q, classes_Q, boxes_Q4 = (np.asarray(x)[0] for x in step(params, small[None]))
            order = np.argsort(-scores_Q, kind="stable")
            order = order[scores_Q[order] >= options.threshold][: options.top]
            found = coco.Found(_clipped(boxes_Q4[order], size), classes_Q[order], scores_Q[order])
            objects = [
                {"label": self.labels[int(k)], "score": float(score), "box": coco.as_bbox(box)}
                for box, k, score in zip(*found, strict=True)
            ]
            answer: dict[str, Any] = {"image": path, "objects": objects}
            if options.draw:
                stem = Path(path).stem
                name = next(
                    n for n in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))) if n not in used
                )
                used.add(name)
                answer["picture"] = str(Path(options.draw) / f"{name}_boxes.png")
                shown = np.asarray(image)
                shown = shown if shown.ndim == 3 else shown[..., None]
                pictures.plot_image(shown, found, self.labels, Path(answer["picture"]))
            yield answer, found, size

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One line: "3 98.1% at (12, 4, 10, 16), 7 71.0% at (30, 20, 11, 15): path"."""
        objects = ", ".join(
            f"{one['label']} {one['score']:.1%} at ({', '.join(f'{x:.0f}' for x in one['box'])})"
            for one in prediction["objects"]
        )
        drawn = f" ({prediction['picture']})" if "picture" in prediction else ""
        return f"{objects or 'no objects'}: {prediction['image']}{drawn}"


def _evaluation(examples: boxes.Examples, labels: tuple[str, ...]) -> Evaluation:
    """A side as a set to evaluate on; its reference is (labels, objects of each image)."""
    return Evaluation(examples, (labels, examples.pictures.objects))


def _terms(costs: sets.Costs, logits_BQK: Any, boxes_BQ4: Any, *objects: Any) -> tuple[jax.Array]:
    """The terms of the set loss, float32 [B, 6]."""
    return (jnp.stack(sets.set_loss(logits_BQK, boxes_BQ4, sets.Objects(*objects), costs), axis=-1),)


def _scored(logits_BQK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the probability of each prediction's best class, that class), [B, Q]; "no object" is not one of them."""
    p_BQK = jax.nn.softmax(logits_BQK.astype(jnp.float32))[..., :-1]
    return jnp.max(p_BQK, axis=-1), jnp.argmax(p_BQK, axis=-1).astype(jnp.int32)


def _found(outputs: Outputs, truth: Sequence[boxes.Objects]) -> list[coco.Found]:
    """The detections in each image, in its stored pixels."""
    rows = zip(outputs["scores"], outputs["classes"], np.nan_to_num(outputs["boxes"]), truth, strict=False)
    return [coco.Found(_clipped(of_Q4, to.size), classes, np.nan_to_num(scores)) for scores, classes, of_Q4, to in rows]


def _clipped(boxes_N4: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes in pixels of an image, which end at its edges."""
    return np.clip(boxes.pixels(np.asarray(boxes_N4, np.float64), size), 0.0, np.tile(size[::-1], 2))
