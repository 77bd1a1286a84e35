"""What a user's file may be, and how it is refused: nothing here trains."""

import dataclasses
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import transformer_jax
from transformer_jax import brought, config_json, contracts, models, overrides
from transformer_jax.cli import process
from transformer_jax.cli.main import main
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.runs import workdir as workdirs
from transformer_jax.tasks.causal_lm import CausalLM
from transformer_jax.tasks.masked_lm import MaskedLM
from transformer_jax.train import batch, checks

OWN = (Path(__file__).resolve().parents[1] / "examples" / "own_model.py").read_text(encoding="utf-8")
NOT_A_SET: Any = [1]
IMPORTS = "from {} import experiment as whole\n\ndef experiment():\n    return whole()\n"


@pytest.fixture(autouse=True)
def loaded():
    """What a test imports is forgotten after it."""
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        if not name.startswith(("transformer_jax", "jax", "optax", "tyro")):
            del sys.modules[name]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def made(file: str, *arguments: str) -> Experiment:
    recipe = process.variants(brought.read(file)[0])["experiment"]
    return overrides.override(process.made(recipe, file), list(arguments), description="", program="train")


# ---- files


@pytest.mark.parametrize("first", ["mine", "user"])
def test_a_file_is_read_once_whatever_asks_for_it(first, tmp_path):
    files = {"mine": write(tmp_path / "mine.py", OWN), "user": write(tmp_path / "user.py", IMPORTS.format("mine"))}
    order = [first, *(files.keys() - {first})]
    modules = {name: brought.read(files[name])[0] for name in order}
    types_by_name = brought.types_of(list(modules.values()))
    assert types_by_name["mine.py:Config"] is modules["mine"].Config is type(made(files["user"]).model)


@pytest.mark.parametrize("file", ["parts/__init__.py", "parts/more.py", "own.py"])
def test_the_same_name_in_another_folder_is_refused(file, tmp_path):
    """Python would take the module that was loaded first, and train its model."""
    name = {"parts/__init__.py": "parts", "parts/more.py": "parts.more", "own.py": "own"}[file]
    for folder in ("a", "b"):
        write(tmp_path / folder / file, OWN)
        write(tmp_path / folder / "start.py", IMPORTS.format(name))
    made(str(tmp_path / "a/start.py"))
    with pytest.raises(InputError, match=rf"{name.partition('.')[0]}, but .*/a/{file} was imported"):
        made(str(tmp_path / "b/start.py"))


def test_types_and_text_of_a_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "mine/__init__.py", "from mine.deep.own import experiment as _; from mine.top import experiment\n")
    write(tmp_path / "mine/top.py", OWN.replace("class Bell", "class Chime").replace("Bell()", "Chime()"))
    write(tmp_path / "mine/deep/own.py", OWN)
    module, _ = brought.read("mine")
    assert {"own.py:Config", "top.py:Config"} <= brought.types_of(module).keys()
    assert brought.code_of(module.experiment()).keys() == {"mine/__init__.py", "top.py", "own.py"}
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole/__init__.py", OWN)
    assert brought.name_of(brought.read("whole")[0].Config) == "whole/__init__.py:Config"
    assert models.name(brought.read("whole")[0].Config()) == "whole"


def test_a_source_in_its_own_encoding_is_kept(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + OWN.encode())
    assert "# café" in brought.code_of(made(str(tmp_path / "latin.py")))["latin.py"]


def test_a_notebook_has_no_file():
    notebook = types.ModuleType("notebook")
    sys.modules["notebook"] = notebook
    exec(OWN, vars(notebook))
    experiment = vars(notebook)["experiment"]()
    config_json.refuse_unreadable(experiment)
    assert models.name(experiment.model) == "notebook" and brought.code_of(experiment) == {}
    with pytest.raises(InputError, match=r"'__main__:Config' was defined in a notebook.*types=\["):
        config_json.from_json(config_json.to_json(experiment))


FILES = {
    "x = = 3": r"bad.py, line 1, 'x = = 3': invalid syntax",
    "import sys; sys.exit('bye')": r"bad.py calls sys.exit while it is read",
    "import sys; sys.exit()": r"bad.py calls sys.exit while it is read",
    "def experiment(): pass": r"returned a NoneType; it must return an Experiment",
    "def experiment(width): pass": r"needs width; it must make an Experiment without arguments",
    "experiment = 3": r"has no variant 'experiment'",
}


@pytest.mark.parametrize("text", FILES)
def test_what_is_wrong_with_a_file_is_one_line(text, tmp_path, capsys):
    file = write(tmp_path / "bad.py", text + "\n")
    assert main(["train", file]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert FILES[text].replace("\\", "") in line


def test_what_a_file_raises_keeps_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "run", "--with", write(tmp_path / "raises.py", "1 / 0\n")])


