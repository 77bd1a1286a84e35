"""Lower bounds of a training step's time, by arithmetic: FLOPs over the peak, bytes over the bandwidths.

There are three bounds: products at the peak, memory traffic at the memory's bandwidth, and traffic on links at theirs.
If they all overlap, a step takes the largest of them; if none do, their sum. A real step also has latencies and
overheads. So the numbers are a bound, and show which of the three is the bottleneck.

Letters: B rows on a device, T length, D width, L layers, n devices along a mesh axis.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from tools.targets import Target
from tools.targets.footprint import local_bytes
from transformer_jax import sharding
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.train.program import Program

COMPUTE_BYTES = 2  # of bfloat16


@dataclass(frozen=True)
class Sent:
    """The traffic of each device along one mesh axis in a step.

    Attributes:
      bytes: sent by a device.
      links: the number of links (TPU); 1 for GPUs, of the switch or the network.
      seconds: at the bandwidth of the links.
      where: the links, as text.
    """

    bytes: float
    links: int
    seconds: float
    where: str


@dataclass(frozen=True)
class Estimate:
    """The bounds of a step on one device.

    Attributes:
      flops: of the model on this device (PaLM's convention), without recomputation.
      executed: FLOPs with the recomputation of the remat policy.
      traffic: bytes read from and written to the chip's memory, at least.
      sent: {mesh axis: traffic}.
      compute: seconds for `executed`.
      memory: seconds for `traffic`.
      links: seconds for `sent`.
      peak: FLOP/s of the device.
    """

    flops: float
    executed: float
    traffic: float
    sent: Mapping[str, Sent]
    compute: float
    memory: float
    links: float
    peak: float

    @property
    def best(self) -> float:
        """Seconds if all three overlap."""
        return max(self.compute, self.memory, self.links)

    @property
    def worst(self) -> float:
        """Seconds if nothing overlaps."""
        return self.compute + self.memory + self.links

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilisation of a step that takes `seconds`."""
        return self.flops / seconds / self.peak


def estimate(
    experiment: Experiment,
    program: Program,
    target: Target,
    mesh: Any,
    *,
    saved: float,
    sent: Mapping[str, float] | None = None,
) -> Estimate:
    """The bounds of one step.

    Args:
      experiment: to train.
      program: of its step.
      target: the chips.
      mesh: of the chips.
      saved: bytes of activations that a device keeps for the backward pass.
      sent: {mesh axis: bytes that each device sends}, from a compiler; None: by `collectives`.
    """
    sizes, chip = dict(mesh.shape), target.chip
    flops = experiment.task.flops(experiment.model, experiment.data) * experiment.train.batch_size / target.num_devices
    executed = flops * {"none": 1.0, "dots": 1.0, "full": 4 / 3}[experiment.model.remat]
    state = sum(local_bytes(leaf) for leaf in jax.tree.leaves(program.state))
    weights = COMPUTE_BYTES * params_lib.count(program.declaration) / sizes["tensor"]
    passes = 2 * experiment.train.accumulate  # forward and backward
    # The state is read and written once, gradients and saved activations are written and read, and the weights are read
    # in each pass.
    gradients = sum(local_bytes(leaf) for leaf in jax.tree.leaves(program.state.params))
    traffic = 2 * state + 2 * gradients + passes * weights + 2 * saved * experiment.train.accumulate
    moved = collectives(experiment, program, sizes) if sent is None else sent
    places = routes(target, sizes)
    over = {axis: crossing(target, sizes, axis, nbytes, places) for axis, nbytes in moved.items() if nbytes}
    peak = chip.flops / chip.devices
    return Estimate(
        flops=flops,
        executed=executed,
        traffic=traffic,
        sent=over,
        compute=executed / peak,
        memory=traffic / (chip.bandwidth / chip.devices),
        links=sum(s.seconds for s in over.values()),
        peak=peak,
    )


def collectives(experiment: Experiment, program: Program, sizes: Mapping[str, int]) -> dict[str, float]:
    """{mesh axis: bytes that each device sends in a step}, by the shardings.

    data      gradients are summed once: 2 (n - 1) / n of a device's share of them
    fsdp      weights are gathered in both passes, gradients are scattered
    sequence  keys and values are gathered in both passes, their gradients scattered; parameters' gradients are summed
    tensor    four sums of the residual stream per layer, two forward, two backward (Shoeybi et al. 2019, figure 4)

    All are in the compute dtype, because the compilers sum gradients before they convert them to float32.

    Args:
      experiment: to train.
      program: of its step.
      sizes: {axis: size} of the mesh.
    """
    model, train = experiment.model, experiment.train
    n = {axis: sizes[axis] for axis in sharding.MESH_AXES}
    share = {axis: (size - 1) / size for axis, size in n.items()}
    parameters = params_lib.count(program.declaration)
    shared = parameters / n["tensor"]  # parameters that a device computes with
    rows = train.batch_size / (n["data"] * n["fsdp"])
    stacks = _stacks(experiment)
    passes = 3 if model.remat == "full" else 2
    moved = {
        "data": 2 * share["data"] * COMPUTE_BYTES * shared / n["fsdp"],
        "fsdp": share["fsdp"] * shared * 3 * COMPUTE_BYTES * train.accumulate,
        "sequence": 0.0,
        "tensor": 0.0,
    }
    if n["sequence"] > 1:
        heads = model.kv_heads * model.head_width / n["tensor"]
        keys = sum(layers * rows * length * 2 * heads * COMPUTE_BYTES for layers, length in stacks)
        moved["sequence"] = share["sequence"] * ((passes + 1) * keys + 2 * COMPUTE_BYTES * shared / n["fsdp"])
    if n["tensor"] > 1:
        stream = sum(layers * rows * length / n["sequence"] * model.width * COMPUTE_BYTES for layers, length in stacks)
        moved["tensor"] = 2 * share["tensor"] * 2 * passes * stream
    return moved


def _stacks(experiment: Experiment) -> list[tuple[int, int]]:
    """(layers, length) of each stack of blocks."""
    model, data = experiment.model, experiment.data
    if hasattr(model, "decoder_layers"):
        side = {name: getattr(data, f"{name}_length", data.length) for name in ("source", "target")}
        return [(model.num_layers, side["source"]), (model.decoder_layers * 3 // 2, side["target"])]
    return [(model.num_layers, getattr(data, "length", model.max_length))]


def routes(target: Target, sizes: Mapping[str, int]) -> dict[str, int]:
    """{mesh axis: the number of a chip's links that it uses}; 0: it shares a torus axis.

    As in JAX's mesh_utils, the last mesh axis chooses first. It takes the fewest torus axes whose product is its size.
    A ring sends in both directions, over two links. Along an axis that does not wrap around, the chips at the ends
    receive everything over one.

    Args:
      target: the chips.
      sizes: {axis: size} of the mesh.
    """
    chip, found = target.chip, {}
    free = list(zip(target.shape, chip.wrap(target.shape), strict=False)) if chip.torus else []
    for axis in reversed(sharding.MESH_AXES):
        if (size := sizes[axis] // (chip.devices if axis == "data" else 1)) <= 1:
            continue
        found[axis] = 0
        for count in range(1, len(free) + 1):
            several = itertools.combinations(free, count)
            chosen = next((c for c in several if math.prod(side for side, _ in c) == size), None)
            if chosen is not None:
                found[axis] = sum(2 if wraps else 1 for side, wraps in chosen if side > 1)
                for one in chosen:
                    free.remove(one)
                break
    return found


def crossing(target: Target, sizes: Mapping[str, int], axis: str, nbytes: float, places: Mapping[str, int]) -> Sent:
    """The traffic and time of bytes along a mesh axis.

    Args:
      target: the chips.
      sizes: {axis: size} of the mesh.
      axis: of the mesh.
      nbytes: that each device sends.
      places: of `routes`.
    """
    chip = target.chip
    if target.platform == "tpu":
        # A mesh axis that shares a torus axis uses it only part of the time.
        links = places.get(axis) or (2 if any(chip.wrap(target.shape)) else 1)
        seconds = nbytes * chip.devices / (links * chip.link)
        return Sent(nbytes, links, seconds, f"{links} links of {chip.link / 1e9:.0f} GB/s")
    inner = math.prod(sizes[name] for name in sharding.MESH_AXES[sharding.MESH_AXES.index(axis) + 1 :])
    host = target.shape[1]
    inside = max(min(host // inner, sizes[axis]), 1)  # of the axis's devices, those in one host
    hosts = sizes[axis] // inside
    within, across = nbytes / chip.link, 0.0
    if hosts > 1:
        whole = nbytes * sizes[axis] / (sizes[axis] - 1)
        across = whole * (hosts - 1) / hosts / (inside * chip.network)
    name = f"network, {hosts} hosts" if across > within else "the host's switch"
    return Sent(nbytes, 1, max(within, across), name)
