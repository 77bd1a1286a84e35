"""Sentence embeddings as all-MiniLM-L6-v2 was trained: pairs of texts, one small BERT, the mean of its states.

    transformer-jax train embed.sentence --data.source.train pairs.jsonl --init-from downloads/all-MiniLM-L6-v2
    transformer-jax predict runs/embed-sentence --file texts.txt --npy texts.npy

Reproduces: the model card of sentence-transformers/all-MiniLM-L6-v2: a MiniLM of 6 layers of 384 (Wang et al. 2020),
the mean over the tokens, unit length, cosines times 20, the cross-entropy of the right text and of the left one,
batches of 1,024, texts of 128 tokens, AdamW at 2e-5 with 500 steps of warm-up, 100,000 steps over a billion pairs.

Data: tables with the columns `left` and `right`, and any columns of hard negatives (`--data.source.negative`).
`--init-from` is a folder of sentence-transformers; without, the model begins from scratch.
Hardware: a TPU v3-8 (published, the model card), or one GPU.
Expected: for the published data, 68.1 on 14 tasks of sentence embedding (published, sbert.net). Not measured here.
"""

from transformer_jax.data.tokenizers import TrainWordPiece
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import bert, dual
from transformer_jax.optim import Optim
from transformer_jax.tasks import Contrastive
from transformer_jax.tasks.contrastive.paired import Paired, Table


def experiment() -> Experiment:
    return Experiment(
        model=dual.Config(
            left=bert.Config(width=384, num_layers=6, num_heads=12, mlp_width=1536, pooling="mean", heads=()),
            width=384,
            projected=(),
            learned_scale=False,
            scale=20.0,
            text_length=256,
        ),
        data=Paired(Table(("pairs.jsonl",), validation_fraction=0.001), TrainWordPiece(30522), length=128),
        task=Contrastive(max_scale=0.0),
        optim=Optim(
            peak_lr=2e-5, lr_schedule="linear", warmup_steps=500, final_lr_fraction=0.0, beta2=0.999, weight_decay=0.01
        ),
        train=Train(steps=100_000, batch_size=1024),
        evaluate=Evaluate(every=5000, batch_size=256),
        checkpoint=Checkpoint(every=5000, best_metric="recall_at_1_left_to_right", best="highest"),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