@pytest.mark.parametrize("command", ["evaluate", "predict", "inspect"])
@pytest.mark.parametrize("target", ["./mine", "..mine", "mine.txt", "no.such.module"])
def test_with_may_stand_first_and_names_what_is_wrong(command, target, capsys):
    assert main([command, "--with", target, "run"]) == 2
    assert f"no recipe and no module '{target}' here" in capsys.readouterr().err


# ---- fields

PARTS = """
@dataclass(frozen=True)
class Gate:
    size: int = 3


@dataclass(frozen=True)
class Need:
    size: int


class Kind(enum.Enum):
    A = 1


"""


def with_field(folder: Path, line: str, value: str = "Config()", future: bool = False) -> str:
    text = OWN.replace(
        "    width: int = 32\n", f"    {line}\n    width: int = 32\n" if line else "    width: int = 32\n"
    )
    text = text.replace('"model": Config()', f'"model": {value}').replace("import csv\n", "import csv, enum\n")
    text = text.replace("import dataclass\n", "import dataclass, field\n")
    text = text.replace("@dataclass(frozen=True)\nclass Config", f"{PARTS}@dataclass(frozen=True)\nclass Config")
    return write(folder / "mine.py", ("from __future__ import annotations\n" if future else "") + text)


@pytest.mark.parametrize("future", [False, True])
@pytest.mark.parametrize(
    ("line", "value", "arguments", "given"),
    [
        ("gate: Gate = Gate()", "Config()", ["--model.gate.size", "5"], "gate.size"),
        ("gate: Need", "Config(Need(3))", ["--model.gate.size", "5"], "gate.size"),
        ("gate: Gate | None = None", "Config(Gate())", ["--model.gate.size", "5"], "gate.size"),
        ("gate: Any = Gate()", "Config()", ["--model.gate.size", "5"], "gate.size"),
        ("size: float | None = None", "Config()", ["--model.size", "5"], "size"),
        ("size: int = field(default=2, metadata=contracts.LAUNCH)", "Config()", ["--model.size", "5"], "size"),
        ("size: int = 5; q: Gate = field(init=False, default=Gate(9))", "Config()", ["--model.width", "8"], "size"),
    ],
)
def test_fields_of_a_users_dataclass(future, line, value, arguments, given, tmp_path):
    experiment = made(with_field(tmp_path, line, value, future), *arguments)
    part = experiment.model
    for name in given.split("."):
        part = getattr(part, name)
    config_json.refuse_unreadable(experiment)
    assert part == 5


def test_a_tuple_of_a_users_dataclasses(tmp_path):
    file = with_field(tmp_path, "gates: tuple[Gate, ...] = (Gate(), Gate(2)); rest: tuple = (1, (2, 3))")
    experiment = made(file, "--model.gates.0.size", "5")
    config_json.refuse_unreadable(experiment)
    assert [gate.size for gate in experiment.model.gates] == [5, 2] and experiment.model.rest == (1, (2, 3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "kind: Kind = Kind.A",
            "model.kind is a Kind, which a config.json cannot hold; .*a Literal in place of an enum",
        ),
        ("dtype: Any = jnp.float32", "model.dtype is a _ScalarMeta, which a config.json cannot hold"),
        ("act: Any = jnp.tanh", "model.act is a .*, which a config.json cannot hold"),
        ("size: int = 0.5", "model.size: 0.5 is not int"),
        ("type: str = 'x'", "model has a field called type"),
    ],
)
def test_a_field_that_a_resume_could_not_read_is_refused_before_anything_is_done(line, message, tmp_path):
    with pytest.raises(InputError, match=message):
        config_json.refuse_unreadable(made(with_field(tmp_path, line)))


def test_every_recipe_can_be_read_back():
    for file in sorted((Path(__file__).resolve().parents[1] / "experiments").rglob("*.py")):
        for recipe in process.variants(brought.read(str(file))[0]).values() if file.name != "__init__.py" else ():
            config_json.refuse_unreadable(recipe())


def test_what_a_users_dataclass_raises_is_one_line(tmp_path):
    file = with_field(tmp_path, "size: int = 1")
    text = (
        Path(file)
        .read_text()
        .replace(
            "\ndef declare",
            "\n    def __post_init__(self):\n        assert self.size < 2, 'too large'\n\n\ndef declare",
        )
    )
    write(Path(file), text)
    experiment = made(file)
    tree = config_json.to_json(experiment)
    tree["model"]["size"] = 2
    with pytest.raises(InputError, match=r"x.model: mine.py:Config refuses .*AssertionError: too large"):
        config_json.from_json(tree, where="x", types=type(experiment.model))


# ---- a config.json that is not to be trusted


