"""The tensors of a pytorch_model.bin, read without torch and without unpickling.

torch.save writes a pickle that describes a dict of tensors, and the raw bytes of their storages: since torch 1.6 as
entries of a zip file, before as what follows the pickle. A pickle is a program. Here its opcodes are listed by
`pickletools.genops`, and of them only those are followed that build dicts, lists, tuples, strings and numbers. The
names that it may use are `NAMES`; each stands for a value of this module, and nothing is imported or called because a
file names it. Anything else is refused.
"""

import contextlib
import dataclasses
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from transformer_jax import files
from transformer_jax.errors import InputError

PICKLE_BYTES = 2**26  # the largest description, about 300,000 tensors
MAGIC = 0x1950A86A20F9469CFC6C  # the first bytes of files written before torch 1.6
# Their name of a storage: safetensors' name of its type, and NumPy's.
STORAGES: dict[str, tuple[str, Any]] = {
    "torch FloatStorage": ("F32", np.float32),
    "torch HalfStorage": ("F16", np.float16),
    "torch BFloat16Storage": ("BF16", jnp.bfloat16),
    "torch DoubleStorage": ("F64", np.float64),
    "torch LongStorage": ("I64", np.int64),
    "torch IntStorage": ("I32", np.int32),
    "torch ShortStorage": ("I16", np.int16),
    "torch CharStorage": ("I8", np.int8),
    "torch ByteStorage": ("U8", np.uint8),
    "torch BoolStorage": ("BOOL", np.bool_),
}
DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
NAMES = frozenset({DICT, TENSOR, PARAMETER, *STORAGES})
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"})
BROKEN = (
    *(ValueError, IndexError, KeyError, TypeError, EOFError, OSError, OverflowError, RecursionError, MemoryError),
    *(struct.error, zipfile.BadZipFile, NotImplementedError, RuntimeError),
)


class Refused(ValueError):
    """What a pickle holds besides a description of tensors."""


