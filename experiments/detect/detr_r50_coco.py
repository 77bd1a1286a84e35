"""DETR-R50 on COCO: an encoder-decoder over the features of a ResNet-50 (Carion et al. 2020, arXiv 2005.12872).

    transformer-jax train detect.detr_r50_coco --data.source.train annotations/instances_train2017.json \\
        --data.source.train-images train2017 --data.source.validation annotations/instances_val2017.json \\
        --data.source.validation-images val2017 --init-from hf://microsoft/resnet-50
    transformer-jax train detect.detr_r50_coco ... --init-from hf://facebook/detr-resnet-50 --fresh class_head
    transformer-jax evaluate runs/detect-detr_r50_coco

Data: COCO 2017, 118,287 images to train on and 5,000 to validate on, in the files of its own site. The first command is
the published recipe, which starts from a ResNet-50 of ImageNet, whose first stage and batch norms stay as they are and
whose other stages learn at a tenth of the rate; the second adapts the published detector to the classes of other data.
From scratch, without either, there is nothing to freeze and little to learn from. The published images have a random
size and crop; here all have 800 x 1056 pixels, mirrored and cropped with their boxes. Hardware: 16 GPUs or TPUs of
16 GB. Expected: 42.0 AP after 500 epochs (published, the paper's table 1, with their sizes); not run here.
"""

from transformer_jax.augment import Flip, ResizedCrop
from transformer_jax.data.box_files import Coco
from transformer_jax.data.boxes import BoxSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import detr
from transformer_jax.optim import AdamW
from transformer_jax.tasks import Detection

SIZE = (800, 1056)
EPOCH = 118_287 // 64  # steps
BACKBONE = ((r"^backbone/.*norm/", 0.0), (r"^backbone/(stem|stage0)/", 0.0), (r"^backbone/", 0.1))


def experiment() -> Experiment:
    return Experiment(
        model=detr.Config(image_size=SIZE, num_classes=80),
        data=BoxSet(Coco("annotations/instances_train2017.json", "train2017"), most_objects=100, bad_boxes="skip"),
        task=Detection(
            preprocess=Preprocess(size=SIZE, resize=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            augment=(Flip(), ResizedCrop(scale=(0.3, 1.0), ratio=(0.8, 1.7))),
        ),
        optim=AdamW(
            peak_lr=1e-4,
            weight_decay=1e-4,
            clip_norm=0.1,
            lr_schedule="wsd",
            cooldown_steps=100 * EPOCH,
            final_lr_fraction=0.1,
            groups=BACKBONE,
        ),
        train=Train(steps=500 * EPOCH, batch_size=64),
        evaluate=Evaluate(every=5 * EPOCH, batch_size=16),
        checkpoint=Checkpoint(every=5 * EPOCH),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
