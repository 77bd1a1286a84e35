"""Every optimiser on stacked layers against a float64 NumPy loop over single matrices, on a mesh, and where steps are
skipped, layers frozen and runs resumed; and one that the package does not ship, handed in as a user would."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax import optim, sharding
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, normal, stack
from transformer_jax.optim import shardings
from transformer_jax.runs import checkpoint
from transformer_jax.runs.writer import Writer
from transformer_jax.train import state as state_lib

DECLARATION = {
    "blocks": stack(
        {
            "up": {"kernel": Param((8, 16), ("embed", "mlp"), normal(0.3))},
            "norm": {"bias": Param((8,), (None,), normal(0.1))},
            "down": {"kernel": Param((16, 8), ("mlp", "embed"), normal(0.3))},
            "query": {"kernel": Param((8, 8), ("embed", "heads"), normal(0.3))},
        },
        3,
    ),
    "embed": {"embedding": Param((32, 8), ("vocab", "embed"), normal(0.5))},
    "norm": {"scale": Param((8,), (None,), normal(1.0))},
}
TOTAL, UPDATES = 10, 3
PATHS = list(params_lib.flatten(DECLARATION))


@dataclasses.dataclass(frozen=True)
class AdaBelief(optim.Rates):
    """A user's own, of optax."""

    def make(self, total_updates, declaration):
        return optim.around(self, declaration, lambda trained: optax.adabelief(self.schedule(total_updates)))


COMMON: Any = {"lr_schedule": "linear", "warmup_steps": 1, "clip_norm": 3.0, "weight_decay": 0.1}
OPTIMIZERS: dict[str, Any] = {
    "AdamW": optim.AdamW(peak_lr=0.05, **COMMON),
    "Adafactor": optim.Adafactor(peak_lr=0.05, min_size_to_factor=8, **COMMON),
    "Lamb": optim.Lamb(peak_lr=0.05, **COMMON),
    "Lion": optim.Lion(peak_lr=0.01, **COMMON),
    "Muon": optim.Muon(peak_lr=0.05, adamw_lr=0.02, **COMMON),
    "ScheduleFree": optim.ScheduleFree(peak_lr=0.05, **COMMON),
    "Sgd": optim.Sgd(peak_lr=0.05, nesterov=True, **COMMON),
    "AdaBelief": AdaBelief(peak_lr=0.05, **COMMON),
}
each = pytest.mark.parametrize("name", OPTIMIZERS)


def gradients(update):
    """Some are clipped, some are not."""
    rng = np.random.default_rng(update)
    size = 0.1 if update % 2 else 1.0
    return jax.tree.map(
        lambda p: jnp.asarray(size * rng.normal(size=p.shape), jnp.float32),
        DECLARATION,
        is_leaf=lambda x: isinstance(x, Param),
    )


@functools.cache
def transformation(name):
    return optim.make(OPTIMIZERS[name], TOTAL, DECLARATION)


@functools.cache
def compiled(name, mesh=None):
    """One update: (grads, state, params, finite) -> (params, state), on a mesh where there is one."""
    optimizer = transformation(name)

    def update(grads, state, params, finite):
        updates, state = optimizer.update(grads, state, params, grad_norm=optax.tree.norm(grads), finite=finite)
        return optax.apply_updates(params, updates), state

    params = params_lib.abstract(DECLARATION, mesh)
    state, options = jax.eval_shape(optimizer.init, params), {}
    if mesh is not None:
        places = params_lib.shardings(DECLARATION, mesh)
        state_places = shardings.of_state(state, DECLARATION, mesh)
        options = {"in_shardings": (places, state_places, places, None), "out_shardings": (places, state_places)}
    with jax.set_mesh(mesh or sharding.make_mesh(devices=jax.devices()[:1])):
        return jax.jit(update, **options).lower(params, state, params, jax.ShapeDtypeStruct((), bool)).compile()


