"""SASRec on MovieLens 100K: 943 people and the films they rated, by the full ranking of the films they had not seen.

    pip download --no-deps recbole==1.2.1 && unzip recbole-*.whl 'recbole/dataset_example/*'
    transformer-jax train recommend.movielens --data.source.files recbole/dataset_example/ml-100k/ml-100k.inter
    transformer-jax predict runs/recommend-movielens "Toy Story, GoldenEye"

RecBole's wheel holds the data as GroupLens gives them, for research and not to be passed on; nothing of RecBole is
imported. Its .item beside it names the films: --data.source.names, --data.source.name movie_title.

Hardware and time: 2 CPU cores, about six minutes.
Expected (full ranking of unseen films, test): HR@10 0.16 to 0.20 and NDCG@10 0.08 to 0.10, twice popularity's 0.08 to
0.095 and 0.04 to 0.05. What followed the last five films within five steps reaches 0.19 to 0.21 and 0.10 to 0.12
(measured, all printed by each run): the transformer is behind that on the test set.
"""

from transformer_jax.data.interactions import Table
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Optim
from transformer_jax.tasks import NextItem
from transformer_jax.tasks.next_item.histories import Histories


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(
            vocab_size=1351,
            max_length=64,
            width=64,
            num_layers=2,
            num_heads=2,
            dropout=0.3,
            scan_layers=False,
        ),
        data=Histories(Table(("ml-100k.inter",)), length=64),
        task=NextItem(unseen=True),
        optim=Optim(peak_lr=1e-3, warmup_steps=50, final_lr_fraction=0.1, beta2=0.98, weight_decay=0.1),
        train=Train(steps=1000, batch_size=64, log_every=25),
        evaluate=Evaluate(every=100, batch_size=256),
        checkpoint=Checkpoint(every=100, best_metric="ndcg_10_full_unseen", best="highest"),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
