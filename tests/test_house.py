"""The house rules that a machine can hold: arrows point down, imports stay cheap, nothing unsafe, nothing left open.

The arrows are read from the table in docs/architecture.md, so that the page and the test cannot disagree.
"""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from transformer_jax.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "transformer_jax"
SOURCES = sorted(path for folder in (PACKAGE, ROOT / "experiments", ROOT / "tools") for path in folder.rglob("*.py"))

# Imported where they are used, never on the way in. (flax imports rich by itself.)
HEAVY = [
    *("tensorflow", "torch", "transformers", "orbax", "grain", "tensorflow_datasets", "array_record", "tokenizers"),
    *("tyro", "rich", "matplotlib", "tensorboardX", "PIL", "wandb", "mlflow", "trackio", "huggingface_hub"),
]


def _name(path: Path) -> str:
    """The dotted module name of a file, with `.__init__` kept so that relative imports resolve."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def _nodes(source: str) -> tuple[ast.AST, ...]:
    """All nodes of a module's tree; most rules walk over every file."""
    return tuple(ast.walk(ast.parse(source)))


def _imports(source: str, module: str) -> list[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, inside functions too; `from a import b` gives `a.b`."""
    found = []
    for node in _nodes(source):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = module.split(".")[: -node.level] if node.level else []
            found += [(node.lineno, ".".join([*start, *filter(None, [node.module]), a.name])) for a in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [(node.lineno, str(a.value)) for a in node.args if isinstance(a, ast.Constant)]
    return found


# ---- Arrows --------------------------------------------------------------------------------------------------------


FAMILIES, FORMATS = "models/<family>", "models/<family>/<format>"  # one room for all: no family knows another


def _table() -> dict[str, set[str]]:
    """room -> rooms it may import, from docs/architecture.md, top to bottom."""
    rows = re.findall(r"^\| (`.+?) \| .+ \| (.+?) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    table: dict[str, set[str]] = {}
    for cell, allowed in rows:
        rooms = [name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`(.+?)`", cell)]
        above = set(table)
        named = set(re.findall(r"`([\w/<>]+)`", allowed)) & above
        if allowed.startswith(("all of the above", "everything")):
            named = above - ({FAMILIES, FORMATS} if "except families" in allowed else set())
        for room in rooms:
            table[room] = named
    return table


TABLE = _table()


def _room(parts: list[str]) -> str:
    """The room of a dotted name; `models` alone is the table of what ships, below it are the families, and formats.

    A file in a family's folder is a part of the model where the family's `__init__` imports it, else a format's.
    """
    folder = PACKAGE / "models" / "/".join(parts[2:3])
    if parts[1] != "models" or len(parts) < 3 or not folder.is_dir():
        return parts[1]
    if len(parts) == 3 or parts[3] == "__init__" or not (folder / f"{parts[3]}.py").is_file():
        return FAMILIES
    module = ".".join(["transformer_jax", *parts[1:4]])
    imported = {target for _, target in _imports((folder / "__init__.py").read_text(), f"{module}.__init__")}
    return FAMILIES if any(f"{name}.".startswith(f"{module}.") for name in imported) else FORMATS


def _wrong_arrows(source: str, module: str) -> list[str]:
    room = _room(module.split("."))
    allowed = TABLE[room]
    wrong = []
    for line, target in _imports(source, module):
        parts = target.split(".")
        if parts[0] in ("experiments", "tests", "tools"):
            wrong.append(f"{module}:{line} imports {target}: the package knows nothing outside itself")
        free = (room, "errors", "extras", "files", "hf", "patterns", "contracts", "__version__")
        if parts[0] != "transformer_jax" or len(parts) == 1 or _room(parts) in free:
            continue
        if _room(parts) not in allowed:
            wrong.append(
                f"{module}:{line} imports {target}: {room} may import {', '.join(sorted(allowed)) or 'no room'}"
            )
    return wrong


def test_the_table_is_read():
    assert TABLE["nn"] == {"sharding", "kernels"} and TABLE["kernels"] == {"sharding"}
    assert TABLE["data"] == {"objectives", "contracts", "words", "sound"}
    assert TABLE["losses"] == TABLE["decoding"] == {"nn", "kernels", "sharding", "words"}
    assert "experiment" in TABLE["train"] and FAMILIES not in TABLE["train"]
    assert "restore" not in TABLE["train"]
    assert "train" in TABLE["restore"]
    assert TABLE["__main__"] == set(TABLE) - {"__main__"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("transformer_jax.nn.layers", "from transformer_jax.models import gpt"),
        ("transformer_jax.nn.layers", "def f():\n    import transformer_jax.train.loop"),
        ("transformer_jax.sharding", "if True:\n    from .nn import params"),
        ("transformer_jax.kernels.cpu", "from transformer_jax.nn import layers"),
        ("transformer_jax.sharding", "from transformer_jax import kernels"),
        ("transformer_jax.models.__init__", "from ..train import step"),
        ("transformer_jax.models.__init__", "from transformer_jax.models import gpt"),
        ("transformer_jax.models.gpt.__init__", "from transformer_jax.models.gpt import llama"),
        ("transformer_jax.objectives.masking", "from transformer_jax import data"),
        ("transformer_jax.models.seq2seq.decoding", "from transformer_jax import hub"),
        ("transformer_jax.tasks.causal_lm.__init__", "from transformer_jax.models import gpt"),
        ("transformer_jax.train.loop", "import transformer_jax.models.gpt"),
        ("transformer_jax.data.text", "import importlib\nimportlib.import_module('transformer_jax.hub')"),
        ("transformer_jax.restore", "import experiments.causal_lm.stdlib"),
    ],
)
def test_a_wrong_arrow_is_seen(module, source):
    assert len(_wrong_arrows(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("transformer_jax.models.gpt.__init__", "from transformer_jax.nn import layers"),
        ("transformer_jax.models.seq2seq.decoding", "from transformer_jax.models.seq2seq import sequences"),
        ("transformer_jax.models.gpt.llama", "from transformer_jax import hub\nfrom transformer_jax.models import gpt"),
        ("transformer_jax.tasks.causal_lm.__init__", "from transformer_jax import models, losses\nmodels.family"),
        ("transformer_jax.data.text", "from transformer_jax.errors import InputError"),
    ],
)
def test_a_right_arrow_is_left_alone(module, source):
    assert _wrong_arrows(source, module) == []


def test_arrows_point_down():
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
    strangers = {_room(_name(path).split(".")) for path in modules} - set(TABLE)
    assert not strangers, f"no row in the table of docs/architecture.md: {sorted(strangers)}"
    wrong = [message for path in modules for message in _wrong_arrows(path.read_text(), _name(path))]
    assert not wrong, "\n".join(wrong)


# ---- Imports -------------------------------------------------------------------------------------------------------

PROBE = """
import sys, time
start = time.process_time()
{statement}
print(time.process_time() - start)
print(*(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("statement", "heavy", "bound"),
    [
        # Seconds of one processor, so that a busy machine does not matter; the bounds are generous for slow ones.
        ("import transformer_jax", HEAVY, 1.0),
        ("from transformer_jax.models import gpt", [name for name in HEAVY if name != "rich"], 5.0),
        (
            "import transformer_jax, pkgutil, importlib\n"
            "for found in pkgutil.walk_packages(transformer_jax.__path__, 'transformer_jax.'):\n"
            "    if not found.name.endswith('__main__'): importlib.import_module(found.name)",
            [name for name in HEAVY if name != "rich"],
            10.0,
        ),
    ],
    ids=["package", "gpt", "every_module"],
)
def test_import_is_cheap(statement, heavy, bound, capsys):
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement, heavy=heavy)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seconds, modules = done.stdout.splitlines()
    with capsys.disabled():
        print(f"\n{statement.splitlines()[-1].strip()}: {float(seconds):.2f} s of CPU")
    assert modules == "", f"{statement!r} imports {modules}; import it in the function that uses it"
    assert float(seconds) < bound


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"orbax-checkpoint": "orbax", "scikit-learn": "sklearn", "Pillow": "PIL", "Babel": "babel"}
    names["mlflow-skinny"] = "mlflow"
    extras = project["optional-dependencies"]
    declarations = project["dependencies"] + ["fsspec"]  # gcsfs is one of its
    optional = (*(extra for _, extra in EXTRAS.values()), "wandb", "mlflow", "trackio")
    declarations += [line for name in optional for line in extras[name]]
    declared = {"jaxlib"} | {  # jax brings the one jaxlib it works with
        names.get(word, word.replace("-", "_")) for word in (re.split(r"[^\w-]", line)[0] for line in declarations)
    }
    imported = {
        target.split(".")[0]
        for path in PACKAGE.rglob("*.py")
        for _, target in _imports(path.read_text(), _name(path))
        if target.split(".")[0] not in {*sys.stdlib_module_names, "compression", "transformer_jax"}  # std from 3.14
    }
    assert imported <= declared, f"imported, not declared in pyproject.toml: {sorted(imported - declared)}"


