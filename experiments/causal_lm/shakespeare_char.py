"""Character-level Shakespeare: the two configurations that nanoGPT publishes, as they are published.

    curl -O https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
    transformer-jax train causal_lm.shakespeare_char --data.source.paths input.txt       # README, CPU
    transformer-jax train causal_lm.shakespeare_char gpu --data.source.paths input.txt   # config/
    transformer-jax train causal_lm.shakespeare_char tfds                                # CPU run, text from TFDS
    transformer-jax train causal_lm.shakespeare_char muon --data.source.paths input.txt  # CPU run, by Muon

Reproduces: karpathy/nanoGPT, README "quick start" and config/train_shakespeare_char.py: GPT-2's architecture without
biases, random windows, the first 90 % of the text to train on, the last 10 % to validate.

Expected validation loss, nats per character (here over the whole validation split, nanoGPT's of random batches):
    CPU: 1.88 (published, nanoGPT's README, of 20 batches); 1.87 to 1.94, the mean of seeds 0, 1 and 2 (measured), in
         about three minutes on 2 CPU cores.
    gpu: 1.4697, the best along the way (published, nanoGPT's README), in about three minutes on one A100.
    muon: 1.57 to 1.65, the mean of the same seeds (measured).
    tfds: about the CPU run's; TFDS splits the same text into other parts, a twentieth each to validate and to test.
"""

import dataclasses

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles, Tfds
from transformer_jax.data.tokenizers import Characters
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.optim import AdamW, Muon


def experiment() -> Experiment:
    """The README's CPU run."""
    return Experiment(
        model=gpt.Config(
            vocab_size=65,
            max_length=64,
            width=128,
            num_layers=4,
            num_heads=4,
            bias=False,
            dropout=0.0,
            activation="gelu",
            scan_layers=False,
        ),
        data=TextCorpus(source=TextFiles(("input.txt",)), tokenizer=Characters(), length=64, sampling="random"),
        optim=AdamW(
            peak_lr=1e-3,
            lr_schedule="cosine",
            warmup_steps=100,
            decay_steps=2000,
            final_lr_fraction=0.1,  # min_lr 1e-4
            beta1=0.9,
            beta2=0.99,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=Train(steps=2000, batch_size=12, log_every=50),
        evaluate=Evaluate(every=500, batch_size=60),
        checkpoint=Checkpoint(every=500),
        sample=Sample(max_new_tokens=500, temperature=0.8),
    )


def gpu() -> Experiment:
    """config/train_shakespeare_char.py."""
    cpu = experiment()
    return dataclasses.replace(
        cpu,
        model=dataclasses.replace(cpu.model, max_length=256, width=384, num_layers=6, num_heads=6, dropout=0.2),
        data=dataclasses.replace(cpu.data, length=256),
        optim=dataclasses.replace(cpu.optim, decay_steps=5000),
        train=Train(steps=5000, batch_size=64, log_every=50),
        evaluate=Evaluate(every=250, batch_size=64),
        checkpoint=Checkpoint(every=250),
    )


def muon() -> Experiment:
    """The CPU run's data, batch and steps by Muon; the learning rates were not searched for."""
    optim = Muon(peak_lr=0.02, adamw_lr=3e-3, warmup_steps=100, iterations=4)
    return dataclasses.replace(experiment(), optim=optim)


def tfds() -> Experiment:
    """The CPU run on TFDS's tiny_shakespeare (TFDS_DATA_DIR says where the store is)."""
    cpu = experiment()
    return dataclasses.replace(cpu, data=dataclasses.replace(cpu.data, source=Tfds("tiny_shakespeare")))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
