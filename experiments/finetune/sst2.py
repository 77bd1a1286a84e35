r"""Is this sentence of a film review negative or positive? SST-2 at the level of sentences, from scratch or fine-tuned.

    TFDS_DATA_DIR=/data transformer-jax train finetune.sst2
    TFDS_DATA_DIR=/data transformer-jax train finetune.sst2 finetune --init-from downloads/bert-base-uncased
    transformer-jax train finetune.sst2 files --data.source.train sst2/train.tsv --data.source.validation sst2/dev.tsv \
        --data.source.test sst2/test.tsv
    transformer-jax predict runs/finetune-sst2 "a gorgeous , witty , seductive movie"

Data: the Stanford Sentiment Treebank's whole sentences, 6,920 to train, 872 to validate, 1,821 to test (Socher et al.
2013), prepared in the TFDS store as `sst2_sentences`, or as TSV lines "sentence<TAB>0 or 1". GLUE's `sst2` has 67,349
phrases of the same sentences: that is `experiments.finetune.glue sst2`. The checkpoint is chosen by its accuracy on
validation and reported, once, on test, with a 95 % interval, the confusion matrix and the ROC curve.

`experiment` is small and from scratch, a WordPiece vocabulary learned from the training sentences included; `finetune`
is BERT-base's recipe for whatever checkpoint --init-from names: a workdir of `experiments.mlm` or a Hugging Face folder
brings its architecture and its tokenizer.

Hardware and time: from scratch 2 CPU cores, about four minutes; BERT-base one GPU or TPU chip.
Expected: BERT-base fine-tuned on the phrases 93.5 % on GLUE's test set (published, Devlin et al. 2019, table 1). From
scratch: 79 to 84 %, ROC AUC 0.86 to 0.90 (measured). From `mlm.stdlib`, an encoder of Python code, it is worse: the
wrong pre-training costs more than none.
"""

import dataclasses

from transformer_jax.data.tables import Table, TfdsTable
from transformer_jax.data.tokenizers import TokenizerFile, TrainWordPiece
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert
from transformer_jax.optim import Optim
from transformer_jax.tasks import Classification
from transformer_jax.tasks.classification.labelled import LabelledText

SENTENCES = TfdsTable("sst2_sentences", test="test")


def experiment() -> Experiment:
    """From scratch."""
    return Experiment(
        model=bert.Config(
            vocab_size=8000,
            max_length=64,
            width=128,
            num_layers=2,
            num_heads=4,
            heads=("classification",),
            dropout=0.3,
            scan_layers=False,
        ),
        data=LabelledText(SENTENCES, TrainWordPiece(8000), length=64),
        task=Classification(labels=("negative", "positive")),
        optim=Optim(peak_lr=1e-3, lr_schedule="linear", warmup_steps=50, final_lr_fraction=0.0, beta2=0.98),
        train=Train(steps=870, batch_size=64, log_every=20),  # 8 epochs
        evaluate=Evaluate(every=109, batch_size=64, patience=3),
        checkpoint=Checkpoint(every=109, best_metric="accuracy", best="highest"),
        sample=Predict(inputs=("a gorgeous , witty , seductive movie", "a long , dull and pointless film"), top=2),
    )


def files() -> Experiment:
    """From scratch on the TSV files."""
    source = Table(("sst2/train.tsv",), ("sst2/dev.tsv",), ("sst2/test.tsv",), text="0", label="1")
    return dataclasses.replace(experiment(), data=LabelledText(source, TrainWordPiece(8000), length=64))


def finetune() -> Experiment:
    """From a checkpoint: 3 epochs at 2e-5 (Devlin et al. 2019, section 4.1 and appendix A.3)."""
    base = experiment()
    return dataclasses.replace(
        base,
        model=bert.Config(heads=("classification",)),
        data=LabelledText(SENTENCES, TokenizerFile("downloads/bert-base-uncased"), length=64),
        optim=Optim(
            peak_lr=2e-5,
            lr_schedule="linear",
            warmup_steps=65,
            final_lr_fraction=0.0,
            beta2=0.999,
            eps=1e-6,
            weight_decay=0.01,
        ),
        train=Train(steps=650, batch_size=32),
        evaluate=Evaluate(every=217, batch_size=32),
        checkpoint=dataclasses.replace(base.checkpoint, every=217),
        init_from="downloads/bert-base-uncased",
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
