"""What the site makes of the code and of the notebooks, beside what mkdocstrings does.

A page may hold, on a line of its own,

    {{ options transformer_jax.data.tables.Table }}      the class and a table of its fields
    {{ functions transformer_jax.models.gpt }}           a table of the public functions, with links to the reference
    {{ formats transformer_jax.models.FORMATS }}         the Hugging Face model types of each family

All are read from the source without importing it. Each notebook of examples/notebooks becomes a page.
"""

import ast
import functools
import json
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]


def on_files(files, config):
    """The files of the site, and a page for each notebook: its text, and its code as code."""
    for notebook in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        parts = []
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        parts.append(f"This page is the notebook `examples/notebooks/{notebook.name}`, whose cells the tests run.")
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content="\n\n".join(parts)))
    return files


def on_page_markdown(markdown, **_):
    """A page's Markdown with its tables."""
    make = {"options": _options, "functions": _functions, "formats": _formats}
    return re.sub(
        r"^\{\{ (options|functions|formats) (\S+) \}\}$", lambda m: make[m[1]](m[2]), markdown, flags=re.MULTILINE
    )


@functools.cache
def _package():
    return griffe.load("transformer_jax", search_paths=[str(ROOT)], docstring_parser="google", resolve_aliases=True)


def _find(path):
    return _package()[path.removeprefix("transformer_jax.")]


def _options(path):
    cls = _find(path)
    text = cls.docstring.value.partition("\n\n")[0] if cls.docstring else ""
    rows = ["| field | default | |", "|---|---|---|"]
    for name, field in cls.all_members.items():
        if field.is_attribute and field.docstring and "property" not in field.labels:
            kind = str(field.annotation).replace('"', "'")
            if "ClassVar" not in kind and name[0] != "_":
                field_cell = f"`{name}`<br><small>{_line(kind)}</small>"
                rows.append(f"| {field_cell} | {_default(str(field.value))} | {_line(field.docstring.value)} |")
    table = "\n".join(rows) if len(rows) > 2 else "It has no settings."
    return f"### {cls.name}\n\n{_line(text)}\n\n{table}"


def _default(value):
    """What a field is without a value of one's own; fields without a default say so."""
    if value == "None" or value.startswith("field("):
        found = re.search(r"default(_factory)?=(?:lambda: )?(.+?)(?:, metadata=.*)?\)$", value, re.DOTALL)
        if found:
            value = found[2] + ("()" if found[1] and re.fullmatch(r"[\w.]+", found[2]) else "")
    return "" if value == "None" else f"`{_line(value)}`"


def _functions(path):
    module = _find(path)
    rows = ["| function | returns |", "|---|---|"]
    for name, function in module.functions.items():
        if name[0] != "_" and function.docstring and not function.is_alias:
            rows.append(f"| [`{name}`][{path}.{name}] | {_line(function.docstring.value.partition(chr(10) * 2)[0])} |")
    return "\n".join(rows)


def _formats(path):
    families = {}
    for model_type, module in ast.literal_eval(str(_find(path).value)).items():
        families.setdefault(module.partition(".")[0], []).append(model_type)
    return "\n".join(
        ["| family | model types |", "|---|---|", *(f"| `{name}` | {', '.join(ts)} |" for name, ts in families.items())]
    )


def _line(text):
    return " ".join(text.split()).replace("|", "\\|") if "`" not in text else " ".join(text.split())
