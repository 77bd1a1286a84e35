"""Pictures from words: one row of a caption's tokens and a picture's codes, for a decoder (Ramesh et al. 2021).

    blank | T tokens of the caption, blanks after them | S codes of the picture, row by row

The model is any decoder, such as `gpt`. A caption is dropped at random in training, so that the model also knows
pictures without one; drawing then moves away from these (classifier-free guidance, `decoding.guidance`).

It reports nats per code of held-out pictures with their own caption and with another one's. The difference tells
whether the model reads captions at all; the baselines tell whether it knows more than neighbouring codes do.

Letters: B rows, T tokens of a caption, S codes of a picture, K codes in all, D width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import losses, models
from transformer_jax.contracts import (
    TRAINING,
    Evaluation,
    Input,
    Outputs,
    Prepared,
    Progress,
    Sums,
    Task,
    no_progress,
    require_data,
)
from transformer_jax.decoding import decode, sets
from transformer_jax.decoding.guidance import Guided
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks import encoder
from transformer_jax.tasks.text_to_image import captioned, codes, pictures
from transformer_jax.tasks.text_to_image.tokenizer import PictureTokenizer, TextAndCodes

DECODES = ("init_cache", "prefill", "decode_step", "for_decoding")  # the functions of a family that draws
OTHER = "nats_per_code_with_other_caption"
SHEET = 32  # pictures of an evaluation
ROWS = 64  # pictures that are drawn together


@dataclass(frozen=True)
class Draw:
    """How pictures are drawn, for the sheets of a run and for `predict`."""

    count: int = 4
    """Pictures of each caption."""
    guidance: float = 3.0
    """Above 1, pictures fit the caption better and differ less from each other; 1: none."""
    top_k: int = 50
    """Draw each code from the k likeliest; 0: from all."""
    temperature: float = 1.0
    """Divides the logits; 0: the likeliest code each time."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"count = {self.count}: must be 1 or more")
        if not self.guidance >= 0:
            raise InputError(f"guidance = {self.guidance}: must be 0 or more; 1 is none")
        self.sampling(1)

    def sampling(self, length: int) -> decode.Sampling:
        """These settings for `decode`.

        Args:
          length: S.
        """
        return decode.Sampling(length, temperature=self.temperature, top_k=self.top_k)


@dataclass(frozen=True)
class DrawInto(Draw):
    """The options of `predict`."""

    out: str = "pictures.png"
    """The PNG to write: a row of pictures for each caption."""
    seed: int = 0
    """Of the draws."""
    file: str = ""
    """A text file with a caption on each line."""


