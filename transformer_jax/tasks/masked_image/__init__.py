"""Masked autoencoders: predict the patches of an image that the encoder has not seen (He et al. 2022).

A model that is trained on this is fine-tuned by `--init-from`: its decoder is dropped, and a head begins from scratch.

It reports the squared error of the masked patches. The baseline beside it predicts the mean of each patch: its error is
1, and 0 where a patch has one colour.

Letters: B rows, Y and X pixels, C channels, N patches, P values of a patch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import augment as augmentations
from transformer_jax import models
from transformer_jax.contracts import Evaluation, Outputs, Prepared, Sums, Task, require_data
from transformer_jax.data import images
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.tasks import encoder, pixels
from transformer_jax.tasks.image_classification import PUBLISHED
from transformer_jax.tasks.masked_image import pictures

SHEET = 12  # the images that an evaluation draws
EPS = 1e-6  # added to the variance of a patch with pixels in [0, 1], as in the published code


@dataclass(frozen=True)
class MaskedImage(Task):
    """The squared error of the pixels of masked patches, each patch normalised by its own mean and deviation."""

    unit: ClassVar[str] = "images"

    masked: float = 0.75
    """The share of patches that the encoder does not see."""
    preprocess: Preprocess = PUBLISHED
    """The preprocessing at evaluation; training uses its normalisation."""
    augment: tuple[augmentations.Augmentation, ...] = ()
    """The augmentations of training images, in this order, on the device."""

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise InputError(f"task.masked = {self.masked}: must be between 0 and 1")

    def check(self, model_cfg: Any, data: Any) -> None:
        """Refuses a model without a decoder, and one that does not suit the images."""
        models.require(model_cfg, "task MaskedImage", ("reconstruct",), ("image_size", "channels", "decoder"))
        require_data(data, "task MaskedImage", ("source", "train_crop", "crop_area", "broken", "memory"))
        if not model_cfg.decoder.layers:
            raise InputError("task MaskedImage needs a model with a decoder; give --model.decoder.layers 1 or more")
        pixels.check(model_cfg, self.preprocess)
        if not 0 < self._visible(model_cfg) < model_cfg.num_patches:
            raise InputError(
                f"task.masked = {self.masked} leaves {self._visible(model_cfg)} of {model_cfg.num_patches} patches "
                "visible; some must be, and some must not"
            )

    def example(self, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        return {
            "images": jax.ShapeDtypeStruct(self.preprocess.shape, np.uint8),
            "labels": jax.ShapeDtypeStruct((), np.int32),
            "weights": jax.ShapeDtypeStruct((), np.float32),
        }

    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The images, decoded if they fit into memory. Their classes are not used."""
        self.check(model_cfg, data)
        made = images.prepare(data, self.preprocess, data.source.classes(), seed=seed)
        return Prepared(made.train, Evaluation(made.validation), made.facts)

    # ---------------------------------------------------------------------------------------------------------- loss

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss", "baseline"}): the mean squared error of each image's masked patches, over images.

        The baseline is that of the mean of each patch. With a key, images are augmented and patches masked at random;
        without, the patches that are masked depend on the image alone.
        """
        x_BYXC, noise_BN, model_key = batch["images"].astype(jnp.float32) / 255.0, self._noise(model_cfg, batch), None
        if key is not None:
            model_key, augment_key, mask_key = jax.random.split(key, 3)
            noise_BN = jax.random.uniform(mask_key, noise_BN.shape)
            (x_BYXC,) = pixels.in_auto_mesh(
                lambda key, x: (augmentations.apply(key, x, self.augment),),
                augment_key,
                x_BYXC,
                out=(("batch", None, None, None),),
            )
        found, target_BNP, _ = self._reconstructed(params, model_cfg, x_BYXC, noise_BN, model_key)
        share_BN = found.is_masked / jnp.sum(found.is_masked, axis=1, keepdims=True)

        def mean(errors_BNP: jax.Array) -> tuple[jax.Array, jax.Array]:
            each_B = jnp.sum(share_BN * jnp.mean(jnp.square(errors_BNP), axis=-1), axis=1)
            return jnp.sum(batch["weights"] * each_B), jnp.sum(batch["weights"])

        sums = {"loss": mean(found.patches - target_BNP), "baseline": mean(target_BNP)}
        return *sums["loss"], jax.lax.stop_gradient(sums)

    def _visible(self, model_cfg: Any) -> int:
        return round(model_cfg.num_patches * (1 - self.masked))

    def _noise(self, model_cfg: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Uniform [B, N], from the pixels of each image alone: the same in whichever batch it is."""
        pixels_B = jnp.sum(batch["images"].astype(jnp.uint32), axis=(1, 2, 3))
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), pixels_B)
        return jax.vmap(lambda key: jax.random.uniform(key, (model_cfg.num_patches,)))(keys_B)

    def _reconstructed(
        self, params: Any, model_cfg: Any, x_BYXC: jax.Array, noise_BN: jax.Array, key: jax.Array | None
    ) -> tuple[Any, jax.Array, tuple[jax.Array, jax.Array]]:
        """(the prediction, the normalised patches [B, N, P], their means and deviations) of images in [0, 1]."""
        family = models.family(model_cfg)
        patches_BNP = family.patches(model_cfg, x_BYXC)
        mean_BN1 = patches_BNP.mean(-1, keepdims=True)
        std_BN1 = jnp.sqrt(patches_BNP.var(-1, keepdims=True) + EPS)
        mean_C, std_C = (jnp.array(x, jnp.float32) for x in (self.preprocess.mean, self.preprocess.std))
        order_BN = jnp.argsort(noise_BN, axis=1)
        inputs = (x_BYXC - mean_C) / std_C, order_BN, self._visible(model_cfg)
        found = family.reconstruct(params, model_cfg, *inputs, key=key)
        return found, (patches_BNP - mean_BN1) / std_BN1, (mean_BN1, std_BN1)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def best_metric(self) -> str:
        """The squared error of the masked patches."""
        return "error_of_masked_patches"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The squared error of the masked patches, and that of the mean of each."""
        error, baseline = (sums[name][0] / max(sums[name][1], 1e-9) for name in ("loss", "baseline"))
        return {"error_of_masked_patches": error, "baseline_error_of_their_means": baseline}

    def drawn(
        self, params: Any, model_cfg: Any, tokenizer: Any, evaluation: Evaluation, options: Any, folder: Path, name: str
    ) -> list[Path]:
        """A sheet of images, what the encoder sees of each, and that with the predicted patches."""
        some = np.linspace(0, len(evaluation.examples) - 1, min(SHEET, len(evaluation.examples))).astype(int)
        batch = {"images": jnp.stack([evaluation.examples[int(i)]["images"] for i in some])}

        @jax.jit
        def seen(params: Any) -> tuple[jax.Array, jax.Array]:
            x_BYXC = batch["images"].astype(jnp.float32) / 255.0
            noise_BN = self._noise(model_cfg, batch)
            found, target_BNP, (mean_BN1, std_BN1) = self._reconstructed(params, model_cfg, x_BYXC, noise_BN, None)
            is_masked = found.is_masked[..., None]
            mixed_BNP = jnp.where(is_masked > 0, found.patches, target_BNP) * std_BN1 + mean_BN1
            grey_BNP = jnp.where(is_masked > 0, 0.5, target_BNP * std_BN1 + mean_BN1)
            unsplit = models.family(model_cfg).unsplit
            return unsplit(model_cfg, grey_BNP), unsplit(model_cfg, mixed_BNP)

        rows = [np.clip(np.asarray(x) * 255, 0, 255).astype(np.uint8) for x in seen(params)]
        path = folder / f"{name}_reconstructed.png"
        pictures.save_rows([np.asarray(batch["images"]), *rows], ["image", "seen", "predicted"], path)
        return [path]

    def sample(self, params: Any, model_cfg: Any, tokenizer: Any, options: Any, *, seed: int) -> Iterator[str]:
        """Nothing: the sheets of the evaluations are the samples."""
        return iter(())

    # ---------------------------------------------------------------------------------------------------- throughput

    def flops(self, model_cfg: Any, data: Any) -> float:
        """The FLOPs of a training step on one image, forward and backward, as if the encoder saw all patches: an upper
        bound."""
        return encoder.image_flops(model_cfg)
