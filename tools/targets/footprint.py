"""The memory of a training step on a device, by kind, without compiling it.

The state is declared, so its bytes are exact. The activations that the forward pass saves are the leaves of the
function that `jax.vjp` returns, traced on an abstract mesh with Explicit axes, where an array's type has its sharding.
The buffers of compiled programs show that memory peaks at one of two moments:

  the loss   a tile of logits, and the gathered output matrix
  a block    in the backward pass: all gradients, and the working memory of one block

At both, memory also holds the saved activations, the kernels in the compute dtype, which are converted before the first
layer, and the gradient of the output matrix, which is replicated until the end. docs/scaling.md compares the result
with the compilers.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from tools.targets import Target
from transformer_jax import sharding
from transformer_jax.experiment import Experiment
from transformer_jax.kernels import cross_entropy, gpu, tpu
from transformer_jax.nn import params as params_lib
from transformer_jax.train import program as programs


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device, by kind.

    Attributes:
      params: exact.
      moments: of the optimiser, exact.
      ema: the moving average, exact.
      batch: exact.
      gradients: float32, sharded as the parameters; twice with accumulation, for the sum and a part.
      weights: the blocks' kernels in the compute dtype.
      activations: saved by the forward pass for the backward pass.
      head: the output matrix's float32 gradient before it is scattered; or all logits, if they are one tile.
      logits: a tile of logits, and the gathered output matrix in the compute dtype.
      block: the recomputed activations of one block in the backward pass, and their gradients.
      reused: memory that the logits share with the gradients of a part and the block.
    """

    params: float
    moments: float
    ema: float
    batch: float
    gradients: float
    weights: float
    activations: float
    head: float
    logits: float
    block: float
    reused: float

    @property
    def total(self) -> float:
        """The peak memory of a step, its arguments included."""
        return math.fsum(dataclasses.astuple(self)) - 2 * self.reused


def footprint(experiment: Experiment, target: Target) -> Footprint:
    """The memory of a step on each device, with the experiment's mesh and remat policy.

    Args:
      experiment: to train.
      target: the chips.

    Raises:
      InputError: a mesh, a batch or a parameter that does not divide.
    """
    mesh = target.abstract_mesh(**dataclasses.asdict(experiment.mesh))
    program = programs.make(experiment, mesh, platform=target.platform)
    params = _bytes(program.state.params)
    block = max(_block(experiment, target, depth) for depth in depths(experiment.model))
    head, logits = _head(experiment, dict(mesh.shape), target)
    return Footprint(
        params=params,
        moments=_bytes(program.state.opt_state),
        ema=_bytes(program.state.ema),
        batch=_bytes(program.batch),
        gradients=params * (2 if experiment.train.accumulate > 1 else 1),
        weights=_kernels(program),
        activations=saved(experiment, target).total,
        head=head,
        logits=logits,
        block=block,
        reused=min(logits, params + block),
    )


def _kernels(program: programs.Program) -> float:
    """Bytes of the blocks' kernels in the compute dtype, sharded as the parameters."""
    declared = params_lib.flatten(program.declaration)
    leaves = params_lib.flatten(program.state.params)
    narrow = jnp.dtype(program.model.dtype).itemsize
    stacked = [leaves[path] for path, p in declared.items() if p.axes[0] == "layers" and len(p.shape) > 2]
    return float(sum(narrow * local_bytes(leaf) / leaf.dtype.itemsize for leaf in stacked))


def depths(model: Any) -> tuple[str, ...]:
    """The fields of `model` with the number of blocks in a stack."""
    return ("num_layers", "num_decoder_layers") if hasattr(model, "decoder_layers") else ("num_layers",)


def _block(experiment: Experiment, target: Target, depth: str) -> float:
    """Bytes of a block's backward pass: the activations of a block that saves everything.

    Each of its arrays is recomputed or was saved, and its gradient takes as much. It is measured as what one more block
    of that stack makes the forward pass save.
    """

    def kept(layers: int) -> float:
        fewest = {name: 2 for name in depths(experiment.model)} | {depth: layers}
        model = dataclasses.replace(experiment.model, remat="none", **fewest)
        return saved(dataclasses.replace(experiment, model=model), target, everything=True).total

    return kept(3) - kept(2)


@dataclass(frozen=True)
class Saved:
    """Bytes on one device that the forward pass saves, without weights.

    Attributes:
      stacked: activations with a row for each layer.
      shared: other activations.
      loss: arrays with a dimension of the vocabulary.
    """

    stacked: float
    shared: float
    loss: float

    @property
    def total(self) -> float:
        """The sum of all three."""
        return self.stacked + self.shared + self.loss