def test_nothing_is_imported_for_a_name(tmp_path):
    tree = config_json.to_json(made(write(tmp_path / "mine.py", OWN)))
    names = ["os.system", "experiment.__class__", "gpt.jax", "contracts.json", "models.gpt:Config", "../../x.py:Config"]
    names += ["/etc/passwd:Config", "a\nb\x1b.py:Config", ":", "", "x" * 9000 + ".py:C", 5, None, ["gpt.Config"], {}]
    before = set(sys.modules)
    for name in names:
        for part in ("model", "data", "task", "optim", "sample"):
            broken = json.loads(json.dumps(tree))
            broken[part] = {"type": name}
            with pytest.raises(InputError) as caught:
                config_json.from_json(broken)
            assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    assert all(name.startswith("transformer_jax") for name in set(sys.modules) - before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observers": [{"type": "contracts.Predict"}]}, "observers: experiment.Experiment has no such field"),
        ({"model": {"type": "optim.AdamW"}}, "model is a AdamW.*no function declare"),
        ({"task": {"type": "optim.AdamW"}}, "optim.AdamW has no example"),
        ({"task": {"type": "causal_lm.CausalLM"}, "sample": None}, "task CausalLM needs a model with hidden"),
        ({"sample": {"type": "causal_lm.CausalLM"}}, "sample is a CausalLM, but NextValue needs a Predict"),
        ({"train": {"type": "experiment.Train", "spike": 10**400}}, "train.spike: 1000.* is not float"),
    ],
)
def test_a_part_in_anothers_place(changes, message, tmp_path):
    module, _ = brought.read(write(tmp_path / "mine.py", OWN))
    with pytest.raises(InputError, match=message):
        config_json.from_json(config_json.to_json(module.experiment()) | changes, types=module)


@pytest.mark.parametrize("given", ["mine.py", Path("mine.py"), int, None])
def test_types_are_no_names(given):
    with pytest.raises(InputError, match=r"types has .*; give a module, a dataclass, or a list of these"):
        transformer_jax.load(os.curdir, types=given) if given == 0 else brought.types_of(given)


def test_a_part_that_the_file_no_longer_has_in_its_experiment(tmp_path):
    """The run's optimiser is of a file whose other parts are gone from the experiment: the difference is named."""
    module, _ = brought.read(write(tmp_path / "mine.py", OWN))
    ours = Experiment(
        models.gpt.Config(vocab_size=257, max_length=64), transformer_jax.data.corpus.TextCorpus(length=8)
    )
    (tmp_path / "run/checkpoints/1").mkdir(parents=True)
    config_json.save(dataclasses.replace(ours, optim=module.AdaBelief()), tmp_path / "run/config.json")
    with pytest.raises(InputError, match=r"holds another experiment: optim is mine.py:AdaBelief there and optim.AdamW"):
        workdirs.check(tmp_path / "run", ours, types=module)


# ---- contracts


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("NextValue(contracts.Task)", "NextValue", "task is a NextValue, which has no .*; inherit contracts.Task"),
        ("(Bell(),)", "(Bell,)", r"the class Bell; give a value of it: Bell\(\)"),
        ("(Bell(),)", "Bell()", r"observers is a Bell; give a tuple"),
        ("def evaluation(", "def evaluated(", "has a Bell, which has none of the methods of contracts.Observer"),
    ],
)
def test_a_part_without_what_its_contract_says(old, new, message, tmp_path):
    assert old in OWN
    with pytest.raises(InputError, match=message):
        made(write(tmp_path / "mine.py", OWN.replace(old, new)))


def test_observers_may_be_a_list(tmp_path):
    assert isinstance(made(write(tmp_path / "mine.py", OWN.replace("(Bell(),)", "[Bell()]"))).observers, tuple)


def test_another_task_in_an_experiment_needs_its_own_sample():
    experiment = Experiment(
        models.gpt.Config(vocab_size=257, max_length=64), transformer_jax.data.corpus.TextCorpus(length=8)
    )
    assert experiment.task == CausalLM()
    with pytest.raises(InputError, match="sample is a Sample, but MaskedLM needs a Predict; give sample=None"):
        dataclasses.replace(experiment, task=MaskedLM())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned a NoneType; it must return contracts.Prepared"),
        (contracts.Prepared([1], NOT_A_SET), "returned a list as validation; it must be contracts.Evaluation"),
        (contracts.Prepared([1], contracts.Evaluation([])), "a validation set without examples"),
    ],
)
def test_what_a_task_prepares(returned, message):
    with pytest.raises(InputError, match=message):
        checks.check_prepared(CausalLM(), returned)


@pytest.mark.parametrize("returned", [3, ({}, 3), ({"loss": 3}, {}), ({"loss": (np.ones(2), 1)}, {})])
def test_what_a_task_evaluates(returned):
    with pytest.raises(InputError, match=r"CausalLM.evaluate returned .*\(\{name: \(sum, weight\)\} of scalars"):
        checks.check_evaluate(CausalLM(), jax.tree.map(np.asarray, returned))
    checks.check_evaluate(CausalLM(), ({"loss": (np.ones(()), np.ones(()))}, {"labels": np.ones(2)}))


def test_an_example_has_weights():
    mesh = transformer_jax.sharding.make_mesh()
    with pytest.raises(InputError, match="the task's example has values, but no 'weights'"):
        batch.shardings({"values": jax.ShapeDtypeStruct((3,), np.float32)}, 8, mesh)
