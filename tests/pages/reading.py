"""What a page says: its blocks of code, and the commands in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("transformer-jax", "tools/", "pip", "python", "git", ".venv/bin/", "cd")


class Block(NamedTuple):
    """A block of code of a page.

    Fields:
      language: "python", "console", ...; "" of an indented one.
      text: without the fence and the indentation.
      line: where it begins in the page.
    """

    language: str
    text: str
    line: int


class Command(NamedTuple):
    """A command of a page: its words without what belongs to the shell, such as redirections, and its line."""

    words: list[str]
    line: int


def blocks(page: str) -> list[Block]:
    """The blocks of a Markdown file of this checkout, fenced (inside lists and tabs too) or indented."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    found, at = [], 0
    while at < len(lines):
        fence, first = re.match(r"( *)```(\w*)", lines[at]), at
        if fence:
            end = next(i for i in range(at + 1, len(lines)) if lines[i] == f"{fence[1]}```")
            inside, language, at = lines[at + 1 : end], fence[2], end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                if re.match(r" *```", lines[at]):
                    break
                at += 1
            inside, language = lines[first:at], ""
        else:
            at += 1
            continue
        indent = min((len(line) - len(line.lstrip()) for line in inside if line.strip()), default=0)
        found.append(Block(language, "\n".join(line[indent:] for line in inside).rstrip() + "\n", first + 1))
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a block: lines that begin with "$ ", and in an indented one all that begin with a program."""
    if block.language not in ("", "console", "bash", "sh"):
        return []
    found = []
    joined = re.sub(r"\\\n *", " ", block.text)
    for number, line in enumerate(joined.splitlines()):
        line = line.removeprefix("$ ") if line.startswith("$ ") else "" if block.language == "console" else line
        line = re.sub(r"^([A-Z_]+=\S* )+", "", line)  # settings of the environment
        for part in re.split(r" \| ", line):
            if part.startswith(PROGRAMS):
                words = shlex.split(part, comments=True)
                end = next((i for i, word in enumerate(words) if word in ("<", ">", ";", "&&")), len(words))
                found.append(Command(words[:end], block.line + number))
    return found
