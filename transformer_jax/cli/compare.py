"""`compare`: runs beside each other."""

from pathlib import Path

from transformer_jax.cli.arguments import positional
from transformer_jax.errors import InputError

LONGEST = 24  # characters of a folder that heads a column; longer ones are numbered


def main(arguments: list[str]) -> int:
    """Compare runs: what differs in their settings, code and data, then whether their numbers differ.

        transformer-jax compare RUN RUN ... [--html FILE]
        transformer-jax compare FOLDER [--html FILE]

    Each run is compared with the first. A number of an evaluation is compared on the same examples of both: the
    difference, its 95 % interval and p-value by a paired bootstrap of 1,000 resamples, which for BLEU and chrF is
    sacreBLEU's own test. Then come the examples on which the runs differ most. A run stores the numbers of its last
    evaluation for each example; `transformer-jax evaluate RUN` stores those of the whole sets.

        transformer-jax compare runs/a runs/b
        transformer-jax compare runs/a runs/b --html comparison.html

    Of a folder that holds runs, such as a sweep's, the runs are listed, the best first:

        transformer-jax compare runs/sweep

    --html writes the same as a page in one file, with the curves of the runs over each other.
    """
    first, rest = positional(main, arguments, 1)
    html, names = _html([first, *rest])
    from transformer_jax import compare
    from transformer_jax.compare import page, terminal

    folders = [Path(name) for name in names]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; give the folder of a run")
    if len(folders) == 1 and not (folders[0] / "config.json").exists():
        runs = compare.trials(folders[0])
        print("\n".join(terminal.trials(runs)))
        text = page.of_trials(names[0], runs) if html else ""
    elif len(folders) == 1:
        raise InputError(f"{folders[0]} is one run; give another to compare it with: compare {folders[0]} RUN")
    else:
        short = names if max(map(len, names)) <= LONGEST else [f"run {at}" for at in range(1, len(names) + 1)]
        runs = [compare.read(name, folder) for name, folder in zip(short, folders, strict=True)]
        print(
            "".join(f"{run.name}: {name}\n" for run, name in zip(runs, names, strict=True) if run.name != name), end=""
        )
        print("\n".join(terminal.differences(runs)))
        pairs = [(runs[0], other, compare.paired(runs[0], other)) for other in runs[1:]]
        for a, b, sets in pairs:
            print("\n".join(terminal.paired(a, b, sets)))
        text = page.of_runs(runs, pairs) if html else ""
    if html:
        from transformer_jax import files

        try:
            files.write(Path(html), text)
        except OSError as error:
            raise InputError(f"{html} cannot be written ({error.strerror}); name another file with --html") from None
        print(f"written: {html}")
    return 0


def _html(arguments: list[str]) -> tuple[str, list[str]]:
    """(the file that --html names, or "", the other arguments)."""
    if "--html" in arguments:
        at = arguments.index("--html")
        if at + 1 == len(arguments) or arguments[at + 1].startswith("--"):
            raise InputError("--html names no file; give the page to write: --html comparison.html")
        return arguments[at + 1], _html(arguments[:at] + arguments[at + 2 :])[1]
    if unknown := next((argument for argument in arguments if argument.startswith("--")), ""):
        raise InputError(f"compare has no option {unknown}; it takes folders of runs and --html FILE")
    return "", arguments
