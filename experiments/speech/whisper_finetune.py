"""Whisper (Radford et al. 2022) fine-tuned on recordings of one language.

    transformer-jax train speech.whisper_finetune --init-from hf://openai/whisper-small --data.source.train train.tsv
    transformer-jax predict runs/speech-whisper_finetune talk.wav --timestamps

The folder that --init-from names is a Hugging Face snapshot; it brings its architecture and its tokenizer, of which
--data.tokenizer.path names the files. A table has the columns `path`, of a sound file, and `sentence`, as Common
Voice's. Utterances of up to 30 seconds; whatever is longer is dropped and counted.

Reproduces: the recipe of Hugging Face's "Fine-Tune Whisper" (Gandhi 2022): whisper-small, 4,000 steps of 16 rows, rate
1e-5 after 500 steps of warm-up, linear decay, on Common Voice 11 in Hindi.

Hardware and time: one GPU of 16 GB, about five hours (published, the same).
Expected: a word error rate of 32.0 % after 4,000 steps (published, the same: Common Voice 11, Hindi, orthographic text;
not measured here).
"""

from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import whisper
from transformer_jax.optim import Optim
from transformer_jax.tasks import Transcription
from transformer_jax.tasks.speech_recognition.recordings import Recordings
from transformer_jax.tasks.speech_recognition.utterances import Speech


def experiment() -> Experiment:
    return Experiment(
        model=whisper.Config(
            vocab_size=51865,
            width=768,
            num_layers=12,
            num_heads=12,
            pad_id=50257,
            eos_id=50257,
            decoder_start_id=50258,
        ),
        data=Speech(
            Recordings(("train.tsv",)),
            TokenizerFile("downloads/whisper-small"),
            seconds=30.0,
            labels=224,
            unfit="drop",
        ),
        task=Transcription(language="hi"),
        optim=Optim(peak_lr=1e-5, lr_schedule="linear", warmup_steps=500, final_lr_fraction=0.0, weight_decay=0.0),
        train=Train(steps=4000, batch_size=16, log_every=25),
        evaluate=Evaluate(every=1000, batch_size=8),
        checkpoint=Checkpoint(every=1000),
        init_from="downloads/whisper-small",
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
