"""YOLOS-Ti on COCO: a plain Vision Transformer with 100 detection tokens (Fang et al. 2021, arXiv 2106.00666).

    transformer-jax train detect.yolos_ti_coco --data.source.train annotations/instances_train2017.json \\
        --data.source.train-images train2017 --data.source.validation annotations/instances_val2017.json \\
        --data.source.validation-images val2017 --init-from hf://facebook/deit-tiny-patch16-224
    transformer-jax evaluate runs/detect-yolos_ti_coco

Data: COCO 2017, 118,287 images to train on and 5,000 to validate on, in the files of its own site. The published model
starts from a DeiT-Ti after 300 epochs of ImageNet, whose distillation token is dropped, and is trained for 300 epochs
on images of which the shorter side is random. Here all have 512 x 672 pixels, mirrored and cropped with their boxes.
Hardware: one machine with 8 GPUs or TPUs. Expected: 28.7 AP (published, the authors' repository, with their crops and
sizes); not run here.
"""

from transformer_jax.augment import Flip, ResizedCrop
from transformer_jax.data.box_files import Coco
from transformer_jax.data.boxes import BoxSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import vit
from transformer_jax.optim import AdamW
from transformer_jax.tasks import Detection

SIZE = (512, 672)
IMAGES = 118_287


def experiment() -> Experiment:
    return Experiment(
        model=vit.Config(
            **vit.SIZES["Ti"],
            image_size=SIZE,
            patch_size=16,
            num_classes=80,
            pool="class",
            detector="queries",
            num_queries=100,
            interpolate="bicubic",
            initializer="normal",
        ),
        data=BoxSet(Coco("annotations/instances_train2017.json", "train2017"), most_objects=100, bad_boxes="skip"),
        task=Detection(
            preprocess=Preprocess(size=SIZE, resize=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            augment=(Flip(), ResizedCrop(scale=(0.3, 1.0), ratio=(0.8, 1.7))),
        ),
        optim=AdamW(peak_lr=5e-5, weight_decay=1e-4, clip_norm=0.1, lr_schedule="cosine", final_lr_fraction=0.0),
        train=Train(steps=300 * IMAGES // 16, batch_size=16),
        evaluate=Evaluate(every=IMAGES // 16, batch_size=16),
        checkpoint=Checkpoint(every=IMAGES // 16),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
