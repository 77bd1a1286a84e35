"""Local attention against full attention: time, memory and values, forward and backward, for queries, keys and values.

    tools/run tools.bench.local_attention                                   # on this machine, in turns
    tools/run tools.bench.local_attention --target tpu:v5e:2x2              # by the TPU's compiler: memory and cycles
    tools/run tools.bench.local_attention --target cuda:h200:1x8            # by the GPU's: memory and kernels

The default is one row of 8,192 tokens with 4 of BERT-base's 12 heads of 64 (full attention keeps gigabytes of float32
for its backward pass), and 64 tokens in sight on both sides, as in ModernBERT's local layers. "Full" is attention to
every token, as this platform computes it fastest. Temporaries are those of the compiled program, by
`memory_analysis()`. The sides take turns; the ratio is the median of the rounds' own. The cores' time is what counts on
a machine with other work.
"""

import argparse
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools import targets
from tools.targets import estimate
from transformer_jax import sharding
from transformer_jax.nn import attention
from transformer_jax.nn.masks import Mask


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.bench.local_attention", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default in (("length", 8192), ("window", 64), ("rows", 1), ("heads", 4), ("head-width", 64)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--dtype", default=None, help="default: float32 here, bfloat16 for a target")
    parser.add_argument("--rounds", type=int, default=5, help="turns; default 5")
    parser.add_argument("--target", help="such as tpu:v5e:2x2 or cuda:h200:1x8: compiled, not run")
    options = parser.parse_args(arguments)
    dtype = options.dtype or ("bfloat16" if options.target else "float32")
    shape = (options.rows, options.length, options.heads, options.head_width)
    masks = {"full": Mask(), "local": Mask(window=options.window)}
    steps = {name: jax.jit(functools.partial(step, mask)) for name, mask in masks.items()}
    print(f"{shape} {dtype}, window {options.window} on each side; jax {jax.__version__}")
    if options.target:
        targets.without_chips()
        for_target(targets.parse(options.target), steps, jax.ShapeDtypeStruct(shape, dtype))
        return 0
    qkv = jax.random.normal(jax.random.key(0), (3, *shape), dtype)
    compiled = {name: one.lower(*qkv).compile() for name, one in steps.items()}
    check_values(qkv, options.window)
    clocks = {"ms": time.perf_counter, "ms of the cores' time": time.process_time}
    took: dict[tuple[str, str], list[float]] = {(name, clock): [] for name in compiled for clock in clocks}
    for _ in range(options.rounds):
        for name, one in compiled.items():
            began = {clock: read() for clock, read in clocks.items()}
            jax.block_until_ready(one(*qkv))
            for clock, read in clocks.items():
                took[name, clock].append(1e3 * (read() - began[clock]))
    for clock in clocks:
        full, local = took["full", clock], took["local", clock]
        ratio = statistics.median(b / a for a, b in zip(full, local, strict=True))
        print(f"full {statistics.median(full):10.1f}, local {statistics.median(local):8.1f} {clock}: {ratio:.3f}")
    full_bytes, local_bytes = (temporaries(compiled[name]) for name in ("full", "local"))
    ratio = local_bytes / full_bytes
    print(f"full {full_bytes / 1e6:10.1f}, local {local_bytes / 1e6:8.1f} MB of temporaries: {ratio:.3f}")
    return 0


def step(mask: Mask, q_BTNH: jax.Array, k_BTNH: jax.Array, v_BTNH: jax.Array) -> Any:
    """The sum of the squared results, and its gradients."""

    def loss(q_BTNH: jax.Array, k_BTNH: jax.Array, v_BTNH: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(attention.attend(q_BTNH, k_BTNH, v_BTNH, mask).astype(jnp.float32)))

    return jax.value_and_grad(loss, (0, 1, 2))(q_BTNH, k_BTNH, v_BTNH)


def check_values(qkv: jax.Array, window: int, length: int = 1024) -> None:
    """Prints how far the blocks are from the definition, on the first `length` tokens of the queries, keys and values.

    Args:
      qkv: [3, B, T, N, H].
      window: the reach on each side.
      length: of the part.
    """
    q, k, v = qkv[:, :, :length]
    near = np.abs(np.arange(length)[:, None] - np.arange(length)) <= window
    bias_NTS = jnp.broadcast_to(jnp.where(near, 0.0, -1e30), (qkv.shape[3], length, length))
    ours = attention.attend(q, k, v, Mask(window=window))
    theirs = attention.attend(q, k, v, Mask(), bias_NTS=bias_NTS, implementation="xla")
    print(f"values: at most {float(jnp.max(jnp.abs(ours - theirs))):.1e} from the definition")


def for_target(target: targets.Target, steps: dict[str, Any], operand: jax.ShapeDtypeStruct) -> None:
    """Prints each side's memory and estimated time by the compiler of chips that this machine does not have.

    Args:
      target: of which one device is compiled for.
      steps: {name: jitted step}.
      operand: the shape and dtype of queries, keys and values.
    """
    mesh = sharding.make_mesh(1, 1, 1, 1, devices=target.devices()[:1])
    with jax.set_mesh(mesh):
        whole = jax.NamedSharding(mesh, jax.P())
        x = jax.ShapeDtypeStruct(operand.shape, operand.dtype, sharding=whole)
        for name, one in steps.items():
            compiled = one.lower(x, x, x).compile()
            line = f"{name:6}{temporaries(compiled) / 1e6:10.1f} MB of temporaries"
            peak = target.chip.flops / target.chip.devices
            found = estimate.estimate(compiled.as_text() or "", clock=target.chip.clock or 1.0, peak=peak)
            if target.chip.clock:
                line += f"{found.outside:10.3f} ms outside kernels{found.attention:10.3f} ms in kernels, by FLOPs"
            print(f"{line}; kernels {dict(found.kernels)}")


def temporaries(compiled: jax.stages.Compiled) -> int:
    """Bytes of `compiled`."""
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes


if __name__ == "__main__":
    raise SystemExit(main())
