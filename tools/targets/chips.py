"""Published figures of accelerators: peak arithmetic, memory, and links.

Peaks are of dense bfloat16 products. Bandwidths of links are one-way, although makers publish the sum of both
directions. TPU chips form a torus with a link to each neighbour, so a chip has two links along each axis. The GPUs of a
host are connected by a switch, over which each reaches all others at its whole bandwidth.
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
      topology: libtpu's name of a slice.
      flops: peak bf16 FLOP/s.
      memory: bytes.
      bandwidth: of the memory, bytes/s.
      link: one-way bytes/s of one link (TPU), or of all links to the host's switch (GPU).
      torus: its number of axes; 0: a switch.
      network: one-way bytes/s to other hosts (GPU) or slices (TPU); 0: not published.
      host: chips per host.
      devices: JAX devices per chip, which share its memory and arithmetic.
      sources: where the figures are published.
      clock: cycles/s of a TPU's core, from the peak and its tiles of 128 x 128 (v6e: 256 x 256); 0: not needed.
    """

    name: str
    maker: str
    kind: str
    topology: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    torus: int
    network: float
    host: int
    devices: int
    sources: tuple[str, ...]
    clock: float = 0.0


_TPU = "https://docs.cloud.google.com/tpu/docs/"
_TPU7X = f"{_TPU}tpu7x"  # compares v5p, v6e and TPU7x
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_DGX = "https://docs.nvidia.com/dgx/"

CHIPS = {
    chip.name: chip
    for chip in (
        # v4: 6 links of 50 GB/s (Jouppi et al. 2023, table 4). The compiler's topology has its two cores as devices.
        Chip("v4", "tpu", "TPU v4", "v4", 275e12, 32 * GiB, 1200 * GB, 50 * GB, 3, 0, 4, 2,
             (f"{_TPU}v4", "https://arxiv.org/abs/2304.01433"), 1.05e9),
        # 400 GB/s both ways over 4 links; 6.4 Tbit/s of network for 256 chips. libtpu gives
        # a program 15.75 GiB of its memory.
        Chip("v5e", "tpu", "TPU v5 lite", "v5e", 197e12, 16 * GiB, 819 * GB, 50 * GB, 2, 3.125 * GB, 8, 1,
             (f"{_TPU}v5e",), 1.5e9),
        # 1,200 GB/s both ways over 6 links; 50 Gbit/s of network.
        Chip("v5p", "tpu", "TPU v5", "v5p", 459e12, 95 * GiB, 2765 * GB, 100 * GB, 3, 6.25 * GB, 4, 1,
             (f"{_TPU}v5p", _TPU7X), 1.75e9),
        # 800 GB/s both ways over 4 links; 100 Gbit/s of network.
        Chip("v6e", "tpu", "TPU v6 lite", "v6e", 918e12, 32 * GiB, 1638 * GB, 100 * GB, 2, 12.5 * GB, 8, 1,
             (f"{_TPU}v6e", _TPU7X), 1.75e9),
        # Ironwood. 1,200 GB/s both ways over 6 links; 100 Gbit/s of network; each of its two chiplets is a device.
        Chip("v7", "tpu", "TPU7x", "tpu7x", 2307e12, 192 * GiB, 7380 * GB, 100 * GB, 3, 12.5 * GB, 4, 2,
             (_TPU7X,)),
        # NVLink 600 GB/s both ways; eight 200 Gbit/s adapters in a DGX.
        Chip("a100", "cuda", "NVIDIA A100-SXM4-80GB", "", 312e12, 80 * GB, 2039 * GB, 300 * GB, 0, 25 * GB, 8, 1,
             (f"{_NVIDIA}a100/", f"{_DGX}dgxa100-user-guide/introduction-to-dgxa100.html")),
        # NVLink 900 GB/s both ways; eight 400 Gbit/s adapters. 1,979 TFLOP/s is with sparsity.
        Chip("h100", "cuda", "NVIDIA H100 80GB HBM3", "", 989.5e12, 80 * GB, 3350 * GB, 450 * GB, 0, 50 * GB, 8, 1,
             (f"{_NVIDIA}h100/", f"{_DGX}dgxh100-user-guide/introduction-to-dgxh100.html")),
        Chip("h200", "cuda", "NVIDIA H200", "", 989.5e12, 141 * GB, 4800 * GB, 450 * GB, 0, 50 * GB, 8, 1,
             (f"{_NVIDIA}h200/", f"{_DGX}dgxh100-user-guide/introduction-to-dgxh100.html")),
        # A DGX B200 has 1,440 GB, 64 TB/s, 14.4 TB/s of NVLink both ways; HGX B200 36 PFLOP/s with sparsity.
        Chip("b200", "cuda", "NVIDIA B200", "", 2250e12, 180 * GB, 8000 * GB, 900 * GB, 0, 50 * GB, 8, 1,
             (f"{_NVIDIA}dgx-b200/", f"{_NVIDIA}hgx/")),
    )
}  # fmt: skip
