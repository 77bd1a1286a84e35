"""Parameters to and from the tensors of a checkpoint, by a table of rows.

A family's table says for each leaf of ours which tensor of theirs holds it. Both directions and both completeness
checks follow from that table and the family's parameter declaration: every leaf is filled, every tensor is used or is
one of the table's named buffers, and every shape is the declared one, before a single value is read.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from transformer_jax.errors import InputError
from transformer_jax.nn import params as param_tree

DTYPES = ("F32", "F16", "BF16")


class Row(NamedTuple):
    """Where one leaf lives.

    `leaf` is our path ("blocks/mlp/up/kernel"), `tensor` their name with `{}` for the layer's number; the leaves of
    such rows lead with the layers. `transpose`: theirs is [out, in], as torch's Linear stores it. `part` of
    `parts`: theirs holds several leaves side by side along its last dimension, as GPT-2's query, key and value are.
    `one_row`: theirs has a first dimension of 1 besides. `unfolded`: theirs, turned, has these dimensions in place of
    our first, as a convolution's kernel [out, channels, rows, columns] has.
    """

    leaf: str
    tensor: str
    transpose: bool = False
    part: int = 0
    parts: int = 1
    one_row: bool = False
    unfolded: tuple[int, ...] = ()


class Table(NamedTuple):
    """A format's rows, and what its checkpoints may hold or leave out besides.

    `prefix`: a name may come without it (a checkpoint of the trunk alone). `buffers`: a pattern of tensors that hold no
    parameter of the function. `tied`: {copy: original}, of which a checkpoint may hold one or both, but then equal.
    `old_names`: {pattern: replacement} for what the end of a name was in the years before.
    """

    rows: Sequence[Row]
    prefix: str
    buffers: str
    tied: Mapping[str, str]
    old_names: Mapping[str, str] = {}


def dense(leaf: str, tensor: str) -> tuple[Row, ...]:
    """A torch Linear."""
    return Row(f"{leaf}/kernel", f"{tensor}.weight", transpose=True), Row(f"{leaf}/bias", f"{tensor}.bias")


def norm(leaf: str, tensor: str) -> tuple[Row, ...]:
    """A torch LayerNorm."""
    return Row(f"{leaf}/scale", f"{tensor}.weight"), Row(f"{leaf}/bias", f"{tensor}.bias")


class _Piece(NamedTuple):
    row: Row
    layer: int | None


def _pieces(shapes: Mapping[str, tuple[int, ...]], table: Table) -> dict[str, list[_Piece]]:
    """{their tensor: the pieces of our leaves in it, in order}, for the leaves that `shapes` declares: all of them."""
    if homeless := sorted(shapes.keys() - {row.leaf for row in table.rows}):
        raise InputError(f"this Hugging Face format has no tensor for {_some(homeless)}")
    pieces: dict[str, list[_Piece]] = {}
    for row in table.rows:
        if row.leaf in shapes:
            layers: Iterable[int | None] = range(shapes[row.leaf][0]) if "{}" in row.tensor else (None,)
            for layer in layers:
                pieces.setdefault(row.tensor.format(layer), []).append(_Piece(row, layer))
    return pieces


def _their_shape(pieces: list[_Piece], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    ours = [shapes[row.leaf] if layer is None else shapes[row.leaf][1:] for row, layer in pieces]
    width = sum(shape[-1] for shape in ours)
    shape = (*ours[0][:-1], width)
    shape = shape[::-1] if pieces[0].row.transpose else shape
    if dims := pieces[0].row.unfolded:
        shape = (shape[0], *dims)
    return (1, *shape) if pieces[0].row.one_row else shape


def read_params(declaration: Any, table: Table, tensors: Mapping[str, Any], dtype: np.dtype, where: str) -> Any:
    """The parameter tree of `declaration`, its leaves NumPy arrays of `dtype`, from {name: safetensors slice}.

    Memory: one copy of the parameters; tensors are read from the mapped file straight into their place in the stack.

    Errors: `InputError` naming the tensors that are missing, left over, or of another shape or dtype.
    """
    shapes = {path: p.shape for path, p in param_tree.flatten(declaration).items()}
    layers = max((shapes[row.leaf][0] for row in table.rows if "{}" in row.tensor and row.leaf in shapes), default=0)
    if layers > len(tensors):  # a name for each would fill the memory where somebody states a billion
        raise InputError(f"{where}: its config.json has {layers:,} layers, but there are {len(tensors)} tensors")
    pieces = _pieces(shapes, table)
    given = _match_names(tensors, pieces, table, where)
    for name, held in pieces.items():
        expected, found, kind = _their_shape(held, shapes), tuple(given[name].get_shape()), given[name].get_dtype()
        if found != expected:
            raise InputError(f"{where}: tensor {name} has shape {found}, but its config.json makes it {expected}")
        if kind not in DTYPES:
            raise InputError(f"{where}: tensor {name} is of type {kind}; the types read are {', '.join(DTYPES)}")

    leaves = {path: np.empty(shape, dtype) for path, shape in shapes.items()}
    for name, held in pieces.items():
        for row, layer in held:
            if row.parts == 1:
                piece = given[name][:]
            else:
                width = shapes[row.leaf][-1]
                piece = given[name][..., row.part * width : (row.part + 1) * width]
            target = leaves[row.leaf] if layer is None else leaves[row.leaf][layer]
            piece = piece[0] if row.one_row else piece
            piece = piece.reshape(len(piece), -1) if row.unfolded else piece
            target[...] = piece.T if row.transpose else piece
    structure = jax.tree.structure(declaration, is_leaf=lambda x: isinstance(x, param_tree.Param))
    return jax.tree.unflatten(structure, list(leaves.values()))


def _match_names(
    tensors: Mapping[str, Any], pieces: Mapping[str, list[_Piece]], table: Table, where: str
) -> dict[str, Any]:
    """The tensors under the table's own names, after both completeness checks."""
    given: dict[str, Any] = {}
    extra = []
    known = {*pieces, *(copy for copy, original in table.tied.items() if original in pieces)}
    for name, tensor in tensors.items():
        full = name
        for old, new in table.old_names.items():
            full = re.sub(f"{old}$", new, full)
        full = full if full in known else table.prefix + full
        if full in given:
            raise InputError(f"{where}: tensor {full} is there twice, under two spellings of its name; keep one")
        if full in known:
            given[full] = tensor
        elif not re.fullmatch(table.buffers, name):
            extra.append(name)
    for copy, original in table.tied.items():
        if copy in given and copy not in pieces:
            given.setdefault(original, given[copy])
    missing = sorted(pieces.keys() - given.keys())
    if missing or extra:
        lacks = [f"lacks {_some(missing)}"] if missing else []
        has = [f"has besides {_some(sorted(extra))}"] if extra else []
        raise InputError(f"{where}: against what its config.json declares, the checkpoint {' and '.join(lacks + has)}")
    for copy, original in table.tied.items():
        if copy in given and copy not in pieces and not np.array_equal(given[copy][:], given[original][:]):
            raise InputError(
                f"{where}: config.json ties the head to the embedding, but {copy} differs from {original}; "
                'set "tie_word_embeddings": false if the head is its own'
            )
    return given


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def tensor_names(declaration: Any, table: Table) -> set[str]:
    """Names of the tensors that hold the leaves of `declaration`, as far as the table knows them."""
    shapes = {path: p.shape for path, p in param_tree.flatten(declaration).items()}
    known = {row.leaf for row in table.rows}
    return set(_pieces({path: shape for path, shape in shapes.items() if path in known}, table))


