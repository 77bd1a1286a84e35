"""Contrastive learning: embeddings in which the two sides of a pair are near each other, and other sides are not.

Pairs of pictures and texts (CLIP, SigLIP) or of texts (sentence embeddings), for a model of the family `dual`. The
host sends pixels as uint8; augmentation and normalisation are part of the loss, on the device.

Letters: B rows, Y and X pixels, C channels, T length, H hard negatives, E embedding width (F in NumPy's results).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import augment as augmentations
from transformer_jax import files, models
from transformer_jax.contracts import (
    Evaluation,
    Input,
    Outputs,
    Predict,
    Prepared,
    Progress,
    Sums,
    Task,
    no_progress,
    require_data,
)
from transformer_jax.data.preprocess import Preprocess, sides
from transformer_jax.errors import InputError
from transformer_jax.losses import contrastive
from transformer_jax.tasks import encoder, pixels
from transformer_jax.tasks.contrastive import embedding, paired, pictures, retrieval
from transformer_jax.tasks.contrastive.embedding import Embedder

PUBLISHED = Preprocess(resample="bicubic")


@dataclass(frozen=True)
class Look:
    """The options of `predict`."""

    top: int
    """Answers per input of a search."""
    search: str = ""
    """Find the nearest of these: a folder of pictures or of text files, or a file with a text per line; empty: give the
    embeddings."""
    npy: str = ""
    """Write the embeddings of the inputs into this .npy file, float32 [inputs, width]; NaN where there is none."""
    file: str = ""
    """A text file with an input on each line, or a table."""
    text: str = ""
    """The column of the table that is the input."""
    out: str = ""
    """Write the answers into this .csv or .jsonl file instead of printing them."""
    json: bool = False
    """One JSON object per line."""


@dataclass(frozen=True)
class Contrastive(Task):
    """The two sides of each pair come nearer to each other than to the sides of the other pairs of the batch."""

    reads_text: ClassVar[bool] = True
    unit: ClassVar[str] = "pairs"
    accumulates: ClassVar[bool] = True
    pipeline_tag: ClassVar[str] = "feature-extraction"

    objective: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: one right side of several, and one left side (InfoNCE, CLIP); sigmoid: each two sides are a pair or not
    (SigLIP)."""
    sizes: tuple[int, ...] = ()
    """Widths, increasing: the loss is the mean over those of the first features of the embeddings, which can then be
    truncated (matryoshka, Kusupati et al. 2022); (): the whole embeddings."""
    shared: float | None = None
    """Texts of the same tokens are right for each other, and those that share rare tokens in part, at most by this
    share (`losses.contrastive.shared_tokens`); for the objective softmax. None: every other text is wrong."""
    max_scale: float = 100.0
    """The largest factor of the cosines in the loss (CLIP); 0: no bound."""
    preprocess: Preprocess = PUBLISHED
    """The preprocessing of pictures."""
    augment: tuple[augmentations.Augmentation, ...] = ()
    """The augmentations of training pictures, in this order, on the device."""

    def __post_init__(self) -> None:
        if list(self.sizes) != sorted(set(self.sizes)) or min(self.sizes, default=1) < 1:
            raise InputError(f"task.sizes = {self.sizes}: give widths above 0, each larger than the one before")
        if self.shared is not None and (self.objective != "softmax" or not 0 <= self.shared <= 1):
            raise InputError(f"task.shared = {self.shared}: must be from 0 to 1, and is for task.objective softmax")
        if self.max_scale < 0:
            raise InputError(f"task.max_scale = {self.max_scale}: must be above 0, or 0 for no bound")

    def check(self, model_cfg: Any, data: paired.Paired) -> None:
        """Refuses a model that does not suit the pairs."""
        functions, settings = ("left", "right", "temperature"), ("width", "max_length", "image", "text")
        models.require(model_cfg, "task Contrastive", functions, settings)
        require_data(data, "task Contrastive", ("source", "tokenizer", "length", "memory"))
        image = model_cfg.image
        if data.source.images != (image is not None):
            lefts = [("texts", "pictures")[is_image] for is_image in (data.source.images, image is not None)]
            raise InputError(f"the left sides of the data are {lefts[0]}, but model.left reads {lefts[1]}")
        if image is not None:
            wanted = (*sides(image.image_size), image.channels)
            if wanted != self.preprocess.shape:
                raise InputError(
                    f"model.left.image_size and channels are {wanted}, but task.preprocess gives pictures of "
                    f"{self.preprocess.shape}; "
                    "set one to the other"
                )
        if data.length > model_cfg.max_length:
            raise InputError(f"data.length = {data.length} is longer than the text tower's {model_cfg.max_length}")
        if getattr(model_cfg, "reads_padding", False) and data.length != model_cfg.max_length:
            raise InputError(
                f"data.length = {data.length}, but the text tower reads the padding too: give it the length of its "
                f"texts in prediction, {model_cfg.max_length}"
            )
        if self.sizes and self.sizes[-1] > model_cfg.width:
            raise InputError(f"task.sizes = {self.sizes}: the embeddings have model.width {model_cfg.width}")

    def example(self, data: paired.Paired) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        row, count = jax.ShapeDtypeStruct((data.length,), np.int32), jax.ShapeDtypeStruct((), np.int32)
        shape = self.preprocess.shape
        left = {"left": jax.ShapeDtypeStruct(shape, np.uint8)}
        made = left if data.source.images else {"left": row, "left_lengths": count}
        made |= {"right": row, "right_lengths": count}
        if H := data.source.negatives:
            made["negatives"] = jax.ShapeDtypeStruct((H, data.length), np.int32)
            made["negatives_lengths"] = jax.ShapeDtypeStruct((H,), np.int32)
        return made | {"weights": jax.ShapeDtypeStruct((), np.float32)}

    def prepare(self, data: paired.Paired, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The encoded texts and the pictures, decoded if they fit into memory."""
        self.check(model_cfg, data)
        sides: tuple[paired.Side, ...] = ("train", "validation", "test")
        pairs = {side: data.source.pairs(side) for side in sides[: 3 if data.source.has_test else 2]}
        tokenizer = paired.build_tokenizer(data, pairs["train"], workdir_tokenizer)
        encoder.check_ids(model_cfg.text, tokenizer)
        facts: dict[str, Any] = {"vocabulary": tokenizer.vocab_size}
        made = {}
        for side, one in pairs.items():
            order = seed if side == "train" else None
            made[side] = paired.examples(one, data, tokenizer, self.preprocess, seed=order)
            facts[f"{side}_pairs"] = len(one.held)
            facts[f"{side}_texts_truncated_to_{data.length}_tokens"] = made[side].right.truncated
        baselines = getattr(data.source, "baselines", None)
        facts |= baselines(pairs["train"], pairs["validation"]) if baselines else {}
        sets = {side: Evaluation(made[side], paired.reference(pairs[side])) for side in made if side != "train"}
        return Prepared(made["train"], sets["validation"], facts, tokenizer, sets.get("test"))

    # ------------------------------------------------------------------------------------------------------------ loss

    def loss(
        self,
        params: Any,
        model_cfg: Any,
        batch: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        accumulate: int = 1,
    ) -> Any:
        """(sum, weight, {"loss", "recall_at_1_in_batch", "scale"}) in nats per pair.

        The recall is the share of left sides whose own right side is the nearest of the batch. With a key, pictures are
        augmented.
        """
        sides = {name: x for name, x in batch.items() if name != "weights"}
        embedded = contrastive.in_parts(
            lambda rows, key: self._embed(params, model_cfg, rows, key), sides, accumulate, key
        )
        return self._contrast(params, model_cfg, embedded, batch)

    def _contrast(
        self, params: Any, model_cfg: Any, embedded: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
    ) -> Any:
        weights_B = batch["weights"]
        log_scale, bias = models.family(model_cfg).temperature(params, model_cfg)
        scale = contrastive.clipped_scale(log_scale, self.max_scale)
        left, right = embedded["left"], embedded["right"]
        options: Any = {"negatives_BHE": embedded.get("negatives"), "sizes": self.sizes}
        if self.objective == "softmax":
            if self.shared is not None:
                texts = (batch["right"], batch["right_lengths"], weights_B)
                options["shared_BB"] = contrastive.shared_tokens(
                    *texts, vocab_size=model_cfg.vocab_size, share=self.shared
                )
            made = contrastive.info_nce(left, right, scale, weights_B, **options)
        else:
            made = contrastive.sigmoid(left, right, scale, bias, weights_B, **options)
        sums = {"loss": (made.sum, made.weight), "recall_at_1_in_batch": (made.found, made.weight)}
        return made.sum, made.weight, jax.lax.stop_gradient(sums | {"scale": (scale * made.weight, made.weight)})

    def _embed(
        self, params: Any, model_cfg: Any, rows: Mapping[str, jax.Array], key: jax.Array | None
    ) -> dict[str, jax.Array]:
        """{"left": [B, E], "right": [B, E], "negatives": [B, H, E] where there are any}."""
        family, (augment_key, *keys) = models.family(model_cfg), [None] * 4 if key is None else jax.random.split(key, 4)
        left = rows["left"]
        if model_cfg.image is not None:
            left = self._normalised(left, augment_key)
        made = {
            "left": family.left(params, model_cfg, left, lengths=rows.get("left_lengths"), key=keys[0]),
            "right": family.right(params, model_cfg, rows["right"], lengths=rows["right_lengths"], key=keys[1]),
        }
        if "negatives" in rows:
            B, H, T = rows["negatives"].shape
            lengths = rows["negatives_lengths"].reshape(B * H)
            flat = family.right(params, model_cfg, rows["negatives"].reshape(B * H, T), lengths=lengths, key=keys[2])
            made["negatives"] = flat.reshape(B, H, -1)
        return made

    def _normalised(self, images_BYXC: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pictures uint8 as the tower reads them; with a key they are augmented."""
        x_BYXC = images_BYXC.astype(jnp.float32) / 255.0
        if key is not None and self.augment:
            steps = self.augment
            (x_BYXC,) = pixels.in_auto_mesh(
                lambda key, x: (augmentations.apply(key, x, steps),), key, x_BYXC, out=(("batch", None, None, None),)
            )
        mean_C, std_C = (jnp.array(x, jnp.float32) for x in (self.preprocess.mean, self.preprocess.std))
        return (x_BYXC - mean_C) / std_C

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss`, over the rows of an evaluation batch, and the embeddings of every pair."""
        embedded = self._embed(params, model_cfg, batch, None)
        outputs = {"left": embedded["left"], "right": embedded["right"]}
        return self._contrast(params, model_cfg, embedded, batch)[2], outputs

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_pair"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Retrieval over the whole set, by `retrieval.retrieval`, and the loss of its evaluation batches.

        With `sizes`, the recall at 1 of the truncated embeddings too.
        """
        known: paired.Reference = evaluation.reference
        left, right = np.nan_to_num(outputs["left"]), np.nan_to_num(outputs["right"])
        scores = {"loss_nats_per_pair": sums["loss"][0] / max(sums["loss"][1], 1e-9)}
        scores |= retrieval.retrieval(left, right, known.left_E, known.right_E)
        for width in self.sizes[:-1]:
            rank = retrieval.ranks(left[:, :width], right[:, :width], known.left_E, known.right_E)
            scores[f"recall_at_1_left_to_right_of_{width}"] = float((rank == 1).mean())
        return scores

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """A sheet with the nearest pictures of a few texts, the right one marked."""
        examples, known = evaluation.examples, evaluation.reference
        if not isinstance(examples.left, paired.Pictures):
            return []
        path = folder / f"{name}_retrieval.png"
        pictures.plot(outputs["left"], outputs["right"], known, lambda i: examples[int(i)]["left"], path)
        return [path]

    # ------------------------------------------------------------------------------------------------------ throughput

    def tokens(self, data: paired.Paired) -> int:
        """1, since throughput is in pairs."""
        return 1

    def flops(self, model_cfg: Any, data: paired.Paired) -> float:
        """The FLOPs of both towers in a training step on one pair, forward and backward."""
        texts = data.source.negatives + (1 if model_cfg.image is not None else 2)
        pictures_ = 0.0 if model_cfg.image is None else encoder.image_flops(model_cfg.image)
        return texts * encoder.flops(model_cfg.text, data.length) + pictures_

    # ------------------------------------------------------------------------------------------------------ prediction

    def predict_options(self, defaults: Predict) -> Look:
        """The options of `predict`: what to search, and where to write embeddings."""
        return Look(top=defaults.top)

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int, search: str = ""
    ) -> Iterator[dict[str, Any]]:
        """For each input {"text" or "image", "embedding": [...]}, and of a search {"found": [{"item", "cosine"}, ...]}.

        An input that ends like a picture's file is one, where the model reads pictures; a file that cannot be read has
        {"image", "error"}.

        Args:
          params: the parameters of the model.
          model_cfg: the model.
          tokenizer: encodes the texts.
          inputs: texts, or paths of pictures.
          top: how many items a search gives.
          search: what is searched; empty: nothing.
        """
        embedder = Embedder(params, model_cfg, tokenizer, self.preprocess)
        names, items_NF = embedding.items(search, embedder) if search else ([], None)
        sees = model_cfg.image is not None
        for group in embedding.grouped(iter(inputs)):
            texts = [one for one in group if not (sees and embedding.is_picture(one))]
            encoded = iter(embedder.texts(texts, "right" if sees else "left") if texts else ())
            for one in group:
                if sees and embedding.is_picture(one):
                    answer: dict[str, Any] = {"image": one}
                    try:
                        (row_F,) = embedder.images([one])
                    except InputError as error:
                        yield answer | {"error": str(error)}
                        continue
                else:
                    answer, row_F = {"text": one}, next(encoded)
                if items_NF is None:
                    yield answer | {"embedding": row_F.tolist()}
                    continue
                (best,), (cosines,) = retrieval.nearest(row_F[None], items_NF, min(top, len(names)))
                found = [{"item": names[i], "cosine": float(c)} for i, c in zip(best, cosines, strict=True)]
                yield answer | {"embedding": row_F.tolist(), "found": found}

    def answers(
        self, loaded: Any, queries: Sequence[Any], options: Look, *, progress: Progress = no_progress
    ) -> Iterator[dict[str, Any]]:
        """`predict` with the options of the command."""
        model = (loaded.params, loaded.config, loaded.tokenizer)
        for answer in self.predict(*model, queries, top=options.top, search=options.search):
            if options.search and not options.npy:
                answer.pop("embedding", None)
            yield answer

    def answered(
        self, loaded: Any, inputs: Sequence[Input], options: Look, *, progress: Progress = no_progress
    ) -> Iterator[tuple[Input, Mapping[str, Any]]]:
        """(input, answer) of each input; with `npy` the embeddings are in that file, and in no answer.

        Raises:
          InputError: the file's name does not end in .npy.
        """
        if not options.npy:
            yield from super().answered(loaded, inputs, options, progress=progress)
            return
        if not options.npy.endswith(".npy"):
            raise InputError(f"--npy {options.npy}: the name must end in .npy")
        rows = np.full((len(inputs), loaded.config.width), np.nan, np.float32)
        for i, (one, answer) in enumerate(super().answered(loaded, inputs, options, progress=progress)):
            if "embedding" in answer:
                rows[i] = answer["embedding"]
            yield one, {name: value for name, value in answer.items() if name != "embedding"}
        with files.replacing(Path(options.npy)) as part, part.open("wb") as file:
            np.save(file, rows)

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The input, and below it what was found, or the beginning of its embedding."""
        given = prediction.get("image") or prediction["text"]
        if "found" in prediction:
            return "\n".join([given, *(f"  {one['cosine']:.3f}  {one['item']}" for one in prediction["found"])])
        row = prediction.get("embedding", ())
        shown = f": {' '.join(f'{x:.3f}' for x in row[:6])} ... ({len(row)} numbers)" if row else ""
        return f"{given}{shown}"

    def snapshot_settings(self) -> dict[str, Any]:
        """The preprocessing of the pictures."""
        return {"preprocess": self.preprocess}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> paired.Paired:
        """A table that the user has to give."""
        pictures_ = "" if model_cfg.image is None else "."
        return paired.Paired(paired.Table(("pairs.csv",), pictures=pictures_), tokenizer, model_cfg.max_length)
