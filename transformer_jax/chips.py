"""Published figures of accelerators: peak arithmetic, memory, links, and how slices are built.

Peaks are of dense bfloat16 products. Bandwidths of links are one-way, although makers publish the sum of both
directions. TPU chips form a grid with a link to each neighbour. Along an axis that wraps around, a chip has two links.
The GPUs of a host are connected by a switch, over which each reaches all others at its whole bandwidth.
"""

from dataclasses import dataclass

GB, GiB = 10**9, 2**30


@dataclass(frozen=True)
class Chip:
    """The figures of one chip.

    Attributes:
      name: in targets.
      maker: "tpu" or "cuda".
      kind: JAX's `device_kind`.
      flops: peak bf16 FLOP/s.
      memory: bytes.
      bandwidth: the bandwidth of the memory, bytes/s.
      link: one-way bytes/s of one link (TPU), or of all links to the host's switch (GPU).
      network: one-way bytes/s to other hosts (GPU) or slices (TPU); 0: not published.
      host: chips of a machine with one slice of its own.
      sources: where the figures are published.
      torus: the number of axes of a slice; 0: a switch.
      devices: JAX devices per chip, which share its memory and arithmetic.
      topology: libtpu's name of a slice.
      config: libtpu's name of how a chip is used: "megacore" where its two cores are one device.
      clock: cycles/s of a TPU's core, from the peak and its tiles of 128 x 128 (v6e: 256 x 256); 0: not needed.
      gke: Google Kubernetes Engine's label of a node pool.
    """

    name: str
    maker: str
    kind: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    host: int
    sources: tuple[str, ...]
    torus: int = 0
    devices: int = 1
    topology: str = ""
    config: str = "default"
    clock: float = 0.0
    gke: str = ""

    def wrap(self, shape: tuple[int, ...]) -> tuple[bool, bool, bool]:
        """Whether each axis of a TPU slice has links that wrap around.

        Slices of three axes are built of cubes of 4 x 4 x 4 whose faces are joined by optical switches. They wrap
        around if every side is a multiple of four. A slice of two axes is part of a 16 x 16 torus. Only an axis of 16
        wraps around. The table is the same as MaxText's `accelerator_to_spec_map.py`.

        Args:
          shape: chips along each axis.
        """
        if self.torus == 3:
            x, y, z = (all(side % 4 == 0 for side in shape),) * 3
        else:
            x, y, z = shape[0] == 16, shape[1] == 16, False
        return x, y, z

    def machine(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The chips of one machine along each axis of a TPU slice: 2 x 2, and less in a slice that is smaller.

        Args:
          shape: chips along each axis of the slice.
        """
        x, y = (min(side, 2) for side in shape[:2])
        return x, y, 1


_TPU = "https://docs.cloud.google.com/tpu/docs/"
_TPU7X = f"{_TPU}tpu7x"  # compares v5p, v6e and TPU7x
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_DGX = "https://docs.nvidia.com/dgx/"


def _tpu(name: str, kind: str, *sources: str, **figures) -> Chip:
    return Chip(name, "tpu", kind, sources=sources, **figures)


def _gpu(name: str, kind: str, *sources: str, **figures) -> Chip:
    return Chip(name, "cuda", kind, sources=sources, host=8, **figures)


CHIPS = {
    chip.name: chip
    for chip in (
        # 6 links of 50 GB/s (Jouppi et al. 2023, table 4).
        _tpu("v4", "TPU v4", f"{_TPU}v4", "https://arxiv.org/abs/2304.01433",
             flops=275e12, memory=32 * GiB, bandwidth=1200 * GB, link=50 * GB, network=0, host=4, torus=3,
             topology="v4", config="megacore", clock=1.05e9, gke="tpu-v4-podslice"),
        # 400 GB/s both ways over 4 links; 6.4 Tbit/s of network for 256 chips. libtpu gives
        # a program 15.75 GiB of its memory.
        _tpu("v5e", "TPU v5 lite", f"{_TPU}v5e",
             flops=197e12, memory=16 * GiB, bandwidth=819 * GB, link=50 * GB, network=3.125 * GB, host=8, torus=2,
             topology="v5e", clock=1.5e9, gke="tpu-v5-lite-podslice"),
        # 1,200 GB/s both ways over 6 links; 50 Gbit/s of network.
        _tpu("v5p", "TPU v5", f"{_TPU}v5p", _TPU7X,
             flops=459e12, memory=95 * GiB, bandwidth=2765 * GB, link=100 * GB, network=6.25 * GB, host=4, torus=3,
             topology="v5", config="megacore", clock=1.75e9, gke="tpu-v5p-slice"),
        # 800 GB/s both ways over 4 links; 100 Gbit/s of network.
        _tpu("v6e", "TPU v6 lite", f"{_TPU}v6e", _TPU7X,
             flops=918e12, memory=32 * GiB, bandwidth=1638 * GB, link=100 * GB, network=12.5 * GB, host=8, torus=2,
             topology="v6e", clock=1.75e9, gke="tpu-v6e-slice"),
        # Ironwood. 1,200 GB/s both ways over 6 links; 100 Gbit/s of network; each of its two chiplets is a device.
        _tpu("v7", "TPU7x", _TPU7X,
             flops=2307e12, memory=192 * GiB, bandwidth=7380 * GB, link=100 * GB, network=12.5 * GB, host=4, torus=3,
             devices=2, topology="tpu7x", gke="tpu7x"),
        # NVLink 600 GB/s both ways; eight 200 Gbit/s adapters in a DGX.
        _gpu("a100", "NVIDIA A100-SXM4-80GB", f"{_NVIDIA}a100/",
             f"{_DGX}dgxa100-user-guide/introduction-to-dgxa100.html",
             flops=312e12, memory=80 * GB, bandwidth=2039 * GB, link=300 * GB, network=25 * GB),
        # NVLink 900 GB/s both ways; eight 400 Gbit/s adapters. 1,979 TFLOP/s is with sparsity.
        _gpu("h100", "NVIDIA H100 80GB HBM3", f"{_NVIDIA}h100/",
             f"{_DGX}dgxh100-user-guide/introduction-to-dgxh100.html",
             flops=989.5e12, memory=80 * GB, bandwidth=3350 * GB, link=450 * GB, network=50 * GB),
        _gpu("h200", "NVIDIA H200", f"{_NVIDIA}h200/", f"{_DGX}dgxh100-user-guide/introduction-to-dgxh100.html",
             flops=989.5e12, memory=141 * GB, bandwidth=4800 * GB, link=450 * GB, network=50 * GB),
        # A DGX B200 has 1,440 GB, 64 TB/s, 14.4 TB/s of NVLink both ways; HGX B200 36 PFLOP/s with sparsity.
        _gpu("b200", "NVIDIA B200", f"{_NVIDIA}dgx-b200/", f"{_NVIDIA}hgx/",
             flops=2250e12, memory=180 * GB, bandwidth=8000 * GB, link=900 * GB, network=50 * GB),
    )
}  # fmt: skip


def of_kind(device_kind: str) -> Chip | None:
    """The chip of a device; None where it is not in the table, as for every CPU.

    Args:
      device_kind: `jax.Device.device_kind`. A GPU's ends in the form of its board. A TPU's was "TPU v5e" once and is
        "TPU v5 lite" now.
    """
    kind = device_kind.replace("v5e", "v5 lite").replace("v6e", "v6 lite")
    names = {chip.kind if chip.maker == "tpu" else chip.name.upper(): chip for chip in CHIPS.values()}
    found = max((name for name in names if name in kind), key=len, default="")  # "TPU v5 lite" also holds "TPU v5"
    return names.get(found)
