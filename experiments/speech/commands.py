"""Twenty spoken words as classes, in voices that were never heard, which every machine can make.

    pip install espeakng-loader
    tools/run experiments.speech.commands
    transformer-jax train speech.commands --seed 1 --workdir runs/commands-1
    transformer-jax predict runs/speech-commands a.wav

Data: twenty words, 2,960 recordings by espeak-ng in a process of its own when the first run begins, with random rate
and pitch: 1,920 in sixteen voices to train on, 240 in two others that choose the checkpoint, 480 in four more, the
test. Beside these stand 320 new recordings in the voices of training, and the accuracy of a linear classifier of the
mean spectrum. espeak-ng is GPL-3.0-or-later: no extra of this package brings it.
Model: an audio spectrogram transformer of four layers, 96 wide, over patches of 8 mel bins and 80 ms. Speed
perturbation, noise and SpecAugment.

Hardware and time: 2 CPU cores, a few minutes.
Expected: more words right in new voices than the linear classifier has (not measured yet).
"""

from transformer_jax.augment.speech import Noise, SpecAugment, Speed
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Train
from transformer_jax.models import spectrogram
from transformer_jax.optim import Optim
from transformer_jax.tasks import AudioClassification
from transformer_jax.tasks.audio_classification.commands import SpokenCommands
from transformer_jax.tasks.audio_classification.sounds import Sounds


def experiment() -> Experiment:
    return Experiment(
        model=spectrogram.Config(
            num_classes=20,
            num_mels=64,
            max_frames=96,
            patch_size=8,
            mel_stride=8,
            frame_stride=8,
            width=96,
            num_layers=4,
            num_heads=4,
            norm_eps=1e-6,
            scan_layers=False,
        ),
        data=Sounds(SpokenCommands(), seconds=0.96),
        task=AudioClassification(
            waves=(Speed(0.8, 1.25), Noise()), masks=SpecAugment(bands=1, bins=12, spans=2.0, frames=10)
        ),
        optim=Optim(peak_lr=2e-3, warmup_steps=50, final_lr_fraction=0.02, weight_decay=0.05),
        train=Train(steps=600, batch_size=32, log_every=20),
        evaluate=Evaluate(every=200, batch_size=80),
        checkpoint=Checkpoint(every=200, best_metric="loss_nats_per_sound"),
        ema=Ema(0.98),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