class _Name(NamedTuple):
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A tensor that reads when indexed, like a slice of safetensors.

    Attributes:
      storage: its kind, key and number of elements.
      offset: the offset of the first element.
      shape: the dimensions.
      strides: in elements.
      read: the bytes of a storage.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    read: Callable[[_Storage], bytes]

    def get_shape(self) -> list[int]:
        """The dimensions."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """The type as safetensors names it."""
        return STORAGES[self.storage.kind][0]

    def __getitem__(self, key: Any) -> np.ndarray:
        dtype = np.dtype(STORAGES[self.storage.kind][1])
        elements = np.frombuffer(self.read(self.storage), dtype)[self.offset :]
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(elements, self.shape, strides, writeable=False)[key]


@contextlib.contextmanager
def tensors(path: Path) -> Iterator[dict[str, Tensor]]:
    """A context with {name: tensor} of a file of torch.save.

    Args:
      path: the path of the file, which no link may lead out of its folder.

    Raises:
      InputError: the file is broken, or holds anything but a dict of tensors.
    """
    with files.opened(path, inside=path.parent) as file:
        try:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            described, read = _zipped(file, path) if is_zip else _plain(file, path)
            found = {name: dataclasses.replace(tensor, read=read) for name, tensor in _checked(described).items()}
        except Refused as error:
            raise InputError(
                f"{path} {error}, so it is not read; convert it to safetensors where you trust it"
            ) from None
        except BROKEN as error:
            raise InputError(f"{path} is not a complete file of torch.save ({_reason(error)}); copy it again") from None
        yield found


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _checked(described: Any) -> dict[str, Tensor]:
    if not isinstance(described, dict) or not described:
        raise Refused("holds no dict of tensors")
    for name, value in described.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Refused(f"holds under {str(name)[:100]!r} no tensor")
    return described


# ---- Where the storages are ------------------------------------------------------------------------------------------


def _zipped(file: BinaryIO, path: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    """(what the pickle describes, how to read a storage) of a zip file."""
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused("has no data.pkl of torch.save")

    def content(name: str, limit: int) -> bytes:
        entry = entries[roots[0] + name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > limit:
            raise Refused(f"has an entry {name[:50]!r} that is compressed, or has more than {limit:,} bytes")
        with archive.open(entry) as opened:
            return opened.read(limit)

    if f"{roots[0]}byteorder" in entries and content("byteorder", 100) != b"little":
        raise Refused("was written by a machine of another byte order")

    def read(storage: _Storage) -> bytes:
        with _named(path):
            return _whole(content(f"data/{storage.key}", _nbytes(storage)), storage)

    return _described(content("data.pkl", PICKLE_BYTES)), read


def _plain(file: BinaryIO, path: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    """(what the pickle describes, how to read a storage) of a file before torch 1.6: five pickles and the storages."""
    if _described(file) != MAGIC or _described(file) != 1001:
        raise Refused("is no file of torch.save")
    machine = _described(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused("was written by a machine of another byte order")
    described, keys = _described(file), _described(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refused("has no list of its storages")
    used = {tensor.storage.key: tensor.storage for tensor in _checked(described).values()}
    begins: dict[str, int] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        if key not in used or count != used[key].count:
            raise Refused("has other storages than its tensors need")
        begins[key] = file.tell()
        file.seek(_nbytes(used[key]), 1)

    def read(storage: _Storage) -> bytes:
        with _named(path):
            file.seek(begins[storage.key])
            return _whole(file.read(_nbytes(storage)), storage)

    return described, read


def _nbytes(storage: _Storage) -> int:
    return storage.count * np.dtype(STORAGES[storage.kind][1]).itemsize


def _whole(data: bytes, storage: _Storage) -> bytes:
    if len(data) != _nbytes(storage):
        raise ValueError(f"storage {storage.key[:20]} has {len(data):,} bytes of {_nbytes(storage):,}")
    return data


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise InputError(f"{path} is not a complete file of torch.save ({_reason(error)}); copy it again") from None


# ---- The pickle ------------------------------------------------------------------------------------------------------


def _described(stream: Any) -> Any:
    """The value that a pickle describes: dicts, lists, tuples, strings, numbers, names and tensors.

    Raises:
      Refused: another opcode, or another name.
      ValueError, IndexError, KeyError, TypeError: the bytes are not a pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        taken = stack[at:]
        del stack[at:]
        return taken

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "STOP":
                break
            case "PROTO" | "FRAME":
                pass
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in LITERALS:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_name(argument))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":  # the versions of a dict's modules, which change nothing
                stack.pop()
                _of(stack[-1], dict)
            case "APPEND" | "APPENDS" as name:
                items = since_mark() if name == "APPENDS" else [stack.pop()]
                _of(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS" as name:
                items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                if not all(isinstance(key, str | int) for key in items[::2]):
                    raise Refused("has a dict with keys that are no names")
                _of(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            case name:
                raise Refused(f"holds the instruction {name}, which describes no tensor")
    return stack.pop()


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _name(argument: str) -> _Name:
    if argument not in NAMES:
        raise Refused(f"names {argument.replace(' ', '.')[:100]!r}, which describes no tensor and could be code")
    return _Name(argument)


def _storage(given: Any) -> _Storage:
    """The storage of ("storage", kind, key, device, elements), and before torch 1.6 a view of it, which is none."""
    mark, kind, key, _, count, *view = _of(given, tuple)
    if mark != "storage" or not isinstance(kind, _Name) or kind.name not in STORAGES or view not in ([], [None]):
        raise Refused("holds a storage of an unknown kind")
    if not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError("a storage without key or size")
    return _Storage(kind.name, key, count)


def _made(function: Any, arguments: Any) -> Any:
    """What one of the three names that may be called gives, without a call of it."""
    name = _of(function, _Name).name
    if name == DICT and arguments == ():
        return {}
    if name == PARAMETER:
        return _of(_of(arguments, tuple)[0], Tensor)
    if name != TENSOR:
        raise Refused(f"calls {name.replace(' ', '.')!r} with arguments that describe no tensor")
    storage, offset, shape, strides, *_ = _of(arguments, tuple)
    numbers = (offset, *_of(shape, tuple), *_of(strides, tuple))
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor whose shape and strides do not fit")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    count, held = math.prod(shape), _of(storage, _Storage).count
    if count > held or (count and last >= held):
        raise ValueError(f"a tensor of {count:,} elements in a storage of {held:,}")
    return Tensor(storage, offset, shape, strides, lambda storage: b"")
