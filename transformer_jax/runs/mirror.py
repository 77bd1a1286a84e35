"""Files that a run in a store writes beside its checkpoints: written on this machine, uploaded as whole objects."""

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from transformer_jax.errors import InputError
from transformer_jax.runs import store

MOST_BYTES = 2**30  # the largest file that is copied to this machine, such as a long metrics.jsonl


@contextlib.contextmanager
def local_mirror(folder: Path, fetch: Collection[str] = ()) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder of this machine for what a run in `folder` writes beside its checkpoints, and a function that uploads
    what has changed in it. Of a local folder it is the folder itself, and there is nothing to upload.

    Args:
      folder: the run's.
      fetch: the objects to have there from the beginning; "tokenizer/" stands for all below it.
    """
    if not store.remote(folder):
        yield folder, lambda: None
        return
    uploaded: dict[str, tuple[int, int]] = {}

    def state(name: str) -> tuple[int, int]:
        found = (here / name).stat()
        return found.st_mtime_ns, found.st_size

    def publish() -> None:
        # *.part is being written, and renamed at any moment.
        found = (p for p in here.rglob("*") if p.suffix != ".part" and p.is_file())
        files = sorted(p.relative_to(here).as_posix() for p in found)
        for name in files:
            now = state(name)  # before it is read: what is written meanwhile is for the next time
            if uploaded.get(name) != now:
                store.put(folder / name, (here / name).read_bytes())
                uploaded[name] = now

    with tempfile.TemporaryDirectory(prefix="transformer_jax-") as temporary:
        here = Path(temporary)
        for name, size in _chosen(folder, fetch).items():
            if name.startswith("/") or ".." in name.split("/"):  # an object may be called anything
                raise InputError(f"{folder}/{name} is not the name of a file in this folder; delete it")
            if size > MOST_BYTES:
                raise InputError(f"{folder}/{name} has {size:,} bytes; more than {MOST_BYTES:,} are not read")
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes(store.get(folder / name)[0])
            uploaded[name] = state(name)
        yield here, publish


def _chosen(folder: Path, names: Collection[str]) -> dict[str, int]:
    """{name: bytes} of those objects that are there, and of all below the names that end in a slash."""
    found: dict[str, int] = {}
    for name in names:
        if name.endswith("/"):
            found |= {f"{name}{x}": count for x, count in store.sizes(folder / name.rstrip("/")).items()}
        elif (count := store.size(folder / name)) is not None:
            found[name] = count
    return found
