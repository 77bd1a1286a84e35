"""Spoils the newest step of a run, one file at a time, and asks the library what it makes of it."""

import hashlib
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {
    "flip": "one bit or byte of one file",
    "truncate": "a file cut short",
    "extend": "a file with bytes after its end",
    "delete": "a file deleted",
    "swap": "two files swapped",
    "item": "a whole item deleted",
}


def spoil(workdir: Path, tries: int) -> Iterator[tuple[str, str | None]]:
    """(kind, problem) of each try; the problem is None where the damage was noticed and nothing wrong came back."""
    import jax
    import numpy as np

    import transformer_jax
    from transformer_jax.train import checkpoint

    rng, folder = random.Random(0), workdir / "checkpoints"
    before, newest = checkpoint.steps(folder)[-2:]
    step = folder / str(newest)
    for number in (before, newest):
        checkpoint.check_files(folder / str(number))  # nothing is spoilt yet

    def loaded(**options: Any) -> tuple[int | None, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = transformer_jax.load(workdir, **options)
        whole = hashlib.sha256()
        for leaf in jax.tree.leaves(model.params):
            whole.update(np.asarray(leaf).tobytes())
        return model.step, whole.hexdigest()

    good = {newest: loaded()[1], before: _of(folder / str(before), loaded, step)}
    files = sorted(path for path in step.rglob("*") if path.is_file())
    contents = {path: path.read_bytes() for path in files}
    modes = ("flip", "flip", "flip", "flip", "truncate", "extend", "delete", "swap")
    for number in range(tries):
        kind = "item" if number % 50 == 49 else rng.choice(modes)
        touched = _damage(kind, rng, step, contents)
        said: list[str] = []
        problem = None
        try:
            found = checkpoint.newest(folder, said.append)
            if found != before:
                problem = f"{kind} of {touched}: a run would go on from step {found}"
            elif not any(name in said[0] for name in touched):
                problem = f"{kind} of {touched}: it says {said[0]}"
            got, digest = loaded()
            if got is None or digest != good.get(got):
                problem = f"{kind} of {touched}: load gives step {got} with other parameters"
        except Exception as error:
            problem = f"{kind} of {touched}: {type(error).__name__}: {error}"
        for path, data in contents.items():
            if not path.exists() or path.stat().st_size != len(data) or str(path.relative_to(step)) in touched:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        yield kind, problem
    assert loaded() == (newest, good[newest]), "the last repair"


def _of(step: Path, loaded: Any, newer: Path) -> str:
    """The digest of the step before, read while the newest is away."""
    away = newer.with_name("away")
    newer.rename(away)
    try:
        found, digest = loaded()
        assert found == int(step.name)
        return digest
    finally:
        away.rename(newer)


def _damage(kind: str, rng: random.Random, step: Path, contents: dict[Path, bytes]) -> list[str]:
    """Spoils something, and gives the names of what it is, within the step."""
    files = sorted(contents)
    if kind == "item":
        item = rng.choice(sorted({path.relative_to(step).parts[0] for path in files if path.parent != step}))
        shutil.rmtree(step / item)
        return [f"{item}/"]
    path = rng.choice([path for path in files if contents[path]])
    data = contents[path]
    touched = [path]
    match kind:
        case "flip":
            at, spoilt = rng.randrange(len(data)), bytearray(data)
            spoilt[at] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
            path.write_bytes(spoilt)
        case "truncate":
            os.truncate(path, rng.randrange(len(data)))
        case "extend":
            path.write_bytes(data + rng.randbytes(rng.randint(1, 64)))
        case "delete":
            path.unlink()
        case "swap":
            other = rng.choice([other for other in files if contents[other] != data])
            path.write_bytes(contents[other])
            other.write_bytes(data)
            touched.append(other)
    return [path.relative_to(step).as_posix() for path in touched]
