"""English to German captions of pictures on Multi30k: a small Transformer that a laptop trains in half an hour.

    TFDS_DATA_DIR=/data transformer-jax train translation.multi30k
    TFDS_DATA_DIR=/data transformer-jax train translation.multi30k full --workdir runs/multi30k-full
    transformer-jax train translation.multi30k files --data.source.train train.en train.de
    echo "A dog runs on the beach." | transformer-jax predict runs/translation-multi30k

Data: 29,000 pairs to train, 1,014 to validate, and the 1,000 of test_2016_flickr (Elliott et al. 2016; task 1 of
github.com/multi30k/dataset), as a TFDS store `multi30k/de-en` or as files of lines. Text stays cased and detokenised,
and BLEU is sacreBLEU's on plain text (13a).

Reproduces, in `full`: the text-only Transformer-Tiny of Wu et al. 2021, "Good for Misconceived Reasons": 4 layers of
128 on each side, a joint BPE of 10,000, batches of 4,096 tokens, 8,000 updates, dropout 0.3, beam 5. They average the
last ten checkpoints; here it is an exponential moving average. The default is the same model with what learns faster in
half an hour: pre-norm, less dropout, half the batch, 6,000 tokens, and a learning rate that falls to zero.

Hardware and time: 2 CPU cores, about 25 minutes; `full` an hour and a half there, or one GPU (estimated).
Expected: BLEU 36 to 40 and chrF 61 to 64 on test_2016_flickr by the step with the lowest validation loss (measured);
`full` about 41 on tokenised text (published, Wu et al. 2021), not measured here.
"""

import dataclasses

from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.decoding.beam import Beam
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Predict, Train
from transformer_jax.models import seq2seq
from transformer_jax.optim import Optim
from transformer_jax.tasks import Translation
from transformer_jax.tasks.translation.bitext import Lines, TfdsPairs
from transformer_jax.tasks.translation.parallel import ParallelText


def experiment() -> Experiment:
    """Half an hour on two cores: pre-norm, which takes a high learning rate early, and a decay to zero."""
    recipe = full()
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, vocab_size=6000, norm_order="pre", dropout=0.1),
        data=dataclasses.replace(recipe.data, tokenizer=TrainBPE(6000, special=("<pad>", "</s>"))),
        optim=Optim(
            peak_lr=3e-3,
            lr_schedule="linear",
            warmup_steps=200,
            final_lr_fraction=0.0,
            beta2=0.98,
            weight_decay=0.0,
        ),
        train=Train(steps=4500, batch_size=16, log_every=50),
        evaluate=Evaluate(every=500, batch_size=16),
        checkpoint=Checkpoint(every=500),
        ema=Ema(0.995),
    )


def full() -> Experiment:
    """Transformer-Tiny of Wu et al. 2021."""
    return Experiment(
        model=seq2seq.Config(
            vocab_size=10000,
            max_length=128,
            width=128,
            num_layers=4,
            num_heads=4,
            mlp_width=256,
            pad_id=0,
            eos_id=1,
            decoder_start_id=0,
            dropout=0.3,
            scan_layers=False,
        ),
        data=ParallelText(
            source=TfdsPairs("multi30k/de-en", source="en", target="de"),
            tokenizer=TrainBPE(10000, special=("<pad>", "</s>")),
            source_length=128,
            target_length=128,
        ),
        task=Translation(label_smoothing=0.1, beam=Beam(5, max_new_tokens=128, length_penalty=1.0)),
        optim=Optim(
            peak_lr=5e-3,
            lr_schedule="rsqrt",
            warmup_steps=2000,
            beta2=0.98,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
        train=Train(steps=8000, batch_size=32, log_every=100),
        evaluate=Evaluate(every=400, batch_size=32),
        checkpoint=Checkpoint(every=400),
        sample=Predict(inputs=("A dog runs on the beach.", "Two children are playing with a red ball."), top=1),
        ema=Ema(1 - 1 / 600),
    )


def files() -> Experiment:
    """On the files of lines as they are published."""
    short = experiment()
    train, validation, test = (
        (f"multi30k/{name}.en", f"multi30k/{name}.de") for name in ("train", "val", "test_2016_flickr")
    )
    return dataclasses.replace(short, data=dataclasses.replace(short.data, source=Lines(train, validation, test)))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
