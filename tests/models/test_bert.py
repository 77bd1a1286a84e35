"""BERT and its descendants against a float64 version of the papers, and the identities that an encoder must satisfy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from tests.nn import reference
from transformer_jax import losses, models, sharding
from transformer_jax.errors import InputError
from transformer_jax.models import bert
from transformer_jax.nn import layers
from transformer_jax.nn import params as params_lib

BERT = bert.Config(vocab_size=32, max_length=16, width=16, num_layers=4, num_heads=4, heads=bert.HEADS, num_labels=3)
VARIANTS = {
    "bert": BERT,
    "roberta": dataclasses.replace(BERT, num_types=1, position_offset=2, num_layers=2, tie_embeddings=False),
    "albert": dataclasses.replace(BERT, embedding_width=8, share_layers=True, activation="gelu_tanh"),
    "modern": dataclasses.replace(
        BERT,
        norm_order="pre",
        position="rotary",
        gated=True,
        bias=False,
        num_types=0,
        local_window=2,
        global_every=3,
        rope_theta=1000.0,
        local_rope_theta=50.0,
    ),
}
B, T = 4, 12
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 32, (B, T)).astype(np.int32)
TYPES = RNG.integers(0, 2, (B, T)).astype(np.int32)
LENGTHS = np.array([12, 7, 1, 5], np.int32)
apply = jax.jit(bert.apply, static_argnums=1)


def double(cfg):
    return reference.random_params(bert.declare(cfg), seed=1)


def single(cfg):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), double(cfg))


@pytest.mark.parametrize("name", VARIANTS)
def test_hidden_states_are_those_of_the_papers(name):
    """Within 1e-5 of float64, right padding and token types included; scanned and unrolled."""
    cfg = VARIANTS[name]
    types = TYPES if cfg.num_types == 2 else None
    for scan in (True, False):
        x_BTD = apply(single(cfg), dataclasses.replace(cfg, scan_layers=scan), TOKENS, types=types, lengths=LENGTHS)
        assert x_BTD.shape == (B, T, 16)
        for b, n in enumerate(LENGTHS):
            expected = reference.bert_hidden(double(cfg), cfg, TOKENS[b, :n], None if types is None else types[b, :n])
            np.testing.assert_allclose(x_BTD[b, :n], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["bert", "modern"])
def test_packed_documents_get_the_states_that_they_get_alone(name):
    """Three documents of 5, 4 and 3 tokens in one row."""
    cfg = VARIANTS[name]
    segments = np.repeat([[1, 2, 3]], B, 0).repeat([5, 4, 3], 1).astype(np.int32)
    packed = apply(single(cfg), cfg, TOKENS, segments=segments)
    for first, end in ((0, 5), (5, 9), (9, 12)):
        alone = apply(single(cfg), cfg, TOKENS[:, first:end])
        np.testing.assert_allclose(packed[:, first:end], alone, rtol=0, atol=1e-5)


def test_every_token_sees_every_other_and_no_padding():
    """By the gradient: of a state with respect to the embeddings' rows that stand in the text."""
    params, cfg = single(BERT), BERT
    tokens = np.arange(T, dtype=np.int32)[None]

    def state(table, t):
        p = {**params, "embed": {**params["embed"], "token": {"embedding": table}}}
        return bert.apply(p, cfg, tokens, lengths=jnp.array([7]))[0, t].sum()

    seen_V = np.abs(jax.grad(state)(params["embed"]["token"]["embedding"], 3)).max(-1)
    assert (seen_V[:7] > 0).all() and (seen_V[7:] == 0).all()


def test_heads_are_their_formulas():
    """Each head over given hidden states, in float64."""
    cfg, p = VARIANTS["albert"], double(VARIANTS["albert"])
    params, x_BTD = single(cfg), np.random.default_rng(3).standard_normal((2, 5, 16))
    x = jnp.asarray(x_BTD, jnp.float32)

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    pooled = np.tanh(dense(p["pooler"], x_BTD[:, 0]))
    h_BTE = reference.activate(dense(p["mlm"]["transform"], x_BTD), "gelu_tanh")
    h_BTE = reference.layer_norm(h_BTE, p["mlm"]["norm"]["scale"], p["mlm"]["norm"]["bias"], cfg.norm_eps)
    replaced = reference.activate(dense(p["discriminator"]["transform"], x_BTD), "gelu_tanh")
    expected = {
        bert.pooled: pooled,
        bert.mlm: h_BTE @ p["embed"]["token"]["embedding"].T + p["mlm"]["bias"],
        bert.pair: dense(p["pair"], pooled),
        bert.classify: dense(p["classification"], pooled),
        bert.choose: dense(p["choice"], pooled)[:, 0],
        bert.tag: dense(p["tokens"], x_BTD),
        bert.spans: dense(p["span"], x_BTD),
        bert.discriminate: dense(p["discriminator"]["out"], replaced)[..., 0],
    }
    for head, logits in expected.items():
        np.testing.assert_allclose(head(params, cfg, x), logits, rtol=2e-5, atol=2e-5, err_msg=head.__name__)


