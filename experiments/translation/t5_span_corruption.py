"""T5's pre-training, span corruption: a small encoder-decoder that fills gaps in Python, and the published models.

    tools/run experiments.translation.t5_span_corruption
    transformer-jax predict runs/translation-t5_span_corruption "for i in<extra_id_0>(len(items)):"
    TFDS_DATA_DIR=/data transformer-jax train translation.t5_span_corruption base --workdir runs/t5-base
    TFDS_DATA_DIR=/data transformer-jax train translation.t5_span_corruption small --workdir runs/t5-small

The default runs on every machine. Data: the standard library's own source, about 11 MB, split by file; a byte-level BPE
of 4,096 tokens, 32 sentinels among them. Model: T5 v1.1's blocks, 4 layers on each side, 192 wide. Sources of 128
tokens, of texts of 141, of which 15 % are hidden in 7 spans; targets of 29.

`base` and `small` are T5 v1.1's sizes on C4, sources of 512 tokens, targets of 114 (Raffel et al. 2020, section 3.1.4),
128 rows a batch, 524,288 steps, no dropout, by Adafactor, whose updates are relative to a parameter's size, at
1 / sqrt(max(step, 10,000)) (section 3.1.2). `downloads/t5-v1_1-base` is the Hugging Face folder with the published
tokenizer (tokenizer.json is enough: spiece.model has no sentinels). What differs: no z-loss; and an end-of-text token
between documents, which in their rows follow each other bare. The default, which is not theirs, is by AdamW.

Hardware and time: the default 2 CPU cores, about 15 minutes; `base` one 80 GB GPU or a TPU slice.
Expected: `base` 1.942 nats per target token on held-out C4 after 65,536 steps, and 1.633 after 524,288 (published,
Shazeer 2020, "GLU variants improve transformer", table 1, GEGLU, with the embeddings tied); not measured here. The
default with --train.steps 240 --optim.warmup-steps 40: 4.4 to 4.8 nats per target token of the validation files, where
the frequencies of training targets score 5.7 to 6.0 (measured).
"""

import dataclasses

from transformer_jax.data import tokenizers
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import Embedded, Tfds
from transformer_jax.data.tokenizers import TokenizerFile, TrainBPE
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import seq2seq
from transformer_jax.objectives.spans import SpanCorruption
from transformer_jax.optim import Adafactor, AdamW
from transformer_jax.tasks import Denoising

V1_1 = seq2seq.Config(
    vocab_size=32128,
    max_length=512,
    width=512,
    num_layers=8,
    num_heads=6,
    head_dim=64,
    mlp_width=1024,
    gated=True,
    activation="gelu_tanh",
    norm="rms",
    norm_eps=1e-6,
    norm_order="pre",
    bias=False,
    position="relative",
    scale_embedding=False,
    scale_scores=False,
    tie_embeddings=False,
    initializer="t5",
    dropout=0.0,
    pad_id=0,
    eos_id=1,
    decoder_start_id=0,
)


def experiment() -> Experiment:
    """Offline, on the standard library."""
    return Experiment(
        model=dataclasses.replace(
            V1_1,
            vocab_size=4096,
            max_length=128,
            width=192,
            num_layers=4,
            num_heads=3,
            mlp_width=512,
            scan_layers=False,
        ),
        data=TextCorpus(source=Embedded(), tokenizer=TrainBPE(4096, special=tokenizers.t5_special(32)), length=128),
        task=Denoising(SpanCorruption()),
        optim=AdamW(peak_lr=1e-3, warmup_steps=100, final_lr_fraction=0.05, beta2=0.98),
        train=Train(steps=1200, batch_size=16, log_every=20),
        evaluate=Evaluate(every=600, batch_size=32),
        checkpoint=Checkpoint(every=600),
        sample=Predict(
            inputs=(
                "def __init__(self,<extra_id_0>):\n        self.name<extra_id_1>",
                "for i in<extra_id_0>(len(items)):<extra_id_1>",
                "    raise<extra_id_0>('expected a string')<extra_id_1>",
                "if x is not<extra_id_0>:<extra_id_1>",
            ),
            top=1,
        ),
    )


def base() -> Experiment:
    """T5 v1.1 base: 12 layers of 768 on each side, 248 million parameters."""
    return _on_c4(dataclasses.replace(V1_1, width=768, num_layers=12, num_heads=12, mlp_width=2048), "t5-v1_1-base")


def small() -> Experiment:
    """T5 v1.1 small: 8 layers of 512 on each side, 77 million parameters."""
    return _on_c4(V1_1, "t5-v1_1-small")


def _on_c4(model: seq2seq.Config, name: str) -> Experiment:
    return Experiment(
        model=model,
        data=TextCorpus(
            source=Tfds("c4/en", validation="validation[:20000]"),
            tokenizer=TokenizerFile(f"downloads/{name}"),
            length=512,
        ),
        task=Denoising(SpanCorruption(rate=0.15, mean_span=3.0)),
        optim=Adafactor(peak_lr=0.01, lr_schedule="flat_rsqrt", warmup_steps=9_999),
        train=Train(steps=524_288, batch_size=128, log_every=100),
        evaluate=Evaluate(every=8192, batch_size=128),
        checkpoint=Checkpoint(every=4096),
        sample=Predict(inputs=("Thank you<extra_id_0> me to your party<extra_id_1> week.",), top=2),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
