"""What a model looks at: functions over the attention of a forward pass, for any model that is built on `nn.attention`.

    def forward():                                          # what is asked: the score of a class, of a token
        return jnp.sum(gpt.apply(params, cfg, tokens)[:, -1, chosen])

    cfg = watch.open_up(cfg)
    weights, gradients = looking.gradients(forward)         # one for each layer, [B, N, T, S]
    flow_BTT = looking.rollout(weights)                     # Abnar and Zuidema 2020
    shares_BTT = looking.relevance(weights, gradients)      # Chefer et al. 2021
    saved_LN = looking.head_importance(loss, weights)       # Michel et al. 2019
    logits = looking.logit_lens(gpt, params, cfg, lambda p, c: gpt.apply(p, c, tokens))

Attention says where a model reads, not why: see Jain and Wallace 2019 before a conclusion is drawn from a map.

L layers, B batch, N heads, T queries, S keys.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.nn import watch

Maps = Sequence[jax.Array]  # one for each layer, [B, N, T, S]


def gradients(forward: Callable[[], jax.Array], kind: str = watch.SELF) -> tuple[list[jax.Array], list[jax.Array]]:
    """The attention probabilities of each layer, and how the sum of `forward()` changes with them, both [B, N, T, S].

    Args:
      forward: a pass of a model whose config is `watch.open_up`'s.
      kind: "self" or "cross".
    """
    with watch.attention() as seen:
        forward()
    weights = seen.each(kind)

    def score(added: list[jax.Array]) -> jax.Array:
        with watch.attention(added={kind: added}):
            return jnp.sum(forward())

    return weights, jax.grad(score)([jnp.zeros_like(x) for x in weights])


def rollout(weights: Maps | jax.Array) -> jax.Array:
    """The share of each input token in each state after the last layer, float32 [B, T, T]; rows sum to 1.

    It is the product over the layers of the attention, averaged over heads, and the identity, half each (Abnar and
    Zuidema 2020, section 3).

    Args:
      weights: the weights of each layer, [B, N, T, T].
    """
    eye_TT = jnp.eye(weights[0].shape[-1])
    flow_BTT = jnp.broadcast_to(eye_TT, (len(weights[0]), *eye_TT.shape))
    for w_BNTT in weights:
        step_BTT = (jnp.mean(w_BNTT, axis=1) + eye_TT) / 2
        flow_BTT = jnp.einsum("BTS,BSU->BTU", step_BTT, flow_BTT, precision="highest")
    return flow_BTT


def relevance(weights: Maps, gradients: Maps) -> jax.Array:
    """How much each input token has to do with the score at each state, float32 [B, T, T] (Chefer et al. 2021, 3.1).

    Over the layers, attention times gradient, where positive, averaged over heads, is added up along the paths.

    Args:
      weights: the weights of each layer, [B, N, T, T].
      gradients: the gradients of the score with respect to `weights`.
    """
    eye_TT = jnp.eye(weights[0].shape[-1])
    found_BTT = jnp.broadcast_to(eye_TT, (len(weights[0]), *eye_TT.shape))
    for w_BNTT, g_BNTT in zip(weights, gradients, strict=True):
        step_BTT = jnp.mean(jax.nn.relu(w_BNTT * g_BNTT), axis=1)
        found_BTT = found_BTT + jnp.einsum("BTS,BSU->BTU", step_BTT, found_BTT, precision="highest")
    return found_BTT


def head_importance(loss: Callable[[], jax.Array], weights: Maps, kind: str = watch.SELF) -> jax.Array:
    """How fast the loss changes as a head's output is scaled down, float32 [L, N] (Michel et al. 2019, equation 2).

    Args:
      loss: a scalar, of a pass of a model whose config is `watch.open_up`'s.
      weights: the weights of each layer, which say how many heads there are.
      kind: "self" or "cross".
    """

    def scaled(factors_LN: jax.Array) -> jax.Array:
        with watch.attention(factors={kind: factors_LN}):
            return loss()

    return jnp.abs(jax.grad(scaled)(jnp.ones((len(weights), weights[0].shape[1]))))


def without_head(loss: Callable[[], jax.Array], weights: Maps, kind: str = watch.SELF) -> jax.Array:
    """The loss without each head, minus that with all: float32 [L, N], by one pass for each head.

    Args:
      loss: as for `head_importance`.
      weights: as for `head_importance`.
      kind: as for `head_importance`.
    """
    shape = (len(weights), weights[0].shape[1])

    def scaled(factors_LN: jax.Array) -> jax.Array:
        with watch.attention(factors={kind: factors_LN}):
            return loss()

    removed = 1.0 - jnp.eye(shape[0] * shape[1]).reshape(-1, *shape)
    return jax.lax.map(scaled, removed).reshape(shape) - scaled(jnp.ones(shape))


def logit_lens(params: Any, cfg: Any, apply: Callable[[Any, Any], jax.Array]) -> list[jax.Array]:
    """What the model would answer after each of its layers: the results of `apply(params, cfg)` with the first 1 to L.

    The head reads the states of a middle layer as it does those of the last (nostalgebraist 2020, "the logit lens").

    Args:
      params: with stacked "blocks".
      cfg: the model's config, with `num_layers`.
      apply: gives logits, with the head and its norm.
    """
    made = []
    for count in range(1, cfg.num_layers + 1):
        blocks = params["blocks"]
        if not getattr(cfg, "share_layers", False):
            blocks = jax.tree.map(lambda leaf, count=count: leaf[:count], blocks)
        made.append(apply({**params, "blocks": blocks}, dataclasses.replace(cfg, num_layers=count)))
    return made


def alignment(weights: Maps, layer: int = -1) -> jax.Array:
    """How much each target token reads of each source token, float32 [B, T, S]: the mean over the heads of a layer.

    Args:
      weights: the weights of the cross-attention.
      layer: which one.
    """
    return jnp.mean(weights[layer], axis=1)
