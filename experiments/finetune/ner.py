r"""Names of persons, organisations, places and other entities in news: CoNLL-2003, fine-tuned from BERT-base.

    TFDS_DATA_DIR=/data transformer-jax train finetune.ner --init-from downloads/bert-base-cased
    transformer-jax train finetune.ner files --init-from downloads/bert-base-cased --data.source.train eng.train \
        --data.source.validation eng.testa --data.source.test eng.testb
    transformer-jax predict runs/finetune-ner "Jim Henson was born in Greenville , Mississippi ."

`downloads/bert-base-cased` is a Hugging Face folder; a workdir of `experiments.mlm` serves as well. Without --init-from
the same model is trained from scratch, on the vocabulary of that folder.

Data: CoNLL-2003 English (Tjong Kim Sang and De Meulder 2003): 14,041 sentences to train, 3,250 to validate, 3,453 to
test, prepared in the TFDS store as `conll2003`, or the shared task's files, whose IOB1 tags are converted. For other
tags give `--task.labels` and `--model.num-labels`.

Recipe: batch 32, AdamW at 5e-5 with a tenth of warm-up and a linear decay to 0, 3 epochs, weight decay 0.01 (Devlin et
al. 2019, section 5.3 and appendix A.3: 5e-5 is among the rates that they search). The tag of a word is predicted at its
first token. The checkpoint is chosen by its entity F1 on validation and reported, once, on test.

Hardware: one GPU or TPU chip; hours on a CPU.
Expected: entity F1 96.4 on validation, 92.4 on test, in percent (published, Devlin et al. 2019, table 7, BERT-base).
There each sentence is seen with the document around it; here it stands alone, which costs some of that.
"""

import dataclasses

from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert
from transformer_jax.optim import Optim
from transformer_jax.tasks import Tagging
from transformer_jax.tasks.tagging.tagged import Conll, TaggedWords, TfdsTags

STEPS = 439  # of an epoch: 14,041 sentences in batches of 32


def experiment() -> Experiment:
    """On TFDS `conll2003`."""
    return Experiment(
        model=bert.Config(vocab_size=28996, heads=("tokens",)),  # BERT-base, cased
        data=TaggedWords(TfdsTags("conll2003"), TokenizerFile("downloads/bert-base-cased"), length=128),
        task=Tagging(),
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
        checkpoint=Checkpoint(every=STEPS, best_metric="entity_f1", best="highest"),
        sample=Predict(inputs=("Jim Henson was born in Greenville , Mississippi .",)),
    )


def files() -> Experiment:
    """On the files of the shared task."""
    base = experiment()
    return dataclasses.replace(
        base, data=dataclasses.replace(base.data, source=Conll("eng.train", "eng.testa", "eng.testb"))
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
