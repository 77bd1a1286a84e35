"""Spoils the newest step of a run, one file at a time, and asks the library what it makes of it."""

import hashlib
import random
import warnings
from collections.abc import Iterator, MutableMapping
from pathlib import Path

KINDS = {
    "flip": "one bit or byte of one file",
    "truncate": "a truncated file",
    "extend": "a file with bytes after its end",
    "delete": "a file deleted",
    "swap": "two files swapped",
    "item": "a whole item deleted",
}


class Files(MutableMapping[str, bytes]):
    """The files below a folder by their names, with slashes; a folder without files goes with the last of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, data: bytes) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)

    def __delitem__(self, name: str) -> None:
        (self.folder / name).unlink()
        for parent in (self.folder / name).relative_to(self.folder).parents:
            if not any((self.folder / parent).iterdir()):
                (self.folder / parent).rmdir()

    def __iter__(self) -> Iterator[str]:
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return iter(sorted(path.relative_to(self.folder).as_posix() for path in found))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def spoil(workdir: Path, files: MutableMapping[str, bytes], tries: int) -> Iterator[tuple[str, str | None]]:
    """(kind, problem) of each try; the problem is None where the damage was noticed and nothing wrong came back.

    Arguments: files, those of the newest step of the run in `workdir`, which has another one.
    """
    import jax
    import numpy as np

    import transformer_jax
    from transformer_jax.runs import manifest, saved, store

    rng, folder = random.Random(0), workdir / "checkpoints"
    before, newest = saved.steps(folder)[-2:]
    for number in (before, newest):
        saved.check_files(folder / str(number))  # nothing is damaged yet

    def loaded() -> tuple[int | None, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = transformer_jax.load(workdir)
        whole = hashlib.sha256()
        for leaf in jax.tree.leaves(model.params):
            whole.update(np.asarray(leaf).tobytes())
        return model.step, whole.hexdigest()

    def repair() -> None:
        for name, data in contents.items():
            if files.get(name) != data:
                files[name] = data

    def unmarked(touched: list[str]) -> bool:
        """Whether there is no newest step any more: in a store, an interrupted save looks like that."""
        return store.remote(workdir) and manifest.NAME in touched and manifest.NAME not in files

    contents = dict(files)
    good = dict([loaded()])
    for name in contents:
        del files[name]
    good |= [loaded()]  # the step before
    repair()
    assert list(good) == [newest, before], good
    modes = ("flip", "flip", "flip", "flip", "truncate", "extend", "delete", "swap")
    for number in range(tries):
        kind = "item" if number % 50 == 49 else rng.choice(modes)
        touched = _damage(kind, rng, files, contents)
        output: list[str] = []
        problem = None
        try:
            found = saved.newest(folder, output.append)
            if found != before:
                problem = f"{kind} of {touched}: a run would resume from step {found}"
            elif not any(name in line for name in touched for line in output[:1]) and not unmarked(touched):
                problem = f"{kind} of {touched}: it says {output}"
            got, digest = loaded()
            if got is None or digest != good.get(got):
                problem = f"{kind} of {touched}: load gives step {got} with other parameters"
        except Exception as error:
            problem = f"{kind} of {touched}: {type(error).__name__}: {error}"
        repair()
        yield kind, problem
    assert loaded() == (newest, good[newest]), "the last repair"


def _damage(kind: str, rng: random.Random, files: MutableMapping[str, bytes], contents: dict[str, bytes]) -> list[str]:
    """Spoils something, and gives the names of what it is, within the step."""
    if kind == "item":
        item = rng.choice(sorted({name.partition("/")[0] for name in contents if "/" in name}))
        for name in [name for name in contents if name.startswith(f"{item}/")]:
            del files[name]
        return [f"{item}/"]
    name = rng.choice([name for name in contents if contents[name]])
    data = contents[name]
    match kind:
        case "flip":
            at, damaged = rng.randrange(len(data)), bytearray(data)
            damaged[at] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
            files[name] = bytes(damaged)
        case "truncate":
            files[name] = data[: rng.randrange(len(data))]
        case "extend":
            files[name] = data + rng.randbytes(rng.randint(1, 64))
        case "delete":
            del files[name]
        case "swap":
            other = rng.choice([other for other in contents if contents[other] != data])
            files[name], files[other] = contents[other], data
            return [name, other]
    return [name]
