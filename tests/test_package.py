"""What `pip install` brings: the console script, the recipes inside the package, nothing else at top level."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import transformer_jax
from transformer_jax import brought, extras, shipped
from transformer_jax.__main__ import main
from transformer_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def test_recipes_lists_every_file_with_its_first_line(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = [path for path in (ROOT / "experiments").glob("*/*.py") if path.stem != "__init__"]
    listed = [line.split("  ", 1) for line in lines if "." in line.split("  ")[0]]
    assert len(files) > 20 and len(lines) == len(files) + 2
    assert [name for name, _ in listed[: len(files)]] == sorted(f"{p.parent.name}.{p.stem}" for p in files)
    assert [part.strip()[:34] for part in next(x for x in listed if x[0] == "vit.digits")] == [
        "vit.digits",
        "Handwritten digits of 8 x 8 pixels",
    ]


def test_a_copy_is_one_to_edit_and_to_train(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "vit.digits", "mine.py"]) == 0
    assert "transformer-jax train mine.py" in capsys.readouterr().out
    assert Path("mine.py").read_text() == (ROOT / "experiments/vit/digits.py").read_text()
    assert brought.read("mine.py")[0].experiment() == brought.read("vit.digits")[0].experiment()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["copy", "vit.digit", "mine.py"], "no recipe 'vit.digit'; the nearest is vit.digits"),
        (["copy", "vit.digits", "there.py"], "there.py exists"),
        (["copy", "vit.digits", "mine.txt"], "mine.txt does not end in .py"),
        (["copy", "vit.digits", "nowhere/mine.py"], "there is no folder nowhere"),
        (["copy", "vit.digits"], "an argument is missing"),
        (["take", "vit.digits", "mine.py"], "the only action is copy"),
    ],
)
def test_bad_copies_are_refused(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.py").write_text("mine")
    assert main(["recipes", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, name = brought.read("causal_lm.stdlib")
    assert (module.__name__, name) == ("experiments.causal_lm.stdlib", "causal_lm-stdlib")
    with pytest.raises(
        InputError, match=r"no recipe and no module 'causal_lm.stdlb' here; the nearest is causal_lm.st"
    ):
        brought.read("causal_lm.stdlb")


INSTALLED = """
import re
import subprocess
import sys
import tomllib
import transformer_jax
from transformer_jax import brought, extras, shipped
from transformer_jax.cli import process
assert "experiments" not in sys.modules
for name in shipped.names():
    module, _ = brought.read(name)
    assert module.__name__ == f"transformer_jax.recipes.{name}", module
    assert "tools/run" not in module.__doc__ and "experiments." not in module.__doc__, module.__doc__
    for variant, recipe in process.variants(module).items():
        process.made(recipe, name)
print(len(shipped.names()))
"""


def test_the_wheel(tmp_path):
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} cannot build this project: 77 or newer is needed")
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    tree = tmp_path / "tree"  # a build leaves folders behind
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "transformer_jax", "experiments"):
        (tree / name).symlink_to(ROOT / name)
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"transformer_jax"}
    assert {
        f"transformer_jax/recipes/{path.relative_to(ROOT / 'experiments')}" for path in ROOT.glob("experiments/**/*.py")
    } <= set(names)
    (script,) = importlib.metadata.Distribution.at(next((tmp_path / "site").glob("*.dist-info"))).entry_points
    assert (script.name, script.value) == ("transformer-jax", "transformer_jax.cli.main:console")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == len(shipped.names())


# ---- The core, without any extra


OWN = """
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.experiment import Experiment, Sample, Train
from transformer_jax.models import gpt


def experiment():
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=1, num_heads=2),
        data=TextCorpus(TextFiles((__file__,)), Bytes(), length=16),
        train=Train(steps=2, batch_size=8),
        sample=Sample(prompt="a ", max_new_tokens=8),
    )
"""
CORE = """
import importlib, pkgutil, sys
from pathlib import Path
import transformer_jax
from transformer_jax import extras
from transformer_jax.__main__ import main
for found in pkgutil.walk_packages(transformer_jax.__path__, "transformer_jax."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in extras.EXTRAS:
    assert importlib.util.find_spec(name) is None, name
Path("mine.py").write_text(OWN)
assert main(["train", "mine.py", "--workdir", "a"]) == 0
assert main(["predict", "a", "a rose"]) == 0
assert main(["inspect", "a"]) == 0
for recipe in ("vit.digits", "translation.cldr", "vit.cifar10"):
    assert main(["train", recipe, "--workdir", "b"]) == 2
assert sorted(path.name for path in Path().iterdir()) == ["a", "mine.py"], "something was written"
"""


def test_the_core_works_without_the_extras(tmp_path):
    """In an environment that has all packages but the optional ones."""
    site, run = tmp_path / "site", tmp_path / "run"
    site.mkdir()
    run.mkdir()
    for folder in filter(os.path.isdir, map(Path, dict.fromkeys(sys.path))):
        if folder.name == "site-packages":
            for path in folder.iterdir():
                if path.name.removesuffix(".py") not in extras.EXTRAS and not (site / path.name).exists():
                    (site / path.name).symlink_to(path)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-S", "-c", CORE.replace("OWN", repr(OWN))]
    done = subprocess.run(command, cwd=run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [line.rpartition("; ")[2] for line in errors] == [
        f"pip install 'transformer-jax[{extra}]'" for extra in ("vision", "metrics", "data")
    ]
    skipped = [line for line in done.stdout.splitlines() if "not written: " in line]
    assert len(skipped) == 2 and "[logging]" in skipped[0] and "[plots]" in skipped[1], skipped


def test_the_workflows_and_the_citation_agree_with_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ci = (ROOT / ".github/workflows/ci.yml").read_text()
    lowest = project["requires-python"].removeprefix(">=")
    assert f'python: ["{lowest}", ' in ci and ".ci/run" in ci
    assert f"version: {transformer_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    ruff = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ruff and f"rev: v{ruff[1]} " in (ROOT / ".pre-commit-config.yaml").read_text()
    for name in ("flax", "optax", "orbax-checkpoint", "grain"):
        (line,) = [line for line in project["dependencies"] if re.split(r"[^\w-]", line)[0] == name]
        assert "<" in line, f"{name} has no upper bound"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["tr"], ["train"]),
        (["train", "causal_lm.s"], ["causal_lm.shakespeare_char", "causal_lm.stdlib"]),
        (["recipes", "copy", "vit.d"], ["vit.digits"]),
        (["launch", "tpu"], ["tpu-vm"]),
        (["train", "mine.py", "--train.st"], ["--train.steps"]),
    ],
)
def test_the_shell_completes(words, completed, capsys, tmp_path):
    assert main(["completion", "flags", "causal_lm.stdlib"]) == 0
    flags = capsys.readouterr().out
    assert main(["completion", "bash"]) == 0
    (tmp_path / "transformer-jax").write_text(f"#!/bin/bash\nprintf '%s\\n' {' '.join(flags.split())}\n")
    (tmp_path / "transformer-jax").chmod(0o755)
    asked = f"COMP_WORDS=(transformer-jax {' '.join(words)}) COMP_CWORD={len(words)}\n_transformer_jax\n"
    script = capsys.readouterr().out + asked + 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == completed, done.stderr
