"""Meshes of chips that this machine does not have, for tracing and compiling: `tpu:v5p:4x4x4`, `cuda:h100:4x8`.

    target = targets.parse("tpu:v5e:16x16")
    mesh = target.mesh(fsdp=16)                          # the compiler's own devices: lower and compile for them
    mesh = target.abstract_mesh(fsdp=16)                 # needs no compiler: trace and lower
    program = program.make(experiment, mesh, platform=target.platform)
    with jax.set_mesh(mesh): program.step.lower(program.state, program.batch, key, *program.frozen).compile()

A TPU target has the slice's shape in chips, a GPU target hosts x GPUs per host. Call `without_chips` before JAX starts
a backend, so that the process itself computes on the CPU.
"""

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from transformer_jax import sharding
from transformer_jax.chips import CHIPS, Chip
from transformer_jax.errors import InputError, nearest
from transformer_jax.mesh import mesh_shape

# {maker: (the pip extra of this project with the compiler, the compiler's modules)}.
COMPILERS = {
    "tpu": ("target-tpu", ("libtpu",)),
    "cuda": ("target-gpu", ("jax_cuda13_plugin", "jax_plugins.xla_cuda13")),
}


@dataclass(frozen=True)
class Target:
    """Several chips of one kind.

    Attributes:
      chip: the kind.
      shape: of a TPU slice, chips along each axis of the torus; of GPUs, (hosts, GPUs per host).
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name that `parse` reads."""
        return f"{self.chip.maker}:{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def platform(self) -> str:
        """JAX's name of the platform: "tpu" or "gpu"."""
        return "tpu" if self.chip.maker == "tpu" else "gpu"

    @property
    def num_chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        """The number of JAX devices. Some TPU chips are two devices."""
        return self.num_chips * self.chip.devices

    def resized(self, num_chips: int) -> "Target":
        """A target with another number of chips: whole hosts of GPUs, or a slice that is almost a cube or a square.

        Args:
          num_chips: how many.
        """
        if self.platform == "gpu":
            host = self.chip.host
            return Target(self.chip, (-(-num_chips // host), min(num_chips, host)))
        dimensions, left = self.chip.torus, num_chips
        shape: list[int] = []
        for axis in range(dimensions, 0, -1):
            side = next(n for n in range(math.ceil(left ** (1 / axis) - 1e-9), left + 1) if left % n == 0)
            shape, left = [*shape, side], left // side
        return Target(self.chip, tuple(sorted(shape, reverse=dimensions == 2)))

    def compiles(self) -> bool:
        """Whether the compiler for these chips is installed."""
        return all(_found(module) for module in COMPILERS[self.chip.maker][1])

    def devices(self) -> list[Any]:
        """Devices that can be compiled for but do not exist.

        Raises:
          InputError: the compiler is not installed, or does not know the shape.
        """
        extra, _ = COMPILERS[self.chip.maker]
        if not self.compiles():
            raise InputError(f"target {self.name}: its compiler is not installed; tools/install {extra}, or --analytic")
        from jax.experimental import topologies

        shape = "x".join(map(str, self.shape))
        if self.platform == "tpu":
            # Without its links, libtpu takes a slice for a grid that wraps around nowhere, and sums whole weights where
            # a torus gathers them.
            settings: dict[str, Any] = {
                "platform": "tpu",
                "topology_name": f"{self.chip.topology}:{shape}",
                "chip_config_name": self.chip.config,
                "chips_per_host_bounds": self.chip.machine(self.shape),
                "num_slices": 1,
                "wrap": self.chip.wrap(self.shape),
            }
        else:
            jax.devices()  # loads the plugins
            text = (Path(__file__).parent / "gpus" / f"{self.chip.name}.txtpb").read_text()
            # One NVLink domain (XLA's "slice") is a host.
            settings = {"platform": "cuda", "topology_name": self.name, "topology": f"1x{shape}", "target_config": text}
        try:
            return topologies.get_topology_desc(**settings).devices
        except Exception as error:  # the plugin's own types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"target {self.name}: the compiler gives no such devices ({reason})") from None

    def mesh(self, data: int = -1, fsdp: int = 1, sequence: int = 1, tensor: int = 1) -> Mesh:
        """An Auto mesh of these devices, for compiling.

        Args:
          data: size of this axis; one of the sizes may be -1.
          fsdp: size of this axis.
          sequence: size of this axis.
          tensor: size of this axis.

        Raises:
          InputError: as `devices`, and for sizes whose product is not the number of devices.
        """
        mesh_shape(data, fsdp, sequence, tensor, num_devices=self.num_devices)
        return sharding.make_mesh(data, fsdp, sequence, tensor, devices=self.devices())

    def abstract_mesh(self, data: int = -1, fsdp: int = 1, sequence: int = 1, tensor: int = 1) -> AbstractMesh:
        """An abstract Auto mesh, for tracing and lowering without the compiler.

        Args:
          data: size of this axis; one of the sizes may be -1.
          fsdp: size of this axis.
          sequence: size of this axis.
          tensor: size of this axis.

        Raises:
          InputError: sizes whose product is not the number of devices.
        """
        sizes = mesh_shape(data, fsdp, sequence, tensor, num_devices=self.num_devices)
        device = AbstractDevice(device_kind=self.chip.kind, num_cores=None, platform=self.platform)
        types = (AxisType.Auto,) * len(sharding.MESH_AXES)
        return AbstractMesh(sizes, sharding.MESH_AXES, axis_types=types, abstract_device=device)


def parse(text: str) -> Target:
    """The target of a name.

    Args:
      text: such as "tpu:v5p:4x4x4" or "cuda:h100:4x8".

    Raises:
      InputError: an unknown maker, chip or shape.
    """
    maker, _, rest = text.partition(":")
    name, _, shape = rest.partition(":")
    known = {f"{chip.maker}:{chip.name}" for chip in CHIPS.values()}
    if f"{maker}:{name}" not in known:
        if maker in CHIPS:
            raise InputError(f"--target {text}: write the maker first, {CHIPS[maker].maker}:{text}")
        raise InputError(f"--target {text}: no chip {maker}:{name}{nearest(f'{maker}:{name}', known)}; there are "
                         f"{', '.join(sorted(known))}")  # fmt: skip
    chip, sizes = CHIPS[name], shape.split("x")
    wanted = chip.torus or 2
    if not all(size.isdecimal() and int(size) > 0 for size in sizes) or len(sizes) != wanted:
        like = {2: "4x4", 3: "4x4x4"}[wanted] if maker == "tpu" else "4x8, hosts x GPUs of a host"
        raise InputError(
            f"--target {text}: {shape or 'nothing'!r} is not a shape of {name}; give {wanted} sizes, such as {like}"
        )
    if maker == "cuda" and int(sizes[1]) > chip.host:
        raise InputError(f"--target {text}: a host has up to {chip.host} {name}; give hosts x GPUs of a host")
    return Target(chip, tuple(map(int, sizes)))


def without_chips() -> None:
    """Lets a process without these chips load their compilers.

    JAX computes on the CPU, unless JAX_PLATFORMS is set. libtpu does not ask the cloud's metadata server, and does not
    lock out other processes. Call it before a backend exists.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
