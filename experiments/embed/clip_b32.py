"""CLIP ViT-B/32 on pictures with captions, as published.

    transformer-jax train embed.clip_b32 --data.source.train captions.jsonl --data.source.pictures pictures
    transformer-jax predict runs/embed-clip_b32 "a dog on a beach" --search photos

Reproduces: Radford et al. 2021, "Learning transferable visual models from natural language supervision" (arXiv
2103.00020), tables 18 and 19: batches of 32,768 pairs, 32 epochs of 400 million pairs, learning rate 5e-4 with 2,000
steps of warm-up and cosine decay, Adam with beta2 0.98 and eps 1e-6, weight decay 0.2, the temperature learned from
0.07 and its inverse clipped at 100, texts of 77 tokens. What differs: their random square crop is a centre crop here,
and the tokenizer is trained on the captions.

Data: a table with the columns `file` and `caption`. Texts and the list of files are in memory, so that millions of
pairs fit and 400 million do not.
Hardware: a TPU slice or GPUs: 18 days on 256 V100 for the paper's ViT-L/14 (published).
Expected: 63.2 % zero-shot on ImageNet after 400 million pairs (published, table 11); 62.9 % by OpenCLIP on LAION-400M
(published, mlfoundations/open_clip). Not measured here.
"""

from transformer_jax.data.preprocess import Preprocess
from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import dual, gpt, vit
from transformer_jax.optim import Optim
from transformer_jax.tasks import Contrastive
from transformer_jax.tasks.contrastive.paired import Paired, Table

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def experiment() -> Experiment:
    return Experiment(
        model=dual.Config(
            left=vit.Config(
                patch_size=32,
                num_classes=0,
                patch_bias=False,
                embedding_norm=True,
                activation="quick_gelu",
                norm_eps=1e-5,
                initializer="normal",
            ),
            right=gpt.Config(
                vocab_size=49408, max_length=77, width=512, num_layers=12, num_heads=8, activation="quick_gelu"
            ),
            width=512,
        ),
        data=Paired(
            Table(("captions.jsonl",), left="file", right="caption", pictures=".", validation_fraction=0.001),
            TrainBPE(49408, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
            length=77,
        ),
        task=Contrastive(
            preprocess=Preprocess(size=224, resize=224, fit="shortest", resample="bicubic", mean=MEAN, std=STD)
        ),
        optim=Optim(
            peak_lr=5e-4,
            warmup_steps=2000,
            final_lr_fraction=0.0,
            beta2=0.98,
            eps=1e-6,
            weight_decay=0.2,
            clip_norm=0.0,
        ),
        train=Train(steps=32 * 400_000_000 // 32_768, batch_size=32_768),
        evaluate=Evaluate(every=5000, batch_size=1024),
        checkpoint=Checkpoint(every=5000, best_metric="recall_at_1_left_to_right", best="highest"),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
