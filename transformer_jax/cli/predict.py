"""`predict`: what a model makes of a text or an image."""

import dataclasses
import io
import sys
from pathlib import Path

from transformer_jax import config_json, overrides
from transformer_jax.cli import launch
from transformer_jax.cli.arguments import PROGRAM, is_run, path, positional, verified, with_types
from transformer_jax.errors import InputError


def main(arguments: list[str]) -> int:
    """What the model makes of a text or an image: continuation, translation, filled masks, label, entities, answer.

        python -m transformer_jax predict PATH [INPUT ...] [--FIELD VALUE ...]

    PATH is a run, one of its checkpoints or a Hugging Face folder. Without INPUT, or with -, stdin is read. Of a run
    with a test set it is the checkpoint by which it was reported, else the newest.

    A language model continues one prompt, printing the text as it is made. A prompt that leaves no room in the context
    for the new tokens loses its beginning, and a line on stderr says how much. The fields are those of the
    experiment's `sample`, whose values are the defaults.

        python -m transformer_jax predict runs/a "def add(" --max-new-tokens 100 --temperature 0.5 --seed 1

    An encoder answers each INPUT, or each line of --file or stdin; the two texts of a pair (question and context,
    premise and hypothesis) are separated by a tab. --json gives one JSON object a line, for programs.

        python -m transformer_jax predict runs/mlm "import <mask> as np" --top 3
        python -m transformer_jax predict runs/sst2 --file reviews.txt --json

    A translator gives a line for each line, in order, an empty one for an empty one. --beam, --length-penalty and
    --max-new-tokens change the search. With --nbest K each line gives up to K lines "score<TAB>text", best first, and
    an empty line after them; with --json one object with "source", "hypotheses" and "scores".

        python -m transformer_jax predict runs/de < source.txt > target.txt
        python -m transformer_jax predict runs/de "a cat on a mat" --beam 8 --nbest 3

    A classifier of images labels files. With --attention it also draws what it looked at, NAME_attention.png, into this
    folder or --folder.

        python -m transformer_jax predict runs/digits photo.jpg another.png --top 3 --attention

    `predict PATH --help-fields` lists the fields.
    """
    where, rest = positional(main, arguments, 1)
    types, rest = with_types(rest)
    verify, rest = verified(rest)
    inputs = []
    while rest and not rest[0].startswith("--"):
        inputs.append(rest.pop(0))
    rest = ["--help" if argument == "--help-fields" else argument for argument in rest]
    launch.keep_compilations()
    from transformer_jax import observe, restore
    from transformer_jax.runs import workdir as workdirs

    loaded = restore.load(workdirs.chosen(path(where)), verify=verify, types=types)
    if loaded.task is None:
        raise InputError(f"{where}: no task here is for {workdirs.kind(loaded)}; it loads as a library")
    if loaded.tokenizer is None and loaded.task.reads_text:
        raise InputError(f"{where} has no tokenizer, so a text means nothing to it; add its tokenizer.json")
    config = path(where) / "config.json"
    defaults = config_json.load(config, types).sample if is_run(config) else loaded.task.default_sample()
    options = overrides.override(
        loaded.task.predict_options(defaults), rest, description="Predict.", program=f"{PROGRAM} predict {where} INPUT"
    )
    reads_lines = any(f.name == "file" for f in dataclasses.fields(options))
    asked = _lines(inputs, options.file) if reads_lines else inputs if inputs not in ([], ["-"]) else [sys.stdin.read()]
    if not asked:
        raise InputError("no input: give a text, --file, or lines on stdin")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale: as the input
    with observe.counting("inputs") as count:
        for piece in loaded.task.respond(loaded, asked, options, progress=count):
            print(piece, end="", flush=True)
    return 0


def _lines(inputs: list[str], file: str) -> list[str]:
    """The inputs, or the lines of a file or of stdin without their ends.

    Errors: `InputError` for both, and for what is not UTF-8, with its line.
    """
    if file and inputs:
        raise InputError(f"both --file {file} and an INPUT are given; give one of them")
    if not file and inputs not in ([], ["-"]):
        return inputs
    where = f"--file {file}" if file else "stdin"
    try:
        data = Path(file).read_bytes() if file else sys.stdin.buffer.read()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise InputError(f"{where}, line {line}: byte 0x{byte:02x} is not UTF-8; convert the text to UTF-8") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # not at form feeds and the like
    return lines if lines[-1] else lines[:-1]
