"""SigLIP ViT-B/16 on pictures with captions, as published.

    transformer-jax train embed.siglip_b16 --data.source.train captions.jsonl --data.source.pictures pictures
    transformer-jax predict runs/embed-siglip_b16 "a dog on a beach" --search photos

Reproduces: Zhai et al. 2023, "Sigmoid loss for language image pre-training" (arXiv 2303.15343), section 4: batches of
32,768 pairs, the sigmoid loss with its factor learned from 10 and its bias from -10, learning rate 1e-3 and weight
decay 1e-4, beta2 0.95, texts of 64 tokens that are padded to that length, attention pooling of the patches. What
differs: they use Adafactor with first moments and decay the weights without the learning rate's peak (1e-4 / 1e-3 is
our 0.1); the tokenizer is trained on the captions, where theirs is a SentencePiece of C4.

Data: a table with the columns `file` and `caption`, in memory but for the pictures.
Hardware: a TPU slice: 32 TPU-v4 chips for some days (published, section 1).
Expected: 76.0 % zero-shot on ImageNet after training on WebLI (published, google-research/big_vision). Not measured
here.
"""

from transformer_jax.data.preprocess import Preprocess
from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import bert, dual, vit
from transformer_jax.optim import Optim
from transformer_jax.tasks import Contrastive
from transformer_jax.tasks.contrastive.paired import Paired, Table


def experiment() -> Experiment:
    return Experiment(
        model=dual.Config(
            left=vit.Config(patch_size=16, num_classes=0, pool="map", activation="gelu_tanh"),
            right=bert.Config(
                vocab_size=32_000,
                max_length=64,
                activation="gelu_tanh",
                norm_eps=1e-6,
                norm_order="pre",
                embedding_norm=False,
                num_types=0,
                pooling="padded",
                heads=(),
                dropout=0.0,
            ),
            width=768,
            projected=("right",),
            projection_bias=True,
            logit_bias=True,
            scale=10.0,
        ),
        data=Paired(
            Table(("captions.jsonl",), left="file", right="caption", pictures=".", validation_fraction=0.001),
            TrainBPE(32_000, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
            length=64,
        ),
        task=Contrastive(
            objective="sigmoid", max_scale=0.0, preprocess=Preprocess(size=224, resize=224, resample="bicubic")
        ),
        optim=Optim(
            peak_lr=1e-3, warmup_steps=20_000, final_lr_fraction=0.0, beta2=0.95, weight_decay=0.1, clip_norm=1.0
        ),
        train=Train(steps=9_000_000_000 // 32_768, batch_size=32_768),
        evaluate=Evaluate(every=5000, batch_size=1024),
        checkpoint=Checkpoint(every=5000, best_metric="recall_at_1_left_to_right", best="highest"),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
