"""Converts parameters to and from the tensors of a checkpoint by a table.

A format's table names the tensor that holds each of our leaves. Both directions and all checks follow from the table
and the family's parameter declaration: every leaf has a tensor, every tensor is used or is a named buffer, and every
shape is the declared one. The checks run before any value is read.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from transformer_jax.errors import InputError
from transformer_jax.nn import params as param_tree

DTYPES = ("F32", "F16", "BF16")


class Row(NamedTuple):
    """The tensor that holds one leaf.

    Attributes:
      leaf: our path, such as "blocks/mlp/up/kernel".
      tensor: their name; `{}` is the number of the layer, and the leaf has a leading dimension of layers.
      transpose: whether theirs is [out, in], as in torch's Linear.
      part: the position of this leaf among `parts`.
      parts: how many leaves theirs holds along our last dimension, such as query, key and value in GPT-2 and
        ModernBERT.
      begins: the first layer that has the tensor; in the layers before it, where nothing reads it, ours is ones.
      plus: what ours has more than theirs.
      one_row: whether theirs has an additional first dimension of 1.
      squeezed: whether theirs lacks our first dimension, of 1.
      unfolded: the dimensions of theirs, transposed, in place of our first one: a convolution's kernel is
        [out, channels, rows, columns].
    """

    leaf: str
    tensor: str
    transpose: bool = False
    part: int = 0
    parts: int = 1
    one_row: bool = False
    unfolded: tuple[int, ...] = ()
    begins: int = 0
    plus: float = 0.0
    squeezed: bool = False


class Table(NamedTuple):
    """The table of a format.

    Attributes:
      rows: one for each leaf.
      prefix: the prefix of names; a checkpoint of only the trunk omits it.
      buffers: a pattern of tensors that are not parameters, which are ignored.
      tied: {copy: original}; a checkpoint may hold one of the two, or both if they are equal.
      old_names: {pattern of an old ending: its replacement, as of `re.sub`}.
      zeros: {name: shape} of tensors that nothing here reads, which Transformers expects. They are written as zeros.
      only_zeros: {name: why} of tensors that are not parameters, and are refused where they are not zero.
    """

    rows: Sequence[Row]
    prefix: str
    buffers: str
    tied: Mapping[str, str]
    old_names: Mapping[str, str | Callable[[re.Match[str]], str]] = {}
    zeros: Mapping[str, tuple[int, ...]] = {}
    only_zeros: Mapping[str, str] = {}


def dense(leaf: str, tensor: str) -> tuple[Row, ...]:
    """The rows of a torch Linear.

    Args:
      leaf: our path.
      tensor: their name.
    """
    return Row(f"{leaf}/kernel", f"{tensor}.weight", transpose=True), Row(f"{leaf}/bias", f"{tensor}.bias")


def fused(leaf: str, tensor: str, part: int, parts: int) -> tuple[Row, ...]:
    """The rows of one of several products that a torch Linear computes at once.

    Args:
      leaf: our path.
      tensor: the name of the Linear.
      part: the number of this product.
      parts: how many there are.
    """
    return (
        Row(f"{leaf}/kernel", f"{tensor}.weight", transpose=True, part=part, parts=parts),
        Row(f"{leaf}/bias", f"{tensor}.bias", part=part, parts=parts),
    )


def norm(leaf: str, tensor: str) -> tuple[Row, ...]:
    """The rows of a torch LayerNorm.

    Args:
      leaf: the path of the norm in our tree, such as "mlm/norm".
      tensor: the name of the module in the checkpoint, such as "cls.predictions.transform.LayerNorm".
    """
    return Row(f"{leaf}/scale", f"{tensor}.weight"), Row(f"{leaf}/bias", f"{tensor}.bias")


class _Piece(NamedTuple):
    row: Row
    layer: int | None


def by_tensor(shapes: Mapping[str, tuple[int, ...]], table: Table) -> dict[str, list[_Piece]]:
    """{their tensor: the pieces of our leaves in it, in order} by `table`, for all leaves in `shapes`."""
    if homeless := sorted(shapes.keys() - {row.leaf for row in table.rows}):
        raise InputError(f"this Hugging Face format has no tensor for {_some(homeless)}")
    pieces: dict[str, list[_Piece]] = {}
    for row in table.rows:
        if row.leaf in shapes:
            layers: Iterable[int | None] = range(row.begins, shapes[row.leaf][0]) if "{}" in row.tensor else (None,)
            for layer in layers:
                pieces.setdefault(row.tensor.format(layer), []).append(_Piece(row, layer))
    return pieces


def _their_shape(pieces: list[_Piece], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    ours = [shapes[row.leaf] if layer is None else shapes[row.leaf][1:] for row, layer in pieces]
    if pieces[0].row.squeezed:
        return ours[0][1:]
    width = sum(shape[-1] for shape in ours)
    shape = (*ours[0][:-1], width)
    shape = shape[::-1] if pieces[0].row.transpose else shape
    if dims := pieces[0].row.unfolded:
        shape = (shape[0], *dims)
    return (1, *shape) if pieces[0].row.one_row else shape


def read_params(
    declaration: Any,
    table: Table,
    tensors: Mapping[str, Any],
    dtype: np.dtype,
    where: str,
    *,
    chosen: Callable[[str], bool] = lambda path: True,
) -> tuple[Any, int]:
    """The parameter tree of a declaration, as NumPy arrays, and how many bytes of tensors were read for it.

    Tensors are read from the mapped file into the stacked arrays, so the parameters are in memory once.

    Args:
      declaration: the tree of `nn.params.Param`.
      table: the table of the format.
      tensors: {name: slice} of `weights.open_tensors`.
      dtype: the dtype of the arrays.
      where: names the checkpoint in messages.
      chosen: path of a leaf -> whether to read it; the tree has these leaves alone.

    Raises:
      InputError: tensors that are missing, unexpected, or of another shape or dtype.
    """
    shapes = {path: p.shape for path, p in param_tree.flatten(declaration).items()}
    layers = max((shapes[row.leaf][0] for row in table.rows if "{}" in row.tensor and row.leaf in shapes), default=0)
    if layers > len(tensors):  # a config.json with a billion layers would fill the memory with names
        raise InputError(f"{where}: its config.json has {layers:,} layers, but there are {len(tensors)} tensors")
    pieces = by_tensor(shapes, table)
    given = _match_names(tensors, pieces, table, where)
    for name, held in pieces.items():
        expected, found, kind = _their_shape(held, shapes), tuple(given[name].get_shape()), given[name].get_dtype()
        if found != expected:
            raise InputError(f"{where}: tensor {name} has shape {found}, but its config.json implies {expected}")
        if kind not in DTYPES:
            raise InputError(f"{where}: tensor {name} is of type {kind}; supported are {', '.join(DTYPES)}")

    for name, why in table.only_zeros.items():
        if name in tensors and np.any(tensors[name][...]):
            raise InputError(f"{where}: tensor {name} is not zero; {why}")

    leaves = {path: np.empty(shape, dtype) for path, shape in shapes.items() if chosen(path)}
    bytes_read = 0
    for row in table.rows:
        if row.begins and row.leaf in leaves:
            leaves[row.leaf][: row.begins] = 1
    for name, held in pieces.items():
        for row, layer in held:
            if row.leaf not in leaves:
                continue
            width = shapes[row.leaf][-1]
            part: Any = slice(row.part * width, (row.part + 1) * width) if row.parts > 1 else slice(None)
            part = ... if row.squeezed else part  # a tensor without dimensions has no slices
            piece = given[name][part] if row.transpose or row.parts == 1 else given[name][..., part]
            bytes_read += piece.nbytes
            target = leaves[row.leaf] if layer is None else leaves[row.leaf][layer]
            piece = piece[0] if row.one_row else piece[None] if row.squeezed else piece
            piece = piece.reshape(len(piece), -1) if row.unfolded else piece
            target[...] = piece.T if row.transpose else piece
            if row.plus:
                target += np.asarray(row.plus, dtype)
    return traverse_util.unflatten_dict(leaves, sep="/"), bytes_read


def _match_names(
    tensors: Mapping[str, Any], pieces: Mapping[str, list[_Piece]], table: Table, where: str
) -> dict[str, Any]:
    """{name in the table: tensor}, after the checks for missing and unexpected tensors."""
    given: dict[str, Any] = {}
    extra = []
    known = {*pieces, *(copy for copy, original in table.tied.items() if original in pieces)}
    for name, tensor in tensors.items():
        full = name
        for old, new in table.old_names.items():
            full = re.sub(f"{old}$", new, full)
        full = full if full in known else table.prefix + full
        if full in given:
            raise InputError(f"{where}: tensor {full} is there twice, under two names; keep one")
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
        has = [f"has the unexpected {_some(sorted(extra))}"] if extra else []
        raise InputError(f"{where}: compared with its config.json, the checkpoint {' and '.join(lacks + has)}")
    for copy, original in table.tied.items():
        if copy in given and copy not in pieces and not np.array_equal(given[copy][:], given[original][:]):
            raise InputError(
                f"{where}: config.json ties the head to the embedding, but {copy} differs from {original}; "
                'set "tie_word_embeddings": false if the head is separate'
            )
    return given


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def tensor_names(declaration: Any, table: Table) -> set[str]:
    """The names of the tensors that hold the leaves of a declaration. Leaves without a row are ignored.

    Args:
      declaration: the tree of `nn.params.Param`.
      table: the table of the format.
    """
    shapes = {path: p.shape for path, p in param_tree.flatten(declaration).items()}
    known = {row.leaf for row in table.rows}
    return set(by_tensor({path: shape for path, shape in shapes.items() if path in known}, table))


def write_params(declaration: Any, table: Table, params: Any) -> dict[str, tuple[int, Callable[[], np.ndarray]]]:
    """{their name: (bytes, function that makes the tensor)}: the exact inverse of `read_params`.

    Args:
      declaration: the tree of `nn.params.Param`.
      table: the table of the format.
      params: the parameter tree.

    Raises:
      InputError: a tree that is not the declared one.
    """
    shapes = {path: p.shape for path, p in param_tree.flatten(declaration).items()}
    leaves = param_tree.flatten(params)
    if wrong := sorted(shapes.keys() ^ leaves.keys()):
        raise InputError(f"the parameters to export differ from the config's: only one of them has {_some(wrong)}")
    for path, leaf in leaves.items():
        if leaf.shape != shapes[path]:
            raise InputError(f"parameter {path} to export has shape {leaf.shape}; the config implies {shapes[path]}")

    def make(held: list[_Piece]) -> np.ndarray:
        ours = [np.asarray(leaves[row.leaf]) if i is None else np.asarray(leaves[row.leaf])[i] for row, i in held]
        tensor = ours[0] if len(ours) == 1 else np.concatenate(ours, axis=-1)
        tensor = tensor.T if held[0].row.transpose else tensor
        tensor = tensor - np.asarray(held[0].row.plus, tensor.dtype) if held[0].row.plus else tensor
        tensor = tensor.reshape(len(tensor), *held[0].row.unfolded) if held[0].row.unfolded else tensor
        tensor = tensor[None] if held[0].row.one_row else tensor[0] if held[0].row.squeezed else tensor
        return np.array(tensor, order="C")

    tensors: dict[str, tuple[int, Callable[[], np.ndarray]]] = {}
    for name, held in by_tensor(shapes, table).items():
        itemsize = leaves[held[0].row.leaf].dtype.itemsize
        nbytes = int(np.prod(_their_shape(held, shapes))) * itemsize
        tensors[name] = (nbytes, functools.partial(make, held))
    dtype = next(iter(leaves.values())).dtype
    for name, shape in table.zeros.items():
        tensors[name] = (int(np.prod(shape)) * dtype.itemsize, functools.partial(np.zeros, shape, dtype))
    return tensors
