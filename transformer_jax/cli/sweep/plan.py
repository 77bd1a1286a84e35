"""What a sweep tries: its options, and the arguments of each run."""

import itertools
import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.errors import InputError

ONE_VALUE = {
    "--list": "listed",
    "--workdir": "workdir",
    "--by": "by",
    "--optuna": "optuna",
    "--median": "median",
    "--at-once": "at_once",
}
MOST = 1000  # runs of a sweep; each is checked before the first one starts


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high` that a study chooses from; `kind` is "", "log" or "int"."""

    low: float
    high: float
    kind: str = ""


@dataclass
class Asked:
    """The options of a sweep.

    Attributes:
      workdir: the folder of the runs; "": runs/NAME-sweep.
      over: {flag: its values}, whose product is tried.
      between: {flag: range}, from which a study chooses.
      listed: a file with one JSON object of fields per line; "": none.
      optuna: runs of a study; 0: a grid or a list.
      median: runs to compare with before one may be ended early; 0: none is.
      at_once: runs that train at the same time.
      by: the command that starts each run, before `train`'s; "": a process of this machine.
      only_print: whether the commands are printed and not run.
      train: the experiment and the other arguments of `train`.
    """

    workdir: str = ""
    over: dict[str, list[str]] = field(default_factory=dict)
    between: dict[str, Range] = field(default_factory=dict)
    listed: str = ""
    optuna: int = 0
    median: int = 0
    at_once: int = 1
    by: str = ""
    only_print: bool = False
    train: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> Asked:
    """The options among the `arguments` of the command; all others are those of `train`.

    Raises:
      InputError: an option lacks its values, or two of them contradict each other.
    """
    asked, words = Asked(), list(arguments)
    while words:
        word = words.pop(0)
        if word == "--print":
            asked.only_print = True
        elif word in ("--over", "--between", *ONE_VALUE):
            given = list(itertools.takewhile(lambda text: not text.startswith("--"), words))
            del words[: len(given)]
            _option(asked, word, given)
        else:
            asked.train.append(word)
    if not asked.over and not asked.between and not asked.listed:
        raise InputError("a sweep needs fields to change: --over optim.peak-lr 1e-3 3e-3, or --list FILE")
    if asked.listed and (asked.over or asked.between or asked.optuna):
        raise InputError("--list states every run, so --over, --between and --optuna do not go with it")
    if bool(asked.between) > bool(asked.optuna):
        raise InputError("--between is for a study, which needs its number of runs: --optuna 20")
    return asked


def _option(asked: Asked, option: str, given: list[str]) -> None:
    if option in ONE_VALUE:
        if len(given) != 1:
            raise InputError(f"{option} takes one value, and has {len(given)}")
        value = given[0] if option in ("--list", "--workdir", "--by") else _count(option, given[0])
        if option == "--by":
            _check_command(given[0])
        setattr(asked, ONE_VALUE[option], value)
        return
    flag, *values = given or [""]
    flag = "--" + flag.replace("_", "-")
    if flag in asked.over or flag in asked.between:
        raise InputError(f"{option} {flag[2:]}: this field is given twice")
    if option == "--over":
        if not values:
            raise InputError("--over takes a field and its values: --over optim.peak-lr 1e-3 3e-3")
        asked.over[flag] = values
        return
    if len(values) not in (2, 3) or values[2:] not in ([], ["log"], ["int"]):
        raise InputError("--between takes a field, two numbers, and log or int: --between optim.peak-lr 1e-4 1e-2 log")
    low, high = (_number(option, value) for value in values[:2])
    if not low < high or (values[2:] == ["log"] and low <= 0):
        raise InputError(
            f"--between {flag[2:]} {values[0]} {values[1]}: the first has to be the smaller, for log above 0"
        )
    asked.between[flag] = Range(low, high, "".join(values[2:]))


def _check_command(text: str) -> None:
    try:
        if shlex.split(text):
            return
    except ValueError:
        pass
    raise InputError(f"--by {text!r} is no command; give what starts a run, such as --by 'srun --gpus 1'")


def _count(option: str, text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= MOST:
        raise InputError(f"{option} {text}: not a whole number from 1 to {MOST:,}")
    return int(text)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is no number") from None


def runs(asked: Asked) -> list[list[str]]:
    """The arguments of each run of a grid or a list, in order, by the options `asked`.

    Raises:
      InputError: there are too many, or the list cannot be read.
    """
    if asked.listed:
        listed = list(itertools.islice(_listed(Path(asked.listed)), MOST + 1))
        if len(listed) > MOST:
            raise InputError(f"{asked.listed} has more than {MOST:,} runs; split it")
        return listed
    if (count := math.prod(map(len, asked.over.values()))) > MOST:
        raise InputError(f"the grid has {count:,} runs, more than {MOST:,}; give fewer values, or --optuna N")
    chosen = itertools.product(*([(flag, value) for value in values] for flag, values in asked.over.items()))
    return [arguments_of(dict(pairs)) for pairs in chosen]


def arguments_of(fields: Mapping[str, Any]) -> list[str]:
    """The command line of `fields`, {flag: value}: a bool is --x or --no-x, a list several words."""
    words: list[str] = []
    for flag, value in fields.items():
        if isinstance(value, bool):
            words.append(flag if value else _negated(flag))
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        else:
            words += [flag, *str(value).split()]
    return words


def _negated(flag: str) -> str:
    head, dot, name = flag.removeprefix("--").rpartition(".")
    return f"--{head}{dot}no-{name}"


def _listed(path: Path) -> Iterator[list[str]]:
    """The runs of a file: one JSON object of fields on each line."""
    try:
        lines = files.read(path, files.JSON_BYTES).splitlines()
    except FileNotFoundError:
        raise InputError(f"--list {path} does not exist") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = files.parse_json(line, f"{path}, line {number},")
        if not isinstance(fields, dict) or not fields:
            raise InputError(f'{path}, line {number}, is no object of fields, such as {{"optim.peak_lr": 0.001}}')
        if bad := next((key for key, value in fields.items() if isinstance(value, dict) or value is None), None):
            raise InputError(f"{path}, line {number}: {bad} is {json.dumps(fields[bad])[:60]}; give a value")
        yield arguments_of({"--" + key.replace("_", "-"): value for key, value in fields.items()})
