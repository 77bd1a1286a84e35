"""Checks of the words that a launcher passes on: into a job's file, to a shell, or as options of another program."""

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from transformer_jax.cli.arguments import PROGRAM
from transformer_jax.errors import InputError

NAMES = {  # option -> a pattern of allowed values; other values could add an option or a line to the written command
    "name": r"[A-Za-z0-9][\w.-]*",
    "time": r"\d[\d:-]*",
    "zone": r"[a-z0-9][a-z0-9-]*",
    "project": r"[a-z0-9][a-z0-9:.-]*",
    "ssh": r"([A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9][\w.:-]*(,([A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9][\w.:-]*)*",
    "image": r"[A-Za-z0-9][\w./:@-]*",
    "claim": r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?",
    "sbatch": r"--?[A-Za-z].*",
}


class Parser(argparse.ArgumentParser):
    """The options of one launcher, whose errors are `InputError`s. `about`: the launcher's docstring, for --help."""

    def __init__(self, kind: str, about: str | None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"{PROGRAM} launch {kind}", description=about, formatter_class=form, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        # The message may quote an argument that contains line breaks.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        raise InputError(f"{line}; {self.prog} --help says more")


def check(parser: argparse.ArgumentParser, options: argparse.Namespace, train: Sequence[str]) -> None:
    """Ends the program with one line if an option or a word of the training is not allowed, or names no experiment."""
    for name, value in vars(options).items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str) or not text:
                continue
            if not text.isprintable() or not re.fullmatch(NAMES.get(name, r"[^-].*"), text):
                parser.error(f"{name} {text!r} is not allowed: it would not stay one word where it ends up")
    for word in train:
        if not word.isprintable():
            parser.error(f"argument {word!r} has a line end or another control character")
    if not train or train[0].startswith("-"):
        parser.error("give an experiment: a recipe such as causal_lm.gpt2_small, a file or a module")
