"""Panoptic segmentation: the segments of an image with their classes, by a model that predicts a set of masks (`eomt`).

A segment is an object (an image may hold several of one class), or all pixels of a class of `stuff`, such as the
sky. From the same masks follow the class of each pixel (mean intersection over union), the segments (panoptic quality),
and the objects (average precision of masks). Each row of metrics says whether the model learns: "matched_iou", the
overlap of each segment with its mask; "class_accuracy", how often that mask names its class; and "empty_share", the
share of masks that say "no object".

Letters: B rows, Y and X pixels, y and x those of the masks, C channels, M segments, Q masks, K classes.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import contracts, models
from transformer_jax.contracts import Evaluation, Outputs, Prepared, Sums
from transformer_jax.data import image_files, masks
from transformer_jax.errors import InputError
from transformer_jax.losses import mask_sets
from transformer_jax.tasks import pixels
from transformer_jax.tasks.panoptic import quality
from transformer_jax.tasks.panoptic import segments as segment_sets
from transformer_jax.tasks.segmentation import SHEET, Segmentation, mean_iou, overlay, plot_sheet, write_png

ROW = ("loss", "nats", "pixel_nats", "dice", "matched_iou", "class_accuracy", "empty_share")
MASK2FORMER = mask_sets.Costs()


@dataclass(frozen=True)
class Panoptic(Segmentation):
    """The set loss of an image's segments; panoptic quality, mean intersection over union, average precision."""

    stuff: tuple[str, ...] = ()
    """The classes with one segment in an image; where a source has no masks of objects, all of them."""
    costs: mask_sets.Costs = MASK2FORMER
    """The weights of the matching's costs and of the loss's terms."""
    threshold: float = 0.8
    """The least probability of the class of a segment to give."""
    overlap: float = 0.8
    """The least share of a mask that is left to it where masks compete for pixels."""

    def settle(self, data: Any) -> Self:
        """This task, with the classes of the data if it has no labels, all of them `stuff` if there are no objects."""
        task = super().settle(data)
        side = data.source.pictures("train")
        return task if side is None or side.segments is not None else dataclasses.replace(task, stuff=task.labels)

    def sized(self, model_cfg: Any) -> Any:
        """`model_cfg` with as many classes as there are labels, where the number is its default."""
        return contracts.fill(model_cfg, "num_classes", len(self.labels)) if self.labels else model_cfg

    def check(self, model_cfg: Any, data: Any) -> None:
        """Refuses a model that does not suit the images."""
        settings = ("image_size", "channels", "num_classes", "num_predictions")
        models.require(model_cfg, "task Panoptic", ("predict_masks",), settings)
        contracts.require_data(data, "task Panoptic", ("source", "most_segments", "memory"))
        pixels.check(model_cfg, self.preprocess)
        if data.most_segments > model_cfg.num_predictions:
            raise InputError(
                f"data.most_segments is {data.most_segments}, but the model predicts {model_cfg.num_predictions} "
                "masks; give it more queries, or lower data.most_segments"
            )
        if self.labels and model_cfg.num_classes != len(self.labels):
            raise InputError(
                f"model.num_classes is {model_cfg.num_classes}, but there are {len(self.labels)} classes; "
                f"give --model.num-classes {len(self.labels)}"
            )
        if unknown := sorted(set(self.stuff) - set(self.labels)):
            raise InputError(f"task.stuff names {unknown[0]!r}, which is none of the classes")

    def example(self, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        return {
            "images": jax.ShapeDtypeStruct(self.preprocess.shape, np.uint8),
            "numbers": jax.ShapeDtypeStruct(self.preprocess.sides, np.uint8),
            "classes": jax.ShapeDtypeStruct((data.most_segments,), np.int32),
            "segments": jax.ShapeDtypeStruct((data.most_segments,), np.float32),
            "weights": jax.ShapeDtypeStruct((), np.float32),
        }

    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The images with their segments, decoded if they fit into memory. There is no tokenizer.

        Raises:
          InputError: a model that does not suit the images, and what `masks.prepare` refuses.
        """
        task = self.settle(data)
        task.check(model_cfg, data)
        train, validation, test, facts = segment_sets.prepare(
            data, self.preprocess, task.labels, background=self.background, seed=seed
        )
        held_out = None if test is None else Evaluation(test, task)
        return Prepared(train, Evaluation(validation, task), facts, test=held_out)

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {name: (sum, weight)}), a mean over images; the names are those of `ROW`."""
        images_BYXC, numbers_BYX = batch["images"].astype(jnp.float32) / 255.0, batch["numbers"].astype(jnp.int32)
        if key is not None and self.augment:
            key, augment_key = jax.random.split(key)
            layout = (("batch", None, None, None), ("batch", None, None))
            images_BYXC, numbers_BYX = pixels.in_auto_mesh(
                self._augmented, augment_key, images_BYXC, numbers_BYX, out=layout
            )
        found = self._masks(params, model_cfg, images_BYXC, key=key)
        sums = self._set_sums(found, numbers_BYX, batch)
        return *sums["loss"], jax.lax.stop_gradient(sums)

    def _masks(self, params: Any, model_cfg: Any, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> Any:
        """The model's (logits [B, Q, K + 1], masks [B, Q, y, x]) for images float32 in [0, 1]."""
        mean_C, std_C = (jnp.array(x, jnp.float32) for x in (self.preprocess.mean, self.preprocess.std))
        return models.family(model_cfg).predict_masks(params, model_cfg, (images_BYXC - mean_C) / std_C, key=key)

    def _set_sums(self, found: Any, numbers_BYX: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """{name: (sum, weight)} of a batch; the overlap and the accuracy are means over segments."""

        def terms(logits_BQK: Any, masks_BQyx: Any, numbers_BYX: Any, classes_BM: Any, present_BM: Any) -> Any:
            of = mask_sets.Segments(_at(numbers_BYX, masks_BQyx.shape[2:]), classes_BM, present_BM)
            return (jnp.stack(mask_sets.set_loss(logits_BQK, masks_BQyx, of, self.costs), axis=-1),)

        (B, Q), weights_B = found.masks.shape[:2], batch["weights"]
        operands = found.logits, found.masks, numbers_BYX, batch["classes"], batch["segments"]
        (terms_BS,) = pixels.in_auto_mesh(terms, *operands, out=(("batch", None),), shapes=((B, len(ROW) + 1),))
        *totals, count = jnp.sum(terms_BS * weights_B[:, None], axis=0)
        images_ = jnp.sum(weights_B)
        weights = dict.fromkeys(("pixel_nats", "dice", "matched_iou", "class_accuracy"), count)
        weights["empty_share"] = Q * images_
        return {name: (total, weights.get(name, images_)) for name, total in zip(ROW, totals, strict=True)}

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss` without augmentation, and what each image's masks say.

        Objects are kept as bits of their masks, at the masks' own resolution.
        """
        found = self._masks(params, model_cfg, batch["images"].astype(jnp.float32) / 255.0)
        sums = self._set_sums(found, batch["numbers"].astype(jnp.int32), batch)
        B, Q = found.masks.shape[:2]
        shape, per_row = batch["numbers"].shape, ("batch", None, None)
        named_BYX, numbers_BYX, scores_BQ, classes_BQ = pixels.in_auto_mesh(
            self._read_masks,
            *(found.logits, found.masks),
            out=(per_row, per_row, ("batch", None), ("batch", None)),
            shapes=(shape, shape, (B, Q), (B, Q)),
        )
        outputs = {"named": named_BYX, "found": numbers_BYX, "scores": scores_BQ, "found_classes": classes_BQ}
        outputs |= {name: batch[name] for name in ("numbers", "classes", "segments")}
        if set(self.labels) - set(self.stuff):
            outputs["bits"] = jnp.packbits(found.masks > 0, axis=-1)
        return sums, outputs

    def _read_masks(self, logits_BQK: jax.Array, masks_BQyx: jax.Array) -> tuple[jax.Array, ...]:
        """(class of each pixel, from 1, segment of each pixel, score and class of each mask), at the image's size.

        The class has the highest sum of the masks' probabilities times the class's (MaskFormer, section 3.4), and no
        pixel with a sum up to one half has one, where the background counts. Segments compete for pixels by
        probability; what is left of a mask is a segment where it is most of it (Panoptic FPN's rule).
        """
        p_BQK = jax.nn.softmax(logits_BQK.astype(jnp.float32))
        score_BQ, class_BQ = jnp.max(p_BQK[..., :-1], axis=-1), jnp.argmax(p_BQK[..., :-1], axis=-1)
        shape = (*masks_BQyx.shape[:2], *self.preprocess.sides)
        inside_BQYX = jax.nn.sigmoid(jax.image.resize(masks_BQyx.astype(jnp.float32), shape, "bilinear"))
        worth_BKYX = jnp.einsum("BQK,BQYX->BKYX", p_BQK[..., :-1], inside_BQYX)
        named_BYX = jnp.argmax(worth_BKYX, axis=1) + 1
        if self.background:
            named_BYX = jnp.where(jnp.max(worth_BKYX, axis=1) > 0.5, named_BYX, 0)
        kept_BQ = (score_BQ > self.threshold) & (jnp.argmax(p_BQK, axis=-1) < p_BQK.shape[-1] - 1)
        weighed_BQYX = inside_BQYX * (score_BQ * kept_BQ)[..., None, None]
        winner_BYX = jnp.argmax(weighed_BQYX, axis=1)
        own_BQYX = (winner_BYX[:, None] == jnp.arange(shape[1])[:, None, None]) & (inside_BQYX >= 0.5)
        left_BQ, whole_BQ = (jnp.sum(x, axis=(2, 3)) for x in (own_BQYX, inside_BQYX >= 0.5))
        kept_BQ &= (left_BQ > 0) & (left_BQ >= self.overlap * whole_BQ)
        owned_BQYX = own_BQYX & kept_BQ[..., None, None]
        numbers_BYX = jnp.where(jnp.any(owned_BQYX, axis=1), jnp.argmax(owned_BQYX, axis=1) + 1, 0)
        return named_BYX.astype(jnp.uint8), numbers_BYX.astype(jnp.uint8), score_BQ, class_BQ.astype(jnp.int32)

    def best_metric(self) -> str:
        """The set loss of the validation set."""
        return "loss_per_image"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The means of the loss's terms, and what the segments, the pixels and the objects are worth."""
        task, K = evaluation.reference, len(evaluation.reference.labels)
        means = {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}
        truth = [_segmented(n, k[w > 0]) for n, k, w in _rows(outputs, "numbers", "classes", "segments")]
        found = [task._merged(n, k) for n, k in _rows(outputs, "found", "found_classes")]
        confusion = sum(
            _confusion(one, named, K, task.background)
            for one, (named,) in zip(truth, _rows(outputs, "named"), strict=True)
        )
        scores = {"mean_iou": mean_iou(np.asarray(confusion))} | quality.panoptic_quality(truth, found, K)
        if "bits" in outputs:
            true, masks_ = task._objects(truth, outputs)
            scores |= quality.average_precision(true, masks_, K)
        return {"loss_per_image": means.pop("loss"), **means, **scores}

    def _merged(self, numbers: np.ndarray, classes: np.ndarray) -> quality.Segmented:
        """The found segments of an image, those of a class of `stuff` as one."""
        first: dict[int, int] = {}
        table, kept = np.zeros(256, np.int64), []
        for n in np.unique(numbers[numbers > 0]):
            k = int(classes[n - 1])
            if k not in first or self.labels[k] not in self.stuff:
                kept.append(k)
                first[k] = len(kept)
            table[n] = first[k]
        return quality.Segmented(table[numbers], np.array(kept, np.int64))

    def _objects(self, truth: list[quality.Segmented], outputs: Outputs) -> tuple[list[Any], list[Any]]:
        """(true objects, masks of objects) of each image, at the masks' resolution."""
        things = np.array([name not in self.stuff for name in self.labels])
        Y, X = truth[0].numbers.shape
        rows = outputs["bits"].shape[2]
        columns = rows * X // Y  # masks have the image's aspect
        true, found = [], []
        for of, bits, classes, scores in zip(
            truth, outputs["bits"], outputs["found_classes"], outputs["scores"], strict=True
        ):
            numbers = np.where(of.numbers == masks.IGNORED, 0, of.numbers)
            kept = np.concatenate([[0], np.where(things[of.classes], np.arange(len(of.classes)) + 1, 0)])
            true.append(quality.Segmented(masks.nearest(kept[numbers], (rows, columns)), of.classes))
            inside = np.unpackbits(bits, axis=-1, count=columns).astype(bool)
            some = things[classes] & inside.any((1, 2))
            found.append(quality.Masks(inside[some], classes[some], scores[some]))
        return true, found

    def score(self, params: Any, model_cfg: Any, tokenizer: Any, evaluation: Evaluation, *_: Any, **__: Any) -> Any:
        """What one segment of the most common class in every image would reach, to compare with."""
        K, examples = len(self.labels), (evaluation.examples[i] for i in range(len(evaluation.examples)))
        truth = [_segmented(one["numbers"], one["classes"][one["segments"] > 0]) for one in examples]
        pixels_K = np.zeros(K)
        for of in truth:
            counts = np.bincount(of.numbers.ravel(), minlength=len(of.classes) + 1)[1 : len(of.classes) + 1]
            np.add.at(pixels_K, of.classes, counts)
        most = int(pixels_K.argmax())
        found = [quality.Segmented(np.ones_like(of.numbers), np.array([most])) for of in truth]
        return {"baseline_pq_of_one_segment": quality.panoptic_quality(truth, found, K)["pq"]}

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """A sheet of the first images, each beside its found and its true segments."""
        path, rows = folder / f"{name}_segments.png", []
        for e, (found, true) in enumerate(_rows(outputs, "found", "numbers")):
            if e == SHEET:
                break
            image = evaluation.examples[e]["images"]
            true = np.where(true == masks.IGNORED, 0, true)
            rows.append((image, overlay(image, found), overlay(image, true)))
        plot_sheet(rows, path)
        return [path]

    # ------------------------------------------------------------------------------------------------------ prediction

    def snapshot_settings(self) -> dict[str, Any]:
        """The labels and the preprocessing."""
        return {"labels": self.labels, "preprocess": self.preprocess}

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int, draw: str = ""
    ) -> Iterator[dict[str, Any]]:
        """For each image file {"image": its path, "segments": [{"label", "score", "share"}, ...]}, the largest first.

        A file that cannot be read or decoded has {"image", "error"}.
        """

        @jax.jit
        def step(params: Any, images_BYXC: jax.Array) -> Any:
            return self._read_masks(*self._masks(params, model_cfg, images_BYXC.astype(jnp.float32) / 255.0)[:2])

        for path in inputs:
            try:
                image = image_files.upright(Path(path).read_bytes(), channels=len(self.preprocess.mean), side=1 << 15)
                small = image_files.pixels(np.asarray(image), self.preprocess)
            except (OSError, image_files.Broken, SyntaxError, ValueError) as error:
                yield {"image": path, "error": f"the image cannot be read ({error})"}
                continue
            _, numbers, scores, classes = (np.asarray(x)[0] for x in step(params, small[None]))
            counts = np.bincount(numbers.ravel(), minlength=len(classes) + 1)[1:]
            best = [n for n in np.argsort(-counts, kind="stable") if counts[n]]
            found = [
                {"label": self.labels[classes[n]], "score": float(scores[n]), "share": float(counts[n] / numbers.size)}
                for n in best
            ]
            answer: dict[str, Any] = {"image": path, "segments": found}
            if draw:
                whole, shown = masks.nearest(numbers, (image.height, image.width)), np.asarray(image)
                stem = Path(draw) / Path(path).stem
                answer["pictures"] = [f"{stem}_segments.png", f"{stem}_numbers.png"]
                write_png(overlay(shown if shown.ndim == 3 else shown[..., None], whole), Path(answer["pictures"][0]))
                write_png(whole, Path(answer["pictures"][1]))
            yield answer

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One line: "3 98.1% of 10.0%, 7 91.0% of 8.2%: path"."""
        found = ", ".join(f"{s['label']} {s['score']:.1%} of {s['share']:.1%}" for s in prediction["segments"])
        drawn = f" ({', '.join(prediction['pictures'])})" if "pictures" in prediction else ""
        return f"{found or 'no segments'}: {prediction['image']}{drawn}"


def _at(numbers_BYX: jax.Array, sides: tuple[int, int]) -> jax.Array:
    """Numbers at the masks' resolution, each that of the nearest pixel, [B, y, x]."""
    down, across = (
        ((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(sides, numbers_BYX.shape[1:], strict=True)
    )
    return numbers_BYX[:, down[:, None], across]


def _rows(outputs: Outputs, *names: str) -> Iterator[tuple[Any, ...]]:
    """The outputs of these names, image by image."""
    return zip(*(outputs[name] for name in names), strict=True)


def _segmented(numbers: np.ndarray, classes: np.ndarray) -> quality.Segmented:
    return quality.Segmented(numbers.astype(np.int64), classes.astype(np.int64))


def _confusion(of: quality.Segmented, named: np.ndarray, K: int, background: bool) -> np.ndarray:
    """Pixels of each true class (row) that are named each class (column); with the background, it is the first."""
    table = np.full(256, -1)
    table[0], table[1 : len(of.classes) + 1] = (0 if background else -1), of.classes + 1
    first = 0 if background else 1
    wanted = table[of.numbers]
    counted, size = wanted >= first, K + (not first)
    cells = (wanted[counted] - first) * size + named[counted].astype(int) - first
    return np.bincount(cells, minlength=size * size).reshape(size, size)
