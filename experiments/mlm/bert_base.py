"""BERT-base by its published recipe: masked tokens and next sentences, at 128 and then at 512 tokens.

    TFDS_DATA_DIR=/data transformer-jax train mlm.bert_base --workdir runs/bert-128
    TFDS_DATA_DIR=/data transformer-jax train mlm.bert_base phase_512 --workdir runs/bert-512 --init-from runs/bert-128
    transformer-jax train mlm.bert_base text --data.source.paths shards/
    transformer-jax predict runs/bert-512 "Paris is the [MASK] of France."

`downloads/bert-base-uncased` is the Hugging Face folder with the published vocabulary (vocab.txt alone is enough).

Reproduces: Devlin et al. 2019, section 3.1 and appendix A.2: 1,000,000 steps of 256 sequences, 90 % of them of 128
tokens and the rest of 512, Adam with learning rate 1e-4, beta 0.9 and 0.999, weight decay 0.01, 10,000 steps of warm-up
and linear decay, dropout 0.1, 15 % of the tokens masked. Epsilon 1e-6 and the gradient's norm clipped to 1 are those of
their code (google-research/bert, optimization.py). They read Wikipedia and BooksCorpus; the latter is not distributed,
so here it is Wikipedia alone. Masks are drawn again in every epoch; theirs were drawn ten times. The second phase
starts with the learning rate at the end of the first one, with new moments. Variants: `whole_word` masking and
`large`, their other model (batch, steps and learning rate are the same).

Hardware: one GPU with 80 GB, or a TPU slice; the first phase takes accumulation on less: --train.accumulate 4.
Time: 4 days on 4 Cloud TPUs, 16 chips (published, appendix A.2).
Expected: 97 to 98 % accuracy of next sentences (published, section 3.1); perplexity 3.99 per masked token for this
recipe with both corpora and without next sentences (published, Liu et al. 2019, table 3).
"""

import dataclasses

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles, Tfds
from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert
from transformer_jax.objectives.masking import Masking
from transformer_jax.optim import Optim
from transformer_jax.tasks import MaskedLM


def experiment() -> Experiment:
    """The first phase: 900,000 steps at 128 tokens."""
    return Experiment(
        model=bert.Config(heads=("mlm", "pair")),
        data=TextCorpus(
            source=Tfds("wikipedia/20230601.en", train="train[:-2000]", validation="train[-2000:]"),
            tokenizer=TokenizerFile("downloads/bert-base-uncased"),
            length=128,
        ),
        task=MaskedLM(masking=Masking(rate=0.15), pairs="next_sentence"),
        optim=Optim(
            peak_lr=1e-4,
            lr_schedule="linear",
            warmup_steps=10_000,
            decay_steps=1_000_000,  # of both phases
            final_lr_fraction=0.0,
            beta1=0.9,
            beta2=0.999,
            eps=1e-6,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        train=Train(steps=900_000, batch_size=256, log_every=100),
        evaluate=Evaluate(every=25_000, batch_size=256),
        checkpoint=Checkpoint(every=5000),
        sample=Predict(inputs=("Paris is the [MASK] of France.", "The [MASK] barked all night."), top=5),
    )


def phase_512() -> Experiment:
    """The last 100,000 steps at 512 tokens."""
    base = experiment()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, length=512),
        optim=dataclasses.replace(base.optim, peak_lr=1e-5, warmup_steps=0, decay_steps=0),
        train=Train(steps=100_000, batch_size=256, accumulate=4, log_every=100),
        evaluate=Evaluate(every=10_000, batch_size=64),
        init_from="runs/mlm-bert_base",
    )


def whole_word() -> Experiment:
    """All the pieces of a word are masked together (google-research/bert, README of May 2019)."""
    base = experiment()
    return dataclasses.replace(base, task=dataclasses.replace(base.task, masking=Masking(rate=0.15, unit="word")))


def large() -> Experiment:
    """BERT-large: 24 layers, 1,024 wide, 16 heads (section 3)."""
    base = experiment()
    return dataclasses.replace(base, model=dataclasses.replace(base.model, width=1024, num_layers=24, num_heads=16))


def text() -> Experiment:
    """On plain text files of your own, a document each."""
    base = experiment()
    return dataclasses.replace(base, data=dataclasses.replace(base.data, source=TextFiles(("corpus",))))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
