"""ViT-B/16 on ImageNet-1k: big_vision's plain 90-epoch recipe, and the one of "How to train your ViT?".

    TFDS_DATA_DIR=/data transformer-jax train vit.imagenet_b16
    TFDS_DATA_DIR=/data transformer-jax train vit.imagenet_b16 augreg --workdir runs/b16-augreg
    transformer-jax predict runs/vit-imagenet_b16 photo.jpg --attention

`experiment` is `experiments.vit.imagenet_s16` with the larger model: there the recipe and its sources. `augreg` is
google-research/big_vision, configs/vit_i1k.py for B/16 (Steiner et al. 2022, arXiv 2106.10270, setting "medium2"): the
class token, learned positions, 300 epochs of batches of 4,096, RandAugment(2, 15), MixUp of 0.5.

Data: ILSVRC-2012, prepared in the TFDS store as `imagenet2012` in array_record format.
Hardware: a TPU slice or several GPUs.
Expected: no number is published for this model by the plain recipe; the smaller one reaches 76.5 % (published, Beyer et
al. 2022). Not measured here.
"""

import dataclasses

from experiments.vit import imagenet_s16
from transformer_jax.augment import Flip, RandAugment
from transformer_jax.experiment import Experiment
from transformer_jax.models import vit


def experiment() -> Experiment:
    """The plain recipe."""
    small = imagenet_s16.experiment()
    model = dataclasses.replace(small.model, **vit.SIZES["B"], pre_logits=768)
    return dataclasses.replace(small, model=model)


def augreg() -> Experiment:
    """The paper's model, more epochs and stronger augmentation."""
    plain = experiment()
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, pool="class", position="learned"),
        task=dataclasses.replace(plain.task, augment=(Flip(), RandAugment(count=2, magnitude=15)), mixup=0.5),
        train=dataclasses.replace(plain.train, steps=300 * imagenet_s16.IMAGES // 4096, batch_size=4096),
    )


def huge() -> Experiment:
    """ViT-H/14, 632 million parameters (published, Dosovitskiy et al. 2021, table 1), by the plain recipe. They trained
    it on JFT-300M; no figure is published for this recipe, whose augmentation is mild for a model of this size."""
    plain = experiment()
    return dataclasses.replace(
        plain, model=dataclasses.replace(plain.model, **vit.SIZES["H"], patch_size=14, pre_logits=1280, remat="dots")
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