@functools.cache
def trained(name, updates=UPDATES):
    """Parameters and state after some updates on one device."""
    params = params_lib.init(jax.random.key(0), DECLARATION)
    state = jax.jit(transformation(name).init)(params)
    for n in range(updates):
        params, state = compiled(name)(gradients(n), state, params, np.bool_(True))
    return params, state


# ---- What is computed ------------------------------------------------------------------------------------------------


def rms(x):
    return math.sqrt((x**2).mean())


class Adam:
    """The direction m / (sqrt(v) + eps), both corrected for their start at 0."""

    def __init__(self, beta1, beta2, eps):
        self.betas, self.eps, self.m, self.v = (beta1, beta2), eps, 0.0, 0.0

    def __call__(self, n, g):
        b1, b2 = self.betas
        self.m, self.v = b1 * self.m + (1 - b1) * g, b2 * self.v + (1 - b2) * g**2
        return self.m / (1 - b1 ** (n + 1)) / (np.sqrt(self.v / (1 - b2 ** (n + 1))) + self.eps)


def adamw(cfg, lr, lam, path):
    adam = Adam(cfg.beta1, cfg.beta2, cfg.eps)
    return lambda n, g, p: -lr(n) * (adam(n, g) + lam * p)


def adafactor(cfg, lr, lam, path):
    """Shazeer and Stern 2018, algorithms 4 and 5, and the decay."""
    row = column = whole = 0.0

    def update(n, g, p):
        nonlocal row, column, whole
        decay, square = 1 - (n + 1.0) ** -cfg.decay_exponent, g**2 + 1e-30
        if g.ndim == 2:
            row = decay * row + (1 - decay) * square.mean(1)
            column = decay * column + (1 - decay) * square.mean(0)
            direction = g / np.sqrt(np.outer(row, column) / row.mean())
        else:
            whole = decay * whole + (1 - decay) * square
            direction = g / np.sqrt(whole)
        return -lr(n) * (direction / max(1.0, rms(direction)) * max(1e-3, rms(p)) + lam * p)

    return update


def lamb(cfg, lr, lam, path):
    adam = Adam(cfg.beta1, cfg.beta2, cfg.eps)

    def update(n, g, p):
        direction = adam(n, g) + lam * p
        return -lr(n) * direction * (np.linalg.norm(p) / np.linalg.norm(direction) if p.ndim == 2 else 1)

    return update


def lion(cfg, lr, lam, path):
    m = 0.0

    def update(n, g, p):
        nonlocal m
        direction = np.sign(cfg.beta1 * m + (1 - cfg.beta1) * g)
        m = cfg.beta2 * m + (1 - cfg.beta2) * g
        return -lr(n) * (direction + lam * p)

    return update


def sgd(cfg, lr, lam, path):
    m = 0.0

    def update(n, g, p):
        nonlocal m
        g = g + lam * p
        m = cfg.momentum * m + g
        return -lr(n) * (g + cfg.momentum * m)

    return update


def muon(cfg, lr, lam, path):
    """The Newton-Schulz steps are polynomials of the singular values."""
    if "blocks" not in path or "kernel" not in path:
        return adamw(cfg, lambda n: lr(n) * cfg.adamw_lr / cfg.peak_lr, lam, path)
    m = 0.0

    def update(n, g, p):
        nonlocal m
        m = cfg.momentum * m + g
        u, s, vt = np.linalg.svd(g + cfg.momentum * m, full_matrices=False)
        s = s / np.linalg.norm(s)
        for a, b, c in optim.muon.POLYNOMIALS[: cfg.iterations]:
            s = a * s + b * s**3 + c * s**5
        assert (abs(s - 1) < 0.2).all()
        return -lr(n) * (math.sqrt(max(1, p.shape[1] / p.shape[0])) * (u * s) @ vt + lam * p)

    return update


