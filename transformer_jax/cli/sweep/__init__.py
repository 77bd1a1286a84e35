"""`sweep`: an experiment with other values of its fields, one run after the other or several at once."""

import itertools
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from transformer_jax import brought, files
from transformer_jax.cli import process
from transformer_jax.cli.arguments import PROGRAM, positional, with_types
from transformer_jax.cli.sweep import plan, running
from transformer_jax.errors import InputError

NAME = "sweep.json"


def main(arguments: list[str]) -> int:
    """Train an experiment with other values of its fields, one run after the other or several at once.

        transformer-jax sweep EXPERIMENT [VARIANT] --over FIELD VALUE ... [--workdir DIR] [--FIELD VALUE ...]

    Every run is a folder in DIR, trained in a process of its own. The values of several --over are combined; all else
    goes to `train`:

        transformer-jax sweep causal_lm.stdlib --over optim.peak-lr 1e-3 3e-3 --over seed 0 1 2 --train.steps 200

    --list FILE states each run instead, one JSON object of fields on a line: {"optim.peak_lr": 0.001}. --optuna N lets
    Optuna choose N runs, among values (--over) and ranges:

        transformer-jax sweep causal_lm.stdlib --optuna 20 --between optim.peak-lr 1e-4 1e-2 log --over seed 0 1

    --median N ends a run early whose best evaluation is worse than the median of the runs before it at the same step,
    once N of them have reached it. It needs --evaluate.every.

    --at-once N trains N runs at the same time. --by COMMAND starts each by that command, in which {slot} is a number
    below N:

        transformer-jax sweep causal_lm.stdlib --over seed 0 1 2 3 --at-once 4 --by "env CUDA_VISIBLE_DEVICES={slot}"
        transformer-jax sweep causal_lm.stdlib --over seed 0 1 2 3 --at-once 4 --by "srun --ntasks 1 --gpus 1"

    The same command resumes a sweep that was interrupted or killed: runs that are done stay, the one in progress
    continues. --print prints the commands of a grid or a list in place of running them, for a scheduler that runs them
    side by side. `transformer-jax compare DIR` shows the runs, as the sweep does when it ends.
    """
    if arguments[:1] in ([], ["-h"], ["--help"]):
        positional(main, arguments, 1)
    asked = plan.parse(arguments)
    experiment, name, check = _experiment(asked)
    if "://" in asked.workdir:
        raise InputError(f"--workdir {asked.workdir}: a sweep writes into a folder of this machine")
    folder = Path(asked.workdir or f"runs/{name}-sweep")
    chosen = [] if asked.optuna else plan.runs(asked)
    for words in () if (folder / NAME).exists() else chosen or [_first(asked)]:  # else it was checked then
        check(words)
    if asked.only_print:
        if asked.optuna:
            raise InputError("--print: a study chooses a run by those before it, so its commands are not known")
        for number, words in enumerate(chosen):
            command = [PROGRAM, "train", *asked.train, *words, "--workdir", str(folder / f"{number:03}")]
            print(shlex.join(command))
        return 0
    task = experiment.task
    metric = experiment.checkpoint.best_metric or task.best_metric()
    sweep = Sweep(folder, asked, chosen, metric, experiment.checkpoint.best == "highest")
    return sweep.run()


def _experiment(asked: plan.Asked) -> tuple[Any, str, Any]:
    """(the experiment, its name, a function that refuses arguments which `train` would refuse)."""
    _, given = with_types(list(asked.train))
    if not given or given[0].startswith("-"):
        raise InputError("sweep needs an experiment, such as causal_lm.stdlib, before its options")
    target, *rest = given
    module, name = brought.read(target)
    recipes = process.variants(module)
    variant = rest.pop(0) if rest and not rest[0].startswith("-") else "experiment"
    if variant not in recipes:
        raise InputError(f"{target} has no variant {variant!r}; it has {', '.join(recipes) or 'no experiment()'}")
    recipe = process.made(recipes[variant], target)

    def parsed(words: list[str]) -> Any:
        made = process.parse(recipe, [*rest, *words], workdir="", description="", program=f"{PROGRAM} sweep {target}")
        return made.experiment

    return parsed([]), name if variant == "experiment" else f"{name}-{variant}", parsed


def _first(asked: plan.Asked) -> list[str]:
    """The arguments of a run that a study may choose, by which its fields are checked."""
    fields: dict[str, Any] = {flag: values[0] for flag, values in asked.over.items()}
    for flag, chosen in asked.between.items():
        fields[flag] = int(chosen.low) if chosen.kind == "int" else chosen.low
    return plan.arguments_of(fields)


