"""Any of GLUE's nine tasks (Wang et al. 2019), fine-tuned from BERT-base or whatever --init-from names.

    TFDS_DATA_DIR=/data transformer-jax train finetune.glue mrpc
    TFDS_DATA_DIR=/data transformer-jax train finetune.glue stsb --init-from downloads/roberta-base
    TFDS_DATA_DIR=/data transformer-jax train finetune.glue mnli --data.source.validation validation_mismatched

Tasks: cola sst2 mrpc qqp stsb mnli qnli rte wnli. Data: the TFDS store's `glue/*`. GLUE keeps its test labels to
itself, so what is reported is the validation set at the last step; no checkpoint is chosen on it.

Recipe (Devlin et al. 2019, section 4.1 and appendix A.3, and its code): 3 epochs, batch 32, 128 tokens, AdamW at 2e-5
with a tenth of warm-up and a linear decay to 0; 5 epochs for the two smallest, as in the runs of the table.

Hardware: one GPU or TPU chip; BERT-base on a CPU takes hours for all but the smallest sets.
Expected on validation, BERT-base cased (published, README of Transformers' examples/pytorch/text-classification):

    CoLA   Matthews 56.5              SST-2  accuracy 92.3          MRPC   F1 88.9, accuracy 84.1
    STS-B  Pearson 88.6, Spearman 88.5                              QQP    accuracy 90.7, F1 87.5
    MNLI   accuracy 83.9 matched, 84.1 mismatched                   QNLI   accuracy 90.7
    RTE    accuracy 65.7              WNLI   accuracy 56.3
"""

from transformer_jax.data.tables import TfdsTable
from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert
from transformer_jax.optim import Optim
from transformer_jax.tasks import Classification
from transformer_jax.tasks.classification.labelled import LabelledText

CHECKPOINT = "downloads/bert-base-uncased"


def experiment() -> Experiment:
    """MRPC."""
    return mrpc()


def cola() -> Experiment:
    """Is this sentence acceptable English? 8,551 sentences."""
    return _glue("cola", ("sentence", ""), ("unacceptable", "acceptable"), "matthews", 8_551)


def sst2() -> Experiment:
    """Is this phrase of a film review negative or positive? 67,349 phrases."""
    return _glue("sst2", ("sentence", ""), ("negative", "positive"), "accuracy", 67_349)


def mrpc() -> Experiment:
    """Do two sentences say the same? 3,668 pairs."""
    return _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), "f1", 3_668, epochs=5)


def qqp() -> Experiment:
    """Do two questions ask the same? 363,849 pairs."""
    return _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), "f1", 363_849)


def stsb() -> Experiment:
    """How alike are two sentences, from 0 to 5? 5,749 pairs."""
    return _glue("stsb", ("sentence1", "sentence2"), (), "pearson", 5_749)


def mnli() -> Experiment:
    """Does the premise entail the hypothesis, contradict it, or neither? 392,702 pairs."""
    labels = ("entailment", "neutral", "contradiction")
    return _glue("mnli", ("premise", "hypothesis"), labels, "accuracy", 392_702, validation="validation_matched")


def qnli() -> Experiment:
    """Does the sentence answer the question? 104,743 pairs."""
    return _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment"), "accuracy", 104_743)


def rte() -> Experiment:
    """Does the first sentence entail the second? 2,490 pairs."""
    return _glue("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment"), "accuracy", 2_490)


def wnli() -> Experiment:
    """Is the pronoun's referent the right one? 635 pairs; hardly anything beats the larger class."""
    return _glue("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment"), "accuracy", 635, epochs=5)


def _glue(
    name: str,
    texts: tuple[str, str],
    labels: tuple[str, ...],
    metric: str,
    examples: int,
    *,
    epochs: int = 3,
    validation: str = "validation",
) -> Experiment:
    steps = -(-epochs * examples // 32)
    every = -(-examples // 32)
    source = TfdsTable(f"glue/{name}", text=texts[0], text_b=texts[1], validation=validation)
    return Experiment(
        model=bert.Config(heads=("classification",)),
        data=LabelledText(source, TokenizerFile(CHECKPOINT), length=128),
        task=Classification(labels=labels),
        optim=Optim(
            peak_lr=2e-5,
            lr_schedule="linear",
            warmup_steps=steps // 10,
            final_lr_fraction=0.0,
            beta2=0.999,
            eps=1e-6,
            weight_decay=0.01,
        ),
        train=Train(steps=steps, batch_size=32),
        evaluate=Evaluate(every=every, batch_size=32),
        checkpoint=Checkpoint(every=every, best_metric=metric, best="highest"),
        sample=Predict(),
        init_from=CHECKPOINT,
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
