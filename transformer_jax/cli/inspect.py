"""`inspect`: what a folder holds."""

import json
import time
from pathlib import Path

from transformer_jax import config_json
from transformer_jax.cli.arguments import PROGRAM, is_run, of_base, path, positional, verified, with_types
from transformer_jax.errors import InputError


def main(arguments: list[str]) -> int:
    """Print what a folder holds.

        transformer-jax inspect PATH [--verify] [--base DIR]

    PATH is a workdir, one step of it, a Hugging Face folder or its name, hf://org/name. It prints the config, every
    parameter with its dtype and shape, their count, and the steps in the folder. The parameters are read once, so that
    a missing or misshapen one is reported. With --verify every file of every step is compared with the step's manifest
    instead; damage is reported, and the exit code is then 1.

        transformer-jax inspect runs/a
        transformer-jax inspect runs/a --verify
    """
    types, arguments = with_types(arguments)
    where, rest = positional(main, arguments, 1)
    base, rest = of_base(rest)
    if rest == ["--verify"]:
        return _inspect_files(path(where))
    verify, rest = verified(rest)
    if rest:
        raise InputError(
            f"unexpected argument {rest[0]!r}; the command is: {PROGRAM} inspect PATH [--verify] [--base DIR]"
        )
    from transformer_jax import restore
    from transformer_jax.nn import params as params_lib
    from transformer_jax.runs import saved

    began = time.perf_counter()
    loaded = restore.load(where, verify=verify, types=types, base=base)
    seconds = time.perf_counter() - began
    folder = path(where, verify=False)
    config = folder / "config.json"
    print(
        json.dumps(config_json.to_json(config_json.load(config, types) if is_run(config) else loaded.config), indent=2)
    )
    for name, leaf in params_lib.flatten(loaded.params).items():
        print(f"{name:50} {leaf.dtype!s:8} {list(leaf.shape)}")
    count = params_lib.count(loaded.family.declare(loaded.config))
    print(f"{count:,} parameters, all there; {loaded.bytes_read:,} bytes read in {seconds:.2f} s")
    print(f"tokenizer: {'none' if loaded.tokenizer is None else f'{loaded.tokenizer.vocab_size:,} ids'}")
    if loaded.step is not None:
        steps = saved.steps(folder / "checkpoints")
        print(f"step {loaded.step:,}" + (f"; in the folder: {', '.join(map(str, steps))}" if steps else ""))
    return 0


def _inspect_files(run: Path) -> int:
    """Prints for each step of a workdir, or for one step, whether its files are as they were written."""
    from transformer_jax.runs import saved

    folder = run / "checkpoints"
    found = sorted(folder.iterdir()) if folder.is_dir() else [run] if (run / "meta").is_dir() else []
    if not found:
        raise InputError(f"{run} is neither a workdir with checkpoints nor a step's folder")
    damaged = 0
    for step in sorted(found, key=lambda step: (not step.name.isdecimal(), len(step.name), step.name)):
        if not step.name.isdecimal() and step != run:
            print(f"{step.name}: not a step; left by an interrupted save, or set aside")
            continue
        try:
            began = time.perf_counter()
            files, size = saved.check_files(step, print)
            if files:
                seconds = time.perf_counter() - began
                print(f"step {step.name}: {files} files, {size:,} bytes, as they were written ({seconds:.2f} s)")
        except saved.Damaged as error:
            damaged += 1
            print(f"step {step.name}: DAMAGED: {error}")
    return 1 if damaged else 0
