"""BART-base's pre-training: restore a text of which spans are masked and whose sentences are shuffled.

    TFDS_DATA_DIR=/data transformer-jax train translation.bart_denoising
    transformer-jax train translation.bart_denoising text --data.source.paths shards/
    transformer-jax train translation.bart_denoising stdlib --workdir runs/bart-stdlib
    transformer-jax predict runs/translation-bart_denoising "Paris is the<mask> of France."

`downloads/bart-base` is the Hugging Face folder with the published tokenizer (vocab.json and merges.txt are enough).

Reproduces: Lewis et al. 2020, sections 2 and 5.1: six layers of 768 on each side, GeLU; 30 % of the tokens in spans of
Poisson(3) tokens behind one mask each, all sentences shuffled; 500,000 steps of 8,000 sequences of 512 tokens, dropout
0.1, on RoBERTa's data. They do not print the optimiser's settings: these are RoBERTa-base's (Liu et al. 2019, table 9).

What differs: C4 in place of their 160 GB, most of which is not distributed. Dropout stays on to the end, where they
turn it off for the last 10 % of the steps. A row is a stretch of 510 tokens, over the borders of documents. Variants:
`large`, the model of their results, and `stdlib`, a small one on the standard library's source, for a look at it on any
machine (2 CPU cores, about 10 minutes, estimated).

Hardware: accumulation fits 8,000 sequences into one 80 GB GPU; on more devices lower it, to 25 on eight:
--train.accumulate 25.
Expected: they report tasks alone: 83.8 % on MNLI and F1 90.8 on SQuAD v1.1 for this objective at base size, trained on
books and Wikipedia (published, table 1). The loss is not measured yet.
"""

import dataclasses

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import Embedded, TextFiles, Tfds
from transformer_jax.data.tokenizers import TokenizerFile, TrainBPE
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import seq2seq
from transformer_jax.objectives.spans import TextInfilling
from transformer_jax.optim import Optim
from transformer_jax.tasks import Denoising


def experiment() -> Experiment:
    """BART-base."""
    return Experiment(
        model=seq2seq.Config(
            vocab_size=50265,
            max_length=1024,
            width=768,
            num_layers=6,
            num_heads=12,
            activation="gelu",
            position="learned",
            position_offset=2,
            embedding_norm=True,
            scale_embedding=False,
            initializer="normal",
            dropout=0.1,
            attention_dropout=0.1,
            pad_id=1,
            eos_id=2,
            decoder_start_id=2,
        ),
        data=TextCorpus(
            source=Tfds("c4/en", validation="validation[:20000]"),
            tokenizer=TokenizerFile("downloads/bart-base"),
            length=512,
        ),
        task=Denoising(TextInfilling(rate=0.3, mean_span=3.0)),
        optim=Optim(
            peak_lr=6e-4,
            lr_schedule="linear",
            warmup_steps=24_000,
            final_lr_fraction=0.0,
            beta1=0.9,
            beta2=0.98,
            eps=1e-6,
            weight_decay=0.01,
            clip_norm=0.0,
        ),
        train=Train(steps=500_000, batch_size=8000, accumulate=250, log_every=10),
        evaluate=Evaluate(every=10_000, batch_size=128),
        checkpoint=Checkpoint(every=1000),
        sample=Predict(inputs=("Paris is the<mask> of France.", "The<mask> barked all night."), top=2),
    )


def large() -> Experiment:
    """BART-large: 12 layers of 1,024 on each side; learning rate and warm-up are RoBERTa-large's."""
    base = experiment()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, width=1024, num_layers=12, num_heads=16),
        optim=dataclasses.replace(base.optim, peak_lr=4e-4, warmup_steps=30_000),
    )


def text() -> Experiment:
    """On plain text files of your own, a document each."""
    base = experiment()
    return dataclasses.replace(base, data=dataclasses.replace(base.data, source=TextFiles(("corpus",))))


def stdlib() -> Experiment:
    """Small, on the standard library's source."""
    base = experiment()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.model,
            vocab_size=4096,
            max_length=128,
            width=192,
            num_layers=3,
            num_heads=3,
            dropout=0.0,
            attention_dropout=0.0,
            scan_layers=False,
        ),
        data=TextCorpus(
            source=Embedded(), tokenizer=TrainBPE(4096, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")), length=128
        ),
        optim=Optim(peak_lr=1e-3, warmup_steps=200, final_lr_fraction=0.05, beta2=0.98),
        train=Train(steps=1500, batch_size=16, log_every=20),
        evaluate=Evaluate(every=750, batch_size=32),
        checkpoint=Checkpoint(every=750),
        sample=Predict(inputs=("def __init__(self,<mask>):\n        self.name = name",), top=2),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
