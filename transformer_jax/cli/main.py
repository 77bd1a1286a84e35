"""Train transformers in JAX and use them.

    train EXPERIMENT [--workdir DIR] [--FIELD VALUE ...]   train, or go on; EXPERIMENT is a module or a file
    evaluate WORKDIR [--FIELD VALUE ...]                   the validation numbers of the newest checkpoint
    predict PATH [INPUT ...] [--FIELD VALUE ...]           continuation, translation, filled masks, label or answer
    inspect PATH [--verify]                                what a workdir, step or Hugging Face folder holds
    convert hf SRC DST                                     Hugging Face folder -> workdir, or the other way round
    convert average RUN DST [--last N]                     the mean of a run's last checkpoints, as a workdir
    doctor                                                 versions, devices, known-bad pairs, a short smoke step

For example:

    python -m transformer_jax train experiments.causal_lm.stdlib --workdir runs/a --train.steps 200
    python -m transformer_jax predict runs/a "def add("

A workdir may be in an object store, gs://BUCKET/RUN (docs/reliability.md).
`python -m transformer_jax COMMAND --help` says more. Bad input is one line on stderr and exit code 2, a run that
cannot go on, such as on a full disk, one line and 1; a run ended by Ctrl-C, SIGUSR1 or SIGTERM exits with 130, 138 or
143 after its state is saved. What reads a checkpoint verifies its files first, unless told --no-verify.
"""

import dataclasses
import inspect as python_inspect
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before jaxlib is loaded: its CPU backend (0.10.1) prints pages of false alarms about the machine's features whenever a
# compiled program comes from the cache. What goes wrong for real is raised as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax

from transformer_jax import config_json, hosts, overrides
from transformer_jax import experiment as experiments
from transformer_jax.cli import launch, predictions
from transformer_jax.errors import InputError, RunError

