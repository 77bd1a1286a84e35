"""Which function is called next? A recommender that runs on every machine.

    tools/run experiments.recommend.stdlib_calls
    transformer-jax train recommend.stdlib_calls masked --workdir runs/calls-masked
    transformer-jax predict runs/recommend-stdlib_calls "len, range, append"

Data: the functions of the standard library are users, the names that they call are items, in their order.
Model: SASRec (Kang and McAuley 2018) with the full softmax: a causal transformer over the calls. `masked` is BERT4Rec
(Sun et al. 2019): an encoder that fills in hidden calls.

Hardware and time: 2 CPU cores, about six minutes.
Expected (full ranking, test): HR@10 0.60 to 0.65 and NDCG@10 0.39 to 0.43. Of what counting reaches on the same
training events, which each run prints: HR@10 of popularity 0.27 to 0.31, of a Markov chain 0.48 to 0.52, of one of the
last two calls with recency 0.61 to 0.645 with NDCG@10 0.40 to 0.435 (measured): the transformer does not beat that.
"""

import dataclasses

from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert, gpt
from transformer_jax.optim import Optim
from transformer_jax.tasks import NextItem
from transformer_jax.tasks.next_item.histories import Histories
from transformer_jax.tasks.next_item.stdlib_calls import StdlibCalls


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(
            vocab_size=768,
            max_length=32,
            width=96,
            num_layers=2,
            num_heads=2,
            dropout=0.3,
            scan_layers=False,
        ),
        data=Histories(StdlibCalls(), length=32, min_item=8),
        task=NextItem(),
        optim=Optim(peak_lr=2e-3, warmup_steps=50, final_lr_fraction=0.05, beta2=0.98, weight_decay=0.1),
        train=Train(steps=1200, batch_size=128, log_every=25),
        evaluate=Evaluate(every=200, batch_size=512),
        checkpoint=Checkpoint(every=200, best_metric="ndcg_10_full", best="highest"),
        sample=Predict(inputs=("open, read", "len, range, append", "isinstance, TypeError"), top=10),
    )


def masked() -> Experiment:
    """BERT4Rec: the items on both sides of a hidden one, and at the end those before the last."""
    causal = experiment()
    model = bert.Config(
        vocab_size=768,
        max_length=32,
        width=96,
        num_layers=2,
        num_heads=2,
        num_types=0,
        dropout=0.2,
        heads=("mlm",),
        scan_layers=False,
    )
    return dataclasses.replace(causal, model=model, task=NextItem(objective="masked"))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
