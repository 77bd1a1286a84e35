r"""Which span of this text answers the question? SQuAD v1.1, fine-tuned from BERT-base.

    TFDS_DATA_DIR=/data transformer-jax train finetune.squad --init-from downloads/bert-base-uncased
    transformer-jax train finetune.squad files --init-from downloads/bert-base-uncased \
        --data.source.train train-v1.1.json --data.source.validation dev-v1.1.json
    printf 'Who won?\tThe Denver Broncos won the game.' | transformer-jax predict runs/finetune-squad -

`downloads/bert-base-uncased` is a Hugging Face folder; `downloads/bert-base-cased` or a workdir of `experiments.mlm`
serves as well. Without --init-from the same model is trained from scratch, on the vocabulary of that folder.

Data: SQuAD v1.1 (Rajpurkar et al. 2016): 87,599 questions to train, 10,570 to validate, prepared in the TFDS store as
`squad`, or its two files. The test set is not public, so what is reported is the validation set at the last step.

Recipe: windows of 384 tokens, 128 apart, questions of up to 64; batch 32, AdamW at 5e-5 with a tenth of warm-up and a
linear decay to 0, 3 epochs (Devlin et al. 2019, section 4.2; windows, warm-up and weight decay by its run_squad.py).

Hardware: one GPU or TPU chip; days on a CPU.
Expected: exact match 80.8, F1 88.5 on validation, in percent (published, Devlin et al. 2019, table 2, BERT-base).
"""

import dataclasses

from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert
from transformer_jax.optim import Optim
from transformer_jax.tasks import SpanQA
from transformer_jax.tasks.span_qa.questions import Questions, SquadJson, TfdsSquad

STEPS = 2770  # of an epoch: about 88,600 windows in batches of 32


def experiment() -> Experiment:
    """On TFDS `squad`."""
    return Experiment(
        model=bert.Config(heads=("span",)),  # BERT-base, uncased
        data=Questions(TfdsSquad(), TokenizerFile("downloads/bert-base-uncased"), length=384, stride=128),
        task=SpanQA(),
        optim=Optim(
            peak_lr=5e-5,
            lr_schedule="linear",
            warmup_steps=3 * STEPS // 10,
            final_lr_fraction=0.0,
            beta2=0.999,
            eps=1e-6,
            weight_decay=0.01,
        ),
        train=Train(steps=3 * STEPS, batch_size=32),
        evaluate=Evaluate(every=STEPS, batch_size=32),
        checkpoint=Checkpoint(every=STEPS, best_metric="f1_percent", best="highest"),
        sample=Predict(inputs=("Who won?\tThe Denver Broncos won the game.",), top=3),
    )


def files() -> Experiment:
    """On the published files."""
    base = experiment()
    source = SquadJson("train-v1.1.json", "dev-v1.1.json")
    return dataclasses.replace(base, data=dataclasses.replace(base.data, source=source))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
