"""Which function does what this sentence says? A search of code by its documentation, which runs on every machine.

    transformer-jax train embed.stdlib_search
    transformer-jax predict runs/embed-stdlib_search "remove a directory and all its files" --search FOLDER

Data: 5,850 functions of the standard library to train on and 325 of other files to search (Python 3.11): the first
paragraph of the docstring, and the code without it, truncated to 96 tokens of a byte-level BPE.
Model: one encoder of three layers, 128 wide, reads both sides; the mean of its states; InfoNCE over batches of 128.

Hardware and time: 2 CPU cores, about six minutes.
Expected, from a docstring to its function: 0.17 to 0.23 at 1 and 0.44 to 0.52 at 10. BM25 over the words of identifiers
finds 0.31 to 0.36 and 0.69 to 0.74 (measured, printed by each run). So few pairs are too few to beat it from scratch.
"""

from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import bert, dual
from transformer_jax.optim import Optim
from transformer_jax.tasks import Contrastive
from transformer_jax.tasks.contrastive.paired import Paired
from transformer_jax.tasks.contrastive.stdlib_functions import StdlibFunctions


def experiment() -> Experiment:
    return Experiment(
        model=dual.Config(
            left=bert.Config(
                vocab_size=4096,
                max_length=96,
                width=128,
                num_layers=3,
                num_heads=4,
                num_types=0,
                position="rotary",
                norm_order="pre",
                norm_eps=1e-5,
                pooling="mean",
                heads=(),
                scan_layers=False,
            ),
            width=128,
        ),
        data=Paired(StdlibFunctions(), TrainBPE(4096, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")), length=96),
        task=Contrastive(),
        optim=Optim(peak_lr=1e-3, warmup_steps=30, final_lr_fraction=0.0, beta2=0.98, weight_decay=0.1),
        train=Train(steps=300, batch_size=128, log_every=20),
        evaluate=Evaluate(every=100, batch_size=65),
        checkpoint=Checkpoint(every=100, best_metric="recall_at_10_left_to_right", best="highest"),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
