"""The generated parts of the pages, and the lines that state a measurement without an entry.

A page holds, where BLOCK is a name in docs/numbers.json,

    <!-- numbers: BLOCK -->
    ...
    <!-- /numbers -->

and everything between is written by `tools/verify` from the block's lines, in which {ENTRY:NUMBER} is a number,
{ENTRY:where} the day, the commit and the machine that it was seen on, and {PUBLISHED:value}, {PUBLISHED:source} what
others have published. A line with a number that was never measured is left out.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools import stated
from transformer_jax import files
from transformer_jax.errors import InputError

MARKED = re.compile(r"(<!-- numbers: ([\w-]+) -->\n)(.*?)(\n?<!-- /numbers -->)", re.DOTALL)
RESULT = re.compile(r"(?<![\w.-])(?:\d+\.\d+(?![\w.]*\w)|\d+(?= (?:to \d+ )?%))")


def generated(book: stated.Book, page: str, text: str) -> str:
    """A page's text with its marked parts made from the book.

    Args:
      book: the content of docs/numbers.json.
      page: its path, a key of the blocks.
      text: of the page.

    Raises:
      InputError: a marked part is no block of the book, or a block is not marked in the page.
    """
    blocks = book["blocks"].get(page, {})
    marked = [found[2] for found in MARKED.finditer(text)]
    if sorted(marked) != sorted(blocks):
        raise InputError(f"{page} marks the blocks {marked}, and {stated.FILE} has {[*blocks]}; give both the same")
    rows = {name: [filled(book, line) for line in lines] for name, lines in blocks.items()}
    made = {name: "\n".join(row for row in lines if row is not None) for name, lines in rows.items()}
    return MARKED.sub(lambda found: f"{found[1]}{made[found[2]]}\n<!-- /numbers -->", text)


def filled(book: stated.Book, line: str) -> str | None:
    """A line of a block of `book`, with its numbers; None where one of them was never measured."""
    missing: list[str] = []

    def one(found: re.Match[str]) -> str:
        name, number = found[1], found[2]
        if name in book["published"] and number in ("value", "source"):
            return str(book["published"][name][number])
        entry = book["measured"].get(name)
        if entry is None or number not in (*entry["numbers"], "where", "command"):
            raise InputError(f"{stated.FILE}: a block names {{{name}:{number}}}, which no entry has: {line[:80]}")
        seen = entry.get("seen")
        if number == "command":
            return str(entry["command"].split(" --workdir")[0])
        if seen is None or number not in (*seen["values"], "where"):
            missing.append(name)
            return ""
        if number == "where":
            return f"{seen['date']}, `{seen['commit']}`, {seen['machine']}"
        return shown(seen["values"][number], entry["numbers"][number].get("as", ".4g"))

    made = re.sub(r"\{([\w./-]+):(\w+)\}", one, line)
    return None if missing else made


def shown(value: float, form: str) -> str:
    """`value` in a `form`: one of Python's format specifications, such as ".2f"; "percent", of a share; or "time", of
    seconds."""
    if form == "percent":
        return f"{100 * value:.1f} %"
    if form == "time":
        return f"{int(value) // 60}:{int(value) % 60:02}"
    return format(value, form)


def write(book: stated.Book, root: Path = stated.ROOT) -> list[str]:
    """The pages whose generated parts were not what `book` gives; they are written."""
    pages = [page for page in book["blocks"] if (root / page).read_text(encoding="utf-8") != _made(book, page, root)]
    for page in pages:
        files.write(root / page, _made(book, page, root))
    return pages


def _made(book: stated.Book, page: str, root: Path) -> str:
    return generated(book, page, (root / page).read_text(encoding="utf-8"))


# ---- Numbers without an entry ----------------------------------------------------------------------------------------


def unchecked(book: stated.Book, root: Path = stated.ROOT) -> dict[str, list[str]]:
    """{page or recipe: paragraphs and rows} that state a measurement outside of a generated part.

    They are the paragraphs with a digit that say "measured", and the rows with a digit of a table that says so, or that
    is below such a paragraph; in README, of every table. Of a recipe its docstring is read (`of_recipe`).
    """
    pages = [*sorted(root.glob("*.md")), *sorted(root.glob("docs/**/*.md"))]
    found = {page: list(of_page(page.read_text(encoding="utf-8"), page.name == "README.md")) for page in pages}
    for path in sorted(root.glob("experiments/**/*.py")):
        recipe = path.relative_to(root / "experiments").as_posix().removesuffix(".py").replace("/", ".")
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path] = list(of_recipe(docstring, known(book, recipe)))
    names = {path.relative_to(root).as_posix(): lines for path, lines in found.items() if lines}
    return {name: lines for name, lines in names.items() if name != "CHANGELOG.md"}


def known(book: stated.Book, recipe: str) -> list[float]:
    """The bounds of all ranges of the recipe's entries, RECIPE or RECIPE.ANYTHING, and its published numbers."""
    ours = {
        kind: [entry for name, entry in book[kind].items() if name == recipe or name.startswith(f"{recipe}.")]
        for kind in ("measured", "published")
    }
    ranges = [number.get("holds", ()) for entry in ours["measured"] for number in entry["numbers"].values()]
    return [bound for bounds in ranges for bound in bounds] + [entry["value"] for entry in ours["published"]]


def of_recipe(docstring: str, numbers: Iterable[float]) -> Iterator[str]:
    """The paragraphs of a recipe's docstring that state a result which is none of `numbers`.

    A result is a decimal or a percentage behind "Expected", or anywhere in a paragraph without that word, where the
    text calls it measured or published. Other integers are settings.
    """
    allowed = [*numbers, *(100 * number for number in numbers)]
    for paragraph in re.split(r"\n\s*\n", docstring):
        text = " ".join(paragraph[max(0, paragraph.find("Expected")) :].split())
        if not _says_measured([text]) and not (text.startswith("Expected") and "published" in text):
            continue
        for result in RESULT.findall(re.sub(r"section [\d.]+|95 % interval", "", text)):
            digits = len(result.partition(".")[2])
            if not any(round(number, digits) == float(result) for number in allowed):
                yield f"{result} in: {text}"
                break


def of_page(text: str, every_table: bool) -> Iterator[str]:
    """The paragraphs and the rows of tables of a Markdown text that state a measurement.

    Args:
      text: of a page, or of a docstring.
      every_table: whether each row of a table with a digit is one.
    """
    above = ""
    for paragraph in re.split(r"\n\s*\n", re.sub(r"```.*?```", "", MARKED.sub("", text), flags=re.DOTALL)):
        lines = paragraph.strip("\n").splitlines()
        is_table = any(line.startswith("|") for line in lines)
        labelled = _says_measured(lines) or (is_table and (every_table or _says_measured([above])))
        rows = (
            [line for line in lines if line.startswith("|")] if is_table else [" ".join(line.strip() for line in lines)]
        )
        yield from (row for row in rows if labelled and re.search(r"\d", row))
        above = paragraph


def _says_measured(lines: Iterable[str]) -> bool:
    return any(re.search(r"\b(?<!not )measured\b", line, re.IGNORECASE) for line in lines)