def write_params(declaration: Any, table: Table, params: Any) -> dict[str, tuple[int, Callable[[], np.ndarray]]]:
    """{their name: (bytes, function that makes the tensor)}: the exact inverse of `read_params`.

    Errors: `InputError` for a tree that is not the declared one, naming the leaves.
    """
    shapes = {path: p.shape for path, p in param_tree.flatten(declaration).items()}
    leaves = param_tree.flatten(params)
    if wrong := sorted(shapes.keys() ^ leaves.keys()):
        raise InputError(f"the parameters to export are not those of the config: {_some(wrong)} on one side only")
    for path, leaf in leaves.items():
        if leaf.shape != shapes[path]:
            raise InputError(f"parameter {path} to export has shape {leaf.shape}; the config makes it {shapes[path]}")

    def make(held: list[_Piece]) -> np.ndarray:
        ours = [np.asarray(leaves[row.leaf]) if i is None else np.asarray(leaves[row.leaf])[i] for row, i in held]
        tensor = ours[0] if len(ours) == 1 else np.concatenate(ours, axis=-1)
        tensor = tensor.T if held[0].row.transpose else tensor
        tensor = tensor.reshape(len(tensor), *held[0].row.unfolded) if held[0].row.unfolded else tensor
        return np.ascontiguousarray(tensor[None] if held[0].row.one_row else tensor)

    tensors: dict[str, tuple[int, Callable[[], np.ndarray]]] = {}
    for name, held in _pieces(shapes, table).items():
        itemsize = leaves[held[0].row.leaf].dtype.itemsize
        nbytes = int(np.prod(_their_shape(held, shapes))) * itemsize
        tensors[name] = (nbytes, functools.partial(make, held))
    return tensors
