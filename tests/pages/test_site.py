"""What `tools/docs` would refuse, as far as the sources show it: links, quotes, pages in the navigation.

The build itself, with its anchors and the reference made from docstrings, is CI's (.github/workflows/docs.yml).
"""

import ast
import re

import pytest

from tests.pages.reading import ROOT

PAGES = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
NAMED = [str(path.relative_to(ROOT)) for path in PAGES]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", NAMED)
def test_links_and_quotes_have_their_targets(page):
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        there = path.parent / target
        made = "notebooks/" in target and (ROOT / "examples/notebooks" / f"{there.stem}.ipynb").exists()
        assert there.exists() or made, f"{page} links to {target}"
    for file, tag in re.findall(r'^ *--8<-- "([\w./]+?)(?::(\w+))?"$', text, re.MULTILINE):
        quoted = (ROOT / file).read_text(encoding="utf-8")
        assert not tag or (f"[start:{tag}]" in quoted and f"[end:{tag}]" in quoted), f"{page} quotes {file}:{tag}"
    for name in re.findall(r"^(?:::: |\{\{ \w+ )(transformer_jax[\w.]*)", text, re.MULTILINE):
        assert found(name), f"{page} shows {name}"


def found(name: str) -> bool:
    """Whether a dotted name is a module of the package, or is defined or imported in one, read from the source."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:cut])
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if file.exists():
            names = {
                name
                for node in ast.parse(file.read_text(encoding="utf-8")).body
                for name in (
                    [node.name]
                    if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                    else [alias.asname or alias.name for alias in node.names]
                    if isinstance(node, ast.ImportFrom)
                    else [ast.unparse(target) for target in node.targets]
                    if isinstance(node, ast.Assign)
                    else []
                )
            }
            return cut == len(parts) or (cut == len(parts) - 1 and parts[-1] in names)
    return False


def test_every_page_is_in_the_navigation():
    navigation = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {name.removeprefix("docs/") for name in NAMED if name.startswith("docs/")}
    pages |= {f"notebooks/{path.stem}.md" for path in (ROOT / "examples/notebooks").glob("*.ipynb")}
    assert sorted(navigation) == sorted(pages)


def test_a_name_that_is_gone_is_seen():
    assert found("transformer_jax.losses.cross_entropy") and found("transformer_jax.nn")
    assert not found("transformer_jax.losses.crossentropy")
    assert not found("transformer_jax.gone")