def schedule_free(cfg, lr, lam, path):
    """Defazio et al. 2024, algorithm 1: y is the parameter, x the average, weights are squares of the largest rate."""
    v = weights = largest = 0.0
    x = z = None

    def update(n, g, y):
        nonlocal v, weights, largest, x, z
        x, z = (y, y) if x is None else (x, z)
        v = cfg.beta2 * v + (1 - cfg.beta2) * g**2
        z = z - lr(n) * (g / (np.sqrt(v / (1 - cfg.beta2 ** (n + 1))) + cfg.eps) + lam * y)
        largest = max(largest, lr(n))
        weights += largest**2
        x = x + largest**2 / weights * (z - x)
        update.average = x
        return (1 - cfg.beta1) * z + cfg.beta1 * x - y

    return update


def adabelief(cfg, lr, lam, path):
    """Zhuang et al. 2020, with optax's defaults."""
    m = s = 0.0

    def update(n, g, p):
        nonlocal m, s
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-16
        return -lr(n) * m / (1 - 0.9 ** (n + 1)) / (np.sqrt(s / (1 - 0.999 ** (n + 1)) + 1e-16) + 1e-16)

    return update


REFERENCES = {
    "AdamW": adamw,
    "Adafactor": adafactor,
    "Lamb": lamb,
    "Lion": lion,
    "Muon": muon,
    "ScheduleFree": schedule_free,
    "Sgd": sgd,
    "AdaBelief": adabelief,
}


def reference(name):
    """The parameters after `UPDATES`, each layer's matrix updated by itself, and schedule-free's averages."""
    cfg = OPTIMIZERS[name]
    lr = lambda n: cfg.peak_lr * (0.5 if n == 0 else 1 - (1 - cfg.final_lr_fraction) * (n - 1) / (TOTAL - 1))  # noqa: E731
    params = params_lib.flatten(params_lib.init(jax.random.key(0), DECLARATION))
    layers = {path: range(3) if "blocks" in path else [...] for path in PATHS}
    now = {(path, i): np.asarray(params[path], np.float64)[i] for path in PATHS for i in layers[path]}
    rules = {
        (path, i): REFERENCES[name](cfg, lr, cfg.weight_decay if p.ndim == 2 else 0.0, path)
        for (path, i), p in now.items()
    }
    for n in range(UPDATES):
        grads = {k: np.asarray(g, np.float64) for k, g in params_lib.flatten(gradients(n)).items()}
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        clip = min(1.0, cfg.clip_norm / (norm + 1e-6))
        now = {(path, i): p + rules[path, i](n, clip * grads[path][i], p) for (path, i), p in now.items()}
    joined = lambda get: {path: np.stack([get(path, i) for i in layers[path]]) for path in PATHS}  # noqa: E731
    shapes = {path: params[path].shape for path in PATHS}
    ends = {path: x.reshape(shapes[path]) for path, x in joined(lambda path, i: now[path, i]).items()}
    if name != "ScheduleFree":
        return ends, {}
    averages = joined(lambda path, i: rules[path, i].average)
    return ends, {path: x.reshape(shapes[path]) for path, x in averages.items()}


@each
def test_each_layer_is_updated_by_itself_as_published(name):
    params, state = trained(name)
    want, averages = reference(name)
    tolerance = {"rtol": 2e-4, "atol": 3e-5} if name == "Muon" else {"rtol": 2e-5, "atol": 3e-6}
    for path, leaf in params_lib.flatten(params).items():
        np.testing.assert_allclose(leaf, want[path], **tolerance, err_msg=path)
    if averages:
        found = params_lib.flatten(OPTIMIZERS[name].evaluated(state, params))
        for path, leaf in found.items():
            np.testing.assert_allclose(leaf, averages[path], rtol=5e-5, atol=5e-6, err_msg=path)


# ---- Where it is computed --------------------------------------------------------------------------------------------


MESHES = {"data2-fsdp2-tensor2": {"data": 2, "fsdp": 2, "tensor": 2}, "fsdp8": {"data": 1, "fsdp": 8}}


