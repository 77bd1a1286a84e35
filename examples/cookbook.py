"""A language model from its config to its samples, on the package's public pieces. Read it top to bottom.

    python cookbook.py     # trains for about a minute on two CPU cores (estimated, by CPU time), then writes Python

The model is a small Llama: RMSNorm, rotary positions, SwiGLU. Its text is the source of Python's standard library, so
nothing is downloaded. Everything below is plain JAX; what is imported from transformer_jax is the part that is tedious
to get right: initial values and shardings from one declaration, attention for each platform, a loss that never holds
all logits, a data pipeline that can resume, and an optimiser for stacked layers.

Letters: B batch, T length, D width, N heads, H head width, F MLP width, V vocabulary, S cache slots.
"""

import dataclasses
import functools
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax import losses, optim, sharding
from transformer_jax.data import corpus, pipeline, tokenizers
from transformer_jax.decoding import decode
from transformer_jax.nn import attention, layers, params, positions, stack
from transformer_jax.nn.attention import KVCache
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param
from transformer_jax.train import state


# --8<-- [start:config]
@dataclass(frozen=True)
class Config:
    """What the model is. Frozen and hashable, so it can be a static argument of jit."""

    vocab_size: int = 1024
    width: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 344

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


# --8<-- [end:config]
# --8<-- [start:declaration]
def declare(cfg: Config) -> dict[str, Any]:
    """Each parameter once: its shape, a name for each axis, its initial values.

    Initial values, shardings, weight decay and checkpoints all follow from this tree. The names of the axes say how an
    array may be sharded: "heads" and "mlp" go over the mesh's tensor axis, "embed" over its fsdp axis.
    """
    D, F, V = cfg.width, cfg.mlp_width, cfg.vocab_size

    def kernel(rows: int, columns: int, *axes: str) -> dict[str, Param]:
        return {"kernel": Param((rows, columns), axes, params.normal(rows**-0.5))}

    norm = {"scale": Param((D,), (None,), params.ones)}
    block = {
        "attention_norm": norm,
        "query": kernel(D, D, "embed", "heads"),
        "key": kernel(D, D, "embed", "heads"),
        "value": kernel(D, D, "embed", "heads"),
        "out": kernel(D, D, "heads", "embed"),
        "mlp_norm": norm,
        "gate": kernel(D, F, "embed", "mlp"),
        "up": kernel(D, F, "embed", "mlp"),
        "down": kernel(F, D, "mlp", "embed"),
    }
    return {
        "embed": {"embedding": Param((V, D), ("vocab", "embed"), params.normal(0.02))},
        "blocks": params.stack(block, cfg.num_layers),  # every leaf gets a leading "layers" axis
        "final_norm": norm,
        "head": kernel(D, V, "embed", "vocab"),
    }


# --8<-- [end:declaration]
# --8<-- [start:block]
def norm(p: Any, x: jax.Array) -> jax.Array:
    return layers.norm(p, x, "rms", 1e-6)


def block(p: Any, cfg: Config, x_BTD: jax.Array, rope: Any, cache: KVCache | None, layer: Any) -> Any:
    """One layer: attention, then the MLP, each added to the residual stream. Returns (x_BTD, cache).

    Without a cache, or with more than one token, the tokens attend to each other. A single token attends to the cache.
    """
    B, T, _ = x_BTD.shape
    h_BTD = norm(p["attention_norm"], x_BTD)
    q_BTNH, k_BTNH, v_BTNH = (
        layers.dense(p[name], h_BTD, out="heads").reshape(B, T, cfg.num_heads, cfg.head_width)
        for name in ("query", "key", "value")
    )
    q_BTNH, k_BTNH = positions.rotate(q_BTNH, *rope), positions.rotate(k_BTNH, *rope)
    if cache is not None:
        cache = attention.write(cache, layer, k_BTNH, v_BTNH)
    if cache is not None and T == 1:
        filled = Mask(start_B=cache.start_B, end_B=jnp.full(B, cache.index + 1))
        k_BNSH, v_BNSH = cache.k_LBKSH[layer], cache.v_LBKSH[layer]
        a_BTNH = attention.attend_cached(q_BTNH[:, 0], k_BNSH, v_BNSH, filled)[:, None]
    else:
        start_B = None if cache is None else cache.start_B
        a_BTNH = attention.attend(q_BTNH, k_BTNH, v_BTNH, Mask(causal=True, start_B=start_B))
    x_BTD = x_BTD + layers.dense(p["out"], a_BTNH.reshape(B, T, -1), out=None)
    h_BTD = norm(p["mlp_norm"], x_BTD)
    h_BTF = jax.nn.silu(layers.dense(p["gate"], h_BTD, out="mlp")) * layers.dense(p["up"], h_BTD, out="mlp")
    return x_BTD + layers.dense(p["down"], h_BTF, out=None), cache


# --8<-- [end:block]
# --8<-- [start:model]
def forward(p: Any, cfg: Config, tokens_BT: jax.Array, where_BT: jax.Array, cache: KVCache | None = None) -> Any:
    """Hidden states after the final norm, [B, T, D], and the cache with these tokens in it."""
    rope = positions.rotary_angles(where_BT, cfg.head_width)

    def layer(p_layer: Any, carry: Any, i: Any, key: Any) -> Any:
        return block(p_layer, cfg, carry[0], rope, carry[1], i)

    carry = (layers.embed(p["embed"], tokens_BT, jnp.float32), cache)
    x_BTD, cache = stack.run(layer, p["blocks"], carry, num_layers=cfg.num_layers, scan=True, remat="none", key=None)
    if cache is not None:
        cache = dataclasses.replace(cache, index=cache.index + tokens_BT.shape[1])
    return norm(p["final_norm"], x_BTD), cache


