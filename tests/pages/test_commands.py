"""The commands and the Python of the pages work: those of README and of Start run, those of every page are understood.

A command runs in this process, with fewer steps and a smaller model, in the order of its page and in one folder; the
"standard library" that the recipes read is a small part of it (conftest.py). What stands only for a reader, such as
`pip install`, is checked for what it names.
"""

import importlib.util
import re
import tomllib
import types
from pathlib import Path

import pytest

from tests.pages.reading import ROOT, Block, Command, blocks, commands
from transformer_jax import observe, shipped
from transformer_jax.cli.main import COMMANDS, main
from transformer_jax.train import loop

RUN = ("README.md", "docs/index.md")
PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

# What makes a recipe small: the same code, fewer and smaller shapes. Steps are halved where the page trains longer.
SMALL = {
    "causal_lm.stdlib": "--model.width 24 --model.num-layers 1 --model.mlp-width 32 --data.length 32 "
    "--train.steps 2 --optim.warmup-steps 1 --sample.max-new-tokens 3 --evaluate.every 0",
    "finetune.sst2": "--model.width 16 --model.num-layers 1 --model.num-heads 2 --train.steps 2 --optim.warmup-steps 0 "
    "--train.batch-size 16 --evaluate.batch-size 16 --data.length 16 --evaluate.every 0",
    "mine.py": "--model.width 24 --model.num-layers 1 --data.length 32 --train.batch-size 8 --train.steps 2 "
    "--sample.max-new-tokens 0",
    "digits.py": "--model.width 16 --model.num-layers 1 --model.num-heads 2 --train.steps 2 --optim.warmup-steps 0 "
    "--evaluate.every 0 --evaluate.batch-size 64",
}


def ours(words: list[str]) -> list[str] | None:
    """The arguments of `transformer-jax` that a command means; None for another program."""
    if words[0] == "transformer-jax":
        return words[1:]
    if words[0] == "tools/run" and words[1] == "transformer_jax":
        return words[2:]
    if words[:3] == ["python", "-m", "transformer_jax"]:
        return words[3:]
    if words[0] == "tools/run" and words[1].startswith("experiments."):
        return ["train", words[1].removeprefix("experiments."), *words[2:]]
    return None


def check_named(words: list[str], where: str) -> None:
    """Whether what a command of another program names is there: an extra, a module, a tool."""
    if words[0] == "pip":
        for extra in re.findall(r"transformer-jax\[([\w,-]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(EXTRAS), f"{where}: no extra {extra}"
    elif words[0] == "tools/install":
        assert set(words[1:]) <= set(EXTRAS), f"{where}: {words[1:]}"
    elif words[0] == "tools/run" or words[:2] == ["python", "-m"]:
        module = words[1] if words[0] == "tools/run" else words[2]
        assert importlib.util.find_spec(module) or module.startswith("own_"), f"{where}: no module {module}"
    elif words[0].startswith("tools/"):
        assert (ROOT / words[0]).exists(), f"{where}: no {words[0]}"


def run(command: Command, where: str) -> None:
    """Runs a command in its small form."""
    arguments = ours(command.words)
    if arguments is None:
        return check_named(command.words, where)
    if arguments[0] == "train" and "--help" not in arguments:
        arguments += SMALL[arguments[1]].split()
        if arguments[1] == "mine.py":
            arguments += ["--workdir", f"runs/mine-{where.partition(':')[0].replace('/', '-')}"]
    assert main(arguments) == 0, f"{where}: {' '.join(command.words)}"


def run_python(block: Block, namespace: dict, where: str) -> None:
    """Runs a block, or makes it the file that its first line names."""
    if name := re.match(r"# (\w+\.py)\n", block.text):
        Path(name[1]).write_text(block.text, encoding="utf-8")
        return
    text = block.text.replace("range(100)", "range(2)").replace("width=128", "width=8")
    exec(compile("\n" * block.line + text, where, "exec"), namespace)


def test_what_readme_and_start_say_works(workplace, capsys):
    """Top to bottom, as a newcomer would; a command that both pages have runs once."""
    namespace: dict = {}
    done: set[tuple[str, ...]] = set()
    for page in RUN:
        for block in blocks(page):
            if block.language == "python":
                run_python(block, namespace, page)
            for command in commands(block):
                once = (*command.words, page if "mine.py" in command.words else "")  # each page has its own mine.py
                if once not in done:
                    run(command, f"{page}:{command.line}")
                    done.add(once)
    assert len(done) > 12
    assert (workplace / "answers.csv").read_text(encoding="utf-8").count("\n") == 3  # the header, and two answers
    assert namespace["logits"].shape[:2] == namespace["tokens"].shape


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page, workplace, monkeypatch, capsys):
    """Commands exist, and so do the recipe, the variant and every flag of `train`; launchers are dry."""
    monkeypatch.setattr(loop, "run", lambda *a, **k: types.SimpleNamespace(signal=0))
    monkeypatch.setattr(observe, "named", lambda names: ())  # the services need not be installed
    for block in blocks(page):
        for command in commands(block):
            where, arguments = f"{page}:{command.line} {' '.join(command.words)}", ours(command.words)
            if arguments is None:
                check_named(command.words, where)
                continue
            assert not arguments or arguments[0] in (*COMMANDS, "--help"), where
            if arguments[:1] == ["train"] and arguments[1].removeprefix("experiments.") in shipped.names():
                assert main([*arguments[:1], arguments[1].removeprefix("experiments."), *arguments[2:]]) == 0, (
                    where,
                    capsys.readouterr().err,
                )
            elif arguments[:1] == ["launch"] and len(arguments) > 2:
                assert main([*arguments[:2], "--dry-run", *arguments[2:]]) == 0, where


def test_commands_are_found():
    text = (
        "x\n\n    $ transformer-jax train a \\\n        --b c   # why\n    FOO=/d tools/run m < in > out\n    output\n"
    )
    words = [command.words for command in commands(Block("", re.sub("(?m)^ {4}", "", text[3:]), 1))]
    assert words == [["transformer-jax", "train", "a", "--b", "c"], ["tools/run", "m"]]
    assert commands(Block("python", "tools/run x\n", 1)) == []
