"""How long a training step takes at best, by arithmetic: FLOPs over the peak, bytes over the bandwidths.

Three times that a chip cannot go below: its products at the peak, its memory traffic at the memory's bandwidth, its
links' traffic at theirs. A step in which all overlap takes the largest of them, one in which nothing does their sum.
Kernels, latencies and the compiler decide what comes between, and add what is in none of them: take the numbers as a
bound, and as a means to see which of the three binds.

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
    """What each device sends over one mesh axis in a step.

    Fields:
      bytes: sent by a device.
      links: links (TPU) that carry them; of GPUs 1, the switch's or the network's.
      seconds: at the links' bandwidth.
      where: what the axis goes over, for people.
    """

    bytes: float
    links: int
    seconds: float
    where: str


@dataclass(frozen=True)
class Estimate:
    """A step on one device, seconds, and what they are made of.

    Fields:
      flops: of the model on this device (PaLM's convention), without recomputation.
      executed: with the recomputation that the remat policy asks for.
      traffic: bytes read and written in the chip's memory, at least.
      sent: {"mesh axis": Sent}.
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
        """Seconds where all three overlap."""
        return max(self.compute, self.memory, self.links)

    @property
    def worst(self) -> float:
        """Seconds where nothing does."""
        return self.compute + self.memory + self.links

    def mfu(self, seconds: float) -> float:
        """Model FLOPs over the peak's in that time."""
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
    """The rooflines of one step.

    Arguments: saved, bytes of activations that a device keeps for the backward pass; sent, bytes that each device sends
      along each mesh axis, as a compiler decided (None: as `collectives` expects).
    """
    sizes, chip = dict(mesh.shape), target.chip
    flops = experiment.task.flops(experiment.model, experiment.data) * experiment.train.batch_size / target.num_devices
    executed = flops * {"none": 1.0, "dots": 1.0, "full": 4 / 3}[experiment.model.remat]
    state = sum(local_bytes(leaf) for leaf in jax.tree.leaves(program.state))
    weights = COMPUTE_BYTES * params_lib.count(program.declaration) / sizes["tensor"]
    passes = 2 * experiment.train.accumulate  # forward and backward
    # The state is read and written once, gradients written and read, weights read in each pass, and what the forward
    # pass keeps is written and read.
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
    """Bytes that each device sends along each mesh axis in a step, as the layout asks for them.

    data      gradients are summed once: 2 (n - 1) / n of a device's share of them
    fsdp      weights are gathered in both passes, and gradients scattered
    sequence  keys and values are gathered in both passes and their gradients scattered; parameters' gradients summed
    tensor    four sums of the residual stream a layer, two forward, two backward (Shoeybi et al. 2019, figure 4)

    All in the compute dtype: the compilers sum gradients before they turn them into float32.
    """
    model, train = experiment.model, experiment.train
    n = {axis: sizes[axis] for axis in sharding.MESH_AXES}
    share = {axis: (size - 1) / size for axis, size in n.items()}
    parameters = params_lib.count(program.declaration)
    shared = parameters / n["tensor"]  # what a device computes with
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
    """How many axes of the torus each mesh axis lies along: 0 where it shares one.

    The last mesh axis chooses first, and takes the fewest torus axes that multiply to its size, as JAX's mesh_utils do.
    """
    free, found = list(target.shape) if target.chip.torus else [], {}
    for axis in reversed(sharding.MESH_AXES):
        if (size := sizes[axis] // (target.chip.devices if axis == "data" else 1)) <= 1:
            continue
        found[axis] = 0
        for count in range(1, len(free) + 1):
            chosen = next((c for c in itertools.combinations(free, count) if math.prod(c) == size), None)
            if chosen is not None:
                found[axis] = sum(side > 1 for side in chosen)
                for side in chosen:
                    free.remove(side)
                break
    return found


def crossing(target: Target, sizes: Mapping[str, int], axis: str, nbytes: float, places: Mapping[str, int]) -> Sent:
    """`nbytes` from each device along a mesh axis: the time, by the links that they go over."""
    chip = target.chip
    if target.platform == "tpu":
        # A ring goes both ways round. An axis that shares a torus axis has it to itself only part of the time.
        links = 2 * places[axis] if places.get(axis) else 2
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
