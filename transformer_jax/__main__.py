"""The command line: `python -m transformer_jax train | evaluate | predict | inspect | convert | doctor`.

Each command is one function below; what it does is in the package. Bad input is one line on stderr and exit code 2,
a run ended by Ctrl-C or SIGTERM exits with 130 or 143 after its state is saved.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import shlex
import sys
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from transformer_jax import experiment as experiments
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment

USAGE = """usage: python -m transformer_jax COMMAND ...

  train EXPERIMENT [--workdir DIR] [--FIELD VALUE ...]   train, or go on; EXPERIMENT is a module or a file
  evaluate WORKDIR [--FIELD VALUE ...]                   the validation numbers of the newest checkpoint
  predict WORKDIR [PROMPT] [--FIELD VALUE ...]           text from the model, as it is made
  inspect PATH                                           what a workdir, step or Hugging Face folder holds
  convert hf SRC DST                                     Hugging Face folder -> workdir, or the other way round
  doctor                                                 versions, devices, known-bad pairs, a short smoke step

  python -m transformer_jax train experiments.causal_lm.stdlib --workdir runs/a --train.steps 200
  python -m transformer_jax predict runs/a "def add("

COMMAND --help says more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train, "evaluate": evaluate, "predict": predict, "inspect": inspect, "convert": convert, "doctor": doctor,
    }  # fmt: skip
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise InputError(f"unknown command {arguments[0]!r}; the commands are {', '.join(commands)}")
        return commands[arguments[0]](arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before the first step; there was nothing new to save", file=sys.stderr)
        return 130
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


# ---------------------------------------------------------------------------------------------------------------- train


def train(arguments: list[str]) -> int:
    """train EXPERIMENT [VARIANT] [--workdir DIR] [--profile A:B] [--FIELD VALUE ...]"""
    if not arguments or arguments[0].startswith("-"):
        print(
            "usage: python -m transformer_jax train EXPERIMENT [VARIANT] [--workdir DIR] [--FIELD VALUE ...]\n\n"
            "EXPERIMENT is a module or a Python file with a function `experiment() -> Experiment`; VARIANT names another\n"
            "such function in it. `train EXPERIMENT --help` lists every field with its meaning, unit and default.\n\n"
            "  python -m transformer_jax train experiments.causal_lm.stdlib --workdir runs/a --optim.peak-lr 3e-4\n"
            "  python -m transformer_jax train path/to/mine.py --train.steps 500\n\n"
            "A workdir that holds a checkpoint goes on from it; to go on after the end, give more --train.steps."
        )
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    module, name = import_experiment(arguments[0])
    recipes = variants(module)
    rest = arguments[1:]
    chosen = rest.pop(0) if rest and not rest[0].startswith("-") else "experiment"
    if chosen not in recipes:
        raise InputError(f"{arguments[0]} has no variant {chosen!r}; it has {', '.join(recipes) or 'no experiment()'}")
    default_workdir = str(Path("runs") / (name if chosen == "experiment" else f"{name}-{chosen}"))
    launch = parse_launch(recipes[chosen](), default_workdir, rest, module.__doc__ or "", f"train {arguments[0]}")

    use_cpu_cores(launch.experiment)
    keep_compilations()
    from transformer_jax import restore
    from transformer_jax.train import loop

    results = loop.run(launch.experiment, launch.workdir, load=restore.load, profile=parse_profile(launch.profile))
    if results.signal:
        again = ["python", "-m", "transformer_jax", "train", *arguments]
        print(f"to go on: {shlex.join(again)}", flush=True)
        return 128 + results.signal
    return 0


def import_experiment(target: str) -> tuple[ModuleType, str]:
    """The module that `a.b.c` or `path/to/c.py` names, and a short name for its runs, such as "b-c"."""
    if target.endswith(".py"):
        path = Path(target).resolve()
        if not path.is_file():
            raise InputError(f"no such experiment file: {target}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module, f"{path.parent.name}-{path.stem}"
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{target}.".startswith(f"{error.name}."):
            raise  # the experiment was found; something that it imports was not
        raise InputError(
            f"no experiment module {target!r} here; give a module such as experiments.causal_lm.stdlib, run from the "
            "checkout's folder, or the path of a file that ends in .py"
        ) from None
    return module, "-".join(target.split(".")[-2:])


def variants(module: ModuleType) -> dict[str, Callable[[], Experiment]]:
    """The module's public functions that are annotated to return an Experiment."""
    found = {}
    for name, value in vars(module).items():
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
            if typing.get_type_hints(value).get("return") is Experiment:
                found[name] = value
    return found


def parse_launch(default: Experiment, workdir: str, arguments: list[str], description: str, program: str) -> Any:
    """The experiment with its overrides, and what belongs to this launch alone: `.experiment .workdir .profile`."""
    import tyro

    default_workdir = workdir

    @dataclass(frozen=True)
    class Launch:
        workdir: str = default_workdir
        """Folder of the run; one that holds a checkpoint goes on from it."""
        profile: str = ""
        """FIRST:LAST, steps whose trace is written to WORKDIR/profile, such as 10:15."""
        experiment: typing.Annotated[Experiment, tyro.conf.arg(name="")] = field(
            default_factory=lambda: default, metadata={"flat": True}
        )

    return experiments.override(
        Launch(), arguments, description=description, program=f"python -m transformer_jax {program}"
    )


def parse_profile(text: str) -> tuple[int, int] | None:
    """"10:15" -> (10, 15)."""
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError(f"--profile {text!r} is not FIRST:LAST with 1 <= FIRST <= LAST, such as 10:15")
    return int(first), int(last)


def use_cpu_cores(experiment: Experiment) -> None:
    """Makes one CPU device of each core that the batch divides over, before JAX starts, unless someone has said otherwise.

    One device per core is faster than one device with all cores (docs/performance.md).
    """
    said = {"JAX_NUM_CPU_DEVICES", "XLA_FLAGS"} & os.environ.keys() or jax.config.jax_num_cpu_devices >= 0
    if said:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    sizes = dataclasses.astuple(experiment.mesh)
    fixed = 1
    for size in sizes:
        fixed *= max(size, 1)
    train, rows = experiment.train, experiment.train.batch_size // experiment.train.accumulate
    rows_evaluated = experiment.evaluate.batch_size or rows
    wanted = [fixed] if -1 not in sizes else [n for n in range(cores, 0, -1) if n % fixed == 0]
    for n in wanted:
        shares = n // (experiment.mesh.tensor * experiment.mesh.sequence)
        if n == fixed or (train.batch_size % (shares * train.accumulate) == 0 and rows_evaluated % shares == 0):
            jax.config.update("jax_num_cpu_devices", n)
            return


def keep_compilations() -> None:
    """Compiled programs are kept between runs, per jaxlib version, where only this user can write them."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    import jaxlib

    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "transformer_jax"
    folder = Path(os.environ.get("TRANSFORMER_JAX_CACHE") or user) / "compilations" / jaxlib.__version__
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError:
        return  # a read-only home compiles anew each time
    jax.config.update("jax_compilation_cache_dir", str(folder))


# ------------------------------------------------------------------------------------------- evaluate, predict, inspect


def evaluate(arguments: list[str]) -> int:
    """evaluate WORKDIR [--FIELD VALUE ...]"""
    workdir, rest = positional(arguments, 1, (
        "usage: python -m transformer_jax evaluate WORKDIR [--FIELD VALUE ...]\n\n"
        "Restores the newest checkpoint, evaluates the whole validation set, prints the numbers and stores them in\n"
        "WORKDIR/evaluation.json. Fields of the run's experiment can be overridden, such as other text or a larger batch:\n\n"
        "  python -m transformer_jax evaluate runs/a\n"
        "  python -m transformer_jax evaluate runs/a --evaluate.batch-size 64"
    ))  # fmt: skip
    folder = Path(workdir)
    stored = experiments.load(folder / "config.json")
    experiment = experiments.override(stored, rest, description="", program="python -m transformer_jax evaluate WORKDIR")
    use_cpu_cores(experiment)
    keep_compilations()
    from transformer_jax import restore, sharding
    from transformer_jax.train import evaluate as evaluation
    from transformer_jax.train import loop, observe

    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    loaded = restore.load(folder, sharding=mesh)
    prepared = experiment.task.prepare(
        experiment.data, loaded.config, seed=experiment.seed, workdir_tokenizer=loaded.tokenizer
    )
    size = experiment.evaluate.batch_size or experiment.train.batch_size // experiment.train.accumulate
    places = loop.batch_shardings(prepared.validation[0], size, mesh)
    step = evaluation.make_eval_step(lambda p, b, key: experiment.task.loss(p, loaded.config, b, key=key))
    with jax.set_mesh(mesh):
        sums = evaluation.evaluate(step, loaded.params, prepared.validation, size, lambda b: loop.place(b, places))
    report = experiment.task.report(sums, prepared)
    print(f"step {loaded.step}: {observe.describe(report)}")
    loop.write_json(folder / "evaluation.json", {"step": loaded.step, "report": report, "overrides": rest})
    return 0


def predict(arguments: list[str]) -> int:
    """predict WORKDIR [PROMPT] [--FIELD VALUE ...]"""
    path, rest = positional(arguments, 1, (
        "usage: python -m transformer_jax predict WORKDIR [PROMPT] [--tokens N] [--temperature X] [--seed N] [...]\n\n"
        "Prints PROMPT's continuation as it is made; without PROMPT, or with -, the prompt is read from stdin. WORKDIR may\n"
        "be a run, one of its checkpoints or a Hugging Face folder. A prompt and its new tokens that are longer than the\n"
        "model's context are not possible: the prompt's beginning is left out, and a line on stderr says how much.\n"
        "The fields are those of the experiment's `sample`, whose values are the defaults:\n\n"
        "  " + "  ".join(f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(experiments.Sample)) + "  --seed\n\n"
        '  python -m transformer_jax predict runs/a "def add(" --temperature 0.5\n'
        "  python -m transformer_jax predict runs/a < prompt.txt"
    ))  # fmt: skip
    prompt = rest.pop(0) if rest and not rest[0].startswith("--") else "-"
    config = Path(path) / "config.json"
    stored = experiments.load(config) if is_run(config) else None

    @dataclass(frozen=True)
    class Options(experiments.Sample):
        seed: int = 0
        """Another seed gives another text."""

    options = experiments.override(
        Options(**dataclasses.asdict(stored.sample if stored else experiments.Sample())),
        rest, description="Continue a prompt.", program="python -m transformer_jax predict WORKDIR PROMPT",
    )  # fmt: skip
    keep_compilations()
    from transformer_jax import restore

    loaded = restore.load(path)
    if loaded.tokenizer is None:
        raise InputError(f"{path} has no tokenizer, so a text prompt means nothing to it; add its tokenizer.json")
    text = sys.stdin.read() if prompt == "-" else prompt
    sample = experiments.Sample(**{f.name: getattr(options, f.name) for f in dataclasses.fields(experiments.Sample)})
    sample = dataclasses.replace(sample, prompt=text)
    for piece in loaded.task.sample(loaded.params, loaded.config, loaded.tokenizer, sample, seed=options.seed):
        print(piece, end="", flush=True)
    print()
    return 0


def inspect(arguments: list[str]) -> int:
    """inspect PATH"""
    path, _ = positional(arguments, 1, (
        "usage: python -m transformer_jax inspect PATH\n\n"
        "PATH is a workdir, one step of it, or a Hugging Face folder. Prints the config, every parameter with its shape,\n"
        "the count, the steps that are there, and reads the parameters once to say whether they are all there:\n\n"
        "  python -m transformer_jax inspect runs/a"
    ), exactly=True)  # fmt: skip
    from transformer_jax import restore
    from transformer_jax.nn import params as params_lib
    from transformer_jax.train import checkpoint

    began = time.perf_counter()
    loaded = restore.load(path)
    seconds = time.perf_counter() - began
    config = Path(path) / "config.json"
    tree = experiments.to_json(experiments.load(config) if is_run(config) else loaded.config)
    print(json.dumps(tree, indent=2))
    for name, leaf in params_lib.flatten(loaded.params).items():
        print(f"{name:50} {str(leaf.dtype):8} {list(leaf.shape)}")
    declaration = loaded.family.declare(loaded.config)
    print(f"{params_lib.count(declaration):,} parameters; read {loaded.bytes_read:,} bytes in {seconds:.2f} s, all there")
    print(f"tokenizer: {'none' if loaded.tokenizer is None else f'{loaded.tokenizer.vocab_size:,} ids'}")
    if loaded.step is not None:
        steps = checkpoint.steps(Path(path) / "checkpoints")
        print(f"step {loaded.step:,}" + (f"; steps in the folder: {', '.join(map(str, steps))}" if steps else ""))
    return 0


def is_run(config: Path) -> bool:
    """Whether a config.json is a run's, and not a Hugging Face folder's."""
    from transformer_jax import hub

    return config.exists() and not hub.is_snapshot(config.parent)


# ---------------------------------------------------------------------------------------------------- convert, doctor


def convert(arguments: list[str]) -> int:
    """convert hf SRC DST"""
    kind, source, target, _ = positional(arguments, 3, (
        "usage: python -m transformer_jax convert hf SRC DST\n\n"
        "A Hugging Face snapshot folder SRC becomes a workdir DST; a workdir or step SRC becomes a snapshot folder DST.\n"
        "Neither torch nor Transformers is needed. DST must not exist:\n\n"
        "  python -m transformer_jax convert hf downloads/gpt2 runs/gpt2\n"
        "  python -m transformer_jax convert hf runs/a exported"
    ), exactly=True)  # fmt: skip
    if kind != "hf":
        raise InputError(f"convert {kind!r}: the one kind is hf (Hugging Face snapshot folders)")
    folder = Path(target)
    if folder.exists():
        raise InputError(f"{target} exists; nothing is overwritten, so name another folder")
    from transformer_jax import hub, restore

    loaded = restore.load(source, dtype="float32")
    if not hub.is_snapshot(source):
        hub.export(folder, loaded.config, loaded.params, loaded.tokenizer)
        print(f"{target}: Hugging Face folder of {source} at step {loaded.step}")
        return 0
    if loaded.tokenizer is None:
        raise InputError(f"{source} has no tokenizer (tokenizer.json, or vocab.json and merges.txt); a workdir needs one")
    write_workdir(folder, loaded)
    print(f'{target}: workdir of {source}; try: python -m transformer_jax predict {target} "..."')
    return 0


def write_workdir(folder: Path, loaded: Any) -> None:
    """A workdir with one checkpoint, step 0, of imported parameters: no moments, and the embedded corpus to evaluate on."""
    import optax

    from transformer_jax.data import corpus, sources, tokenizers
    from transformer_jax.train import checkpoint
    from transformer_jax.train import state as state_lib

    length = min(loaded.config.max_length, 1024)
    experiment = Experiment(
        model=loaded.config,
        data=corpus.TextCorpus(
            source=sources.Embedded(), tokenizer=tokenizers.TokenizerFile("tokenizer/tokenizer.json"), length=length
        ),
        task=loaded.task,
    )
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True)
    experiments.save(experiment, part / "config.json")
    loaded.tokenizer.save(part / "tokenizer")
    family = loaded.family.__name__.rpartition(".")[2]
    with checkpoint.Writer(part / "checkpoints", family=family, config=experiments.to_json(experiment)) as writer:
        writer.save(state_lib.create(loaded.params, optax.identity()), rows=0)
    part.rename(folder)


def doctor(arguments: list[str]) -> int:
    """doctor"""
    positional(arguments, 0, (
        "usage: python -m transformer_jax doctor\n\n"
        "Prints the versions and devices, names pairs of versions that are known to be bad, and trains a tiny model for a\n"
        "few steps. Exit code 1 when something is wrong."
    ), exactly=True)  # fmt: skip
    import importlib.metadata as metadata

    print(f"python {sys.version.split()[0]} at {sys.executable}")
    for package in ("transformer-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
                    "tokenizers", "tensorflow-datasets", "safetensors", "tyro"):  # fmt: skip
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package} is not installed")
    wrong = known_bad(jax.__version__, metadata.version("jaxlib"))
    for line in wrong:
        print(f"BAD: {line}")
    for device in jax.devices():
        print(f"device {device.id}: {device.device_kind} ({device.platform})")
    began = time.perf_counter()
    first, last = smoke_step()
    fine = last < first
    print(f"smoke: loss {first:.3f} -> {last:.3f} in {time.perf_counter() - began:.1f} s {'' if fine else 'BAD: it did not fall'}")
    return 0 if fine and not wrong else 1


def known_bad(jax_version: str, jaxlib_version: str) -> list[str]:
    """What is known to be wrong with this pair of versions."""
    wrong = []
    if jax_version == "0.10.2" or jaxlib_version == "0.10.2":
        wrong.append("jax 0.10.2 miscompiles on CPU (jax issues 39103, 39352); install 0.10.1 or 0.12")
    if jax_version.split(".")[:2] != jaxlib_version.split(".")[:2]:
        wrong.append(f"jax {jax_version} and jaxlib {jaxlib_version} are not of one release; reinstall both")
    return wrong


def smoke_step() -> tuple[float, float]:
    """The loss of a tiny GPT before and after 20 steps on one batch."""
    import optax

    from transformer_jax.models import gpt
    from transformer_jax.tasks.causal_lm import CausalLM

    cfg = gpt.Config(vocab_size=64, max_length=32, width=32, num_layers=2, num_heads=2)
    params = gpt.init(jax.random.key(0), cfg)
    tokens = jax.random.randint(jax.random.key(1), (8, 33), 0, 64)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jax.numpy.ones((8, 32))}
    optimizer = optax.adam(3e-3)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            total, weight, _ = CausalLM().loss(params, cfg, batch)
            return total / weight

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    values = []
    for _ in range(20):
        params, opt_state, value = step(params, opt_state)
        values.append(float(value))
    return values[0], values[-1]


def positional(arguments: list[str], count: int, help_text: str, *, exactly: bool = False) -> list[Any]:
    """The first `count` arguments and the list of the rest. Help is printed when asked for; too few is an error."""
    given = []
    while len(given) < count and len(given) < len(arguments) and not arguments[len(given)].startswith("--"):
        given.append(arguments[len(given)])
    rest = arguments[len(given) :]
    if {"-h", "--help"} & set(arguments):
        print(help_text)
        raise SystemExit(0)
    usage = help_text.splitlines()[0].removeprefix("usage: ")
    if len(given) < count:
        raise InputError(f"an argument is missing; the command is: {usage}")
    if exactly and rest:
        raise InputError(f"unexpected argument {rest[0]!r}; the command is: {usage}")
    return [*given, rest]


if __name__ == "__main__":
    sys.exit(main())
