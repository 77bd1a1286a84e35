"""What augmentation costs: images a second through each function, and through a strong CIFAR-10 recipe together.

    tools/run tools.bench.augment [--batch 512] [--side 32] [--rounds 7]

A batch of random float32 images is on this machine's devices as in training, on a CPU one for each core. Each
function is compiled by itself and timed alone; in the training step the compiler fuses it with what comes before and
after. The functions take turns, and the medians of the rounds are shown: images a second, and the CPU time of an image
over all cores, which a busy machine disturbs less. "nothing" reads and writes the batch.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tools import bench
from transformer_jax import augment, sharding

ALONE: tuple[augment.Augmentation, ...] = (
    augment.Flip(),
    augment.Crop(padding=4),
    augment.ResizedCrop(),
    augment.Affine(),
    augment.RandAugment(count=2, magnitude=10),
    augment.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    augment.Erase(probability=0.25),
)
RECIPE = (
    augment.Flip(),
    augment.Crop(padding=4),
    augment.RandAugment(count=2, magnitude=10),
    augment.Erase(probability=0.25),
)


def functions() -> dict[str, Callable[..., augment.Batch]]:
    """name -> (key, images, targets) -> (images, targets)."""
    made: dict[str, Callable[..., augment.Batch]] = {"nothing": lambda key, images, targets: (1.0 - images, targets)}
    for one in ALONE:
        made[type(one).__name__] = lambda key, images, targets, one=one: (augment.apply(key, images, (one,)), targets)
    made["mixup"] = lambda key, images, targets: augment.mixup(key, images, targets, 0.8)
    made["cutmix"] = lambda key, images, targets: augment.cutmix(key, images, targets, 1.0)

    def recipe(key: jax.Array, images: jax.Array, targets: jax.Array) -> augment.Batch:
        rows, pairs = jax.random.split(key)
        images = augment.apply(rows, images, RECIPE)
        return augment.mix(pairs, images, targets, mixup_alpha=0.8, cutmix_alpha=1.0)

    return made | {"together": recipe}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.bench.augment", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=512, metavar="B", help="default 512")
    parser.add_argument("--side", type=int, default=32, metavar="PIXELS", help="default 32")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns; default 7")
    options = parser.parse_args(arguments)

    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    load = os.getloadavg()[0]
    mesh = sharding.make_mesh()
    rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    rng = np.random.default_rng(0)
    images = rng.random((options.batch, options.side, options.side, 3), np.float32)
    targets = jax.nn.one_hot(jnp.asarray(rng.integers(0, 10, options.batch)), 10)
    key, (images_BYXC, targets_BK) = jax.random.key(0), jax.device_put((images, targets), rows)

    compiled = {
        name: jax.jit(function, out_shardings=(rows, rows)).lower(key, images_BYXC, targets_BK).compile()
        for name, function in functions().items()
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in compiled}
    for _ in range(options.rounds + 1):
        for name, run in compiled.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(key, images_BYXC, targets_BK))
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))

    facts = bench.machine()
    print(
        f"{facts['processor']}, {facts['cores']} cores, {facts['devices']}, jax {facts['jax']}, "
        f"load average {load:.1f}; {options.batch} images of {options.side} x {options.side} x 3"
    )
    for name, times in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*times[1:], strict=True))
        print(
            f"{name:12} {options.batch / wall:12,.0f} images/s {1e6 * cpu / options.batch:8.1f} us of CPU time an image"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