class Sweep:
    """The runs of a sweep and their states, which are stored in DIR/sweep.json after every change.

    A run is "waiting", "running", "done", "ended early" or "failed". A failed one is tried again by the next command.
    """

    def __init__(self, folder: Path, asked: plan.Asked, chosen: list[list[str]], metric: str, highest: bool) -> None:
        self.folder, self.asked, self.metric, self.highest = folder, asked, metric, highest
        choices = {flag: vars(chosen) for flag, chosen in asked.between.items()}
        self.plan = {"train": asked.train, "over": asked.over, "between": choices, "runs": chosen}
        self.runs: list[dict[str, Any]] = []
        if (folder / NAME).exists():
            stored = files.read_json(folder / NAME, inside=folder)
            if not isinstance(stored, dict) or stored.get("plan") != self.plan:
                raise InputError(f"{folder} holds another sweep; give the command that began it, or another --workdir")
            self.runs = _checked(stored.get("runs"), self.asked, chosen, folder)
        elif folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and has no {NAME}, so it is no sweep; give another --workdir")
        else:
            self.runs = [
                {"name": f"{at:03}", "arguments": words, "state": "waiting"} for at, words in enumerate(chosen)
            ]
        self.study: Any = None
        if asked.optuna:
            from transformer_jax import extras
            from transformer_jax.cli.sweep.study import Study

            extras.need("optuna", "a study")
            folder.mkdir(parents=True, exist_ok=True)
            self.study = Study(folder, asked, begun=len(self.runs), highest=highest)
        folder.mkdir(parents=True, exist_ok=True)
        self.store()

    def store(self) -> None:
        """Writes the plan and the state of each run into the sweep's folder."""
        files.write(self.folder / NAME, json.dumps({"plan": self.plan, "runs": self.runs}, indent=1) + "\n")

    def run(self) -> int:
        """Trains the runs that have not ended yet, and prints the table of all runs. Returns the exit code."""
        active: dict[int, running.Running] = {}  # by the run's number
        at = 0
        with running.forwarded() as processes:
            while active or at < (self.asked.optuna or len(self.runs)):
                while len(active) < self.asked.at_once and at < (self.asked.optuna or len(self.runs)):
                    if (begun := self.begin(at, {one.slot for one in active.values()})) is not None:
                        active[at] = begun
                        processes.append(begun.process)
                    at += 1
                time.sleep(running.POLL if active else 0)
                for number, one in list(active.items()):
                    if one.process.poll() is not None:
                        self.finish(number, one.process.returncode, early=one.is_early)
                        processes.remove(active.pop(number).process)
                    elif one.has_grown() and not one.is_early and self.is_behind(number):
                        one.end_early()
        from transformer_jax import compare
        from transformer_jax.compare import terminal

        print("\n".join(terminal.trials(compare.trials(self.folder))))
        failed = [run["name"] for run in self.runs if run["state"] == "failed"]
        if failed:
            print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
        return 1 if failed else 0

    def begin(self, at: int, taken: set[int]) -> running.Running | None:
        """The process of run number `at`, which a study may have to choose first; None: it has ended before.

        Args:
          at: the number of the run.
          taken: the slots of those that train.
        """
        if at == len(self.runs):
            number, words = self.study.ask()
            self.runs.append({"name": f"{at:03}", "arguments": words, "state": "waiting", "trial": number})
        run = self.runs[at]
        if run["state"] in ("done", "ended early"):
            return None
        folder, log = self.folder / run["name"], self.folder / f"{run['name']}.log"
        if (folder / "results.json").exists():  # a scheduler has run it, or the sweep was killed when it was done
            self.finish(at, 0)
            return None
        run["state"] = "running"
        self.store()
        print(f"{run['name']}: {shlex.join(run['arguments'])}", flush=True)
        slot = next(slot for slot in itertools.count() if slot not in taken)
        return running.start([*self.asked.train, *run["arguments"]], folder, log, self.asked.by, slot)

    def curve(self, at: int) -> running.Curve:
        """The best value so far at each evaluation of run number `at`."""
        return running.curve(self.folder / self.runs[at]["name"], self.metric, self.highest)

    def is_behind(self, at: int) -> bool:
        """Whether run number `at` is worse than the median of those before it."""
        least = self.asked.median
        return bool(least) and running.below_median(self.curve(at), [*map(self.curve, range(at))], least, self.highest)

    def finish(self, at: int, code: int, *, early: bool = False) -> None:
        """Stores how run number `at` ended.

        Args:
          at: the number of the run.
          code: its exit code.
          early: whether the median rule has ended it.
        """
        run, values = self.runs[at], self.curve(at)
        best = values[-1][1] if values else None
        is_done = code == 0 and (self.folder / run["name"] / "results.json").exists()
        run["state"] = "done" if is_done else "ended early" if early else "failed"
        run["best"] = best
        if self.study is not None:
            value = None if run["state"] == "failed" else best
            self.study.tell(run["trial"], value, early=run["state"] == "ended early")
        self.store()
        shown = "no evaluation" if best is None else f"best {self.metric} {best:.5g}"
        if run["state"] == "failed":
            shown += f", {running.last_line(self.folder / (run['name'] + '.log'))}"
        print(f"{run['name']} {run['state']}: {shown}", flush=True)


def _checked(runs: Any, asked: plan.Asked, chosen: list[list[str]], folder: Path) -> list[dict[str, Any]]:
    """The stored runs. A folder may be a stranger's, and may not bring arguments of its own, such as --with."""
    flags = {*asked.over, *asked.between}

    def is_ours(run: Any, at: int) -> bool:
        if not isinstance(run, dict) or run.get("name") != f"{at:03}" or not isinstance(run.get("state"), str):
            return False
        words = run.get("arguments")
        if not asked.optuna:
            return at < len(chosen) and words == chosen[at]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return False
        return isinstance(run.get("trial"), int) and {word for word in words if word.startswith("--")} <= flags

    if not isinstance(runs, list) or not all(is_ours(run, at) for at, run in enumerate(runs)):
        raise InputError(f"{folder / NAME} is not what a sweep writes; delete it, and give another --workdir")
    return runs
