"""Your own pictures: a folder with a folder of images for each class.

    transformer-jax train vit.imagefolder --data.source.path photos --model.num-classes 3
    transformer-jax train vit.imagefolder finetune --data.source.path photos --model.num-classes 3 \
        --init-from downloads/vit-base-patch16-224
    transformer-jax evaluate runs/vit-imagefolder
    transformer-jax predict runs/vit-imagefolder new/*.jpg --top 3 --attention

Data: PATH/CLASS/*.jpg (PNG and WebP as well), of which a tenth is held out, or PATH/train/CLASS/*.jpg with PATH/val
and, if you have one, PATH/test. Files that cannot be decoded end the run, unless you say --data.broken skip. Random
parts of the images are cropped by the CPU (Szegedy et al. 2015); then flips and RandAugment.

`experiment` trains a ViT-Ti/16 from scratch, on pictures of 128 pixels, which needs tens of thousands of them;
`finetune` starts from a checkpoint, with a new head, and does with hundreds.

Hardware: `experiment` two CPU cores and patience, or a GPU; `finetune` one GPU.
Expected: what your pictures allow. Of fine-tuning: ViT-B/16 from ImageNet-21k reaches 99.6 % on Oxford Flowers-102, of
1,020 images to train on (published, Dosovitskiy et al. 2021, table 5, at 384 pixels).
"""

import dataclasses

from transformer_jax.augment import Flip, RandAugment
from transformer_jax.data.image_sources import Folder
from transformer_jax.data.images import ImageSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Predict, Train
from transformer_jax.models import vit
from transformer_jax.optim import Optim
from transformer_jax.tasks import ImageClassification


def experiment() -> Experiment:
    """From scratch."""
    return Experiment(
        model=vit.Config(**vit.SIZES["Ti"], image_size=128, patch_size=16, pool="mean", stochastic_depth=0.1),
        data=ImageSet(Folder("images"), train_crop="inception", crop_area=(0.2, 1.0)),
        task=ImageClassification(
            preprocess=Preprocess(size=128, resize=146, fit="shortest"),
            augment=(Flip(), RandAugment(count=2, magnitude=10)),
            mixup=0.2,
            label_smoothing=0.1,
        ),
        optim=Optim(peak_lr=1e-3, warmup_steps=500, final_lr_fraction=0.0, beta2=0.99, weight_decay=0.05),
        train=Train(steps=10_000, batch_size=128, log_every=20),
        evaluate=Evaluate(every=1000),
        checkpoint=Checkpoint(every=1000, best_metric="accuracy", best="highest"),
        sample=Predict(top=3),
        ema=Ema(0.999),
    )


def finetune() -> Experiment:
    """From a checkpoint, at its resolution of 224 pixels."""
    scratch = experiment()
    return dataclasses.replace(
        scratch,
        model=vit.Config(num_classes=2, stochastic_depth=0.1),
        task=dataclasses.replace(scratch.task, preprocess=Preprocess(size=224, resize=256, fit="shortest")),
        optim=Optim(
            peak_lr=3e-4, warmup_steps=100, final_lr_fraction=0.0, beta2=0.999, weight_decay=0.05, layer_decay=0.75
        ),
        train=Train(steps=1000, batch_size=64, log_every=20),
        evaluate=Evaluate(every=250),
        checkpoint=Checkpoint(every=250, best_metric="accuracy", best="highest"),
        ema=Ema(0.0),
        init_from="downloads/vit-base-patch16-224-in21k",
        fresh=("head",),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
