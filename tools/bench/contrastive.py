"""Memory and collectives of the contrastive losses on many chips, by the TPU's compiler.

    python -m tools.bench.contrastive                                   # 32,768 pairs, 512 wide, on tpu:v5e:16x16
    python -m tools.bench.contrastive tpu:v5p:4x4x4 --pairs 16384

The loss and its gradients by the embeddings and the temperature, in float32, sharded over `data`. The logits of all
pairs are B x B x 4 bytes, of which each chip should hold its own rows.
"""

import argparse
import sys
from typing import Any

from tools import targets


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="What a contrastive loss needs on each chip.")
    parser.add_argument("target", nargs="?", default="tpu:v5e:16x16")
    parser.add_argument("--pairs", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args(argv)
    targets.without_chips()
    import jax
    import jax.numpy as jnp

    from tools.targets import hlo
    from transformer_jax import sharding
    from transformer_jax.losses import contrastive

    mesh = targets.parse(args.target).mesh(data=-1)
    rows = jax.NamedSharding(mesh, jax.P("data", None))
    side = jax.ShapeDtypeStruct((args.pairs, args.width), jnp.float32, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P()))

    def softmax(left: jax.Array, right: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return contrastive.info_nce(left, right, scale).sum + 0.0 * bias

    def sigmoid(left: jax.Array, right: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return contrastive.sigmoid(left, right, scale, bias).sum

    print(
        f"{args.pairs:,} pairs, {args.width} wide, {mesh.size} chips: all logits {4 * args.pairs**2 / 2**20:,.1f} MiB"
    )
    for loss in (softmax, sigmoid):
        with jax.set_mesh(mesh):
            step = jax.jit(
                jax.value_and_grad(loss, argnums=(0, 1, 2, 3)), out_shardings=(None, (rows, rows, None, None))
            )
            compiled = step.lower(side, side, scalar, scalar).compile()
        memory: Any = compiled.memory_analysis()
        sizes = dict(zip(sharding.MESH_AXES, mesh.devices.shape, strict=True))
        print(f"{loss.__name__}: temporaries {memory.temp_size_in_bytes / 2**20:,.1f} MiB on a chip")
        for (kind, axes), total in hlo.totals(hlo.collectives(compiled.as_text() or ""), sizes).items():
            print(f"  {kind} {'+'.join(axes)}: {total.times} times, {total.bytes / 2**20:,.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
