"""A workdir made of a Hugging Face folder."""

from pathlib import Path
from typing import Any

import optax

from transformer_jax import config_json, tasks
from transformer_jax import experiment as experiments
from transformer_jax.data import corpus, image_sources, images, tables, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.runs.workdir import kind, run_id, write_json
from transformer_jax.runs.writer import Writer
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.tagging import tagged
from transformer_jax.tasks.translation import bitext, parallel
from transformer_jax.train import state as state_lib


def create(folder: Path, loaded: Any) -> None:
    """A new workdir of imported parameters: one checkpoint, step 0, no moments.

    A language model evaluates on the embedded corpus, causal or masked. What needs labels or translations names a file
    that is not there: `evaluate` takes the user's own, such as --data.source.train reviews.tsv.

    Arguments:
      loaded: a `restore.Loaded` with a task and, where this reads text, a tokenizer.
    Errors: `InputError` when it has no task, or no tokenizer.
    """
    if loaded.tokenizer is None and getattr(loaded.task, "reads_text", True):
        raise InputError(
            "no tokenizer.json, vocab.json and merges.txt or vocab.txt beside the weights; a workdir needs one"
        )
    if loaded.task is None:
        raise InputError(f"no task here is for {kind(loaded)}; a workdir needs one")
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save(part / "tokenizer")
    tokenizer, length = tokenizers.TokenizerFile(str(folder / "tokenizer")), min(loaded.config.max_length, 1024)
    data: Any = corpus.TextCorpus(tokenizer=tokenizer, length=length)
    match loaded.task:
        case tasks.Classification():
            data = labelled.LabelledText(tables.Table(("labelled.tsv",)), tokenizer, length)
        case tasks.ImageClassification():
            data = images.ImageSet(image_sources.Folder("images"))
        case tasks.Tagging():
            data = tagged.TaggedWords(tagged.Conll("words.conll", "words.conll"), tokenizer, length)
        case tasks.Translation():
            pairs = bitext.Columns(("pairs.tsv",), ("pairs.tsv",))
            data = parallel.ParallelText(pairs, tokenizer, source_length=length, target_length=length)
        case tasks.SpanQA():
            data = questions.Questions(questions.SquadJson("squad.json", "squad.json"), tokenizer, length, length // 4)
    sample = experiments.default_sample(loaded.task)
    experiment = config_json.to_json(Experiment(model=loaded.config, data=data, task=loaded.task, sample=sample))
    write_json(part / "config.json", experiment)
    family = loaded.family.__name__.rpartition(".")[2]
    with Writer(part / "checkpoints", family=family, config=experiment, run=run_id(part)) as writer:
        writer.save(state_lib.create(loaded.params, optax.identity()), rows=0)
    part.rename(folder)