@functools.lru_cache(maxsize=64)
def saved(experiment: Experiment, target: Target, *, everything: bool = False) -> Saved:
    """The bytes that the forward pass of one micro-batch saves, without parameters and their copies.

    Args:
      experiment: to train.
      target: the chips.
      everything: whether remat "none" also saves what a platform's policy would recompute.
    """
    train, task = experiment.train, experiment.task
    rows = train.batch_size // train.accumulate
    if hasattr(task, "augment"):  # augmentation saves nothing for the backward pass
        off = {"augment": (), "mixup": 0.0, "cutmix": 0.0}
        task = dataclasses.replace(task, **{name: value for name, value in off.items() if hasattr(task, name)})
    part = dataclasses.replace(experiment, task=task, train=dataclasses.replace(train, batch_size=rows, accumulate=1))
    mesh = _explicit(target.abstract_mesh(**dataclasses.asdict(experiment.mesh)))
    program = programs.make(part, mesh, platform=target.platform)

    def backward(params: Any, batch: Any, key: jax.Array) -> Any:
        return jax.vjp(lambda p: program.loss(p, batch, key)[0], params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.sharding.use_abstract_mesh(mesh), _without_cudnn(), _keeping(everything):
        leaves = jax.tree.leaves(jax.eval_shape(backward, program.state.params, program.rows, key))
        model = experiment.model
        parameters = _shapes(program.declaration)
        vocabulary = getattr(model, "vocab_size", None)
        layers = {getattr(model, name) for name in depths(model)}
        sums = {"stacked": 0.0, "shared": 0.0, "loss": 0.0}
        for leaf in leaves:
            if not leaf.shape or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or leaf.shape in parameters:
                continue  # a scalar, a key, a parameter or its copy
            kind = "stacked" if len(leaf.shape) > 1 and leaf.shape[0] in layers else "shared"
            sums["loss" if vocabulary in leaf.shape else kind] += local_bytes(leaf) / _shards(leaf, kind == "stacked")
    return Saved(**sums)


def _shapes(declaration: Any) -> set[tuple[int, ...]]:
    """The shapes of all parameters; those of blocks also without the layers' dimension, for unrolled layers."""
    declared = params_lib.flatten(declaration).values()
    return {p.shape for p in declared} | {p.shape[1:] for p in declared if p.axes[0] == "layers"}


def _shards(leaf: Any, stacked: bool) -> int:
    """The number of shards of dropout's bits, 1 for any other array.

    Their type has no sharding, but the compilers shard them as the array that they multiply.
    """
    if leaf.dtype != jnp.bool_ or any(getattr(leaf.sharding, "spec", ())):
        return 1
    features, scores = ("batch", "length"), ("batch", "kv_heads", None, "length", None)
    axes = {3: features, 5: scores}.get(len(leaf.shape) - stacked, ())
    return math.prod(sharding.shards(axis) for axis in axes if axis)


def _explicit(mesh: AbstractMesh) -> AbstractMesh:
    types = (AxisType.Explicit,) * len(mesh.axis_names)
    return AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=types, abstract_device=mesh.abstract_device)


def _head(experiment: Experiment, sizes: dict[str, int], target: Target) -> tuple[float, float]:
    """(bytes until the end, bytes only at the loss) of `losses.linear_cross_entropy`.

    At the loss, memory holds the gathered output matrix in the compute dtype and a tile of logits in float32. With
    several tiles, the matrix's float32 gradient is replicated until it is scattered at the end. With one tile, the
    logits stay until then, because the gradient is computed from them.
    """
    model, train, data = experiment.model, experiment.train, experiment.data
    if not hasattr(model, "vocab_size"):
        return 0.0, 0.0
    length = getattr(data, "target_length", data.length)
    if hasattr(experiment.task, "masking"):
        length = experiment.task.masking.count(length)  # replicated along the sequence axis
    else:
        length //= sizes["sequence"]
    rows = train.batch_size // (train.accumulate * sizes["data"] * sizes["fsdp"])
    columns = model.vocab_size // sizes["tensor"]
    tiles = cross_entropy.num_tiles(rows, length, columns, target.platform, target.chip.kind)
    matrix, logits = model.width * columns, 4 * rows * length * columns
    return (logits, 2 * matrix) if tiles == 1 else (4 * matrix, 2 * matrix + logits // tiles)


@contextmanager
def _keeping(everything: bool) -> Iterator[None]:
    """A context in which, with `everything`, remat "none" recomputes nothing on any platform."""
    policy = tpu.KEPT
    if everything:
        tpu.KEPT = None  # type: ignore[assignment]
    try:
        yield
    finally:
        tpu.KEPT = policy


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """A context in which cuDNN's attention is traced without cuDNN, by a stand-in that saves the same arrays."""

    @jax.custom_vjp
    def stand_in(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> jax.Array:
        return q_BTNH

    def forward(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> Any:
        statistics_BTN = jnp.max(q_BTNH, axis=-1).astype(jnp.float32)
        return q_BTNH, (q_BTNH, k_BSKH, v_BSKH, q_BTNH * 1, statistics_BTN)

    def backward(kept: Any, d: jax.Array) -> Any:
        return d, kept[1], kept[2]

    stand_in.defvjp(forward, backward)
    original = gpu._cudnn
    gpu._cudnn = lambda q, k, v, mask, scale: stand_in(q, k, v)  # type: ignore[assignment]
    try:
        yield
    finally:
        gpu._cudnn = original


def local_bytes(leaf: Any) -> int:
    """The bytes of an abstract array `leaf` on one device."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _bytes(tree: Any) -> float:
    return float(sum(map(local_bytes, jax.tree.leaves(tree))))