@dataclass(frozen=True)
class TextToImage(Task):
    """The cross-entropy of a caption's tokens and of a picture's codes, in one row."""

    reads_text: ClassVar[bool] = True
    unit: ClassVar[str] = "tokens"
    pipeline_tag: ClassVar[str] = "text-to-image"
    writes: ClassVar[tuple[str, ...]] = (".png",)

    text_weight: float = 0.125
    """The share of a caption in the loss; the rest is the picture's (DALL-E: 1/8 and 7/8)."""
    caption_dropout: float = field(default=0.1, metadata=TRAINING)
    """The share of rows whose caption is replaced by blanks in training."""
    num_codes: int = 0
    """K; 0: the data's, filled in when a run begins."""
    caption_length: int = -1
    """T; -1: the data's, filled in when a run begins."""

    def __post_init__(self) -> None:
        for name in ("text_weight", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"task.{name} = {getattr(self, name)}: must be in [0, 1)")

    # ---------------------------------------------------------------------------------------------------------- data

    def settle(self, data: captioned.Captioned) -> "TextToImage":
        """This task with the number of codes and the length of captions of the data."""
        book, length = data.tokenizer.num_codes, data.caption_length
        return dataclasses.replace(self, num_codes=book, caption_length=length)

    def check(self, model_cfg: Any, data: Any) -> None:
        """Refuses a model that does not suit the data."""
        models.require(model_cfg, "task TextToImage", ("hidden", "head"), ("vocab_size", "max_length", "width"))
        require_data(data, "task TextToImage", ("source", "tokenizer", "caption_length", "length"))
        if not data.source.images:
            raise InputError("the left sides of data.source are texts; task TextToImage needs pictures")
        if data.length > model_cfg.max_length:
            raise InputError(
                f"a row has {data.caption_length} tokens and {data.tokenizer.length} codes, but model.max_length is "
                f"{model_cfg.max_length}; give --model.max-length {data.length} or more"
            )

    def example(self, data: captioned.Captioned) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        caption = jax.ShapeDtypeStruct((data.caption_length,), np.int32)
        return {
            "caption": caption,
            "other": caption,
            "codes": jax.ShapeDtypeStruct((data.tokenizer.length,), np.int32),
            "weights": jax.ShapeDtypeStruct((), np.float32),
        }

    def prepare(
        self, data: captioned.Captioned, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None
    ) -> Prepared:
        """The captions and the codes of the pictures, and what simple predictors of the codes reach."""
        self.check(model_cfg, data)
        sides: tuple[Any, ...] = ("train", "validation", *(("test",) if data.source.has_test else ()))
        pairs = {side: data.source.pairs(side) for side in sides}
        tokenizer = captioned.build_tokenizer(data, pairs["train"], workdir_tokenizer)
        encoder.check_ids(model_cfg, tokenizer)
        made = {
            side: captioned.examples(one, data, tokenizer, seed=seed if side == "train" else None)
            for side, one in pairs.items()
        }
        facts: dict[str, Any] = {"vocabulary": tokenizer.vocab_size}
        facts |= {f"{side}_pictures": len(one.held) for side, one in pairs.items()}
        book, evaluations = tokenizer.codebook, {}
        for side in sides[1:]:
            found = captioned.baselines(made["train"].codes_NS, made[side].codes_NS, book.num_codes)
            facts |= found if side == "validation" else {}
            texts = [pair.right for pair in pairs[side].held]
            evaluations[side] = Evaluation(made[side], {"baselines": found, "captions": texts})
        return Prepared(made["train"], evaluations["validation"], facts, tokenizer, evaluations.get("test"))

    # ---------------------------------------------------------------------------------------------------------- loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss", "nats_per_code", ...}); with a key, captions are dropped.

        A row's loss is `text_weight` of the mean over its caption's tokens, and the rest of that over its codes. Where
        captions are dropped, the nats per code of these rows are "nats_without_caption".
        """
        caption_BT, weights_B = batch["caption"], batch["weights"]
        has_B, blank = jnp.ones_like(weights_B), self.num_codes
        if key is not None:
            key, drop_key = jax.random.split(key)
            if self.caption_dropout and caption_BT.shape[1]:
                # Evenly spaced rows, which are in random order already: each batch drops the same share of captions.
                share_B = jax.random.uniform(drop_key) + self.caption_dropout * jnp.arange(len(weights_B) + 1)
                has_B = (jnp.diff(jnp.floor(share_B)) == 0).astype(jnp.float32)
                caption_BT = jnp.where(has_B[:, None] > 0, caption_BT, blank)
        made = self._nats(params, model_cfg, caption_BT, batch["codes"], key)
        total, weight, sums = self._sums(*made, weights_B, has_B)
        if key is not None and self.caption_dropout and caption_BT.shape[1]:
            sums["nats_without_caption"] = _mean(made[2], weights_B * (1 - has_B))
        return total, weight, jax.lax.stop_gradient(sums)

    def _sums(
        self,
        text_B: jax.Array,
        has_text_B: jax.Array,
        nats_B: jax.Array,
        weights_B: jax.Array,
        has_caption_B: jax.Array,
    ) -> Any:
        """(sum, weight, {name: (sum, weight)}) of what `_nats` returns."""
        code_weight = 1 - self.text_weight if self.caption_length else 1.0
        total = jnp.sum(weights_B * (self.text_weight * text_B + code_weight * nats_B))
        weight = jnp.sum(weights_B * (self.text_weight * has_text_B + code_weight))
        sums = {"loss": (total, weight), "nats_per_code": _mean(nats_B, weights_B * has_caption_B)}
        if self.caption_length:
            sums["nats_per_text_token"] = _mean(text_B, weights_B * has_text_B)
        return total, weight, sums

    def _nats(
        self, params: Any, model_cfg: Any, caption_BT: jax.Array, codes_BS: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(mean nats of each caption's tokens [B], 0 without tokens; whether it has any [B]; of each picture's codes
        [B]). Codes are predicted among codes, and tokens of text among those."""
        family, K, T = models.family(model_cfg), self.num_codes, caption_BT.shape[1]
        row = jnp.concatenate([jnp.full_like(codes_BS[:, :1], K), caption_BT, codes_BS], axis=1)
        x_BTD = family.hidden(params, model_cfg, row[:, :-1], key=key)
        kernel_DV, cap = family.head(params, model_cfg), getattr(model_cfg, "logit_cap", 0.0)
        nats_B = -losses.log_likelihoods(x_BTD[:, T:], kernel_DV[:, :K], codes_BS, cap=cap).mean(1)
        if not T:
            return jnp.zeros_like(nats_B), jnp.zeros_like(nats_B), nats_B
        is_text_BT = (caption_BT > K).astype(jnp.float32)
        # From the blank on, which no text has: so both parts of the vocabulary divide over devices if it and K do.
        text_BT = -losses.log_likelihoods(x_BTD[:, :T], kernel_DV[:, K:], caption_BT - K, cap=cap) * is_text_BT
        count_B = is_text_BT.sum(1)
        return text_BT.sum(1) / jnp.maximum(count_B, 1), jnp.minimum(count_B, 1), nats_B

    # ---------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss`, and the nats per code of each picture: with its caption, and with that of another."""
        weights_B, captions = batch["weights"], {"nats_per_code": "caption"}
        captions |= {OTHER: "other"} if batch["caption"].shape[1] else {}
        made = {name: self._nats(params, model_cfg, batch[of], batch["codes"], None) for name, of in captions.items()}
        sums = self._sums(*made["nats_per_code"], weights_B, jnp.ones_like(weights_B))[2]
        outputs = {name: found[2] for name, found in made.items()}
        return sums | {name: _mean(x, weights_B) for name, x in outputs.items()}, outputs | {"weights": weights_B}

    def best_metric(self) -> str:
        """The nats per code of the validation set."""
        return "nats_per_code"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats per code with the right caption and with another's, and the baselines."""
        means = {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}
        found = {"nats_per_code": means["nats_per_code"]}
        if OTHER in means:
            found[OTHER] = means[OTHER]
            found["caption_worth_nats_per_code"] = means[OTHER] - means["nats_per_code"]
            found["nats_per_text_token"] = means["nats_per_text_token"]
        return found | evaluation.reference["baselines"]

    def records(self, outputs: Outputs, evaluation: Evaluation) -> dict[str, Sequence[Any]]:
        """The nats per code of each picture, with its caption and with that of another."""
        weights_E = outputs["weights"]
        names = [name for name in ("nats_per_code", OTHER) if name in outputs]
        made: dict[str, Any] = {name: np.stack([outputs[name] * weights_E, weights_E], 1) for name in names}
        return made

    def draw(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: PictureTokenizer,
        captions: Sequence[str],
        options: Draw,
        *,
        seed: int,
        progress: Progress = no_progress,
    ) -> np.ndarray:
        """The pictures uint8 [captions, size, size, C] that the model draws, one for each caption.

        Args:
          params: the parameters of the model.
          model_cfg: the model.
          tokenizer: the tokenizer of the run.
          captions: any number; repeat one to have several pictures of it.
          options: how codes are drawn.
          seed: the seed of the draws.
          progress: called with (done, total) from time to time.
        """
        models.require(model_cfg, "drawing pictures", DECODES)
        book, K = tokenizer.codebook, self.num_codes
        rows_NT = tokenizer.captions(captions, self.caption_length)
        prompts = list(np.concatenate([np.full_like(rows_NT[:, :1], K, shape=(len(rows_NT), 1)), rows_NT], axis=1))
        made = sets.continuations(
            Guided(models.family(model_cfg), options.guidance if self.caption_length else 1.0, blank=K, outputs=K),
            params,
            config.for_decoding(model_cfg),
            prompts,
            options.sampling(book.length),
            key=jax.random.key(seed),
            batch_size=min(ROWS, len(prompts)),
            progress=progress,
        )
        return codes.decode(np.stack(made), book)

    def drawn(
        self, params: Any, model_cfg: Any, tokenizer: Any, evaluation: Evaluation, options: Any, folder: Path, name: str
    ) -> list[Path]:
        """A sheet of pictures of some captions of the set, evenly spaced in it."""
        texts = evaluation.reference["captions"]
        some = [texts[i] for i in np.linspace(0, len(texts) - 1, min(SHEET, len(texts))).astype(int)]
        path = folder / f"{name}_drawn.png"
        pictures.save_sheet(self.draw(params, model_cfg, tokenizer, some, options, seed=0), some, path)
        return [path]

    def default_data(self, tokenizer: Any, model_cfg: Any) -> captioned.Captioned:
        """A table of pictures that the user has to give."""
        source = captioned.paired.Table(("pictures.csv",), pictures=".")
        size = math.isqrt(model_cfg.max_length - self.caption_length)
        spec = TextAndCodes(None, self.num_codes, patch=1, size=size, fit="squash")
        return captioned.Captioned(source, spec, self.caption_length)

    # ---------------------------------------------------------------------------------------------------- throughput

    def tokens(self, data: captioned.Captioned) -> int:
        """Tokens of a row, blanks included."""
        return data.length

    def flops(self, model_cfg: Any, data: captioned.Captioned) -> float:
        """The FLOPs of a training step on one row, forward and backward (PaLM, appendix B)."""
        T, S, K = data.caption_length, data.tokenizer.length, data.tokenizer.num_codes
        head = 6.0 * model_cfg.width * (K * S + (model_cfg.vocab_size - K) * T)
        scores = config.attention_width(model_cfg) * (T + S) ** 2
        declaration = models.family(model_cfg).declare(model_cfg)
        return head + params_lib.flops(declaration, lambda path: (T + S) * (path != "head/kernel"), scores)

    # ---------------------------------------------------------------------------------------------------- prediction

    def default_sample(self) -> Draw:
        """The default settings of drawing."""
        return Draw()

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Draw) -> None:
        """Refuses a model that cannot decode."""
        models.require(model_cfg, "drawing pictures", DECODES)

    def sample(self, params: Any, model_cfg: Any, tokenizer: Any, options: Any, *, seed: int) -> Iterator[str]:
        """Nothing: the sheets of the evaluations are the samples."""
        return iter(())

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[Any], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """{"text": caption, "codes": [[...], ...]}, `top` pictures of each."""
        for caption in inputs:
            drawn = self.draw(params, model_cfg, tokenizer, [caption] * top, Draw(), seed=0)
            yield {"text": caption, "codes": codes.encode(drawn, tokenizer.codebook).tolist()}

    def predict_options(self, defaults: Any) -> DrawInto:
        """The settings of drawing, the seed and the file."""
        return DrawInto(**dataclasses.asdict(defaults))

    def respond(
        self, loaded: Any, inputs: Sequence[Input], options: DrawInto, *, progress: Progress = no_progress
    ) -> Iterator[str]:
        """Draws the pictures of all captions into one PNG, a row for each caption, and names it.

        Raises:
          InputError: an empty caption, or a name that does not end in .png.
        """
        path = Path(options.out)
        if path.suffix.lower() not in self.writes or not path.parent.is_dir():
            raise InputError(f"--out {options.out}: name a .png in a folder that exists")
        if empty := next((one for one in inputs if one.error), None):
            raise InputError(f"{empty.where}: {empty.error}; say what to draw")
        captions = [str(one.query) for one in inputs for _ in range(options.count)]
        model = (loaded.params, loaded.config, loaded.tokenizer)
        made = self.draw(*model, captions, options, seed=options.seed, progress=progress)
        pictures.save_grid(made, options.count, path)
        yield f"{path}: {len(made)} pictures of {len(inputs)} caption{'s' * (len(inputs) > 1)}\n"


def _mean(values_B: jax.Array, weights_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(values_B * weights_B), jnp.sum(weights_B)
