"""`prepare`: the text of an experiment becomes a token store, once, for every host and every run."""

import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from transformer_jax import extras
from transformer_jax.cli.arguments import PROGRAM, positional
from transformer_jax.errors import InputError, RunError

BEAM = "--beam"


def main(arguments: list[str]) -> int:
    """Tokenise the text of an experiment into a token store, in shards.

        transformer-jax prepare EXPERIMENT [VARIANT] --out PATH [--shards I/N] [--workers W] [--FIELD VALUE ...]
        transformer-jax prepare EXPERIMENT [VARIANT] --out PATH [--FIELD VALUE ...] --beam [FLAG OF BEAM ...]

    PATH is a folder or a URL (gs://, s3://). Train from it with `--data.store PATH`. What is complete is not done
    again: after an error, a kill or a restart give the same command.

        transformer-jax prepare causal_lm.gpt2_small records --out gs://mine/c4-gpt2 --data.source.paths gs://mine/c4/

    --workers W: processes on this machine, one core each; 0, the default: this process, which encodes on all cores.
    --shards I/N: this is job I, from 0, of an array of N, each of which writes its share of the shards, on any machine
    that sees PATH. The last to end completes the store. Where duplicates are dropped, the jobs first write hashes of
    their documents, and the array is given a second time.
    --beam: the shards are written by an Apache Beam pipeline; all that follows are Beam's own flags.
    """
    before, after = (
        (arguments[: arguments.index(BEAM)], arguments[arguments.index(BEAM) + 1 :])
        if BEAM in arguments
        else (arguments, None)
    )
    if not before or before[0].startswith("-"):
        positional(main, before, 1)
    if {"-h", "--help"} & set(before):
        positional(main, before, 1)
    options, rest = _options(before)
    work = _work(options["out"], tuple(rest))
    if after is not None:
        _by_beam(work, options["out"], rest, after)
    elif options["workers"]:
        _by_processes(options, rest)
    else:
        for at in _own(work, options):
            _do(work, *at)
    return _end(work)


