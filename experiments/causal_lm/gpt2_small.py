"""GPT-2 124M from scratch on C4 or on your own text, or fine-tuned from the published weights.

    TFDS_DATA_DIR=/data transformer-jax train causal_lm.gpt2_small --data.tokenizer.path gpt2/
    transformer-jax train causal_lm.gpt2_small text --data.source.paths shards/ --data.tokenizer.path gpt2/
    transformer-jax train causal_lm.gpt2_small records --data.source.paths gs://mine/c4/ --data.tokenizer.path gpt2/
    transformer-jax train causal_lm.gpt2_small finetune --init-from downloads/gpt2 --data.source.paths mine.txt

`gpt2/` is the Hugging Face folder of `gpt2` (its tokenizer alone is enough to train from scratch).

Reproduces: GPT-2 small (Radford et al. 2019) by the recipe of nanoGPT's config/train_gpt2.py: 480 sequences of 1,024
tokens a step (0.49M tokens), 600,000 steps, AdamW, peak 6e-4, 2,000 steps of warm-up, cosine to 6e-5, bfloat16.
nanoGPT reads OpenWebText, leaves the biases out and rounds the vocabulary up to 50,304; here the model is GPT-2 as
published, so that its weights fit.

Variants: `text`, `records`, `finetune` and `xl`, the largest GPT-2, which takes eight devices or more.

Hardware: accumulation fits the batch into one GPU; on more devices lower it: `--train.accumulate 5` on eight GPUs or a
TPU slice, and `--train.batch-size 512` where 480 does not divide.
Time: about 4 days on 8 A100 40GB for nanoGPT (published, README).
Expected: 2.85 nats per token on OpenWebText after 600,000 steps (published, nanoGPT README). On C4, whose text is
another, no figure is published for this recipe.
"""

import dataclasses

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import Records, TextFiles, Tfds
from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Mesh, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Optim


def experiment() -> Experiment:
    """From scratch on TFDS `c4/en`."""
    return Experiment(
        model=gpt.Config(
            vocab_size=50257,
            max_length=1024,
            width=768,
            num_layers=12,
            num_heads=12,
            dropout=0.0,
            scan_layers=True,
            remat="dots",
        ),
        data=TextCorpus(source=Tfds("c4/en"), tokenizer=TokenizerFile("gpt2/tokenizer.json"), length=1024),
        optim=Optim(
            peak_lr=6e-4,
            lr_schedule="cosine",
            warmup_steps=2000,
            final_lr_fraction=0.1,  # 6e-5
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=Train(steps=600_000, batch_size=480, accumulate=40, log_every=10),
        evaluate=Evaluate(every=5000, batch_size=32),
        checkpoint=Checkpoint(every=1000),
        sample=Sample(prompt="The", max_new_tokens=200, temperature=0.8, top_k=200),
    )


def text() -> Experiment:
    """From scratch on plain text files."""
    return _reading(experiment(), TextFiles(("corpus",)))


def records() -> Experiment:
    """From scratch on the "text" column of JSONL, Parquet, Arrow or WebDataset files, on a disk or in a bucket."""
    return _reading(experiment(), Records(("corpus",)))


def finetune() -> Experiment:
    """From the published weights, on a text of your own: nanoGPT's config/finetune_shakespeare.py."""
    base = text()
    return dataclasses.replace(
        base,
        optim=Optim(peak_lr=3e-5, lr_schedule="constant", weight_decay=0.1, beta1=0.9, beta2=0.95, clip_norm=1.0),
        train=Train(steps=20, batch_size=32, accumulate=32, log_every=1),
        evaluate=Evaluate(every=5, batch_size=4),
        checkpoint=Checkpoint(every=0),
        init_from="downloads/gpt2",
    )


def xl() -> Experiment:
    """GPT-2 XL: 48 layers, 1,600 wide, 1,542 million parameters (published, Radford et al. 2019, table 2), by the same
    recipe with batches of 512 sequences, which are theirs. No loss is published for it."""
    base = experiment()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, width=1600, num_layers=48, num_heads=25),
        optim=dataclasses.replace(base.optim, peak_lr=2e-4),  # Brown et al. 2020, table 2.1, their model of 1.3 billion
        train=dataclasses.replace(base.train, batch_size=512, accumulate=1),
        evaluate=dataclasses.replace(base.evaluate, batch_size=0),
        mesh=Mesh(data=-1, fsdp=8),
    )


def _reading(base: Experiment, source: TextFiles | Records) -> Experiment:
    return dataclasses.replace(base, data=dataclasses.replace(base.data, source=source))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
