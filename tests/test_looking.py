"""Rollout, attention times gradient, head importance and the logit lens, against their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import looking
from transformer_jax.models import gpt
from transformer_jax.nn import watch

TOKENS = np.random.default_rng(0).integers(0, 20, (1, 6)).astype(np.int32)
CFG = watch.open_up(
    gpt.Config(vocab_size=20, max_length=6, width=12, num_layers=2, num_heads=2, position="rotary", init_std=0.3)
)


def model():
    params = gpt.init(jax.random.key(0), CFG)
    out = params["blocks"]["attention"]["out"]["kernel"]
    params["blocks"]["attention"]["out"]["kernel"] = out.at[0, 6:].set(0).at[1, :6].multiply(5.0)
    return params  # of layer 0 head 1 does nothing, of layer 1 head 0 does most


def loss(params):
    log_p = jax.nn.log_softmax(gpt.apply(params, CFG, TOKENS)[:, :-1])
    return -jnp.mean(jnp.take_along_axis(log_p, TOKENS[:, 1:, None], axis=-1))


@jax.jit
def everything(params):
    weights, gradients = looking.gradients(lambda: loss(params))
    return (
        weights,
        gradients,
        looking.rollout(weights),
        looking.relevance(weights, gradients),
        looking.head_importance(lambda: loss(params), weights),
        looking.without_head(lambda: loss(params), weights),
        looking.logit_lens(params, CFG, lambda p, c: gpt.apply(p, c, TOKENS)),
        loss(params),
    )


def test_against_the_definitions():
    params = model()
    weights, gradients, flow, found, importance, without, lens, whole = everything(params)
    w, g = np.asarray(weights, np.float64)[:, 0], np.asarray(gradients, np.float64)[:, 0]
    steps = [(x.mean(0) + np.eye(6)) / 2 for x in w]
    np.testing.assert_allclose(flow[0], steps[1] @ steps[0], atol=1e-6)
    np.testing.assert_allclose(flow.sum(-1), 1, atol=1e-5)
    wanted = np.eye(6)
    for a, d in zip(w, g, strict=True):
        wanted = wanted + np.maximum(a * d, 0).mean(0) @ wanted
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-6)

    # The gradient by one probability is the change of the loss with it.
    added = [np.zeros((1, 2, 6, 6), np.float32) for _ in range(2)]
    added[1][0, 0, 4, 2] = 1e-2

    @jax.jit
    def changed(params, added):
        with watch.attention(added={"self": added}):
            return loss(params)

    np.testing.assert_allclose(changed(params, added) - whole, 1e-2 * g[1, 0, 4, 2], rtol=0.1)

    # Importance agrees with deleting the head: with the rows of its output kernel at zero.
    deleted = np.zeros((2, 2))
    for layer in range(2):
        for head in range(2):
            kernel = params["blocks"]["attention"]["out"]["kernel"]
            smaller = jax.tree.map(lambda x: x, params)
            smaller["blocks"]["attention"]["out"]["kernel"] = kernel.at[layer, 6 * head : 6 * head + 6].set(0)
            deleted[layer, head] = jax.jit(loss)(smaller) - whole
    np.testing.assert_allclose(without, deleted, atol=2e-5)
    assert importance[0, 1] < 1e-6 and abs(without[0, 1]) < 1e-5
    assert np.argmax(importance) == np.argmax(np.abs(without)) == 2

    # After the last layer the lens is the model; after the first, the model of one layer.
    np.testing.assert_allclose(lens[1], gpt.apply(params, CFG, TOKENS), atol=1e-4)
    one = {**params, "blocks": jax.tree.map(lambda x: x[:1], params["blocks"])}
    np.testing.assert_allclose(lens[0], gpt.apply(one, dataclasses.replace(CFG, num_layers=1), TOKENS), atol=1e-4)
