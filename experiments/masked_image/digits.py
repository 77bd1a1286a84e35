"""Digits of 8 x 8 pixels of which a quarter is seen: a masked autoencoder, which runs on every machine.

    tools/run experiments.masked_image.digits
    transformer-jax train vit.digits --init-from runs/masked_image-digits --workdir runs/digits-from-mae

Pre-training for `vit.digits`, on the same 1,257 digits without their labels: the encoder of that recipe sees 4 of 16
patches, and a decoder of two layers predicts the other 12 (He et al. 2022). `imagenet_b16` is the published ViT-B/16.

Hardware and time: 2 CPU cores, about two minutes.
Expected: a squared error of the masked patches, each normalised, of 0.4 to 0.52, where their means have 0.68 to 0.78
(measured, printed by each run). drawn/ in the workdir shows images, what the encoder sees, and what is predicted.
"""

from transformer_jax.augment import Affine, Flip
from transformer_jax.data.image_sources import Digits, Folder
from transformer_jax.data.images import ImageSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import vit
from transformer_jax.optim import Optim
from transformer_jax.tasks import MaskedImage


def experiment() -> Experiment:
    return Experiment(
        model=vit.Config(
            image_size=8,
            patch_size=2,
            channels=1,
            num_classes=0,
            width=64,
            num_layers=4,
            num_heads=4,
            pool="mean",
            position="learned",
            decoder=vit.Decoder(layers=2, width=64, heads=4),
            scan_layers=False,
        ),
        data=ImageSet(Digits()),
        task=MaskedImage(
            preprocess=Preprocess(size=8, resize=8, mean=(0.3,), std=(0.38,)),
            augment=(Affine(degrees=10, shift=0.07, zoom=(0.9, 1.1)),),
        ),
        optim=Optim(peak_lr=3e-3, warmup_steps=100, final_lr_fraction=0.0, beta2=0.95),
        train=Train(steps=2000, batch_size=64, log_every=50),
        evaluate=Evaluate(every=500, batch_size=180),
        checkpoint=Checkpoint(every=500),
    )


def imagenet_b16() -> Experiment:
    """ViT-B/16, 800 epochs of ImageNet in batches of 4,096 (He et al. 2022, table 8): 1.5e-4 * 4096 / 256."""
    return Experiment(
        model=vit.Config(
            **vit.SIZES["B"],
            num_classes=0,
            position="sincos2d",
            decoder=vit.Decoder(layers=8, width=512, heads=16),
        ),
        data=ImageSet(Folder("imagenet"), train_crop="inception", crop_area=(0.2, 1.0)),
        task=MaskedImage(
            preprocess=Preprocess(
                size=224, resize=256, fit="shortest", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
            ),
            augment=(Flip(),),
        ),
        optim=Optim(peak_lr=2.4e-3, warmup_steps=12_500, final_lr_fraction=0.0, beta2=0.95, weight_decay=0.05),
        train=Train(steps=250_000, batch_size=4096),
        evaluate=Evaluate(every=5000, batch_size=1024),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
