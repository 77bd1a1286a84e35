"""LibriSpeech (Panayotov et al. 2015) by a Transformer with a CTC head, on all 960 hours.

    transformer-jax train speech.librispeech_ctc --data.source.root LibriSpeech --workdir runs/librispeech
    transformer-jax predict runs/librispeech talk.flac --beam 16

Data: the folders of openslr.org/12 as they are unpacked, read from FLAC (extra `sound`) row by row; rows of 36 seconds,
each with up to four utterances. Utterances from dev-clean choose the checkpoint, test-clean is the test set.
Model: 12 pre-norm layers, 256 wide, with steps of 40 ms, over 1,000 subwords; SpecAugment and speed perturbation.

Hardware and time: one host of eight accelerators, about a day (estimated); 10,000 FLAC files a minute are decoded by 8
CPU threads of a host.
Expected: a word error rate on test-clean of 5.4 % without a language model (published: PaddleSpeech,
examples/librispeech/asr1, its Transformer of 32 million parameters by greedy CTC, trained beside an attention decoder;
not measured here).
"""

from transformer_jax.augment.speech import SpecAugment, Speed
from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import speech
from transformer_jax.optim import Optim
from transformer_jax.tasks import SpeechRecognition
from transformer_jax.tasks.speech_recognition.recordings import LibriSpeech
from transformer_jax.tasks.speech_recognition.utterances import Speech


def experiment() -> Experiment:
    return Experiment(
        model=speech.Config(
            vocab_size=1001,
            stride=4,
            context=8,
            width=256,
            num_layers=12,
            num_heads=4,
            mlp_width=2048,
            dropout=0.1,
        ),
        data=Speech(
            LibriSpeech(train=("train-clean-100", "train-clean-360", "train-other-500")),
            TrainBPE(1000),
            seconds=36.0,
            labels=400,
            pack=2,
            case="lower",
            unfit="drop",
        ),
        task=SpeechRecognition(waves=(Speed(),), masks=SpecAugment(bands=2, bins=27, spans=0.7, frames=50)),
        optim=Optim(peak_lr=2e-3, warmup_steps=10_000, final_lr_fraction=0.01, beta2=0.98, weight_decay=1e-2),
        train=Train(steps=150_000, batch_size=64, log_every=100),
        evaluate=Evaluate(every=5000),
        checkpoint=Checkpoint(every=5000, best_metric="wer"),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