def logits(p: Any, x_BD: jax.Array) -> jax.Array:
    return x_BD @ p["head"]["kernel"]


# --8<-- [end:model]
# --8<-- [start:step]
def make_step(cfg: Config, optimizer: optax.GradientTransformation) -> Any:
    """A compiled function (state, batch) -> (state, loss). The old state's memory is reused for the new one."""

    def mean_loss(p: Any, batch: Any) -> jax.Array:
        where_T = jnp.arange(batch["inputs"].shape[1])
        x_BTD, _ = forward(p, cfg, batch["inputs"], where_T)
        loss = losses.linear_cross_entropy(x_BTD, p["head"]["kernel"], batch["targets"], batch["weights"])
        return loss.sum / loss.weight

    @functools.partial(jax.jit, donate_argnums=0)
    def step(now: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(mean_loss)(now.params, batch)
        updates, opt_state = optimizer.update(grads, now.opt_state, now.params)
        new = optax.apply_updates(now.params, updates)
        return now.replace(step=now.step + 1, params=new, opt_state=opt_state), loss

    return step


# --8<-- [end:step]
# --8<-- [start:sampling]
# `decode.generate` calls these three, of whatever object has them; here it is this module.


def for_decoding(p: Any, cfg: Config) -> Any:
    """The parameters as the other two read them fastest: here as they are."""
    return p


def prefill(p: Any, cfg: Config, tokens_BT: jax.Array, cache: KVCache, *, start_B: jax.Array) -> Any:
    """Reads whole prompts, padded on the left: start_B[b] is the column of row b's first token, whose position is 0."""
    where_BT = jnp.maximum(jnp.arange(tokens_BT.shape[1]) - start_B[:, None], 0)
    x_BTD, cache = forward(p, cfg, tokens_BT, where_BT, dataclasses.replace(cache, start_B=start_B))
    return logits(p, x_BTD[:, -1]), cache


def decode_step(p: Any, cfg: Config, token_B: jax.Array, cache: KVCache) -> Any:
    """Appends one token to each row."""
    x_BTD, cache = forward(p, cfg, token_B[:, None], (cache.index - cache.start_B)[:, None], cache)
    return logits(p, x_BTD[:, 0]), cache


def write_text(p: Any, cfg: Config, tokenizer: Any, prompts: list[str], new_tokens: int, seed: int = 0) -> list[str]:
    """Each prompt, continued."""
    padded = decode.left_pad([tokenizer.encode(prompt) for prompt in prompts])
    B, T = padded.tokens_BT.shape
    cache = attention.empty_cache(
        cfg.num_layers, B, T + new_tokens, cfg.num_heads, cfg.head_width, jnp.dtype("float32")
    )
    settings = decode.Sampling(max_new_tokens=new_tokens, temperature=0.7, top_k=40)
    generate = jax.jit(decode.generate, static_argnames=("model", "cfg", "sampling"))
    keys_B = decode.row_keys(jax.random.key(seed), B)
    made = generate(sys.modules[__name__], p, cfg, cache, padded, keys_B, settings)
    return [prompt + tokenizer.decode(row) for prompt, row in zip(prompts, np.asarray(made.tokens_BM), strict=True)]


# --8<-- [end:sampling]
# --8<-- [start:loop]
DATA = corpus.TextCorpus(tokenizer=tokenizers.TrainBPE(1024), length=128)  # of the standard library


def main(
    cfg: Config = Config(),
    data: corpus.TextCorpus = DATA,
    steps: int = 200,
    batch_size: int = 16,
    new_tokens: int = 120,
) -> float:
    """Trains, prints two samples, and returns the last loss in nats per token."""
    # All devices there are, as copies; make_mesh(fsdp=8) or make_mesh(tensor=4) would shard the parameters instead.
    mesh = sharding.make_mesh()
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    optimizer = optim.make(optim.Muon(warmup_steps=20, lr_schedule="linear"), steps, declare(cfg))
    prepared = corpus.prepare(data, seed=0)  # reads, trains the tokenizer, tokenises; the second time it is cached
    batches = pipeline.batches(prepared.train, 0, batch_size)  # batch i is a function of (seed, i): resuming is exact
    step = make_step(cfg, optimizer)
    with jax.set_mesh(mesh):
        now = state.init(jax.random.key(0), declare(cfg), optimizer, mesh)  # parameters and moments, sharded
        print(f"{params.count(declare(cfg)):,} parameters on {mesh.size} devices")
        start = time.perf_counter()
        for number in range(1, steps + 1):
            now, loss = step(now, jax.device_put(next(batches), rows))
            if number % 50 == 0 or number == steps:
                print(f"step {number}: loss {float(loss):.3f}, {time.perf_counter() - start:.0f} s")
    on_one_device = jax.device_get(now.params)
    for text in write_text(on_one_device, cfg, prepared.tokenizer, ["def add(", "import "], new_tokens):
        print("-" * 40 + f"\n{text}")
    return float(loss)


if __name__ == "__main__":
    main()
# --8<-- [end:loop]
