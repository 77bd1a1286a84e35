"""A small GPT that learns to write Python from the Python standard library: the job that runs on every machine.

    tools/run experiments.causal_lm.stdlib
    transformer-jax train causal_lm.stdlib --workdir runs/a --model.num-layers 6 --optim.peak-lr 0.015

Data: the standard library's own source, about 11 MB, split by file; a byte-level BPE of 4,096 tokens trained on the
training files. Model: the modern decoder (RMSNorm, rotary, SwiGLU, no biases), 4 layers, 192 wide, 2.6 M parameters,
windows of 256 tokens. Small on purpose: at this many seconds, more steps are worth more than more parameters.
Optimiser: Muon for the blocks' kernels, with four Newton-Schulz steps, and AdamW for the rest.
Hardware and time: 2 CPU cores, about six minutes.
Expected: 1.37 to 1.42 bits per byte on the validation files, where `gzip -9` needs 2.0 to 2.3 (measured; both are
printed by the run, because the text differs between Python versions).
"""

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import Embedded
from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Muon


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(
            vocab_size=4096,
            max_length=256,
            width=192,
            num_layers=4,
            num_heads=3,
            mlp_width=512,  # 8/3 of the width, as a gate is a third matrix
            activation="silu",
            gated=True,
            norm="rms",
            bias=False,
            position="rotary",
            scan_layers=False,
        ),
        data=TextCorpus(source=Embedded(), tokenizer=TrainBPE(4096), length=256),
        optim=Muon(
            peak_lr=0.02, adamw_lr=4e-3, lr_schedule="linear", warmup_steps=30, final_lr_fraction=0.0, iterations=4
        ),
        train=Train(steps=600, batch_size=8, log_every=20),
        evaluate=Evaluate(batch_size=16),  # at the end alone: it takes as long as 30 steps
        checkpoint=Checkpoint(every=300),
        sample=Sample(prompt="def add(self", max_new_tokens=200, temperature=0.7, top_k=50),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
