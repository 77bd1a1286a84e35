"""EoMT-L on ADE20K: a Vision Transformer that segments by itself (Kerssies et al. 2025, arXiv 2503.19108).

    transformer-jax train segment.eomt_ade20k --data.source.path ADEChallengeData2016 \\
        --data.source.names wall sky ... --init-from hf://tue-mps/coco_panoptic_eomt_large_640 \\
        --fresh class_head queries
    transformer-jax evaluate runs/segment-eomt_ade20k

Data: ADE20K's 150 classes, 20,210 images to train on and 2,000 to validate on, in the folders of its own site; the
names are those of its objectInfo150.txt, in order. Each class of an image is one segment. The published model starts
from DINOv2, masks the attention of its queries and anneals that mask away; here a trained EoMT is adapted to the
classes, without a mask, and all images have 512 x 512 pixels. Hardware: one machine with 8 GPUs or TPUs. Expected: 58.4
mean intersection over union (published, with a sliding window); not run here.
"""

from transformer_jax.augment import Crop, Flip
from transformer_jax.data.masks import MaskFolder
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import eomt
from transformer_jax.optim import AdamW
from transformer_jax.tasks import Panoptic
from transformer_jax.tasks.panoptic.segments import SegmentSet

EPOCH = 20_210 // 16  # steps


def experiment() -> Experiment:
    return Experiment(
        model=eomt.Config(image_size=512, num_classes=150, num_queries=100, layer_scale=1e-5),
        data=SegmentSet(MaskFolder("ADEChallengeData2016", names=()), most_segments=60),
        task=Panoptic(
            background=False,
            preprocess=Preprocess(size=512, resize=512, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            augment=(Flip(), Crop(padding=64)),
        ),
        optim=AdamW(peak_lr=1e-4, weight_decay=0.05, warmup_steps=500, lr_schedule="cosine", layer_decay=0.8),
        train=Train(steps=31 * EPOCH, batch_size=16),
        evaluate=Evaluate(every=2 * EPOCH, batch_size=16),
        checkpoint=Checkpoint(every=2 * EPOCH),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