def _not_asked_for(source: str, module: str) -> list[str]:
    """Imports of optional packages that have no `extras.need` before them in the function that they stand in."""
    optional = [(line, target.partition(".")[0]) for line, target in _imports(source, module)]
    optional = [(line, name) for line, name in optional if name in EXTRAS]
    allowed: set[tuple[int, str]] = set()
    for function in _nodes(source) if optional else ():
        if isinstance(function, ast.FunctionDef):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            calls = [call for call in calls if ast.unparse(call.func) == "extras.need"]
            needs = [(call.lineno, getattr(call.args[0], "value", "")) for call in calls]
            inside = [(line, name) for line, name in optional if function.lineno < line <= (function.end_lineno or 0)]
            allowed |= {(line, name) for line, name in inside if any(n < line and m == name for n, m in needs)}
    bad = [pair for pair in optional if pair not in allowed]
    return [f"{module}:{line} imports {name} without extras.need before it" for line, name in bad]


def test_an_optional_import_without_its_extra_is_seen():
    assert len(_not_asked_for("import matplotlib", "m")) == 1
    assert len(_not_asked_for("def f():\n    from sklearn import metrics", "m")) == 1
    assert len(_not_asked_for("def f():\n    extras.need('PIL', 'x')\n    from sklearn import metrics", "m")) == 1
    assert _not_asked_for("def f():\n    extras.need('sklearn', 'x')\n    from sklearn import metrics", "m") == []