def test_the_tree_holds_the_heads_that_are_named():
    cfg = dataclasses.replace(BERT, heads=("classification", "mlm", "mlm"))
    assert cfg.heads == ("pooler", "mlm", "classification"), "one spelling of one set, the pooler with what reads it"
    assert set(bert.declare(cfg)) == {"embed", "blocks", "pooler", "mlm", "classification"}
    assert bert.declare(cfg)["classification"]["kernel"].shape == (16, 3)
    assert bert.declare(VARIANTS["albert"])["blocks"]["mlp"]["up"]["kernel"].shape == (1, 16, 64), "stored once"
    assert models.family(cfg) is bert


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": ("nsp",)}, "model.heads has 'nsp'; the heads are pooler, mlm, pair"),
        ({"num_heads": 3}, "model.num_heads 3 does not divide model.width 16"),
        ({"position": "alibi"}, "model.position is 'alibi'; it is one of learned, rotary"),
        ({"num_labels": 0}, "model.num_labels is 0; it must be at least 1"),
        ({"local_window": -1}, "model.local_window is -1; it must be at least 0"),
        ({"dropout": 1.0}, "model.dropout is 1.0; it must be in"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(BERT, **change)


def test_a_window_that_no_layer_has_is_said():
    with pytest.warns(UserWarning, match="local_window is 4, but model.global_every is 1, so every layer is global"):
        dataclasses.replace(BERT, local_window=4)


def test_text_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="17 tokens are more than the model's max_length of 16"):
        jax.eval_shape(lambda p: bert.apply(p, BERT, jnp.zeros((1, 17), jnp.int32)), single(BERT))


def test_dropout_needs_a_key_and_follows_it():
    params = single(BERT)
    plain = bert.apply(params, BERT, TOKENS)
    one, same, other = (apply(params, BERT, TOKENS, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - plain).max() > 0.1 and np.abs(one - other).max() > 0.1


INDEX = RNG.integers(0, T, (8, 3)).astype(np.int32)


def everything(params, cfg, tokens, types, lengths):
    """The masked-LM loss on gathered positions, a pooled head, and their gradients."""

    def loss(params):
        x_BTD = bert.apply(params, cfg, tokens, types=types, lengths=lengths)
        with sharding.replicated_length():
            picked = layers.gather(x_BTD, INDEX, out=("batch", None, None))
            kernel_EV, bias_V = bert.mlm_kernel(params, cfg)
            labels = jnp.asarray(INDEX % 32)
            total, *_ = losses.linear_cross_entropy(
                bert.mlm_states(params, cfg, picked), kernel_EV, labels, bias_V=bias_V
            )
        return total + jnp.sum(bert.classify(params, cfg, x_BTD) ** 2)

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize(
    ("shape", "name", "kind"),
    [
        ((2, 2, 1, 2), "albert", AxisType.Explicit),
        ((1, 2, 2, 2), "modern", AxisType.Explicit),
        ((1, 2, 2, 2), "bert", AxisType.Explicit),
        ((1, 2, 2, 2), "bert", AxisType.Auto),
        pytest.param((2, 2, 1, 2), "albert", AxisType.Auto, marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 2), "modern", AxisType.Auto, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_are_one(shape, name, kind):
    cfg = dataclasses.replace(VARIANTS[name], heads=("mlm", "classification"), num_labels=4)
    params = jax.tree.map(lambda a: np.asarray(a / 4, np.float32), double(cfg))
    tokens, types = (np.concatenate([a, a]) for a in (TOKENS, TYPES))
    types = types if cfg.num_types else None
    lengths = np.concatenate([LENGTHS, LENGTHS])
    f = jax.jit(everything, static_argnums=1)
    expected = f(params, cfg, tokens, types, lengths)
    mesh = jax.make_mesh(shape, sharding.MESH_AXES, axis_types=(kind,) * 4)

    def place(x, *axes):
        spec = sharding.partition_spec(axes, x.shape, mesh)
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        got = f(
            jax.device_put(params, params_lib.shardings(bert.declare(cfg), mesh)),
            cfg,
            place(tokens, "batch", "length"),
            None if types is None else place(types, "batch", "length"),
            place(lengths, "batch"),
        )
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=5e-6, atol=5e-6 * max(1.0, np.abs(other).max()))
