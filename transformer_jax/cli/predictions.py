"""What `predict` writes, by what the model is: a text that goes on, translations, labels of images, or an encoder's
answers. Each kind has its own options, whose defaults are the run's.
"""

import dataclasses
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_jax import experiment as experiments
from transformer_jax import overrides, tasks
from transformer_jax.errors import InputError

NO_INPUT = "no input: give a text, --file, or lines on stdin"


def write(loaded: Any, defaults: Any, inputs: list[str], rest: list[str], program: str) -> None:
    """Prints what the model makes of the inputs.

    Arguments:
      loaded: a `restore.Loaded` with a task.
      defaults: the experiment's `sample`.
      inputs: texts, or paths of images; none, or "-": lines of stdin.
      rest: the options as they were written.
      program: the command, for `--help` and messages.
    Errors: `InputError` for an unknown option, and where there is no input.
    """
    if isinstance(defaults, experiments.Sample):
        _continue(loaded, defaults, inputs, rest, f"{program} INPUT")
    elif isinstance(loaded.task, tasks.Translation):
        _translate(loaded, inputs, rest, f"{program} INPUT")
    elif isinstance(loaded.task, tasks.ImageClassification):
        _look(loaded, defaults, inputs, rest, f"{program} IMAGE ...")
    else:
        _answer(loaded, defaults, inputs, rest, f"{program} INPUT")


def _continue(loaded: Any, defaults: experiments.Sample, inputs: list[str], rest: list[str], program: str) -> None:
    @dataclass(frozen=True)
    class Options(experiments.Sample):
        seed: int = 0
        """Another seed gives another text."""

    given = Options(**dataclasses.asdict(defaults))
    options = overrides.override(given, rest, description="Continue a prompt.", program=program)
    if len(inputs) > 1:
        raise InputError(f"a language model continues one prompt, {len(inputs)} are given; quote a prompt with spaces")
    prompt = sys.stdin.read() if inputs in ([], ["-"]) else inputs[0]
    options = dataclasses.replace(options, prompt=prompt)
    for piece in loaded.task.sample(loaded.params, loaded.config, loaded.tokenizer, options, seed=options.seed):
        print(piece, end="", flush=True)
    print()


def _answer(loaded: Any, defaults: experiments.Predict, inputs: list[str], rest: list[str], program: str) -> None:
    @dataclass(frozen=True)
    class Options:
        top: int = defaults.top
        """Answers to give for each input."""
        file: str = ""
        """A text file with one input a line."""
        json: bool = False
        """One JSON object a line."""

    options = overrides.override(Options(), rest, description="Predict.", program=program)
    texts = [line for line in _lines(inputs, options.file) if line.strip()]
    if not texts:
        raise InputError(NO_INPUT)
    for answer in loaded.task.predict(loaded.params, loaded.config, loaded.tokenizer, texts, top=options.top):
        print(json.dumps(answer, ensure_ascii=False) if options.json else loaded.task.describe(answer), flush=True)


def _look(loaded: Any, defaults: experiments.Predict, inputs: list[str], rest: list[str], program: str) -> None:
    @dataclass(frozen=True)
    class Options:
        top: int = defaults.top
        """Labels to give for each image."""
        attention: bool = False
        """Draw what the model looked at into FOLDER/NAME_attention.png."""
        folder: str = "."
        """The folder of these pictures."""
        file: str = ""
        """A text file with the path of an image on each line."""
        json: bool = False
        """One JSON object a line."""

    options = overrides.override(Options(), rest, description="Label images.", program=program)
    paths = [line for line in _lines(inputs, options.file) if line.strip()]
    if not paths:
        raise InputError("no input: give the paths of images, --file, or lines on stdin")
    folder = Path(options.folder) if options.attention else None
    if folder is not None and not folder.is_dir():
        raise InputError(f"--folder {folder} is no folder; make it, or name another")
    for answer in loaded.task.predict(loaded.params, loaded.config, None, paths, top=options.top, attention=folder):
        print(json.dumps(answer, ensure_ascii=False) if options.json else loaded.task.describe(answer), flush=True)


def _translate(loaded: Any, inputs: list[str], rest: list[str], program: str) -> None:
    search = loaded.task.beam

    @dataclass(frozen=True)
    class Options:
        beam: int = search.width
        """Beams of a line; 1: greedy."""
        length_penalty: float = search.length_penalty
        """The exponent of the length that a hypothesis's log-probability is divided by; the larger, the longer."""
        max_new_tokens: int = search.max_new_tokens
        """Tokens of a hypothesis at most, within what the model and the length of the line allow."""
        nbest: int = 1
        """Hypotheses of each line; with more than one, "score<TAB>text" lines and an empty line after each group."""
        file: str = ""
        """A text file with one input a line."""
        json: bool = False
        """One JSON object a line: source, hypotheses, scores."""

    options = overrides.override(Options(), rest, description="Translate.", program=program)
    if not 1 <= options.nbest <= options.beam:
        raise InputError(f"--nbest {options.nbest} of --beam {options.beam}: a search keeps as many as it has beams")
    beam = dataclasses.replace(
        search, width=options.beam, length_penalty=options.length_penalty, max_new_tokens=options.max_new_tokens
    )
    task = dataclasses.replace(loaded.task, beam=beam)
    texts = _lines(inputs, options.file)
    if not texts:
        raise InputError(NO_INPUT)
    from transformer_jax import observe

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the locale: as the input
    with observe.counting("lines") as count:
        answers = task.predict(loaded.params, loaded.config, loaded.tokenizer, texts, top=options.nbest, progress=count)
        for answer in answers:
            if options.json:
                print(json.dumps(answer, ensure_ascii=False), flush=True)
            elif options.nbest == 1:
                print(task.describe(answer), flush=True)
            else:
                for score, text in zip(answer["scores"], answer["hypotheses"], strict=True):
                    print(f"{score:.4f}\t{text}")
                print(flush=True)


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
