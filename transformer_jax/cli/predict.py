"""`predict`: the model's answer to a text or an image."""

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformer_jax import config_json, overrides
from transformer_jax.cli import process
from transformer_jax.cli.arguments import PROGRAM, is_run, of_base, path, positional, verified, with_types
from transformer_jax.contracts import Input
from transformer_jax.data import inputs as inputs_lib
from transformer_jax.errors import InputError


def main(arguments: list[str]) -> int:
    """Predict for a text or an image: continuation, translation, filled masks, label, entities, answer.

        transformer-jax predict PATH [INPUT ...] [--base DIR] [--FIELD VALUE ...]

    PATH is a run, one of its checkpoints, a Hugging Face folder or its name, hf://org/name. Without INPUT, or with -,
    stdin is read. Of a run with a test set the checkpoint that was evaluated on it is used, otherwise the newest.

    A language model continues one prompt and prints the text while it is generated. If a prompt leaves no room in the
    context for the new tokens, its beginning is dropped, and a line on stderr reports how much. The fields are those of
    the experiment's `sample`, whose values are the defaults.

        transformer-jax predict runs/a "def add(" --max-new-tokens 100 --temperature 0.5 --seed 1

    An encoder answers each INPUT, or each line of --file or stdin; the two texts of a pair (question and context,
    premise and hypothesis) are separated by a tab. --json prints one JSON object per line, for programs. An input
    without an answer, such as a blank line, gets a reason instead: there are as many answers as inputs, in their order.

        transformer-jax predict runs/mlm "import <mask> as np" --top 3
        transformer-jax predict runs/sst2 --file reviews.txt --json

    A table (.csv, .tsv, .jsonl) is read by column, as in training, and --out writes the answers together with the other
    columns. A tagger reads words in CoNLL's format (.conll), a question answerer SQuAD's (.json).

        transformer-jax predict runs/sst2 --file new.csv --text review --out answers.csv

    A translator prints a line for each line, in order; the translation of an empty line is empty. --beam,
    --length-penalty and --max-new-tokens change the search. With --nbest K it prints for each line up to K lines
    "score<TAB>text", best first, and an empty line; with --json one object with "source", "hypotheses" and "scores".

        transformer-jax predict runs/de < source.txt > target.txt
        transformer-jax predict runs/de "a cat on a mat" --beam 8 --nbest 3

    A model of pictures draws a row of --count pictures for each INPUT into a PNG: "a red circle" --out a.png --count 9

    A classifier of images labels files, or all files in a folder. With --attention it also draws the attention over
    each image, NAME_attention.png, into this folder or --folder.

        transformer-jax predict runs/digits photo.jpg another.png --top 3 --attention

    `predict PATH --help-fields` lists the fields.
    """
    types, arguments = with_types(arguments)
    where, rest = positional(main, arguments, 1)
    verify, rest = verified(rest)
    base, rest = of_base(rest)
    inputs = []
    while rest and not rest[0].startswith("--"):
        inputs.append(rest.pop(0))
    rest = ["--help" if argument == "--help-fields" else argument for argument in rest]
    process.keep_compilations()
    from transformer_jax import observe, restore
    from transformer_jax.runs import workdir as workdirs

    folder = path(where, verify=verify)
    loaded = restore.load(workdirs.chosen(folder), verify=verify, types=types, base=base)
    if loaded.task is None:
        raise InputError(f"{where}: no task here is for {workdirs.kind(loaded)}; it loads as a library")
    if loaded.tokenizer is None and loaded.task.reads_text:
        raise InputError(f"{where} has no tokenizer, so a text means nothing to it; add its tokenizer.json")
    config = folder / "config.json"
    run = config_json.load(config, types) if is_run(config) else None
    defaults = loaded.task.default_sample() if run is None else run.sample
    options = overrides.override(
        loaded.task.predict_options(defaults), rest, description="Predict.", program=f"{PROGRAM} predict {where} INPUT"
    )
    out = _table(loaded.task, options)
    source = None if run is None else getattr(run.data, "source", None)
    asked = _asked(loaded.task, inputs, options, getattr(source, "input_columns", ()))
    if not asked:
        raise InputError("no input: give a text, --file, or lines on stdin")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # the input is UTF-8 too, independent of the locale
    with observe.counting("inputs") as count:
        if out:
            _write(out, asked, loaded.task.answered(loaded, asked, options, progress=count))
            return 0
        for piece in loaded.task.respond(loaded, asked, options, progress=count):
            print(piece, end="", flush=True)
    return 0


def _table(task: Any, options: Any) -> str:
    """The table that `--out` names; "" where there is none, or the task itself writes such a file."""
    out = getattr(options, "out", "")
    if not out or Path(out).suffix.lower() in getattr(task, "writes", ()):
        return ""
    inputs_lib.check_out(Path(out))
    return str(out)


def _write(out: str, asked: Sequence[Input], answered: Iterator[Any]) -> None:
    """Writes the answers: also where no input has one, which is an error, and each row has the reason."""
    made: list[Any] = []
    try:
        made.extend(answered)
    finally:
        if len(made) == len(asked):
            inputs_lib.write(Path(out), made)
    print(f"{len(asked):,} answers: {out}")


def _asked(task: Any, given: list[str], options: Any, columns: Sequence[str]) -> Sequence[Input]:
    """The inputs that the command names; `columns`, of the tables that the run was trained on, are the default."""
    file = getattr(options, "file", "")
    if file and given:
        raise InputError(f"both --file {file} and an INPUT are given; give one of them")
    named = tuple(filter(None, (getattr(options, name, "") for name in ("text", "text_b"))))
    if named and not file:
        raise InputError("--text and --text-b name columns of a table; name it with --file")
    if (own := task.read(given, options)) is not None:
        return own
    if given and given != ["-"]:
        return inputs_lib.arguments(given)
    if not hasattr(options, "file"):
        return inputs_lib.prompt()
    if named or (columns and inputs_lib.is_table(file)):
        return inputs_lib.table(file, named or columns, pairs=task.takes_pairs)
    return inputs_lib.lines(file or "-")
