"""Plain to read: a public function names its arguments, and comments use the words of the field.

How to read a failure. "DOCSTRING file:line name: ..." names a function whose docstring does not name its arguments as
its signature does. "WORD file:line ..." quotes a word of `WORDS` or `NAMES`, and gives the words to use in its place.
Rewrite the sentence, subject, verb, reason, rather than swap the word.

A public function is one at the top level of a module, or a method of a contract, without a leading underscore. In the
rooms of `STRICT` its docstring has one line on what it returns, then `Args:` with one entry for each parameter, in the
order of the signature, then `Returns:`, `Raises:` and the source where they say something new:

    Args:
      x_BTD: the residual stream, float32 or bfloat16.
      key: switches dropout on.

A function of at most two parameters may have no `Args:` if its docstring names each one in `backquotes`. What
implements a contract (`Task.loss`, `Format.table`) inherits the contract's docstring. Elsewhere `Args:` is optional,
but where it is given it agrees with the signature.
"""

import ast
import functools
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "transformer_jax"

STRICT = (
    *(
        "contracts",
        "sharding.py",
        "nn/",
        "kernels/",
        "models/",
        "losses/",
        "metrics/",
        "decoding/",
        "optim/",
        "sound/",
    ),
    *("train/", "runs/", "hosts/", "objectives/", "augment/", "data/", "hub/", "restore.py", "experiment.py"),
    *("brought.py", "interrupts.py", "files.py", "errors.py", "shipped.py", "chips.py", "figures.py"),
    *("cli/", "observe/", "tasks/", "compare/", "pages/", "looking/", "compress/", "adapters/", "hf.py", "extras.py"),
)

# ---- Files that are not rewritten yet: take yours off the list; the goal is an empty one. ---------------------------

NOT_YET: set[str] = set()

# ---- Words -----------------------------------------------------------------------------------------------------------

WORDS = {  # pattern in comments and docstrings -> what to write
    r"turn(ed|ing)(?! (on|off|into)\b)|turns (around|them|it|the|an?)\b": "transposed, converted",
    r"anew": "again, recomputed",
    r"cuts?|cutting": "sharded, truncated, cropped, split",
    r"(comes?|came) to": "the result itself: is, becomes",
    r"lies?|lying|lay": "its sharding, is in",
    r"nobody": "no caller, no reader",
    r"said|told": "logged, printed, reported, given",
    r"hears?|heard": "receives, is notified of",
    r"every now and then": "regularly",
    r"for want of|by whatever name|the like": "plain words",
    r"taken for": "treated as",
    r"is gone|are gone": "was removed",
    r"made of it|to be of|that is none": "plain words",
    r"near(?= (copy|file|folder))|brought near": "local, copied to this machine",
    r"makes? of (?:it|them|any)": "plain words",
    r"goes on|go on|went on|going on": "continues, resumes",
    r"(?:Arguments|Errors|Fields):$": "Args:, Raises:, Attributes:",
}
NAMES = {  # words between the underscores of a name -> what to write
    r"turned|untwisted": "transposed",
    r"anew": "again",
    r"cut|cuts": "sharded, truncated, cropped",
    r"lies|lie": "sharding",
    r"told|said": "logged, given",
    r"nobody": "none",
    r"still_ours": "is_owner",
    r"whole_length": "replicated_length",
    r"left_out": "dropped, skipped",
}


def _matcher(words: dict[str, str], start: str, end: str) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(f"{start}(?:{word}){end}", re.IGNORECASE | re.MULTILINE), use) for word, use in words.items()]


_WORDS = _matcher(WORDS, r"(?<![\w`])", r"(?![\w`])")
_ANY_WORD = re.compile("|".join(pattern.pattern for pattern, _ in _WORDS), re.IGNORECASE | re.MULTILINE)
_NAMES = _matcher(NAMES, r"(?:^|_)", r"(?:_|$)")


@functools.cache
def _advice(name: str) -> list[str]:
    """The words to use in place of those in the name of a function, argument or variable."""
    return [use for pattern, use in _NAMES if pattern.search(name)]


