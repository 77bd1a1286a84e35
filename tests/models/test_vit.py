"""The Vision Transformer against a float64 version of the papers, and the identities that it must satisfy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from tests.nn import reference
from transformer_jax import config_json, models, sharding
from transformer_jax.errors import InputError
from transformer_jax.models import vit
from transformer_jax.nn import block
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask

VIT = vit.Config(image_size=12, patch_size=4, width=16, num_layers=3, num_heads=4, num_classes=6)
VARIANTS = {
    "paper": dataclasses.replace(VIT, pre_logits=10, image_size=(8, 12)),
    "deit": dataclasses.replace(VIT, distillation="head", layer_scale=0.1, norm_eps=1e-12, mlp_width=24),
    "plain": dataclasses.replace(
        VIT, image_size=(12, 8), position="sincos2d", pool="mean", activation="gelu_tanh", channels=1
    ),
    "map": dataclasses.replace(VIT, pool="map", num_registers=2, qk_norm=True, qkv_bias=False),
    "token": dataclasses.replace(VIT, distillation="token", num_registers=1, position="sincos2d"),
}
NOISY = dict(dropout=0.1, attention_dropout=0.1, stochastic_depth=0.3, patch_dropout=0.5)
apply, hidden = (jax.jit(f, static_argnums=1) for f in (vit.apply, vit.hidden))


def images(cfg, batch=2, seed=0):
    shape = (batch, *cfg.sides, cfg.channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def double(cfg):
    return reference.random_params(vit.declare(cfg), seed=1)


def single(cfg):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), double(cfg))


def close(found, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(1.0, np.abs(expected).max()))


# ---- The function ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_states_features_and_logits_are_those_of_the_papers(name):
    """Within 1e-5 of float64; the layers unrolled for one of them (the rest: test_scanned_layers_are_the_loop)."""
    cfg, p = VARIANTS[name], double(VARIANTS[name])
    expected = np.stack([reference.vit_hidden(p, cfg, image) for image in images(cfg)])
    pooled = np.stack([reference.vit_pooled(p, cfg, x_TD) for x_TD in expected])
    x_BTD = hidden(single(cfg), cfg, images(cfg))
    assert x_BTD.shape == (2, cfg.max_length, 16)
    close(x_BTD, expected)
    close(vit.pooled(single(cfg), cfg, x_BTD), pooled)
    logits = [pooled @ p["head"]["kernel"] + p["head"]["bias"]]
    if cfg.distillation == "head":
        logits += [expected[:, 1] @ p["distillation_head"]["kernel"] + p["distillation_head"]["bias"]]
        for found, wanted in zip(vit.distilled_logits(single(cfg), cfg, x_BTD), logits, strict=True):
            close(found, wanted)
    close(vit.head_logits(single(cfg), cfg, x_BTD), np.mean(logits, axis=0))


def test_apply_and_features_are_their_parts():
    cfg, params = VARIANTS["map"], single(VARIANTS["map"])
    x_BTD = hidden(params, cfg, images(cfg))
    close(apply(params, cfg, images(cfg)), vit.head_logits(params, cfg, x_BTD))
    close(jax.jit(vit.features, static_argnums=1)(params, cfg, images(cfg)), vit.pooled(params, cfg, x_BTD))
    headless = dataclasses.replace(cfg, num_classes=0)
    assert set(vit.declare(headless)) == set(vit.declare(cfg)) - {"head"}


@pytest.mark.parametrize("name", ["deit", "paper"])
def test_the_last_layer_for_the_tokens_that_are_read_is_the_last_layer(name):
    """`apply` computes it for those alone: logits and gradients are those of the hidden states of all tokens."""
    cfg, params = VARIANTS[name], single(VARIANTS[name])

    @jax.jit
    def both(params):
        def of_all(params):
            return vit.head_logits(params, cfg, vit.hidden(params, cfg, images(cfg)))

        def graded(logits):
            return jax.value_and_grad(lambda params: jnp.sum(jnp.sin(logits(params))))(params)

        return graded(of_all), graded(lambda params: vit.apply(params, cfg, images(cfg)))

    jax.tree.map(close, *both(params))


def test_scanned_layers_are_the_loop():
    """Values and gradients, dropout, stochastic depth and patch dropout included."""
    cfg = dataclasses.replace(VARIANTS["deit"], num_layers=2, **NOISY)

    def loss(params, cfg):
        return jnp.sum(vit.apply(params, cfg, images(cfg), key=jax.random.key(3)) ** 2)

    graded = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected = graded(single(cfg), cfg)
    found = graded(single(cfg), dataclasses.replace(cfg, scan_layers=False, remat="full"))
    jax.tree.map(lambda a, b: close(a, b, 5e-5), found, expected)
    zero = [path for path, g in params_lib.flatten(expected[1]).items() if not np.abs(g).max() > 0]
    assert zero == [], "every parameter has a gradient"


def test_one_image_under_vmap_is_the_batch():
    cfg, params = VIT, single(VIT)
    one = jax.vmap(lambda image_YXC: vit.apply(params, cfg, image_YXC[None])[0])
    close(jax.jit(one)(images(cfg)), apply(params, cfg, images(cfg)))


def test_bfloat16_is_near():
    cfg = dataclasses.replace(VARIANTS["map"], dtype="bfloat16")
    params = jax.tree.map(lambda a: a / 2, single(cfg))
    x_BTD = hidden(params, cfg, images(cfg))
    logits = vit.head_logits(params, cfg, x_BTD)
    assert x_BTD.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    close(logits, apply(params, VARIANTS["map"], images(cfg)), 0.1)


# ---- Training only ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{name: value} for name, value in NOISY.items()], ids=list(NOISY))
def test_noise_needs_a_key_and_follows_it(change):
    cfg = dataclasses.replace(VIT, **change)
    params = single(cfg)
    close(apply(params, cfg, images(cfg)), apply(params, VIT, images(cfg)))
    one, same, other = (apply(params, cfg, images(cfg), key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_stochastic_depth_leaves_out_rows_more_often_the_deeper():
    """Layer i of L at rate r i / (L - 1). Each sublayer adds 1 to a feature of its own, so the states say who was
    there; what is there counts 1 / (1 - rate) times, so the mean is what evaluation adds."""
    L, batch = 3, 2000
    cfg = dataclasses.replace(VIT, num_layers=L, stochastic_depth=0.6, image_size=4, width=8, position="sincos2d")
    params = jax.tree.map(np.zeros_like, single(cfg))
    params["blocks"]["attention"]["out"]["bias"] = np.eye(8)[0:L].astype(np.float32)
    params["blocks"]["mlp"]["down"]["bias"] = np.eye(8)[L : 2 * L].astype(np.float32)
    params["final_norm"]["scale"] = np.ones(8, np.float32)
    x_BTD = np.asarray(hidden(params, cfg, images(cfg, batch), key=jax.random.key(0)))
    there_BD = x_BTD[:, 0, : 2 * L] > x_BTD[:, 0, -1:]  # of the class token, which starts at zero
    shares = there_BD.reshape(batch, 2, L).mean(0)
    np.testing.assert_allclose(shares, [[1.0, 0.7, 0.4]] * 2, atol=0.04)
    np.testing.assert_allclose(np.corrcoef(there_BD[:, 1], there_BD[:, 4])[0, 1], 0.0, atol=0.1)

    p = jax.tree.map(lambda a: a[1], params["blocks"])
    y_BTD, _ = block.apply(p, cfg, jnp.zeros((batch, 2, 8)), mask=Mask(), drop_path=0.25, key=jax.random.key(1))
    assert set(np.unique(np.asarray(y_BTD[..., 1]).round(5))) == {0.0, np.float32(4 / 3).round(5)}
    assert (y_BTD[:, 0] == y_BTD[:, 1]).all(), "a row as a whole"
    np.testing.assert_allclose(np.asarray(y_BTD)[:, 0, [1, 4]].mean(0), [1.0, 1.0], atol=0.05)


def test_patch_dropout_keeps_as_many_patches_of_each_image_and_all_other_tokens():
    """Seen in the embeddings, by tokens that are their own number: a model without layers' work, D = 16, 9 patches."""
    cfg = dataclasses.replace(VIT, patch_dropout=0.6, num_registers=2)
    params = jax.tree.map(np.zeros_like, single(cfg))
    params["embed"]["position"]["embedding"] = np.eye(10, 16).astype(np.float32)
    params["embed"]["registers"]["embedding"] = np.eye(16)[[14, 15]].astype(np.float32)
    params["final_norm"]["scale"] = np.ones(16, np.float32)
    x_BTD = np.asarray(hidden(params, cfg, images(cfg, batch=300), key=jax.random.key(0)))
    tokens_BT = x_BTD.argmax(-1)
    assert tokens_BT.shape == (300, 3 + 4), "4 of 9 patches"
    assert (tokens_BT[:, :3] == [0, 14, 15]).all() and (np.diff(tokens_BT[:, 3:]) > 0).all(), "each once, in order"
    np.testing.assert_allclose(np.bincount(tokens_BT[:, 3:].ravel())[1:] / 300, 4 / 9, atol=0.12)
    logits = vit.head_logits(params, cfg, jnp.asarray(x_BTD))
    assert logits.shape == (300, 6), "the head takes what is left"