def _options(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(--out, --shards and --workers, the other arguments)."""
    found = {"out": "", "shards": "0/1", "workers": "0"}
    rest, remaining = [], iter(arguments)
    for argument in remaining:
        name, given, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in found:
            found[name] = value if given else next(remaining, "")
        else:
            rest.append(argument)
    if not found["out"] or found["out"].startswith("--"):
        raise InputError(f"--out is missing; the command is: {PROGRAM} prepare EXPERIMENT --out PATH")
    index, slash, count = found["shards"].partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--shards {found['shards']}: give I/N, job I of N, from 0/{count or 'N'} on")
    if not found["workers"].isdecimal():
        raise InputError(f"--workers {found['workers']}: give a number of processes, 0 for none")
    return found | {"job": int(index), "jobs": int(count), "workers": int(found["workers"])}, rest


@functools.cache
def _work(out: str, arguments: tuple[str, ...]) -> Any:
    """The work of these arguments: an experiment and its overrides."""
    from transformer_jax import brought
    from transformer_jax.cli import process
    from transformer_jax.data import token_shards, token_store, tokenizers, tokens

    target, *rest = arguments
    module, _ = brought.read(target)
    recipes = process.variants(module)
    chosen = rest.pop(0) if rest and not rest[0].startswith("-") else "experiment"
    if chosen not in recipes:
        raise InputError(f"{target} has no variant {chosen!r}; it has {', '.join(recipes) or 'no experiment()'}")
    recipe = process.made(recipes[chosen], target)
    program = f"{PROGRAM} prepare {target}"
    data = process.parse(recipe, rest, workdir="", description=module.__doc__ or "", program=program).experiment.data
    if not hasattr(data, "store"):
        raise InputError(f"{target} reads {type(data).__name__}, which takes no token store; prepare is for TextCorpus")
    documents = {side: data.source.documents(side) for side in token_store.SIDES}
    tokenizer = tokenizers.build(data.tokenizer, documents["train"], tokens.cache_dir())
    return token_shards.begin(out, tokenizer, documents)


def _own(work: Any, options: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(what, side, shard) of all that this job still has to do: hashes first, as long as there is one to make."""
    from transformer_jax.data import token_shards

    mine = {at for i, at in enumerate(work.numbers()) if i % options["jobs"] == options["job"]}
    missing = token_shards.missing(work)
    made = [("hashes", *at) for at in missing["hashes"] if at in mine]
    if set(missing["hashes"]) <= mine:  # all others have theirs
        made += [("shards", *at) for at in missing["shards"] if at in mine]
    return made


def _do(work: Any, what: str, side: str, number: int) -> None:
    from transformer_jax.data import token_shards

    (token_shards.write_hashes if what == "hashes" else token_shards.write_shard)(work, side, number)


def _end(work: Any) -> int:
    """Completes the store if nothing is missing, and says what is there."""
    from transformer_jax.data import token_shards

    missing = token_shards.missing(work)
    if missing["hashes"] or missing["shards"]:
        what = "hashes" if missing["hashes"] else "shards"
        left = ", ".join(f"{side}/{number:05}" for side, number in missing[what][:5])
        again = "; give this command again when the other jobs have ended" if what == "hashes" else ""
        print(f"{work.out}: {len(missing[what]):,} {what} of other jobs are not there yet: {left}, ...{again}")
        return 0
    index = token_shards.finish(work)
    for side, headers in index["sides"].items():
        count, documents, size = (sum(h[key] for h in headers) for key in ("count", "documents", "bytes"))
        dropped: dict[str, int] = {}
        for header in headers:
            for reason, times in header["dropped"].items():
                dropped[reason] = dropped.get(reason, 0) + times
        lost = "".join(f", {times:,} dropped by {reason}" for reason, times in dropped.items())
        print(f"{side}: {count:,} tokens of {documents:,} documents, {size / 1e6:,.1f} MB, {len(headers)} shards{lost}")
    print(f"{work.out} is complete; train from it: --data.store {work.out}")
    return 0


def _by_processes(options: dict[str, Any], rest: Sequence[str]) -> None:
    """Runs the same command in several processes, each of which does a share of this job's shards."""
    jobs, workers = options["jobs"], options["workers"]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    for _ in range(2):  # where duplicates are dropped, the first round makes the hashes
        commands = [
            [sys.executable, "-m", "transformer_jax", "prepare", *rest, "--out", options["out"]]
            + ["--shards", f"{options['job'] + jobs * worker}/{jobs * workers}"]
            for worker in range(workers)
        ]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for command in commands]
        try:
            failed = [shlex.join(c) for c, p in zip(commands, running, strict=True) if p.wait()]
        finally:
            for process in running:
                process.terminate()
        if failed:
            raise RunError(f"a worker failed, what it printed is above; complete shards are kept: {failed[0]}")
        if not _own(_work(options["out"], tuple(rest)), options):
            return


def _by_beam(work: Any, out: str, rest: Sequence[str], flags: Sequence[str]) -> None:
    """Writes the shards by an Apache Beam pipeline, hashes first. Its workers read the experiment by its name."""
    extras.need("apache_beam", "prepare --beam")
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    for _ in range(2):
        todo = _own(work, {"job": 0, "jobs": 1})
        todo = [at for at in todo if at[0] == todo[0][0]]
        if not todo:
            return
        with beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
            shards = pipeline | "Shards" >> beam.Create(todo)
            _ = shards | beam.Reshuffle() | "Write" >> beam.Map(_in_worker, out=out, arguments=tuple(rest))


def _in_worker(at: tuple[str, str, int], out: str, arguments: tuple[str, ...]) -> str:
    """Writes one shard in a process of Beam's."""
    _do(_work(out, arguments), *at)
    return f"{at[1]}/{at[2]:05}"