PROGRAM = "python -m transformer_jax"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 something is wrong, 2 bad input, 130, 138, 143."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {f.__name__: f for f in (train, evaluate, predict, inspect, convert, doctor)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise InputError(f"unknown command {arguments[0]!r}; the commands are {', '.join(commands)}")
        return commands[arguments[0]](arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a run goes on from its newest checkpoint when its command is given again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except Exception as error:
        from transformer_jax.runs import store

        told = store.explain(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1


def train(arguments: list[str]) -> int:
    """Train an experiment, or go on with it.

        python -m transformer_jax train EXPERIMENT [VARIANT] [--workdir DIR] [--profile FIRST:LAST] [--FIELD VALUE ...]

    EXPERIMENT is a module, or a Python file, with a function `experiment() -> Experiment`; VARIANT names another such
    function in it. `train EXPERIMENT --help` lists every field with its meaning, unit and default.

        python -m transformer_jax train experiments.causal_lm.stdlib --workdir runs/a --optim.peak-lr 3e-4
        python -m transformer_jax train path/to/mine.py --train.steps 500

    A workdir that holds a checkpoint goes on from it; to go on after the end, give more --train.steps. Ctrl-C, SIGTERM
    and SIGUSR1 end a run after its step, with a checkpoint and the command to go on; the exit code is 128 + the signal.
    """
    if not arguments or arguments[0].startswith("-"):
        positional(train, arguments, 1)
    target, *rest = arguments
    module, name = launch.import_experiment(target)
    where = os.path.relpath(target) if target.endswith(".py") else target
    recipes = launch.variants(module)
    chosen = rest.pop(0) if rest and not rest[0].startswith("-") else "experiment"
    if chosen not in recipes:
        raise InputError(f"{target} has no variant {chosen!r}; it has {', '.join(recipes) or 'no experiment()'}")
    launched = launch.parse(
        recipes[chosen](),
        rest,
        workdir=str(Path("runs") / (name if chosen == "experiment" else f"{name}-{chosen}")),
        description=module.__doc__ or "",
        program=f"{PROGRAM} train {where}",
    )
    profile = launch.parse_profile(launched.profile)
    hosts.start(launched.hosts)
    launch.keep_freed_memory(launched.experiment)
    launch.use_cpu_cores(launched.experiment)
    launch.keep_compilations()
    with hosts.together(timeout=launched.hosts.timeout):
        from transformer_jax import restore
        from transformer_jax.train import loop

        results = loop.run(
            launched.experiment,
            launched.workdir,
            load=restore.load,
            profile=profile,
            debug_nans=launched.debug.nans,
            verify=launched.verify,
        )
    if results.signal:
        python = "python" if shutil.which("python") == sys.executable else os.path.relpath(sys.executable)
        again = [python, "-m", "transformer_jax", "train", where, *arguments[1:]]
        print(f"to go on: {shlex.join(again)}", flush=True)
        return 128 + results.signal
    return 0


def evaluate(arguments: list[str]) -> int:
    """Evaluate a run on its whole validation set, and on its test set where it has one.

        python -m transformer_jax evaluate WORKDIR [--FIELD VALUE ...]

    The newest checkpoint is evaluated; of a run with a test set the best one, by which it was reported. Prints the
    numbers and stores them in WORKDIR/evaluation.json, pictures beside it. Fields of the run's experiment can be
    overridden, such as other text or a larger batch:

        python -m transformer_jax evaluate runs/a
        python -m transformer_jax evaluate runs/a --evaluate.batch-size 64

    A translator's text is written to WORKDIR/validation.hypotheses.txt and WORKDIR/test.hypotheses.txt:

        python -m transformer_jax evaluate runs/de --task.beam.width 1 --data.source.test other.en other.de
    """
    workdir, rest = positional(evaluate, arguments, 1)
    verify, rest = _verified(rest)
    folder = _path(workdir)
    stored = config_json.load(folder / "config.json")
    asked = overrides.override(stored, rest, description="", program=f"{PROGRAM} evaluate {workdir}")
    launch.keep_freed_memory(asked)
    launch.use_cpu_cores(asked)
    launch.keep_compilations()
    from transformer_jax import observe, restore, sharding
    from transformer_jax.runs import store
    from transformer_jax.runs import workdir as workdirs
    from transformer_jax.train import batch
    from transformer_jax.train import evaluate as evaluation

    mesh = sharding.make_mesh(**dataclasses.asdict(asked.mesh))
    loaded = restore.load(workdirs.chosen(folder), sharding=mesh, verify=verify)
    prepared = asked.task.prepare(asked.data, loaded.config, seed=asked.seed, workdir_tokenizer=loaded.tokenizer)
    size = asked.evaluate.batch_size or asked.train.batch_size // asked.train.accumulate
    places = batch.shardings(asked.task.example(asked.data), size, mesh)
    step = evaluation.make_eval_step(lambda params, rows: asked.task.evaluate(params, loaded.config, rows))
    reports = {}
    with store.near(folder) as (near, publish):
        for name, rows in {"validation": prepared.validation, "test": prepared.test}.items():
            if rows is None:
                continue
            with jax.set_mesh(mesh):
                sums, outputs = evaluation.evaluate(
                    step, loaded.params, rows.examples, size, lambda rows: batch.place(rows, places)
                )
            reports[name] = asked.task.report(sums, outputs, rows)
            with jax.set_mesh(mesh), observe.counting(f"{name} set") as count:
                reports[name] |= asked.task.score(
                    loaded.params,
                    loaded.config,
                    prepared.tokenizer,
                    rows,
                    near,
                    name,
                    mesh=mesh,
                    say=lambda line: print(line.replace(str(near), str(folder))),
                    progress=count,
                )
            print(f"step {loaded.step:,}, {name} set, {len(rows.examples):,} examples\n{observe.table(reports[name])}")
            for path in asked.task.pictures(outputs, rows, near, name):
                print(f"picture: {folder / path.relative_to(near)}")
        stored_numbers = {"step": loaded.step, "report": reports.pop("validation"), **reports, "overrides": rest}
        workdirs.write_json(near / "evaluation.json", stored_numbers)
        publish()
    return 0


def predict(arguments: list[str]) -> int:
    """What the model makes of a text or an image: continuation, translation, filled masks, label, entities, answer.

        python -m transformer_jax predict PATH [INPUT ...] [--FIELD VALUE ...]

    PATH is a run, one of its checkpoints or a Hugging Face folder. Without INPUT, or with -, stdin is read. Of a run
    with a test set it is the checkpoint by which it was reported, else the newest.

    A language model continues one prompt, printing the text as it is made. A prompt that leaves no room in the context
    for the new tokens loses its beginning, and a line on stderr says how much. The fields are those of the
    experiment's `sample`, whose values are the defaults.

        python -m transformer_jax predict runs/a "def add(" --max-new-tokens 100 --temperature 0.5 --seed 1

    An encoder answers each INPUT, or each line of --file or stdin; the two texts of a pair (question and context,
    premise and hypothesis) are separated by a tab. --json gives one JSON object a line, for programs.

        python -m transformer_jax predict runs/mlm "import <mask> as np" --top 3
        python -m transformer_jax predict runs/sst2 --file reviews.txt --json

    A translator gives a line for each line, in order, an empty one for an empty one. --beam, --length-penalty and
    --max-new-tokens change the search. With --nbest K each line gives up to K lines "score<TAB>text", best first, and
    an empty line after them; with --json one object with "source", "hypotheses" and "scores".

        python -m transformer_jax predict runs/de < source.txt > target.txt
        python -m transformer_jax predict runs/de "a cat on a mat" --beam 8 --nbest 3

    A classifier of images labels files. With --attention it also draws what it looked at, NAME_attention.png, into this
    folder or --folder.

        python -m transformer_jax predict runs/digits photo.jpg another.png --top 3 --attention

    `predict PATH --help-fields` lists the fields.
    """
    path, rest = positional(predict, arguments, 1)
    verify, rest = _verified(rest)
    inputs = []
    while rest and not rest[0].startswith("--"):
        inputs.append(rest.pop(0))
    rest = ["--help" if argument == "--help-fields" else argument for argument in rest]
    launch.keep_compilations()
    from transformer_jax import restore
    from transformer_jax.runs import workdir as workdirs

    loaded = restore.load(workdirs.chosen(_path(path)), verify=verify)
    if loaded.tokenizer is None and getattr(loaded.task, "reads_text", True):
        raise InputError(f"{path} has no tokenizer, so a text means nothing to it; add its tokenizer.json")
    if loaded.task is None:
        raise InputError(f"{path}: no task here is for {workdirs.kind(loaded)}; it loads as a library")
    config = _path(path) / "config.json"
    defaults = config_json.load(config).sample if _is_run(config) else experiments.default_sample(loaded.task)
    predictions.write(loaded, defaults, inputs, rest, f"{PROGRAM} predict {path}")
    return 0


def inspect(arguments: list[str]) -> int:
    """Say what a folder holds.

        python -m transformer_jax inspect PATH [--verify]

    PATH is a workdir, one step of it, or a Hugging Face folder. Prints the config, every parameter with its dtype and
    shape, their count, and the steps that are there; the parameters are read once, so what is missing or misshapen is
    named. With --verify every file of every step is compared with the step's manifest instead; damage is named, and
    makes the exit code 1.

        python -m transformer_jax inspect runs/a
        python -m transformer_jax inspect runs/a --verify
    """
    path, rest = positional(inspect, arguments, 1)
    if rest == ["--verify"]:
        return _inspect_files(_path(path))
    verify, rest = _verified(rest)
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; the command is: {PROGRAM} inspect PATH [--verify]")
    from transformer_jax import restore
    from transformer_jax.nn import params as params_lib
    from transformer_jax.runs import checkpoint

    began = time.perf_counter()
    loaded = restore.load(path, verify=verify)
    seconds = time.perf_counter() - began
    config = _path(path) / "config.json"
    print(json.dumps(config_json.to_json(config_json.load(config) if _is_run(config) else loaded.config), indent=2))
    for name, leaf in params_lib.flatten(loaded.params).items():
        print(f"{name:50} {leaf.dtype!s:8} {list(leaf.shape)}")
    count = params_lib.count(loaded.family.declare(loaded.config))
    print(f"{count:,} parameters, all there; {loaded.bytes_read:,} bytes read in {seconds:.2f} s")
    print(f"tokenizer: {'none' if loaded.tokenizer is None else f'{loaded.tokenizer.vocab_size:,} ids'}")
    if loaded.step is not None:
        steps = checkpoint.steps(_path(path) / "checkpoints")
        print(f"step {loaded.step:,}" + (f"; in the folder: {', '.join(map(str, steps))}" if steps else ""))
    return 0


def _inspect_files(path: Path) -> int:
    """A line for each step of a workdir, or for one step: whether its files are as they were written."""
    from transformer_jax.runs import checkpoint

    folder = path / "checkpoints"
    found = sorted(folder.iterdir()) if folder.is_dir() else [path] if (path / "meta").is_dir() else []
    if not found:
        raise InputError(f"{path} is neither a workdir with checkpoints nor a step's folder")
    damaged = 0
    for step in sorted(found, key=lambda step: (not step.name.isdecimal(), len(step.name), step.name)):
        if not step.name.isdecimal() and step != path:
            print(f"{step.name}: not a step; left by a save that was cut short, or set aside")
            continue
        try:
            began = time.perf_counter()
            files, size = checkpoint.check_files(step, print)
            if files:
                seconds = time.perf_counter() - began
                print(f"step {step.name}: {files} files, {size:,} bytes, as they were written ({seconds:.2f} s)")
        except checkpoint.Damaged as error:
            damaged += 1
            print(f"step {step.name}: DAMAGED: {error}")
    return 1 if damaged else 0


def convert(arguments: list[str]) -> int:
    """Make another folder of a run or a model: between Hugging Face snapshots and workdirs, or a mean of checkpoints.

        python -m transformer_jax convert hf SRC DST [--no-verify]
        python -m transformer_jax convert average RUN DST [--last N]

    hf: a snapshot folder SRC becomes a workdir DST; a workdir or a step SRC becomes a snapshot folder. Neither torch
    nor Transformers is needed. Of a run with a test set it is the checkpoint by which it was reported, else the newest.
    average: DST is a workdir whose parameters are the mean of those of RUN's newest N checkpoints, 5 unless told, which
    RUN must have kept (--checkpoint.keep N). DST must not exist.

        python -m transformer_jax convert hf downloads/gpt2 runs/gpt2
        python -m transformer_jax convert hf runs/a exported
        python -m transformer_jax convert average runs/wmt runs/wmt_mean --last 5
    """
    kind, source, target, rest = positional(convert, arguments, 3)
    if kind not in ("hf", "average"):
        raise InputError(
            f"convert {kind!r}: the kinds are hf (Hugging Face snapshot folders) and average (checkpoints)"
        )
    verify, rest = _verified(rest) if kind == "hf" else (True, rest)
    if kind == "hf" and rest:
        raise InputError(f"unexpected argument {rest[0]!r}; the command is: {PROGRAM} convert hf SRC DST")
    if "://" in target:
        raise InputError(f"{target}: convert makes a folder of this machine; name one, and copy it there afterwards")
    if Path(target).exists():
        raise InputError(f"{target} exists; nothing is overwritten, so name another folder")
    return _average(source, target, rest) if kind == "average" else _convert(source, target, verify)


def _convert(source: str, target: str, verify: bool) -> int:
    from transformer_jax import hub, restore
    from transformer_jax.cli import convert as converted
    from transformer_jax.runs import workdir as workdirs

    loaded = restore.load(workdirs.chosen(_path(source)), verify=verify)
    if hub.is_snapshot(source):
        converted.create(Path(target), loaded)
        print(f'{target}: the workdir of {source}; try: {PROGRAM} predict {target} "..."')
    else:
        task = loaded.task
        hub.export(
            target,
            loaded.config,
            loaded.params,
            loaded.tokenizer,
            labels=getattr(task, "labels", ()),
            beam=getattr(task, "beam", None),
            preprocess=getattr(task, "preprocess", None),
        )
        print(f"{target}: the Hugging Face folder of {source} at step {loaded.step}")
    return 0


def _average(source: str, target: str, rest: list[str]) -> int:
    from transformer_jax.cli import average

    @dataclass(frozen=True)
    class Options:
        last: int = 5
        """How many of the newest checkpoints."""

    program = f"{PROGRAM} convert average RUN DST"
    options = overrides.override(Options(), rest, description="The mean of checkpoints.", program=program)
    steps = average.create(Path(target), _path(source), last=options.last)
    print(f"{target}: the mean of {source}'s steps {', '.join(map(str, steps))}; try: {PROGRAM} evaluate {target}")
    return 0


def doctor(arguments: list[str]) -> int:
    """Print versions and devices, name pairs of versions that are known to be bad, and train a tiny model briefly.

        python -m transformer_jax doctor

    The exit code is 1 when something is wrong.
    """
    positional(doctor, arguments, 0, exactly=True)
    from transformer_jax.cli import doctor as doctors

    return 0 if doctors.examine() else 1


# ------------------------------------------------------------------------------------------------------------ arguments


def positional(command: Callable[..., int], arguments: list[str], count: int, *, exactly: bool = False) -> list[Any]:
    """The first `count` arguments and, unless there must be no more, the list of the rest.

    `--help` prints the command's docstring. Errors: `InputError` when there are too few, or too many.
    """
    text = python_inspect.getdoc(command) or ""
    if {"-h", "--help"} & set(arguments):
        print(text)
        raise SystemExit(0)
    usage = next(line.strip() for line in text.splitlines() if line.strip().startswith(PROGRAM))
    given = arguments[:count]
    if len(given) < count or any(argument.startswith("--") for argument in given):
        raise InputError(f"an argument is missing; the command is: {usage}")
    if exactly and arguments[count:]:
        raise InputError(f"unexpected argument {arguments[count]!r}; the command is: {usage}")
    return given if exactly else [*given, arguments[count:]]


def _verified(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether checkpoints are to be verified, which --no-verify says not to, and the other arguments."""
    return "--no-verify" not in arguments, [argument for argument in arguments if argument != "--no-verify"]


def _path(text: str) -> Path:
    """A local path, or one in an object store."""
    from transformer_jax.runs import store

    return store.path(text)


def _is_run(config: Path) -> bool:
    """Whether a config.json is a run's, and not a Hugging Face folder's."""
    from transformer_jax import hub

    return config.exists() and ("://" in str(config) or not hub.is_snapshot(config.parent))


if __name__ == "__main__":
    sys.exit(main())