# ---- Parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "change", "count"),
    [  # Touvron et al. 2021, table 1, and timm's and Transformers' own counts
        ("Ti", {}, 5_717_416),
        ("S", {}, 22_050_664),
        ("B", {}, 86_567_656),
        ("B", {"patch_size": 32}, 88_224_232),
        ("L", {}, 304_326_632),
        ("H", {"patch_size": 14}, 632_045_800),
        ("B", {"distillation": "head"}, 87_338_192),
    ],
)
def test_published_parameter_counts(size, change, count):
    assert params_lib.count(vit.declare(vit.Config(**vit.SIZES[size], **change))) == count


def test_a_fresh_model_is_big_visions():
    """The head at zero, Glorot's kernels, patches by their fan-in; or DeiT's: everything at one deviation."""
    cfg = dataclasses.replace(VIT, width=64, pool="map", num_registers=2, layer_scale=1e-4)
    flat = params_lib.flatten(vit.declare(cfg))
    glorot = {"blocks/attention/query/kernel": 64**-0.5, "pool/mlp/down/kernel": (2 / 320) ** 0.5}
    for path, deviation in {**glorot, "embed/patch/kernel": 48**-0.5, "embed/position/embedding": 0.02}.items():
        np.testing.assert_allclose(drawn(flat[path]).std(), deviation, rtol=0.12, err_msg=path)
    registers = drawn(flat["embed/registers/embedding"])
    assert np.abs(registers[0] - registers[1]).max() > 0, "or two registers would stay one"
    assert not drawn(flat["head/kernel"]).any() and not drawn(flat["head/bias"]).any()
    assert (drawn(flat["blocks/mlp/layer_scale/scale"]) == np.float32(1e-4)).all()
    flat = params_lib.flatten(vit.declare(dataclasses.replace(cfg, initializer="normal", init_std=0.05)))
    for path in ("blocks/mlp/down/kernel", "embed/patch/kernel", "pool/attention/out/kernel"):
        np.testing.assert_allclose(drawn(flat[path]).std(), 0.05, rtol=0.05, err_msg=path)
    assert not drawn(flat["head/kernel"]).any()


