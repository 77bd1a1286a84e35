"""Handwritten digits in small scenes, found and named: a detector that trains on every machine.

    tools/run experiments.detect.digits
    transformer-jax train detect.digits --seed 1 --workdir runs/detect-1
    transformer-jax predict runs/detect-digits photo.png --draw . --coco found.json

Data: 6,000 scenes to train on and 500 to validate on, made in seconds from what scikit-learn ships: one to four of its
digits, 12 to 20 pixels high, on dimmed crops of its two photographs, 48 x 48 pixels; no digit and no part of a
photograph is on both sides. Model: a Vision Transformer with patches of 8 x 8 pixels, 4 layers, 96 wide, of which each
patch predicts a class and a box near its own place (as in OWL-ViT). Loss: DETR's, with the matching on the device.
Shifted scenes, whose boxes move with them, are the only augmentation.
Hardware and time: 2 CPU cores, about six minutes.
Expected: AP 0.55 to 0.65, AP50 0.84 to 0.92; the same boxes in every scene reach at most AP 0.001 (measured).
"""

from transformer_jax.augment import Crop
from transformer_jax.data.boxes import BoxSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Train
from transformer_jax.models import vit
from transformer_jax.optim import Muon
from transformer_jax.tasks import Detection
from transformer_jax.tasks.detection.scenes import Scenes


def experiment() -> Experiment:
    return Experiment(
        model=vit.Config(
            image_size=48,
            patch_size=8,
            channels=1,
            num_classes=10,
            width=96,
            num_layers=4,
            num_heads=4,
            pool="mean",
            detector="patches",
            scan_layers=False,
        ),
        data=BoxSet(Scenes(), most_objects=4),
        task=Detection(
            preprocess=Preprocess(size=48, resize=48, mean=(0.35,), std=(0.25,)),
            augment=(Crop(padding=6),),
        ),
        optim=Muon(peak_lr=0.02, adamw_lr=3e-3, warmup_steps=100, final_lr_fraction=0.0),
        train=Train(steps=2000, batch_size=32, log_every=50),
        evaluate=Evaluate(every=250, batch_size=100),
        checkpoint=Checkpoint(every=500),
        ema=Ema(0.99),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
