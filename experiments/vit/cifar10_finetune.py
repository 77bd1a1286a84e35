"""CIFAR-10 from a pre-trained ViT: the published way to a good classifier of few images.

    TFDS_DATA_DIR=/data transformer-jax train vit.cifar10_finetune --init-from downloads/vit-base-patch16-224-in21k
    TFDS_DATA_DIR=/data transformer-jax train vit.cifar10_finetune large_images --init-from ...
    TFDS_DATA_DIR=/data transformer-jax train vit.cifar10_finetune head_only --init-from ...
    transformer-jax predict runs/vit-cifar10_finetune photo.jpg --top 3 --attention

--init-from names a Hugging Face folder of a ViT or DeiT, or a run of `experiments.vit`, whose architecture and
normalisation come with it. The head is new; positions are interpolated where the images have another size than those it
was trained on.

`experiment`: images enlarged to 224 pixels, each layer's learning rate 0.75 of the one above (Bao et al. 2022).
`large_images`: 384 pixels, as published fine-tuning has them.
`head_only`: everything but the head is frozen, to the bit.

Hardware: one GPU or TPU chip.
Expected: ViT-B/16 from ImageNet-21k at 384 pixels 98.95 % (published, Dosovitskiy et al. 2021, table 5: SGD, 10,000
steps of 512). This recipe has not been measured here.
"""

import dataclasses

from transformer_jax.augment import Crop, Flip
from transformer_jax.data.image_sources import TfdsImages
from transformer_jax.data.images import ImageSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import vit
from transformer_jax.optim import Optim
from transformer_jax.tasks import ImageClassification


def experiment() -> Experiment:
    """224 pixels, all layers."""
    return Experiment(
        model=vit.Config(num_classes=10, stochastic_depth=0.1),
        data=ImageSet(
            TfdsImages("cifar10", train="train[:98%]", validation="train[98%:]", test="test"),
            memory=10_000_000_000,
        ),
        task=ImageClassification(augment=(Flip(), Crop(padding=28)), cutmix=1.0, label_smoothing=0.1),
        optim=Optim(
            peak_lr=5e-4, warmup_steps=200, final_lr_fraction=0.0, beta2=0.999, weight_decay=0.05, layer_decay=0.75
        ),
        train=Train(steps=2000, batch_size=256, log_every=20),
        evaluate=Evaluate(every=500),
        checkpoint=Checkpoint(every=500, best_metric="accuracy", best="highest"),
        sample=Predict(top=3),
        init_from="downloads/vit-base-patch16-224-in21k",
        fresh=("head",),
    )


def large_images() -> Experiment:
    """384 pixels: images are decoded in every epoch, because they would take 27 GB of memory."""
    recipe = experiment()
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, image_size=384),
        task=dataclasses.replace(
            recipe.task, preprocess=Preprocess(size=384, resize=384), augment=(Flip(), Crop(padding=48))
        ),
        train=dataclasses.replace(recipe.train, accumulate=4),
    )


def head_only() -> Experiment:
    """A linear probe: nothing but the head learns."""
    recipe = experiment()
    frozen = ((r"^(embed|blocks|final_norm)/", 0.0),)
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, stochastic_depth=0.0),
        optim=dataclasses.replace(recipe.optim, peak_lr=3e-3, layer_decay=1.0, groups=frozen, weight_decay=0.0),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