def drawn(p):
    return np.asarray(params_lib.init(jax.random.key(0), {"leaf": p})["leaf"])


def test_weight_decay_is_for_kernels():
    cfg = dataclasses.replace(VARIANTS["deit"], num_registers=1)
    mask = params_lib.flatten(params_lib.decay_mask(vit.declare(cfg)))
    assert {path for path, decayed in mask.items() if decayed} == {path for path in mask if path.endswith("kernel")}


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 5}, "model.patch_size 5 does not divide model.image_size 12; change one of them"),
        ({"image_size": (12, 10)}, r"model.patch_size 4 does not divide model.image_size \(12, 10\); change one"),
        ({"image_size": (0, 12)}, r"model.image_size is \(0, 12\); it must be at least 1"),
        ({"channels": 0}, "model.channels is 0; it must be at least 1"),
        ({"num_heads": 3}, "model.num_heads 3 does not divide model.width 16"),
        ({"pool": "gap"}, "model.pool is 'gap'; it is one of class, mean, both, map"),
        ({"num_registers": -1}, "model.num_registers is -1; it must be at least 0"),
        ({"stochastic_depth": 1.0}, "model.stochastic_depth is 1.0; it must be in"),
        ({"position": "sincos2d", "width": 18, "num_heads": 2}, "multiple of 4 from 8 on; it is 18"),
        ({"distillation": "token", "pool": "mean"}, "the distillation token stands beside a class token"),
        ({"distillation": "head", "num_classes": 0}, "'head' needs classes"),
        ({"distillation": "head", "pre_logits": 8}, "model.pre_logits is 8 with two heads"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(VIT, **change)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 16, 12, 3), np.float32), r"shape \(2, 16, 12, 3\); the model's are \('B', 12, 12, 3\)"),
        (np.zeros((12, 12, 3), np.float32), r"shape \(12, 12, 3\)"),
        (np.zeros((2, 12, 12, 3), np.uint8), "images are uint8; scale and normalise them"),
    ],
)
def test_other_images_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda p: vit.apply(p, VIT, jnp.asarray(given)), single(VIT))


