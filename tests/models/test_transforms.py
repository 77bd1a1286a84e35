"""JAX's own transformations of each family, by the plain form of its kernels: export with symbolic sizes, and forward
over reverse mode."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from transformer_jax import kernels
from transformer_jax.models import bert, gpt, seq2seq, vit

SMALL: dict[str, Any] = {"width": 8, "num_layers": 1, "num_heads": 2}
TEXT = SMALL | {"vocab_size": 11, "max_length": 64}
GPT, BERT, VIT = gpt.Config(**TEXT), bert.Config(**TEXT), vit.Config(image_size=8, patch_size=4, num_classes=3, **SMALL)
SEQ2SEQ = seq2seq.Config(**TEXT)
# name: (family, config, function of the parameters and inputs, symbolic shapes of these, their dtype)
FAMILIES = {
    "gpt": (gpt, GPT, lambda p, x: gpt.apply(p, GPT, x), ("b, t",), np.int32),
    "bert": (bert, BERT, lambda p, x, n: bert.apply(p, BERT, x, lengths=n), ("b, t", "b"), np.int32),
    "seq2seq": (seq2seq, SEQ2SEQ, lambda p, s, x: seq2seq.apply(p, SEQ2SEQ, s, x), ("b, s", "b, t"), np.int32),
    "vit": (vit, VIT, lambda p, x: vit.apply(p, VIT, x), ("b, 8, 8, 3",), np.float32),
}

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def inputs(shapes, dtype, **sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(1, 5, [sizes.get(d) or int(d) for d in s.split(", ")]).astype(dtype) for s in shapes]


@pytest.mark.parametrize("name", ["gpt", "seq2seq", *(SLOW[1], SLOW[3])])
def test_export_with_symbolic_sizes(name):
    family, config, apply, shapes, dtype = FAMILIES[name]
    params = family.init(jax.random.key(0), config)
    limits = [f"{size} <= 64" for size in ("t", "s") if any(size in shape for shape in shapes)]
    scope = export.SymbolicScope(limits)  # the model's max_length
    symbolic = [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype) for shape in shapes]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    with kernels.use("plain"):
        exported = export.export(jax.jit(apply))(abstract, *symbolic)
    for sizes in ({"b": 1, "t": 5, "s": 7}, {"b": 3, "t": 17, "s": 6}):
        given = inputs(shapes, dtype, **sizes)
        np.testing.assert_allclose(exported.call(params, *given), jax.jit(apply)(params, *given), atol=1e-4)


@pytest.mark.parametrize("name", SLOW)
def test_hessian_vector_products(name):
    """Forward over reverse mode gives what reverse over reverse mode gives."""
    family, config, apply, shapes, dtype = FAMILIES[name]
    params = family.init(jax.random.key(0), config)
    given = inputs(shapes, dtype, b=2, t=5, s=7)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)

    def slope(params):
        """Along the direction."""
        gradient = jax.grad(lambda params: jnp.mean(jnp.sin(apply(params, *given))))(params)
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))

    @jax.jit
    def both(params):
        gradient = jax.grad(lambda params: jnp.mean(jnp.sin(apply(params, *given))))
        return jax.jvp(gradient, (params,), (direction,))[1], jax.grad(slope)(params)

    with kernels.use("plain"):
        products = both(params)
    forward, reverse = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in products)
    assert jnp.linalg.norm(forward - reverse) < 1e-3 * jnp.linalg.norm(reverse)
    assert jnp.linalg.norm(reverse) > 0
