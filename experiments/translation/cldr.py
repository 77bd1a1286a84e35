"""English phrases as German writes them: dates, times, numbers, money, measures, names. Runs on every machine.

    tools/run experiments.translation.cldr
    transformer-jax train translation.cldr --workdir runs/fr --data.source.target-language fr
    echo "Thursday, May 7, 2026, 3:05 PM" | transformer-jax predict runs/translation-cldr

Data: 60,000 pairs made from the Unicode CLDR as Babel packages it ("May 7 – 9, 2026" is "7.–9. Mai 2026", "Peru
(12.5%)" is "Peru (12,5 %)"), 1,000 to validate and 1,000 to test; no target phrase of a test pair is in training. A
joint byte-level BPE in which every digit is a token of its own.
Model: pre-norm, 3 layers of 128 on each side, 1.6 million parameters; greedy decoding.

Hardware and time: 2 CPU cores, about nine minutes.
Expected: 93 to 97 % of the test phrases right to the letter, BLEU 91 to 95, chrF 95.5 to 98 (measured; sacreBLEU 13a,
cased). What goes wrong is mostly a digit or a name in a list.
"""

import dataclasses

from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.decoding.beam import Beam
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import seq2seq
from transformer_jax.optim import Optim
from transformer_jax.tasks import Translation
from transformer_jax.tasks.translation.cldr import Cldr
from transformer_jax.tasks.translation.mixture import Mixture
from transformer_jax.tasks.translation.parallel import ParallelText


def experiment() -> Experiment:
    return Experiment(
        model=seq2seq.Config(
            vocab_size=2000,
            max_length=192,
            width=128,
            num_layers=3,
            num_heads=4,
            norm_order="pre",
            pad_id=0,
            eos_id=1,
            decoder_start_id=0,
            dropout=0.0,
            scan_layers=False,
        ),
        data=ParallelText(
            source=Cldr(),
            tokenizer=TrainBPE(2000, special=("<pad>", "</s>"), split_digits=True),
            source_length=128,
            target_length=128,
        ),
        task=Translation(
            label_smoothing=0.0,
            metrics=("exact_match", "bleu", "chrf"),
            beam=Beam(1, max_new_tokens=192, early_stopping="first"),
        ),
        optim=Optim(peak_lr=3e-3, warmup_steps=100, final_lr_fraction=0.02, beta2=0.98, weight_decay=0.01),
        train=Train(steps=1000, batch_size=16, log_every=20),
        evaluate=Evaluate(every=500, batch_size=16),
        checkpoint=Checkpoint(every=500),
        sample=Predict(
            inputs=(
                "Thursday, May 7, 2026, 3:05\u202fPM",
                "in 3 days",
                "Austria (1,234.5 kilometers), Switzerland (€99.90), and Kenya (12.5%)",
            ),
            top=1,
        ),
    )


LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "pl": "Polish"}


def mixture() -> Experiment:
    """English into four languages by one model, each with its prefix, as T5."""
    base = experiment()
    source = Mixture(
        sources=tuple(Cldr(target_language=code) for code in LANGUAGES),
        names=tuple(LANGUAGES),
        prefixes=tuple(f"{name}: " for name in LANGUAGES.values()),
    )
    inputs = tuple(f"{name}: Thursday, May 7, 2026, 3:05\u202fPM" for name in LANGUAGES.values())
    return dataclasses.replace(
        base, data=dataclasses.replace(base.data, source=source), sample=Predict(inputs=inputs, top=1)
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
