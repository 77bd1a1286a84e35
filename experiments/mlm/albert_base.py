"""ALBERT-base by its published recipe: one block's parameters for all layers, n-gram masks, sentence order.

    TFDS_DATA_DIR=/data transformer-jax train mlm.albert_base
    TFDS_DATA_DIR=/data transformer-jax train mlm.albert_base xxlarge --mesh.fsdp 8
    transformer-jax train mlm.albert_base text --data.source.paths shards/
    transformer-jax predict runs/mlm-albert_base "Paris is the [MASK] of France."

`downloads/albert-base-v1` is the Hugging Face folder with the published tokenizer.

Reproduces: Lan et al. 2020, section 4.1: 125,000 steps of 4,096 pairs of at most 512 tokens, one in ten shorter, 15 %
masked in n-grams of up to three words, sentence-order prediction (3.1), by LAMB at 1.76e-3. The warm-up of 3,125 steps,
the linear decay, the weight decay of 0.01 and the clipped gradient are those of their code (google-research/albert).
They read Wikipedia and BooksCorpus; the latter is not distributed, so here it is Wikipedia alone. Sizes (table 1):
`large`, `xlarge`, `xxlarge`: 18M, 60M and 235M parameters; the last without dropout (section 4.9).

Hardware: accumulation fits the batch into one 80 GB GPU; on more devices lower it: --train.accumulate 16 on eight.
Time: not published for the base model.
Expected: 54.0 % of the masked tokens and 86.5 % of the orders (published, table 5, with both corpora).
"""

import dataclasses

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles, Tfds
from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert
from transformer_jax.objectives.masking import Masking
from transformer_jax.optim import Lamb
from transformer_jax.tasks import MaskedLM


def experiment() -> Experiment:
    return Experiment(
        model=bert.Config(
            vocab_size=30000,
            max_length=512,
            embedding_width=128,
            share_layers=True,
            activation="gelu_tanh",
            heads=("mlm", "pair"),
        ),
        data=TextCorpus(
            source=Tfds("wikipedia/20230601.en", train="train[:-2000]", validation="train[-2000:]"),
            tokenizer=TokenizerFile("downloads/albert-base-v1"),
            length=512,
        ),
        task=MaskedLM(masking=Masking(rate=0.15, unit="ngram"), pairs="sentence_order"),
        optim=Lamb(
            peak_lr=1.76e-3,
            lr_schedule="linear",
            warmup_steps=3125,
            final_lr_fraction=0.0,
            beta1=0.9,
            beta2=0.999,
            eps=1e-6,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        train=Train(steps=125_000, batch_size=4096, accumulate=128, log_every=10),
        evaluate=Evaluate(every=5000, batch_size=128),
        sample=Predict(inputs=("Paris is the [MASK] of France.", "The [MASK] barked all night."), top=5),
    )


def large() -> Experiment:
    """24 layers, 1,024 wide."""
    return _sized(width=1024, num_layers=24, num_heads=16)


def xlarge() -> Experiment:
    """24 layers, 2,048 wide; 16 heads, as in the published weights."""
    return _sized(width=2048, num_layers=24, num_heads=16)


def xxlarge() -> Experiment:
    """12 layers, 4,096 wide."""
    return _sized(width=4096, num_layers=12, num_heads=64, dropout=0.0, remat="dots")


def text() -> Experiment:
    """On plain text files of your own, a document each."""
    base = experiment()
    return dataclasses.replace(base, data=dataclasses.replace(base.data, source=TextFiles(("corpus",))))


def _sized(**sizes) -> Experiment:
    base = experiment()
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **sizes))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
