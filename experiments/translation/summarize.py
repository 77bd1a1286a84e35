"""News articles to their highlights, CNN / Daily Mail: BART or T5 fine-tuned, scored by ROUGE.

    TFDS_DATA_DIR=/data transformer-jax train translation.summarize --init-from downloads/bart-large
    TFDS_DATA_DIR=/data transformer-jax train translation.summarize t5_small --init-from downloads/t5-small
    transformer-jax train translation.summarize files --data.source.train news/train.jsonl
    transformer-jax predict runs/translation-summarize < articles.txt

The folder that --init-from names is a Hugging Face snapshot or a workdir of `bart_denoising` or `t5_span_corruption`;
it brings its architecture and its tokenizer. --init-from "" trains from scratch.

Reproduces: Lewis et al. 2020, section 5.3, by fairseq's recipe for it (examples/bart/README.summarization.md): 20,000
steps of about 65,000 tokens, learning rate 3e-5 after 500 steps of warm-up, linear decay, AdamW with beta 0.9 and 0.999
and weight decay 0.01, dropout 0.1, label smoothing 0.1, the gradient's norm clipped to 0.1; beam 4, length penalty 2,
55 to 140 tokens, no 3-gram twice. Articles are truncated to 1,024 tokens. A batch is 64 rows of 1,024 source tokens,
pairs packed. `t5_small` is Raffel et al. 2020's fine-tuning (section 3.1.3): 2^18 steps at a constant rate, batches of
128 articles of 512 tokens; they use Adafactor at 1e-3 of a parameter's size, here it is AdamW at 3e-4. Their beam: 4,
length penalty 0.6 (section 3.7), of GNMT.

Data: `cnn_dailymail` 3.0.0 as TFDS prepares it (287,113 articles to train, 13,368 to validate, 11,490 to test), or
JSONL with "article" and "highlights".
Hardware: BART-large one 80 GB GPU or a TPU slice; T5-small one GPU with 16 GB, or many hours of CPU.
Expected: ROUGE-1, -2, -L of 44.16, 21.28, 40.90 with BART-large (published, Lewis et al. 2020, table 4) and 41.12,
19.56, 38.35 with T5-small (published, Raffel et al. 2020, table 14). Their ROUGE-L takes a summary sentence by
sentence, the one reported here as one text, which is lower: compare the other two. Not measured here yet.
"""

import dataclasses

from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.decoding.beam import Beam
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Predict, Train
from transformer_jax.models import seq2seq
from transformer_jax.optim import Optim
from transformer_jax.tasks import Translation
from transformer_jax.tasks.translation.bitext import Columns, TfdsPairs
from transformer_jax.tasks.translation.parallel import ParallelText

NEWS = TfdsPairs("cnn_dailymail:3.0.0", source="article", target="highlights")
ARTICLE = (
    "The council of the city met on Monday. After three hours it agreed to close the old bridge for a year. Lorries "
    "will have to go round by the north road, and the mayor promised a ferry for those who walk."
)


def experiment() -> Experiment:
    """BART-large."""
    return Experiment(
        model=seq2seq.Config(
            vocab_size=50265,
            max_length=1024,
            width=1024,
            num_layers=12,
            num_heads=16,
            activation="gelu",
            position="learned",
            position_offset=2,
            embedding_norm=True,
            scale_embedding=False,
            initializer="normal",
            dropout=0.1,
            pad_id=1,
            eos_id=2,
            decoder_start_id=2,
        ),
        data=ParallelText(
            source=NEWS,
            tokenizer=TokenizerFile("downloads/bart-large"),
            source_length=1024,
            target_length=256,
            max_tokens=0,
            max_ratio=0.0,
            too_long="cut",
            empty="skip",
        ),
        task=Translation(
            label_smoothing=0.1,
            metrics=("rouge",),
            beam=Beam(
                4, max_new_tokens=140, min_new_tokens=55, length_penalty=2.0, no_repeat_ngram=3, early_stopping="first"
            ),
        ),
        optim=Optim(
            peak_lr=3e-5,
            lr_schedule="linear",
            warmup_steps=500,
            final_lr_fraction=0.0,
            beta2=0.999,
            weight_decay=0.01,
            clip_norm=0.1,
        ),
        train=Train(steps=20_000, batch_size=64, accumulate=8, log_every=20),
        evaluate=Evaluate(every=2500, batch_size=16),
        checkpoint=Checkpoint(every=2500),
        sample=Predict(inputs=(ARTICLE,), top=1),
        init_from="downloads/bart-large",
    )


def t5_small() -> Experiment:
    """T5-small."""
    base = experiment()
    return dataclasses.replace(
        base,
        model=seq2seq.Config(
            vocab_size=32128,
            max_length=512,
            mlp_width=2048,
            norm="rms",
            norm_eps=1e-6,
            norm_order="pre",
            bias=False,
            position="relative",
            scale_embedding=False,
            scale_scores=False,
            scale_head=True,
            initializer="t5",
            pad_id=0,
            eos_id=1,
            decoder_start_id=0,
        ),
        data=dataclasses.replace(
            base.data, tokenizer=TokenizerFile("downloads/t5-small"), source_length=512, target_length=192
        ),
        task=Translation(
            label_smoothing=0.0,
            metrics=("rouge",),
            beam=Beam(4, max_new_tokens=192, length_penalty=0.6, length_convention="gnmt"),
            prefix="summarize: ",
        ),
        optim=Optim(peak_lr=3e-4, lr_schedule="constant", weight_decay=0.0, beta2=0.999),
        train=Train(steps=262_144, batch_size=128, log_every=100),
        evaluate=Evaluate(every=5000, batch_size=128),
        checkpoint=Checkpoint(every=5000),
        init_from="downloads/t5-small",
    )


def files() -> Experiment:
    """BART-large on JSON lines of your own."""
    base = experiment()
    train, validation, test = ((f"news/{side}.jsonl",) for side in ("train", "validation", "test"))
    source = Columns(train, validation, test, source="article", target="highlights")
    return dataclasses.replace(base, data=dataclasses.replace(base.data, source=source))


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