def test_a_config_is_written_down_and_belongs_to_the_family():
    cfg = VARIANTS["map"]
    assert models.family(cfg) is vit and "vit" in models.FAMILIES
    assert config_json._Reader({}).value(config_json.to_json(cfg), vit.Config, "config.json") == cfg


# ---- Looking in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["map", "token"])
def test_hidden_states_and_weights_are_those_that_the_model_has(name):
    """The last state under the final norm is `hidden`'s; weights are softmax of the projected states, by hand."""
    cfg, params, p = VARIANTS[name], single(VARIANTS[name]), double(VARIANTS[name])
    states = np.asarray(jax.jit(vit.hidden_states, static_argnums=1)(params, cfg, images(cfg)), np.float64)
    norm = p["final_norm"]
    assert states.shape == (4, 2, cfg.max_length, 16)
    close(reference.layer_norm(states[-1], norm["scale"], norm["bias"], cfg.norm_eps), hidden(params, cfg, images(cfg)))
    w_LBNTT = jax.jit(vit.attention_weights, static_argnums=1)(params, cfg, images(cfg))
    assert w_LBNTT.shape == (3, 2, 4, cfg.max_length, cfg.max_length)
    at = reference._layer(p["blocks"], 1)
    h_TD = reference.layer_norm(states[1, 0], at["attention_norm"]["scale"], at["attention_norm"]["bias"], cfg.norm_eps)
    query, key = (reference._dense(at["attention"][part], h_TD)[:, 8:12] for part in ("query", "key"))
    if cfg.qk_norm:
        query, key = (
            reference.rms_norm(x, at["attention"][f"{part}_norm"]["scale"], cfg.norm_eps)
            for part, x in (("query", query), ("key", key))
        )
    close(w_LBNTT[1, 0, 2], reference.softmax(query @ key.T / 2.0))


def test_rollout_points_where_the_attention_went():
    """Two layers: the class token takes all from patch 5 in the last, and patch 5 all from patch 7 in the first; the
    other tokens keep to themselves. Half of each stays: 1/4 arrives from 7, 1/4 from 5, the rest is the token's own."""
    cfg = dataclasses.replace(VIT, num_registers=1)
    T, first = cfg.max_length, cfg.num_special
    w_LBNTT = np.zeros((2, 1, 4, T, T), np.float32) + np.eye(T, dtype=np.float32)
    w_LBNTT[0, 0, :, first + 5] = np.eye(T)[first + 7]
    w_LBNTT[1, 0, :, 0] = np.eye(T)[first + 5]
    expected = np.zeros(9)
    expected[7], expected[5] = 0.25, 0.25
    np.testing.assert_allclose(vit.rollout(jnp.asarray(w_LBNTT), cfg)[0], expected.reshape(3, 3), atol=1e-7)
    w_LBNTT[1, 0, :2, 0] = np.eye(T)[0]  # half of the heads look elsewhere
    np.testing.assert_allclose(vit.rollout(jnp.asarray(w_LBNTT), cfg)[0], expected.reshape(3, 3) / 2, atol=1e-7)

    mean = dataclasses.replace(cfg, pool="mean")  # one special token less
    w_LBNTT = np.zeros((1, 1, 4, T - 1, T - 1), np.float32)
    w_LBNTT[..., mean.num_special + 2] = 1.0  # everything looks at patch 2
    found = vit.rollout(jnp.asarray(w_LBNTT), mean)[0]
    np.testing.assert_allclose(found, np.full((3, 3), 1 / 18) + np.eye(9)[2].reshape(3, 3) / 2, atol=1e-7)


