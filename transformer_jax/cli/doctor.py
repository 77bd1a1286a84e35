"""`doctor`: versions, devices, pairs of versions that are known to be bad, and a few steps of training."""

import importlib.metadata
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer_jax import extras, models
from transformer_jax.cli.arguments import positional
from transformer_jax.tasks.causal_lm import CausalLM

PACKAGES = (
    *("transformer-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers"),
    *("safetensors", "tyro", "rich", *dict.fromkeys(package for package, _ in extras.EXTRAS.values())),
)


def main(arguments: list[str]) -> int:
    """Print versions and devices, name pairs of versions that are known to be bad, and train a tiny model briefly.

        transformer-jax doctor

    The exit code is 1 when something is wrong.
    """
    positional(main, arguments, 0, exactly=True)
    return 0 if examine() else 1


def examine() -> bool:
    """Prints versions, devices and problems; returns whether there are none."""
    versions = {name: _version(name) for name in PACKAGES}
    print(f"python {sys.version.split()[0]}, {sys.executable}")
    for name, version in versions.items():
        print(f"{name} {version or absent(name)}")
    wrong = known_bad(jax.__version__, versions["jaxlib"])
    for device in jax.devices():
        print(f"device {device.id}: {device.device_kind} ({device.platform})")
    began = time.perf_counter()
    first, last = smoke()
    if not last < first:
        wrong.append("the loss of the smoke step did not fall")
    print(f"smoke: a tiny GPT, loss {first:.3f} -> {last:.3f} in {time.perf_counter() - began:.1f} s")
    for line in wrong:
        print(f"BAD: {line}")
    print("something is wrong" if wrong else "all is well")
    return not wrong


def absent(package: str) -> str:
    """The text for a `package` that is not installed, with the extra that installs it."""
    extra = dict(extras.EXTRAS.values()).get(package)
    return f"is not installed; pip install 'transformer-jax[{extra}]'" if extra else "is not installed"


def known_bad(jax_version: str, jaxlib_version: str) -> list[str]:
    """The known problems of this pair of versions, `jax_version` and `jaxlib_version`."""
    wrong = []
    if "0.10.2" in (jax_version, jaxlib_version):
        wrong.append("jax 0.10.2 miscompiles on CPU (jax issues 39103 and 39352); install 0.10.1 or 0.12")
    if jax_version.split(".")[:2] != jaxlib_version.split(".")[:2]:
        wrong.append(f"jax {jax_version} and jaxlib {jaxlib_version} are not of one release; install both again")
    return wrong


def smoke() -> tuple[float, float]:
    """The loss of a tiny language model before and after 20 steps on one batch, in nats per token."""
    family, task = getattr(models, models.FAMILIES[0]), CausalLM()
    cfg = family.Config(vocab_size=64, max_length=32, width=32, num_layers=2, num_heads=2)
    params = jax.jit(family.init, static_argnums=1)(jax.random.key(0), cfg)
    tokens_BT = jax.random.randint(jax.random.key(1), (8, 33), 0, 64)
    batch = {"inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:], "weights": jnp.ones((8, 32))}
    optimizer = optax.adam(3e-3)

    def loss(params: Any) -> jax.Array:
        total, weight, _ = task.loss(params, cfg, batch)
        return total / weight

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    values, opt_state = [], jax.jit(optimizer.init)(params)
    for _ in range(20):
        params, opt_state, value = step(params, opt_state)
        values.append(float(value))
    return values[0], values[-1]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
