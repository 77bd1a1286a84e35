"""What a training step holds in a device's memory, by kind, without compiling it.

The state is declared, so its bytes are exact. What the forward pass keeps for the backward pass is JAX's own account of
it: the leaves of the function that `jax.vjp` returns, traced on an abstract mesh whose axes are Explicit, where each
array's type says how it is laid out. What comes on top, a block's working memory, is estimated from the same account
of a block that keeps everything. docs/scaling.md has it beside what the compilers say.
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
from transformer_jax import losses
from transformer_jax.experiment import Experiment
from transformer_jax.nn import attention
from transformer_jax.nn import params as params_lib
from transformer_jax.train import program as programs

COTANGENTS = 0.75  # of what a block keeps, its backward pass holds in gradients at once: fitted to ViT-H on H100


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device, by kind.

    Fields:
      params, moments, ema, batch: what a step takes and gives back, exact.
      gradients: float32, laid out as the parameters; twice with accumulation, the sum and a part's, and on TPUs, whose
        compiler does not write them where it adds them up.
      weights: copies of the kernels in the compute dtype, the output matrix among them.
      activations: what the forward pass keeps for the backward pass besides.
      head: tiles of logits, and the output matrix's gradient before it is scattered.
      block: what one block's backward pass computes anew, and on GPUs the gradients of its activations.
      reused: of the last two, what lies in the same place: a TPU's compiler uses the head's memory again for all of a
        block, a GPU's for those gradients.
    """

    params: float
    moments: float
    ema: float
    batch: float
    gradients: float
    weights: float
    activations: float
    head: float
    block: float
    reused: float

    @property
    def total(self) -> float:
        """Arguments, temporaries and outputs less what is donated, as compilers count."""
        return math.fsum(dataclasses.astuple(self)) - 2 * self.reused


def footprint(experiment: Experiment, target: Target) -> Footprint:
    """A step's memory on each device of a target, with the experiment's mesh and remat policy.

    Errors: `InputError` for a mesh, a batch or a parameter that does not divide.
    """
    model, tpu = experiment.model, target.platform == "tpu"
    mesh = target.abstract_mesh(**dataclasses.asdict(experiment.mesh))
    program = programs.make(experiment, mesh, platform=target.platform)
    params = _bytes(program.state.params)
    kept = saved(experiment, target)
    everything = saved(dataclasses.replace(experiment, model=dataclasses.replace(model, remat="none")), target)
    layers = model.num_layers + getattr(model, "decoder_layers", 0)
    block = (everything.stacked - kept.stacked) / layers
    head, reused = _head(experiment, dict(mesh.shape), target.platform), 0.0
    if tpu:
        # There what all blocks share, such as a mask, is made once, before the loop. So are all layers' kernels in the
        # compute dtype, whether the backward pass asks for them or not.
        block += everything.shared - kept.shared
        kept = dataclasses.replace(kept, weights=everything.weights)
        reused = min(head, block)
    else:
        cotangents = COTANGENTS * everything.stacked / layers
        block, reused = block + cotangents, min(head, cotangents)
    return Footprint(
        params=params,
        moments=_bytes(program.state.opt_state),
        ema=_bytes(program.state.ema),
        batch=_bytes(program.batch),
        gradients=params * (2 if experiment.train.accumulate > 1 or tpu else 1),
        weights=kept.weights + kept.loss,
        activations=kept.stacked + kept.shared,
        head=head,
        block=block,
        reused=reused,
    )


@dataclass(frozen=True)
class Saved:
    """Bytes on one device of what the forward pass keeps.

    Fields:
      stacked: activations, a row for each layer. shared: those that there are once.
      weights: parameters in the compute dtype. loss: arrays as large as the vocabulary.
    """

    stacked: float
    shared: float
    weights: float
    loss: float


@functools.lru_cache(maxsize=64)
def saved(experiment: Experiment, target: Target) -> Saved:
    """What the forward pass of one micro-batch keeps for its backward pass, the parameters themselves aside."""
    train, task = experiment.train, experiment.task
    rows = train.batch_size // train.accumulate
    if hasattr(task, "augment"):  # changes the images before the model sees them, and keeps nothing
        task = dataclasses.replace(task, augment=(), mixup=0.0, cutmix=0.0)
    part = dataclasses.replace(experiment, task=task, train=dataclasses.replace(train, batch_size=rows, accumulate=1))
    mesh = _explicit(target.abstract_mesh(**dataclasses.asdict(experiment.mesh)))
    program = programs.make(part, mesh, platform=target.platform)

    def backward(params: Any, batch: Any, key: jax.Array) -> Any:
        return jax.vjp(lambda p: program.loss(p, batch, key)[0], params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.sharding.use_abstract_mesh(mesh), _without_cudnn():
        leaves = jax.tree.leaves(jax.eval_shape(backward, program.state.params, program.batch, key))
    model = experiment.model
    parameters = {p.shape for p in params_lib.flatten(program.declaration).values()}
    depths, vocabulary = {model.num_layers, getattr(model, "decoder_layers", 0)}, getattr(model, "vocab_size", None)
    sums = {"stacked": 0.0, "shared": 0.0, "weights": 0.0, "loss": 0.0}
    for leaf in leaves:
        own = leaf.shape in parameters
        if not leaf.shape or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or (own and leaf.dtype == jnp.float32):
            continue  # a number, a key, or a parameter itself
        kind = "stacked" if len(leaf.shape) > 1 and leaf.shape[0] in depths else "shared"
        kind = "weights" if own else "loss" if vocabulary in leaf.shape else kind
        sums[kind] += local_bytes(leaf)
    return Saved(**sums)


def _explicit(mesh: AbstractMesh) -> AbstractMesh:
    types = (AxisType.Explicit,) * len(mesh.axis_names)
    return AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=types, abstract_device=mesh.abstract_device)


def _head(experiment: Experiment, sizes: dict[str, int], platform: str) -> float:
    """Bytes of `losses.linear_cross_entropy`: a tile of logits in float32 and in the compute dtype; and the
    output matrix's float32 gradient, whole before it is scattered."""
    model, train, data = experiment.model, experiment.train, experiment.data
    if not hasattr(model, "vocab_size"):
        return 0.0
    length = getattr(data, "target_length", data.length)
    if hasattr(experiment.task, "masking"):
        length = experiment.task.masking.count(length)
    rows = train.batch_size / train.accumulate / (sizes["data"] * sizes["fsdp"]) * length / sizes["sequence"]
    columns = model.vocab_size / sizes["tensor"]
    return 1.5 * min(losses.TILE_BYTES[platform], 4 * rows * columns) + 4 * model.width * columns


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Inside, attention by cuDNN is traced without cuDNN: a stand-in keeps what its kernel keeps, computes nothing."""

    @jax.custom_vjp
    def stand_in(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> jax.Array:
        return q_BTNH

    def forward(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> Any:
        statistics_BTN = jnp.max(q_BTNH, axis=-1).astype(jnp.float32)
        return q_BTNH, (q_BTNH, k_BSKH, v_BSKH, q_BTNH * 1, statistics_BTN)

    def backward(kept: Any, d: jax.Array) -> Any:
        return d, kept[1], kept[2]

    stand_in.defvjp(forward, backward)
    original = attention._cudnn
    attention._cudnn = lambda q, k, v, mask, scale: stand_in(q, k, v)  # type: ignore[assignment]
    try:
        yield
    finally:
        attention._cudnn = original


def local_bytes(leaf: Any) -> int:
    """Bytes of an abstract array on one device."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _bytes(tree: Any) -> float:
    return float(sum(map(local_bytes, jax.tree.leaves(tree))))