def test_every_optional_package_is_asked_for():
    found = [line for path in PACKAGE.rglob("*.py") for line in _not_asked_for(path.read_text(), _name(path))]
    assert not found, "\n".join(found)


# ---- Functions and families ----------------------------------------------------------------------------------------


def _functions(source: str) -> list[tuple[str, int]]:
    """(name, lines from `def` to the end) of every function."""
    found = [node for node in _nodes(source) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in found]


def test_no_function_is_longer_than_a_screen():
    assert _functions("def f():\n    x = 1\n\n    return x\n") == [("f", 4)]
    found = [
        f"{_name(path)}.{name} has {lines} lines"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, lines in _functions(path.read_text())
        if lines > 80
    ]
    assert not found, "\n".join(found)


FAMILY_NAMES = {path.name for path in (PACKAGE / "models").iterdir() if (path / "__init__.py").is_file()}


def _named_families(source: str, module: str) -> list[str]:
    """Where a module imports a family or reads it from `models`."""
    found = [
        f"{module}:{line} imports {target}"
        for line, target in _imports(source, module)
        if target.split(".")[:2] == ["transformer_jax", "models"] and set(target.split(".")[2:3]) & FAMILY_NAMES
    ]
    for node in _nodes(source):
        named = isinstance(node, ast.Attribute) and node.attr in FAMILY_NAMES and ast.unparse(node.value)
        if named and named.split(".")[-1] == "models":
            found.append(f"{module}:{node.lineno} names {ast.unparse(node)}")  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "from transformer_jax.models import gpt",
        "def f():\n    from transformer_jax.models.bert import Config",
        "import transformer_jax.models.vit",
        "from transformer_jax import models\nmodels.gpt.Config",
        "import transformer_jax\ntransformer_jax.models.seq2seq",
        "import importlib\nimportlib.import_module('transformer_jax.models.gpt')",
    ],
)
def test_a_family_that_is_named_is_seen(source):
    assert len(_named_families(source, "transformer_jax.train.loop")) == 1


def test_no_family_is_named_outside_its_folder():
    assert {"gpt", "bert", "seq2seq", "vit"} <= FAMILY_NAMES
    outside = [path for path in sorted(PACKAGE.rglob("*.py")) if not _room(_name(path).split(".")).startswith(FAMILIES)]
    found = [message for path in outside for message in _named_families(path.read_text(), _name(path))]
    assert not found, "\n".join(found)


# ---- Mathematics apart from compilers ------------------------------------------------------------------------------