def _docstrings(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, text) of each string that stands as a statement: docstrings, and those of fields."""
    return [
        (node.lineno, node.value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def _names(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, name) of whatever a module defines: functions, classes, parameters, variables and fields."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            found.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append((node.lineno, node.id if isinstance(node, ast.Name) else node.attr))
    return found


def _quaint(source: str, file: str) -> list[str]:
    """The words of a file that the field does not use."""
    tree = ast.parse(source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    found = []
    for line, text in texts + _docstrings(tree):
        for pattern, use in _WORDS if _ANY_WORD.search(text) else ():
            for match in pattern.finditer(text):
                at = line + text[: match.start()].count("\n")
                found.append(f"WORD {file}:{at} {match[0]!r}: write {use}")
    for line, name in _names(tree):
        found += [f"WORD {file}:{line} the name {name!r}: write {use}" for use in _advice(name)]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "x = 1  # turned around for decoding",
        "def f():\n    '''What the search comes to.'''",
        "class C:\n    rate: float = 0.0\n    '''Units left out, and nobody is told.'''",
        "def f(still_ours): ...",
        "whole_length = 3",
        "self.told_once = True",
        "def f(x):\n    '''Doubles.\n\n    Arguments:\n      x: a number.\n    '''",
    ],
)
def test_a_quaint_word_is_seen(source):
    assert _quaint(source, "m.py")


@pytest.mark.parametrize(
    "source",
    ["# `key` is turned on", "shortcut, executed = 1, 2  # the shortcut is executed", "print('nobody is told')"],
)
def test_a_plain_word_is_left_alone(source):
    assert _quaint(source, "m.py") == []


# ---- Docstrings ------------------------------------------------------------------------------------------------------


def _parameters(node: ast.FunctionDef) -> list[str]:
    """The names of a function's parameters in the order of its signature, without a method's `self`."""
    given = node.args
    named = [arg.arg for arg in given.posonlyargs + given.args]
    named += [f"*{given.vararg.arg}"] if given.vararg else []
    named += [arg.arg for arg in given.kwonlyargs]
    named += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return named[1:] if named[:1] == ["self"] or "classmethod" in map(ast.unparse, node.decorator_list) else named


def _documented(docstring: str) -> list[str] | None:
    """The names under `Args:`, or None where there is no such section."""
    section = re.search(r"^Args:\n((?:  .*\n?|\n)+)", docstring, re.MULTILINE)
    return re.findall(r"^  (\*{0,2}\w+)(?: \([^)]*\))?:", section[1], re.MULTILINE) if section else None


def _disagreement(node: ast.FunctionDef, strict: bool) -> str:
    """Why a docstring does not name the arguments of its function; "" where it does."""
    docstring = ast.get_docstring(node) or ""
    parameters, documented = _parameters(node), _documented(docstring)
    if documented is not None:
        return "" if documented == parameters else f"`Args:` names {documented}, the signature {parameters}"
    if not strict:
        return ""
    if not docstring:
        return "no docstring"
    if len(parameters) > 2:
        return f"no `Args:` for {parameters}"
    unnamed = [name for name in parameters if not re.search(rf"`[^`]*(?<!\w){re.escape(name)}(?!\w)[^`]*`", docstring)]
    return f"neither `Args:` nor `backquotes` name {unnamed}" if unnamed else ""


def _protocols() -> dict[str, ast.ClassDef]:
    """The contracts of the package by name."""
    files = [path for path in PACKAGE.rglob("*.py") if "contracts" in path.relative_to(PACKAGE).as_posix()]
    classes = [n for path in files for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
    return {c.name: c for c in classes if any(ast.unparse(base) == "Protocol" for base in c.bases)}


PROTOCOLS = _protocols()
HOOKS = {node.name for c in PROTOCOLS.values() for node in c.body if isinstance(node, ast.FunctionDef)}


def _undocumented(source: str, file: str, strict: bool) -> list[str]:
    """The functions of a file whose docstrings do not name their arguments."""
    tree = ast.parse(source)
    found = []
    for parent in (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)):
        contract = isinstance(parent, ast.ClassDef) and parent.name in PROTOCOLS and "contracts" in file
        for node in parent.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            is_help = file.startswith("cli/") and node.name == "main"  # its docstring is what `--help` prints
            public = contract or (parent is tree and node.name not in HOOKS and not is_help)
            if why := _disagreement(node, strict and public):
                found.append(f"DOCSTRING {file}:{node.lineno} {node.name}: {why}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): ...",
        "def f(x):\n    '''Doubles.'''",
        "def f(x, y, z):\n    '''`x` + `y` + `z`.'''",
        "def f(x):\n    '''Doubles.\n\n    Args:\n      y: a number.\n    '''",
        "def f(x, *, y):\n    '''Adds.\n\n    Args:\n      y: a number.\n      x: a number.\n    '''",
    ],
)
def test_an_argument_without_a_name_is_seen(source):
    assert len(_undocumented(source, "m.py", strict=True)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def _f(x): ...",
        "def f(x):\n    '''Twice `x`.'''",
        "def f(x, *y, z=0, **rest):\n    '''Adds.\n\n    Args:\n      x: a\n        number.\n      *y: a.\n"
        "      z: a.\n      **rest: a.\n\n    Raises:\n      ValueError: never.\n    '''",
        "class C:\n    def f(self, x):\n        '''Doubles.'''",
    ],
)
def test_a_docstring_that_agrees_is_left_alone(source):
    assert _undocumented(source, "m.py", strict=True) == []


def test_contracts_are_found():
    assert {"Task", "Tokenizer", "Optimizer", "Observer", "Format", "Family", "Source"} <= set(PROTOCOLS)


# ---- The package -----------------------------------------------------------------------------------------------------


def test_the_package_is_plain_to_read():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file not in NOT_YET:
            source = path.read_text()
            found += _quaint(source, file) + _undocumented(source, file, file.startswith(STRICT))
    assert not found, "\n".join(["", *found])
