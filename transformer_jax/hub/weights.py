"""The weights of a snapshot folder, read lazily and written in shards.

Safetensors files are memory-mapped, and a tensor or some of its columns are copied on access. A folder that has only a
pytorch_model.bin is read by `pickled`. Nothing is unpickled. A broken file is an `InputError` that names it.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import files
from transformer_jax.errors import InputError
from transformer_jax.hub import pickled

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # read where there are no safetensors
JSON_BYTES = 2**25  # the largest index, about 200,000 tensors


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """A context with {name: slice} of all tensors of a snapshot.

    A slice has `get_shape()`, `get_dtype()` ("F32", "BF16", ...) and reads when indexed: `slice[:]`, `slice[:, 3:5]`.

    Args:
      folder: the folder of the snapshot.

    Raises:
      InputError: no safetensors, a missing shard, a truncated file or a wrong header, or an index that disagrees with
        its shards.
    """
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for path, listed in _files(folder).items():
            file = _open(path, stack)
            names = set(file)
            if listed is not None and names != listed:
                name = min(names ^ listed)
                place = "in the index but not in the file" if name in listed else "in the file but not in the index"
                raise InputError(f"{path}: {name} is {place} of the folder; copy the snapshot again")
            tensors |= file
        yield tensors


@contextlib.contextmanager
def opened(path: Path) -> Iterator[dict[str, Any]]:
    """A context with {name: slice} of the tensors in one safetensors file, as of `open_tensors`.

    Args:
      path: the path of the file.

    Raises:
      InputError: the file is absent, truncated, or has a wrong header.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; copy the whole folder")
    with contextlib.ExitStack() as stack:
        yield _open(path, stack)


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """{file to read: the names of its tensors in the index, or None if there is no index}."""
    held = [name for name in (SINGLE, INDEX, *TORCH) if (folder / name).exists()]
    if not held:
        raise InputError(f"{folder} has none of {SINGLE}, {INDEX} and {TORCH[0]}; copy the whole snapshot")
    if held[0] in (SINGLE, TORCH[0]):
        return {folder / held[0]: None}
    where = folder / held[0]
    weight_map = read_json(where).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()) or not weight_map:
        raise InputError(f'{where} has no "weight_map" of tensor names to file names; copy the file again')
    found: dict[Path, set[str] | None] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or shard == "..":
            raise InputError(f"{where} names {shard!r}, which is not a file in the same folder")
        if not (folder / shard).exists():
            raise InputError(f"{folder / shard} is missing, though {where.name} lists it; copy the snapshot again")
        found[folder / shard] = {name for name, file in weight_map.items() if file == shard}
    return found


def _open(path: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """{name: slice} of one file."""
    import safetensors

    with files.opened(path, inside=path.parent) as file:
        if file.read(24) == b"version https://git-lfs.":
            raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` there")
    if path.suffix == ".bin":
        return stack.enter_context(pickled.tensors(path))
    try:
        opened = stack.enter_context(safetensors.safe_open(path, "numpy"))
        names = opened.keys()
        return {name: opened.get_slice(name) for name in names}
    except (safetensors.SafetensorError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a complete safetensors file ({reason}); copy it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      path: the path of the file.

    Raises:
      InputError: the file is absent, or holds something else.
    """
    try:
        content = files.read_json(path, JSON_BYTES, inside=path.parent)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def write_tensors(folder: Path, tensors: dict[str, tuple[int, Callable[[], np.ndarray]]], shard_bytes: int) -> None:
    """Writes tensors as one file, or as shards; one shard at a time is in memory.

    A tensor larger than `shard_bytes` gets its own shard. The library makes the files private, so they get the
    permissions of the folder's config.json, which is written before.

    Args:
      folder: the folder of the snapshot.
      tensors: {name: (bytes, function that makes the tensor)}.
      shard_bytes: the largest size of a file, in bytes.
    """
    from safetensors.numpy import save_file

    shards: list[list[str]] = [[]]
    size = 0
    for name, (nbytes, _) in tensors.items():
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    count = len(shards)
    written = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for file, names in zip(written, shards, strict=True):
        # Transformers refuses a file without this metadata.
        save_file({name: tensors[name][1]() for name in names}, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(nbytes for nbytes, _ in tensors.values())},
            "weight_map": {name: file for file, names in zip(written, shards, strict=True) for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
