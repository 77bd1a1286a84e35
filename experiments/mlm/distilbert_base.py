"""DistilBERT: BERT-base's masked language model in six layers, learned from BERT-base.

    TFDS_DATA_DIR=/data transformer-jax train mlm.distilbert_base --task.teacher downloads/bert-base-uncased
    transformer-jax train finetune.sst2 --init-from runs/mlm-distilbert_base

Reproduces: Sanh et al. 2019. A student of every second layer of the teacher, without token types, learns from 5 parts
of the teacher's softened logits (temperature 2), 2 of the labels and 1 of the cosine distance of the last hidden
states; batches of about 4,000 rows, dynamic masks, no next sentences. Learning rate 5e-4, linear decay and 5 % warm-up
are those of their code (huggingface/transformers, research_projects/distillation). They read Wikipedia and BooksCorpus;
the latter is not distributed. The teacher's token types and its pooler are left behind, as in their code.

Hardware: eight GPUs with 16 GB for 90 hours (published, section 3).
Expected: 97 % of BERT-base's GLUE score, 77.0 of 79.5 (published, table 1).
"""

from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import Tfds
from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert
from transformer_jax.objectives.masking import Masking
from transformer_jax.optim import Optim
from transformer_jax.tasks import Distillation, MaskedLM


def experiment() -> Experiment:
    return Experiment(
        model=bert.Config(num_layers=6, num_types=0, heads=("mlm",), scan_layers=False),
        data=TextCorpus(
            source=Tfds("wikipedia/20230601.en", train="train[:-2000]", validation="train[-2000:]"),
            tokenizer=TokenizerFile("downloads/bert-base-uncased"),
            length=512,
        ),
        task=Distillation(
            of=MaskedLM(masking=Masking(rate=0.15)),
            teacher="downloads/bert-base-uncased",
            temperature=2.0,
            hard=2 / 7,
            states=1 / 7,
            start="layers",
        ),
        optim=Optim(
            peak_lr=5e-4,
            lr_schedule="linear",
            warmup_steps=1000,
            final_lr_fraction=0.0,
            beta2=0.98,
            eps=1e-6,
            weight_decay=0.0,
            clip_norm=5.0,
        ),
        train=Train(steps=20_000, batch_size=4096, accumulate=64, log_every=20),
        evaluate=Evaluate(every=1000, batch_size=256),
        sample=Predict(inputs=("Paris is the [MASK] of France.",), top=5),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