def test_rollout_of_a_crafted_model_finds_the_bright_patch():
    """A model whose class token asks for brightness: patches' keys are their mean pixel."""
    cfg = dataclasses.replace(VIT, channels=1, num_heads=1, num_layers=1, position="sincos2d")
    params = jax.tree.map(np.zeros_like, single(cfg))
    params["blocks"]["attention_norm"]["scale"] = np.ones((1, 16), np.float32)
    params["embed"]["patch"]["kernel"][:, 0] = 10.0
    params["embed"]["class"]["embedding"][0, 15] = 10.0
    params["blocks"]["attention"]["query"]["kernel"][0, 15, 1] = 5.0  # the class token's own feature asks
    params["blocks"]["attention"]["key"]["kernel"][0, 0, 1] = 5.0  # brightness answers
    image = np.zeros((2, 12, 12, 1), np.float32)
    image[0, 8:, 4:8], image[1, :4, 8:] = 1.0, 1.0
    seen = vit.rollout(vit.attention_weights(params, cfg, jnp.asarray(image)), cfg)
    assert [np.unravel_index(np.argmax(s), (3, 3)) for s in seen] == [(2, 1), (0, 2)]


# ---- Another resolution ----------------------------------------------------------------------------------------------


def test_positions_at_another_resolution():
    """Special rows are kept, constants stay, and the left half is the left half (that the values are Transformers',
    tests/hub/test_hub_vit.py says)."""
    cfg = dataclasses.replace(VIT, image_size=32, distillation="head")
    params = single(cfg)
    table = np.broadcast_to(np.arange(16, dtype=np.float32), (2 + 64, 16)).copy()
    table[:2] = -1.0
    table[2:, 0] = (np.mgrid[:8, :8][1] < 4).ravel()  # the left half
    params["embed"]["position"]["embedding"] = table
    larger, large = vit.resample_positions(params, cfg, 48)
    table = np.asarray(larger["embed"]["position"]["embedding"])
    assert large.image_size == 48 and table.shape == (2 + 144, 16) and (table[:2] == -1).all()
    np.testing.assert_allclose(table[2:, 1:], np.broadcast_to(np.arange(1, 16), (144, 15)), rtol=1e-6)
    halves = table[2:, 0].reshape(12, 12)
    np.testing.assert_allclose(halves[:, :4], 1.0, atol=1e-6)
    np.testing.assert_allclose(halves + halves[:, ::-1], 1.0, atol=1e-6)
    assert jax.eval_shape(lambda p: vit.apply(p, large, images(large)), larger).shape == (2, 6)
    wide, _ = vit.resample_positions(params, cfg, (32, 48))
    columns = np.asarray(wide["embed"]["position"]["embedding"])[2:, 0].reshape(8, 12)
    np.testing.assert_allclose(columns, halves[:8], atol=1e-6, err_msg="rows stay, columns are those of the square")
    assert larger["head"] is params["head"]
    assert vit.resample_positions(params, cfg, 32) == (params, cfg)
    with pytest.raises(InputError, match="model.patch_size 4 does not divide model.image_size 50"):
        vit.resample_positions(params, cfg, 50)
    fixed = VARIANTS["plain"]
    same, moved = vit.resample_positions(single(fixed), fixed, 24)
    assert jax.eval_shape(lambda p: vit.apply(p, moved, images(moved)), same).shape == (2, 6), "sines need no table"


# ---- Devices ---------------------------------------------------------------------------------------------------------


def everything(params, cfg, images_BYXC):
    def loss(params):
        return jnp.sum(vit.apply(params, cfg, images_BYXC, key=jax.random.key(0)) ** 2)

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize(
    ("kind", "shape", "name", "change"),
    [  # 1 register and 5 of 9 patches, on 2 devices that split the length
        (AxisType.Auto, (1, 2, 2, 2), "map", {"num_registers": 1, "patch_dropout": 0.45}),
        (AxisType.Explicit, (2, 2, 1, 2), "deit", {"patch_dropout": 0.5}),
    ],
)
def test_eight_devices_are_one(kind, shape, name, change):
    cfg = dataclasses.replace(VARIANTS[name], stochastic_depth=0.3, **change)
    params = jax.tree.map(lambda a: np.asarray(a / 2, np.float32), double(cfg))
    f = jax.jit(everything, static_argnums=1)
    expected = f(params, cfg, images(cfg, batch=4))
    mesh = jax.make_mesh(shape, sharding.MESH_AXES, axis_types=(kind,) * 4)
    with jax.set_mesh(mesh):
        spec = sharding.partition_spec(("batch", None, None, None), (4, 12, 12, cfg.channels), mesh)
        placed = jax.device_put(images(cfg, batch=4), NamedSharding(mesh, spec))
        found = f(jax.device_put(params, params_lib.shardings(vit.declare(cfg), mesh)), cfg, placed)
    jax.tree.map(lambda a, b: close(a, np.asarray(b), 5e-6), found, expected)