@each
@pytest.mark.parametrize("mesh", ["data2-fsdp2-tensor2", pytest.param("fsdp8", marks=pytest.mark.slow)])
def test_eight_devices_are_one(name, mesh):
    """One update from the same gradients, parameters and state. Lion's sign of a moment that is zero but for rounding
    may differ: such elements are left out, and counted."""
    mesh = sharding.make_mesh(**MESHES[mesh])
    params, state = trained(name)
    grads = gradients(UPDATES)
    want, want_state = compiled(name)(grads, state, params, np.bool_(True))
    places = params_lib.shardings(DECLARATION, mesh)
    put = (grads, places), (state, shardings.of_state(state, DECLARATION, mesh)), (params, places)
    found, found_state = compiled(name, mesh)(*(jax.device_put(*x) for x in put), np.bool_(True))
    left_out = 0
    for path in PATHS:
        a, b = (np.asarray(params_lib.flatten(tree)[path]) for tree in (found, want))
        counts = np.ones(a.shape, bool)
        if name == "Lion":
            moment, g = (np.asarray(params_lib.flatten(t)[path]) for t in (state[1][0].mu, grads))
            direction = abs(0.9 * moment + 0.1 * g)
            counts = direction >= 1e-6 * direction.max()
            left_out += (~counts).sum()
        np.testing.assert_allclose(a[counts], b[counts], atol=1e-5, err_msg=path)
    assert left_out <= 2
    for a, b in zip(jax.tree.leaves(found_state), jax.tree.leaves(want_state), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    kernel = found["blocks"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size


def test_no_matrix_is_orthogonalised_twice():
    """Three and six matrices, filled up to eight each, are one a device: of eight devices each has an eighth of the
    products of all sixteen."""
    meshes = (None, sharding.make_mesh(**MESHES["data2-fsdp2-tensor2"]))
    alone, shared = (compiled("Muon", mesh).cost_analysis()["flops"] for mesh in meshes)
    assert shared < 0.35 * alone


# ---- Skipped, resumed, frozen ----------------------------------------------------------------------------------------


@each
def test_a_step_that_is_not_finite_leaves_the_state_untouched(name):
    params, state = trained(name)
    bad = jax.tree.map(lambda g: g.at[0].set(jnp.nan), gradients(9))
    _, after = compiled(name)(bad, state, params, np.bool_(False))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True))


@each
def test_stopped_and_resumed_is_uninterrupted(name, tmp_path):
    """Two updates, through a checkpoint, and one more are three, to the bit."""
    one_device = sharding.make_mesh(devices=jax.devices()[:1])
    params, opt_state = trained(name, 2)
    target = state_lib.abstract(DECLARATION, transformation(name), one_device)
    state = state_lib.TrainState(jnp.int32(2), params, opt_state, None, jnp.int32(0))
    with Writer(tmp_path, family="toy", config={"type": "toy"}) as writer:
        writer.save(state_lib.to_store(state, OPTIMIZERS[name]), rows=0)
    back, _ = checkpoint.restore_state(tmp_path / "2", target)
    found = compiled(name)(gradients(2), back.opt_state, back.params, np.bool_(True))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(trained(name)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if name == "ScheduleFree":  # a reader of parameters gets the average
        read, _ = checkpoint.restore_params(tmp_path / "2", target.params)
        want = OPTIMIZERS[name].evaluated(opt_state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), read, want)