PLATFORM = {"target_platform", "target_chip", "default_backend", "platform", "device_kind", "optimization_barrier"}
MATHEMATICS = ("nn", "models", FAMILIES, FORMATS, "losses", "sharding")


def _platforms_read(source: str, module: str) -> list[str]:
    """Where a module asks what it is compiled for, or keeps a compiler from an optimisation."""
    return [
        f"{module}:{node.lineno} reads {ast.unparse(node)}; put what depends on the platform into kernels/"
        for node in _nodes(source)
        if isinstance(node, (ast.Attribute, ast.Name))
        and (node.attr if isinstance(node, ast.Attribute) else node.id) in PLATFORM
    ]


@pytest.mark.parametrize(
    "source",
    [
        "if kernels.target_platform() == 'cpu': ...",
        "from jax import default_backend\nfast = default_backend() == 'tpu'",
        "jax.devices()[0].platform",
        "y = jax.lax.optimization_barrier(x)",
    ],
)
def test_a_platform_that_is_read_is_seen(source):
    assert _platforms_read(source, "transformer_jax.nn.layers")


def test_the_mathematics_reads_no_platform():
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem in MATHEMATICS]
    paths = [path for path in paths if _room(_name(path).split(".")) in MATHEMATICS]
    assert len(paths) > 20
    found = [message for path in paths for message in _platforms_read(path.read_text(), _name(path))]
    assert not found, "\n".join(found)


# ---- Safety and order ----------------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def _unsafe(source: str, module: str) -> list[str]:
    found = [
        f"{module}:{line} {name}" for line, name in _imports(source, module) if name.split(".")[0] in UNSAFE_MODULES
    ]
    for node in _nodes(source):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "builtins.eval", "builtins.exec"):
                found.append(f"{module}:{node.lineno} {name}()")
            for word in node.keywords:
                if word.arg == "allow_pickle" and ast.unparse(word.value) != "False":
                    found.append(f"{module}:{node.lineno} allow_pickle={ast.unparse(word.value)}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n  from pickle import loads",
        "eval('1')",
        "exec(text)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_an_unsafe_load_is_seen(source):
    assert len(_unsafe(source, "m")) == 1


def test_nothing_unsafe():
    found = [message for path in SOURCES for message in _unsafe(path.read_text(), _name(path))]
    assert not found, "\n".join(found)


def test_no_drawer_for_everything():
    drawers = {"utils", "util", "common", "base", "helpers", "helper", "misc", "shared"}
    python = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in python if drawers & set(_name(path).lower().split("."))]
    assert not found, f"name the file by its subject: {found}"


def test_nothing_left_open():
    words = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b")
    texts = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:100]}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_numeric_rooms_are_there():
    """`tools/test --isa` names folders and files, and these move."""
    found = re.search(r"^numeric=\((.*?)\)$", (ROOT / "tools" / "test").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    done = subprocess.run(
        ["bash", "-c", f"ls -d {' '.join(found[1].split())}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and len(done.stdout.split()) > 8, done.stderr


def _tools_named(text: str) -> set[str]:
    """The paths below tools/ that a text names as a file or as a module; no words of a pattern such as tools/make_*."""
    files = re.findall(r"\btools/[\w/]*\w(?:\.\w+)?(?![\w*{])", text)
    modules = re.findall(r"(?<![\w.])tools(?:\.[a-z]\w*)+(?![\w*])", text)
    return {*files, *(name for name in modules if not name.endswith((".py", ".md")))}


def test_every_tool_that_a_text_names_is_there():
    def there(name: str) -> bool:
        if "/" in name:
            return (ROOT / name).exists()
        return any((ROOT / f"{'/'.join(name.split('.')[:n])}").with_suffix(".py").exists() for n in (2, 3)) or (
            (ROOT / "tools" / name.split(".")[1]).is_dir() and len(name.split(".")) == 2
        )

    assert _tools_named("`tools/run tools.bench.step` of tools/test.") == {
        "tools/run",
        "tools.bench.step",
        "tools/test",
    }
    texts = [*SOURCES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("tools/*")]
    found = [
        f"{path.relative_to(ROOT)} names {name}"
        for path in texts
        if path.is_file()
        for name in sorted(_tools_named(path.read_text(encoding="utf-8")))
        if not there(name)
    ]
    assert not found, "\n".join(found)
