"""ModernBERT-base by its published recipe: local and global layers, 30 % masked, 1,024 and then 8,192 tokens.

    TFDS_DATA_DIR=/data transformer-jax train mlm.modernbert_base --workdir runs/modern
    TFDS_DATA_DIR=/data transformer-jax train mlm.modernbert_base long --workdir runs/modern-8k --init-from runs/modern
    transformer-jax predict runs/modern-8k "Paris is the [MASK] of France."

`downloads/ModernBERT-base` is the Hugging Face folder with the published tokenizer (tokenizer.json is enough).

Reproduces: Warner et al. 2024 (arXiv 2412.13663), section 2.2, and yamls/modernbert/modernbert-base-pretrain.yaml of
AnswerDotAI/ModernBERT: 1,719 billion tokens in batches of 4,608 rows of 1,024, learning rate 8e-4 after 3 billion
tokens of warm-up and then constant, beta 0.9 and 0.98, epsilon 1e-6, 30 % of the tokens masked, packed rows. Then
`long`: 250 billion tokens in rows of 8,192, constant at 3e-4, with the rotary base of the global layers at 160,000. For
their last 50 billion, over which the learning rate falls, run `long` once more with --train.steps 10596
--optim.lr-schedule linear --optim.final-lr-fraction 0. Their weight decay of 1e-5 is not multiplied by the learning
rate, and ours is: 1e-5 / 8e-4.

Different here: their data (2 trillion tokens of web, code and papers, not published) is C4. Their StableAdamW is AdamW
with the gradient's norm clipped to 1. Their batch grows to its size over 50 billion tokens and the last learning rates
fall as 1 - sqrt; here both are constant and linear. Their dropout of 0.1 after each attention is none. Their
validation masks 15 %.

Hardware: eight GPUs with 80 GB and --train.accumulate 6, or a TPU slice.
Time: 10 days on eight H100 for all three phases (published, appendix A).
Expected: 88.4 on average over GLUE's tasks after fine-tuning (published, table 1); they publish no loss.
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
    """The first phase, at 1,024 tokens."""
    tokens_per_step = 4608 * 1024
    return Experiment(
        model=bert.Config(
            vocab_size=50368,
            max_length=8192,
            num_layers=22,
            mlp_width=1152,
            num_types=0,
            position="rotary",
            local_window=64,
            global_every=3,
            norm_order="pre",
            first_attention_norm=False,
            norm_eps=1e-5,
            gated=True,
            bias=False,
            head_transform=True,
            heads=("mlm",),
            dropout=0.0,
        ),
        data=TextCorpus(source=Tfds("c4/en"), tokenizer=TokenizerFile("downloads/ModernBERT-base"), length=1024),
        task=MaskedLM(masking=Masking(rate=0.3), packed=True),
        optim=Optim(
            peak_lr=8e-4,
            lr_schedule="constant",
            warmup_steps=3_000_000_000 // tokens_per_step,
            beta1=0.9,
            beta2=0.98,
            eps=1e-6,
            weight_decay=1e-5 / 8e-4,
            clip_norm=1.0,
        ),
        train=Train(steps=1_719_000_000_000 // tokens_per_step, batch_size=4608, accumulate=48, log_every=100),
        evaluate=Evaluate(every=4000, batch_size=1024),
        checkpoint=Checkpoint(every=4000),
        sample=Predict(inputs=("Paris is the [MASK] of France.", "def add(a, b):\n    return a [MASK] b"), top=5),
    )


def long() -> Experiment:
    """The second phase: 250 billion tokens in rows of 8,192."""
    base = experiment()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, rope_theta=160_000.0),
        data=dataclasses.replace(base.data, length=8192),
        optim=dataclasses.replace(base.optim, peak_lr=3e-4, warmup_steps=0, weight_decay=1e-5 / 3e-4),
        train=Train(steps=250_000_000_000 // (576 * 8192), batch_size=576, accumulate=48, log_every=100),
        evaluate=Evaluate(every=4000, batch_size=128),
        init_from="runs/mlm-modernbert_base",
    )


def text() -> Experiment:
    """On plain text files of your own, a document each."""
    base = experiment()
    return dataclasses.replace(base, data=dataclasses.replace(base.data, source=TextFiles(("corpus",))))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
