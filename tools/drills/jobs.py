"""Small jobs to drill, one per family: dropout, shuffling and an average are on, of images augmentation too.

    tools/run tools.drills tools.drills.jobs gpt --drill kill       # also mlm, translation, vit

They train on what every machine has: this library's own source, Babel's CLDR, scikit-learn's digits.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformer_jax
from experiments.translation import cldr
from experiments.vit import digits
from transformer_jax.augment import Affine
from transformer_jax.contracts import Prepared
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles
from transformer_jax.data.tokenizers import Bytes, TrainBPE
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Predict, Sample, Train
from transformer_jax.models import bert
from transformer_jax.models import gpt as gpts
from transformer_jax.optim import Optim
from transformer_jax.tasks import MaskedLM
from transformer_jax.tasks.causal_lm import CausalLM

PACKAGE = Path(transformer_jax.__file__).parent
TEXT = TextFiles(
    tuple(str(PACKAGE / name) for name in ("contracts/task.py", "experiment.py", "restore.py", "sharding.py"))
)
TRAIN = Train(steps=200, batch_size=8, log_every=1)


@dataclass(frozen=True)
class WithATestSet(CausalLM):
    """Causal language modelling with a test set, which is the validation set."""

    def prepare(self, *args: Any, **options: Any) -> Prepared:
        prepared = super().prepare(*args, **options)
        return dataclasses.replace(prepared, test=prepared.validation)


def gpt() -> Experiment:
    return Experiment(
        model=gpts.Config(vocab_size=257, max_length=32, width=32, num_layers=2, num_heads=2, dropout=0.1),
        data=TextCorpus(TEXT, Bytes(), length=32),
        optim=Optim(warmup_steps=10),
        train=TRAIN,
        checkpoint=Checkpoint(every=20),
        sample=Sample(max_new_tokens=0),
        ema=Ema(0.9),
    )


def mlm() -> Experiment:
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return dataclasses.replace(
        gpt(),
        model=bert.Config(
            vocab_size=400, max_length=32, width=32, num_layers=2, num_heads=2, dropout=0.1, heads=("mlm",)
        ),
        data=TextCorpus(TEXT, TrainBPE(400, special=special), length=32),
        task=MaskedLM(),
        checkpoint=Checkpoint(every=20, best_metric="loss_nats_per_masked_token"),
        sample=Predict(),
    )


def translation() -> Experiment:
    job = cldr.experiment()
    return dataclasses.replace(
        job,
        model=dataclasses.replace(job.model, vocab_size=400, width=32, num_layers=1, num_heads=2, dropout=0.1),
        data=dataclasses.replace(
            job.data,
            source=dataclasses.replace(job.data.source, train=1000, validation=40, test=40),
            tokenizer=dataclasses.replace(job.data.tokenizer, vocab_size=400),
        ),
        train=TRAIN,
        evaluate=Evaluate(batch_size=8),
        checkpoint=Checkpoint(every=20),
        ema=Ema(0.9),
    )


def vit() -> Experiment:
    job = digits.experiment()
    augment = (Affine(degrees=10, shift=0.07, zoom=(0.9, 1.1)),)
    return dataclasses.replace(
        job,
        model=dataclasses.replace(job.model, width=32, num_layers=2, num_heads=2, dropout=0.1),
        task=dataclasses.replace(job.task, augment=augment),
        train=TRAIN,
        evaluate=Evaluate(batch_size=20),
        checkpoint=Checkpoint(every=20, best_metric="loss_nats_per_image"),
    )
