"""English to German on WMT 2014 by the Transformer that began it, the base model, by its published recipe.

    TFDS_DATA_DIR=/data transformer-jax train translation.wmt14_base
    transformer-jax train translation.wmt14_base files --data.source.train wmt/train.en wmt/train.de
    transformer-jax convert average runs/translation-wmt14_base runs/wmt14_base-mean --last 5
    transformer-jax evaluate runs/wmt14_base-mean
    transformer-jax predict runs/wmt14_base-mean < newstest2014.en > newstest2014.de

Reproduces: Vaswani et al. 2017, sections 5 and 6.1: six layers of 512 on each side, a joint vocabulary of 37,000,
batches of about 25,000 source and 25,000 target tokens, 100,000 steps, Adam with beta 0.9 and 0.98 and epsilon 1e-9,
the learning rate D^-0.5 * min(step^-0.5, step * 4000^-1.5), which is 7.0e-4 at its peak (step 4,000), dropout 0.1,
label smoothing 0.1, no weight decay, no clipping; beam 4 with length penalty 0.6 (GNMT's), at most 50 tokens more than
the source. A batch is 104 rows of 256 tokens on either side, about 6 % of them padding (estimated).

The mean of the last five checkpoints is what they report; theirs are ten minutes apart, which was 1,500 steps.

What differs: the vocabulary is byte-level, theirs a BPE of words. Training pairs of more than 250 tokens on a side, or
nine times as long on one as on the other, are left out.

Data: `wmt14_translate/de-en` as TFDS prepares it (4.5 million pairs; newstest2013 to validate, newstest2014 to test),
or any two files of lines.
Hardware: one 80 GB GPU or a TPU slice. Time: 12 hours on 8 P100 (published, section 5.2).
Expected: BLEU 27.3 on newstest2014 (published, table 2): of tokenised text with German compounds split, which scores
higher than sacreBLEU on plain text, the number reported here, by about a point: Ott et al. 2018 give both for a big
model, 29.3 and 28.6 (published, table 2). This file's own number is not measured yet.
"""

import dataclasses

from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.decoding.beam import Beam
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import seq2seq
from transformer_jax.optim import Optim
from transformer_jax.tasks import Translation
from transformer_jax.tasks.translation.bitext import Lines, TfdsPairs
from transformer_jax.tasks.translation.parallel import ParallelText


def experiment() -> Experiment:
    return Experiment(
        model=seq2seq.Config(vocab_size=37000, max_length=512, pad_id=0, eos_id=1, decoder_start_id=0),
        data=ParallelText(
            source=TfdsPairs("wmt14_translate/de-en", source="en", target="de"),
            tokenizer=TrainBPE(37000, special=("<pad>", "</s>")),
            source_length=256,
            target_length=256,
            empty="skip",
        ),
        task=Translation(
            label_smoothing=0.1,
            beam=Beam(4, max_new_tokens=512, length_penalty=0.6, length_convention="gnmt"),
            extra_tokens=50,
        ),
        optim=Optim(
            peak_lr=512**-0.5 * 4000**-0.5,
            lr_schedule="rsqrt",
            warmup_steps=3999,  # the 4,000th update has the peak
            beta1=0.9,
            beta2=0.98,
            eps=1e-9,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
        train=Train(steps=100_000, batch_size=104, log_every=100),
        evaluate=Evaluate(every=5000, batch_size=104),
        checkpoint=Checkpoint(every=1500, keep=5),
        sample=Predict(inputs=("The house is small.", "Parliament will vote on the proposal tomorrow."), top=1),
    )


def files() -> Experiment:
    """On files of your own, a sentence a line."""
    base = experiment()
    train, validation, test = (
        (f"wmt/{name}.en", f"wmt/{name}.de") for name in ("train", "newstest2013", "newstest2014")
    )
    return dataclasses.replace(base, data=dataclasses.replace(base.data, source=Lines(train, validation, test)))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
