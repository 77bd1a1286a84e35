"""From which part of the standard library is this passage of code? The fine-tuning job that runs on every machine.

    tools/run experiments.finetune.stdlib_topics
    transformer-jax train finetune.stdlib_topics --workdir runs/topics --init-from runs/mlm-stdlib
    transformer-jax predict runs/topics "for line in self.sock.makefile('rb'):"

Data: passages of ten lines from twenty parts of the library, such as asyncio, email or "archives" (tarfile, zipfile,
gzip, ...); lines that name the part are left out, and a file is on one side only. The checkpoint is chosen by macro F1
on validation and reported, once, on test, with the confusion matrix and the ROC curve.
Model: the encoder of `experiments.mlm.stdlib`, from scratch, with a byte-level BPE learned from the training passages;
`--init-from runs/mlm-stdlib` starts from that run instead, with its tokenizer, and nothing else differs. That encoder
has read most of these files, those of the test passages too, without the topics that are asked for here: the gap
between the two is what unlabelled text is worth.

Hardware and time: 2 CPU cores, about four minutes.
Expected on the test set, the mean of seeds 0, 1 and 2: from `mlm.stdlib` accuracy 0.45 to 0.49 and macro F1 0.41 to
0.46; from scratch 0.39 to 0.43 and 0.32 to 0.36 (measured). Guessing the most frequent topic is right in one passage of
17.
"""

import dataclasses

from transformer_jax.adapters import Lora
from transformer_jax.data.tokenizers import TokenizerFile, TrainBPE
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import bert
from transformer_jax.optim import Optim
from transformer_jax.tasks import Classification, Distillation
from transformer_jax.tasks.classification.labelled import LabelledText
from transformer_jax.tasks.classification.stdlib_topics import TOPICS, StdlibTopics


def experiment() -> Experiment:
    return Experiment(
        model=bert.Config(
            vocab_size=4096,
            max_length=128,
            width=192,
            num_layers=4,
            num_heads=3,
            mlp_width=512,
            num_types=0,
            position="rotary",
            activation="gelu",
            gated=True,
            norm_order="pre",
            norm_eps=1e-5,
            bias=False,
            dropout=0.0,
            heads=("classification",),
            scan_layers=False,
        ),
        data=LabelledText(
            StdlibTopics(), TrainBPE(4096, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")), length=128
        ),
        task=Classification(labels=tuple(TOPICS)),
        optim=Optim(peak_lr=1e-3, lr_schedule="linear", warmup_steps=30, final_lr_fraction=0.0, beta2=0.98),
        train=Train(steps=300, batch_size=32, log_every=20),
        evaluate=Evaluate(every=100, batch_size=64),
        checkpoint=Checkpoint(every=100, best_metric="f1_macro", best="highest"),
        sample=Predict(inputs=("data = self.sock.recv(bufsize)", "return self.numerator * other.denominator"), top=3),
    )


def student() -> Experiment:
    """Half of the layers, without a teacher."""
    base = experiment()
    return dataclasses.replace(base, model=dataclasses.replace(base.model, num_layers=2))


def distilled() -> Experiment:
    """The same student from a teacher, `--task.teacher runs/finetune-stdlib_topics`, and its tokenizer."""
    base = student()
    task = Distillation(of=base.task, teacher="runs/finetune-stdlib_topics", hard=0.5, start="layers")
    tokenizer = TokenizerFile("runs/finetune-stdlib_topics/tokenizer")
    return dataclasses.replace(base, task=task, data=dataclasses.replace(base.data, tokenizer=tokenizer))


def lora() -> Experiment:
    """An adapter beside the encoder of `mlm.stdlib`, which `--init-from` must name: 2.7 % of the parameters.

    Expected (measured, seed 0): test accuracy 0.392, and 0.408 after 600 steps: below the 0.473 of all parameters.
    """
    full = experiment()
    return dataclasses.replace(
        full,
        adapter=Lora(rank=2, alpha=8.0, target="blocks/", full=("pooler/", "classification/")),
        optim=dataclasses.replace(full.optim, peak_lr=4e-3),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