@each
def test_frozen_parameters_have_no_state_and_stay(name):
    groups = (("embed|norm/bias", 0.0), ("blocks/1/", 0.0), ("^norm", 0.5))
    frozen = dataclasses.replace(OPTIMIZERS[name], groups=groups)
    scales = optim.lr_scales(frozen, DECLARATION)
    params = params_lib.init(jax.random.key(0), DECLARATION)
    optimizer = optim.make(frozen, TOTAL, DECLARATION)
    state = jax.jit(optimizer.init)(params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert any("norm" in n for n in names) or name == "Muon"
    assert not any("embed" in n or "bias" in n for n in names)
    grads = optim.freeze(gradients(0), scales)  # whatever the step hands over for them
    update = jax.jit(lambda g, s, p: optimizer.update(g, s, p, grad_norm=optax.tree.norm(gradients(0))))
    updates, _ = update(grads, state, params)
    plain = trained(name, 1)[0]
    np.testing.assert_array_equal(updates["embed"]["embedding"], 0)
    np.testing.assert_array_equal(updates["blocks"]["norm"]["bias"], 0)
    np.testing.assert_array_equal(updates["blocks"]["down"]["kernel"][1], 0)
    moved = lambda tree, path: params_lib.flatten(tree)[path] - params_lib.flatten(params)[path]  # noqa: E731
    np.testing.assert_allclose(updates["norm"]["scale"], 0.5 * moved(plain, "norm/scale"), atol=1e-6)
    np.testing.assert_allclose(updates["blocks"]["up"]["kernel"][0], moved(plain, "blocks/up/kernel")[0], atol=1e-6)


# ---- Any Optax transformation ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Users:
    """The least that an optimiser needs."""

    made: object

    def schedule(self, total_updates):
        return optax.constant_schedule(1e-3)

    def make(self, total_updates, declaration):
        return self.made


ALIASES = {
    **{n: getattr(optax, n) for n in ("adabelief", "adadelta", "adagrad", "adam", "adamax", "adan", "amsgrad", "lars")},
    **{n: getattr(optax, n) for n in ("nadamw", "novograd", "radam", "rmsprop", "rprop", "sm3", "yogi", "fromage")},
    "lbfgs": lambda rate: optax.lbfgs(rate, linesearch=None),
    "ademamix": optax.contrib.ademamix,
    "sophia": optax.contrib.sophia,
    "prodigy": optax.contrib.prodigy,
    "inject": lambda rate: optax.inject_hyperparams(optax.adam)(learning_rate=rate),
}


@pytest.mark.parametrize("name", ALIASES)
def test_the_state_of_any_optax_optimiser_is_sharded(name):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    optimizer = optim.make(Users(ALIASES[name](1e-3)), TOTAL, DECLARATION)
    state = jax.eval_shape(optimizer.init, params_lib.abstract(DECLARATION))
    places = shardings.of_state(state, DECLARATION, mesh)
    specs = params_lib.flatten(jax.tree.map(lambda s: s.spec, params_lib.shardings(DECLARATION, mesh)))
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(places), strict=True):
        owner = [p for p in PATHS if jax.tree_util.keystr(path, simple=True, separator="/").endswith(p)]
        if owner and leaf.shape == params_lib.flatten(DECLARATION)[owner[0]].shape:
            assert place.spec == specs[owner[0]]


def test_remaining_axes_are_the_parameters_own():
    kernel = Param((3, 8, 16), ("layers", "embed", "mlp"), normal(1.0))
    assert shardings.axes_of((3, 8), kernel) == ("layers", "embed")
    assert shardings.axes_of((3, 16), kernel) == ("layers", "mlp")
    assert shardings.axes_of((3, 1, 16), kernel) == ("layers", None, "mlp")
    assert shardings.axes_of((3,), kernel) == ("layers",)
    assert shardings.axes_of((10, 3, 8, 16), kernel) == (None, "layers", "embed", "mlp")
    assert shardings.axes_of((3, 8, 8), kernel) is None


def test_a_state_without_a_sharding_is_refused_in_one_line():
    blind = optax.GradientTransformation(lambda p: {"sketch": jnp.zeros((40, 40))}, lambda u, s, p=None: (u, s))
    with pytest.raises(InputError) as error:
        state_lib.abstract(DECLARATION, blind, sharding.make_mesh(data=-1))
    assert str(error.value).startswith(
        "optim: no sharding can be derived for the leaf sketch float32[40, 40] of the optimiser's state; "
    )
    assert "\n" not in str(error.value)


def test_what_is_no_transformation_is_refused():
    with pytest.raises(InputError) as error:
        optim.make(Users(optax.adam), TOTAL, DECLARATION)
    assert str(error.value) == ("optim: Users.make returned a function; it must return an optax.GradientTransformation")
    nowhere = optim.Muon(matrices="encoder/")
    with pytest.raises(
        InputError, match=r"optim.matrices 'encoder/' finds no matrix; the paths are blocks/down/kernel"
    ):
        optim.make(nowhere, TOTAL, DECLARATION)
