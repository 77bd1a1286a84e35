"""`convert`: a workdir or a Hugging Face folder from another folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax

from transformer_jax import adapters, config_json, hf, models, overrides
from transformer_jax.cli.arguments import PROGRAM, of_base, path, positional, verified, with_types
from transformer_jax.data import tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.runs.workdir import kind, run_id, write_json
from transformer_jax.runs.writer import Writer
from transformer_jax.train import state as state_lib

SMALLER = ("int8", "low-rank", "prune", "heads")


def main(arguments: list[str]) -> int:
    """Convert between Hugging Face folders and workdirs; write an adapter for PEFT, or a smaller model; average.

        transformer-jax convert hf SRC DST [--card] [--license ID] [--push ORG/NAME] [--public] [--no-verify]
        transformer-jax convert peft RUN DST [--no-verify] [--base DIR]
        transformer-jax convert int8 RUN DST [--target PATTERN] [--base DIR]
        transformer-jax convert low-rank|prune RUN DST [--target PATTERN] [--share 0.5] [--base DIR]
        transformer-jax convert heads RUN DST --keep N [--base DIR]
        transformer-jax convert average RUN DST [--last N]

    hf: if SRC is a Hugging Face folder or its name on the Hub, hf://org/name@revision, DST becomes a workdir; if SRC is
    a workdir or a step, DST becomes a Hugging Face folder. Neither torch nor Transformers is needed. A run with a test
    set is converted from the checkpoint that was evaluated on it, any other run from its newest checkpoint.
    --card writes README.md into the Hugging Face folder, the model card: data, numbers with intervals, settings. --push
    also uploads the folder to the Hub, after it was read back, as a private repository unless --public is given.
    The adapter of a run that trained one is merged into its base, which is read from where it was, or from --base DIR.
    peft: DST becomes a folder of PEFT with the adapter of RUN alone.
    int8: DST becomes a workdir with the kernels of the blocks, or those of --target, in eight bits; low-rank: as two
    factors with --share of their numbers, which can be trained further; prune: with --share of their weights zero;
    heads: with N attention heads in each layer. Both models are evaluated, and bytes, time and numbers of both are
    printed.
    average: DST becomes a workdir whose parameters are the mean of RUN's newest N checkpoints, by default 5, which RUN
    must have kept (--checkpoint.keep N). DST must not exist.

        transformer-jax convert hf hf://openai-community/gpt2 runs/gpt2
        transformer-jax convert hf runs/a exported --card --license apache-2.0
        transformer-jax convert hf runs/a exported --push my-org/my-model
        transformer-jax convert average runs/wmt runs/wmt_mean --last 5
    """
    types, arguments = with_types(arguments)
    kind, source, target, rest = positional(main, arguments, 3)
    if kind not in ("hf", "peft", "average", *SMALLER):
        raise InputError(
            f"convert {kind!r}: the kinds are hf (Hugging Face snapshot folders), peft (adapters), average "
            "(checkpoints), and for smaller models int8, low-rank, prune and heads"
        )
    verify, rest = verified(rest) if kind in ("hf", "peft") else (True, rest)
    base, rest = of_base(rest) if kind != "average" else (None, rest)
    if kind in ("hf", "peft") and rest and not (kind == "hf" and rest[0].startswith("--")):
        raise InputError(f"unexpected argument {rest[0]!r}; the command is: {PROGRAM} convert {kind} SRC DST")
    if "://" in target:
        raise InputError(f"{target}: convert makes a folder of this machine; name one, and copy it there afterwards")
    if Path(target).exists():
        raise InputError(f"{target} exists; nothing is overwritten, so name another folder")
    if kind == "average":
        return _average(source, target, rest, types)
    if kind in SMALLER:
        return _smaller(kind, source, target, rest, types, base)
    if kind == "peft":
        return _peft(source, target, verify, types, base)
    return _convert(source, target, verify, rest, types, base)


def _peft(source: str, target: str, verify: bool, types: list[Any], base: str | None) -> int:
    from transformer_jax import restore
    from transformer_jax.hub import peft
    from transformer_jax.runs import workdir as workdirs

    loaded = restore.load(workdirs.chosen(path(source, verify=verify)), verify=verify, types=types, base=base)
    if loaded.adapter is None:
        raise InputError(f"{source} has no adapter to write for PEFT; convert hf writes its parameters")
    peft.write(Path(target), loaded.config, loaded.params, base=loaded.base, rule=loaded.adapter)
    print(f"{target}: the adapter of {source} at step {loaded.step}, for PEFT")
    return 0


def _convert(source: str, target: str, verify: bool, rest: list[str], types: list[Any], base: str | None) -> int:
    from transformer_jax import hub, restore
    from transformer_jax.cli import publish
    from transformer_jax.runs import workdir as workdirs

    program = f"{PROGRAM} convert hf SRC DST"
    options = overrides.override(publish.Options(), rest, description="A Hugging Face folder.", program=program)
    publish.check(options)
    source = hf.pin(source) if hf.named(source) else source  # the commit that is read is the one that is stored
    folder = path(source, verify=verify)
    loaded = restore.load(workdirs.chosen(folder), verify=verify, types=types, base=base)
    if hub.is_snapshot(folder):
        if options != publish.Options():
            raise InputError(f"{source} is a Hugging Face folder; a card is made of a run's numbers, so give a workdir")
        create(Path(target), loaded, origin=source if hf.named(source) else "")
        print(f'{target}: the workdir of {source}; try: {PROGRAM} predict {target} "..."')
    else:
        loaded = dataclasses.replace(loaded, params=adapters.merge(loaded.params))
        settings = {} if loaded.task is None else loaded.task.snapshot_settings()
        readme = publish.card(folder, loaded, options, Path(target).name) if options.card or options.push else None
        hub.export(target, loaded.config, loaded.params, loaded.tokenizer, readme=readme, **settings)
        print(f"{target}: the Hugging Face folder of {source} at step {loaded.step}")
        if options.push:
            publish.refuse_changed(target, loaded)
            print(publish.push(target, options))
    return 0


def _smaller(kind: str, source: str, target: str, rest: list[str], types: list[Any], base: str | None) -> int:
    from transformer_jax.cli import smaller

    program = f"{PROGRAM} convert {kind} RUN DST"
    rule = overrides.override(smaller.KINDS[kind], rest, description="A smaller model.", program=program)
    for line in smaller.create(Path(target), path(source), rule, types=types, base=base):
        print(line)
    print(f"{target}: {source}, smaller; try: {PROGRAM} evaluate {target}")
    return 0


def _average(source: str, target: str, rest: list[str], types: list[Any]) -> int:
    from transformer_jax.cli import average

    @dataclass(frozen=True)
    class Options:
        last: int = 5
        """How many of the newest checkpoints to average."""

    program = f"{PROGRAM} convert average RUN DST"
    options = overrides.override(Options(), rest, description="The mean of checkpoints.", program=program)
    steps = average.create(Path(target), path(source), last=options.last, types=types)
    print(f"{target}: the mean of {source}'s steps {', '.join(map(str, steps))}; try: {PROGRAM} evaluate {target}")
    return 0


def create(folder: Path, loaded: Any, *, origin: str = "") -> None:
    """Makes a workdir of imported parameters: one checkpoint, step 0, without moments.

    Its data are those of `Task.default_data`. A language model, causal or masked, is evaluated on the corpus that the
    package includes. A task with labels or translations names a file that does not exist, and `evaluate` takes the
    user's own: --data.source.train reviews.tsv.

    Args:
      folder: the workdir, which must not exist.
      loaded: a `restore.Loaded` with a task and, if the task reads text, a tokenizer.
      origin: the model's name on the Hub, with its commit; it is stored as `init_from`.

    Raises:
      InputError: it has no task, or no tokenizer.
    """
    if loaded.tokenizer is None and loaded.task is not None and loaded.task.reads_text:
        raise InputError(
            "no tokenizer.json, vocab.json and merges.txt or vocab.txt beside the weights; a workdir needs one"
        )
    if loaded.task is None:
        raise InputError(f"no task here is for {kind(loaded)}; a workdir needs one")
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save(part / "tokenizer")
    tokenizer = tokenizers.TokenizerFile(str(folder / "tokenizer"))
    data = loaded.task.default_data(tokenizer, loaded.config)
    experiment = config_json.to_json(Experiment(model=loaded.config, data=data, task=loaded.task, init_from=origin))
    write_json(part / "config.json", experiment)
    family = models.name(loaded.config)
    with Writer(part / "checkpoints", family=family, config=experiment, run=run_id(part)) as writer:
        writer.save(state_lib.create(loaded.params, optax.identity()), rows=0)
    part.rename(folder)
