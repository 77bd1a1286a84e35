"""One program on any mesh: every family's train step on eight devices is the one of a single device.

Three steps of AdamW, with dropout, packing, padding and the average, must give the losses and parameters of one device
within 1e-5; every array of the state must be cut as the rule table says; and the compiled program may send only what it
must (`tools.targets.collectives`). By default each kind of mesh is held to this by one family;
every family on every mesh, scanned and unrolled, is `tools/test -m slow tests/test_meshes.py` (ten minutes, 2 cores).
"""

import dataclasses
import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from tools.targets import collectives, hlo
from transformer_jax import augment, sharding
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.train import program as programs

EXPERIMENTS = collectives.experiments()
FAMILIES = list(EXPERIMENTS)
FEW = [
    *(("gpt", "data8"), ("gpt", "fsdp8"), ("gpt", "fsdp2-tensor4"), ("bert", "data2-sequence2-tensor2")),
    *(("seq2seq", "data2-fsdp2-tensor2"), ("vit", "fsdp2-sequence4")),
]
ALL = [(family, mesh) for family in FAMILIES for mesh in collectives.MESHES]
ONE = (1, 1, 1, 1)
CUT_BY = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def experiment(family: str, scan: bool) -> Any:
    made = EXPERIMENTS[family]
    return dataclasses.replace(made, model=dataclasses.replace(made.model, scan_layers=scan))


def batch(family: str, step: int) -> dict[str, np.ndarray]:
    """Eight rows of random examples, with padding, weights of 0 and, where rows are packed, two texts to a row."""
    rng = np.random.default_rng(step)
    rows, length, vocabulary = collectives.ROWS, collectives.LENGTH, collectives.VOCABULARY

    def ids(*shape: int) -> np.ndarray:
        return rng.integers(0, vocabulary, (rows, *shape)).astype(np.int32)

    def some(*shape: int) -> np.ndarray:
        return (rng.random((rows, *shape)) < 0.8).astype(np.float32)

    def segments() -> np.ndarray:
        first, end = rng.integers(1, 8, (rows, 1)), rng.integers(8, length + 1, (rows, 1))
        columns = np.arange(length)
        return np.where(columns < first, 1, np.where(columns < end, 2, 0)).astype(np.int32)

    if family == "gpt":
        return {"inputs": ids(length), "targets": ids(length), "weights": some(length)}
    if family == "bert":
        hidden = EXPERIMENTS["bert"].task.masking.count(length)
        return {
            **{"tokens": ids(length), "types": ids(length) % 2, "lengths": ids() % 9 + 8},
            **{"positions": np.sort(ids(hidden) % 8, axis=1), "labels": ids(hidden), "weights": some(hidden)},
            **{"pair": ids() % 2, "pair_weights": some()},
        }
    if family == "seq2seq":
        source, target = segments(), segments()
        return {
            **{"source": ids(length), "source_segments": source, "inputs": ids(length), "targets": ids(length)},
            **{"target_segments": target, "weights": (target > 0).astype(np.float32)},
        }
    shape = (rows, 16, 16, 3)
    return {"images": rng.integers(0, 256, shape).astype(np.uint8), "labels": ids() % 10, "weights": some()}


@functools.cache
def compiled(family: str, sizes: tuple[int, ...], scan: bool = True) -> Any:
    """(program, its compiled step)."""
    return collectives.compile_step(experiment(family, scan), sizes)


@functools.cache
def trained(family: str, sizes: tuple[int, ...], scan: bool = True) -> tuple[list[float], Any]:
    """The losses of three steps, and the state after them."""
    program, step = compiled(family, sizes, scan)
    places = jax.tree.map(lambda leaf: leaf.sharding, program.batch)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: rng.normal(0, 0.2, p.shape).astype(np.float32), params_lib.abstract(program.declaration)
    )
    with jax.set_mesh(collectives.mesh_of(sizes)):
        state = program.create(params)
        losses = []
        for i in range(3):
            state, metrics = step(state, jax.device_put(batch(family, i), places), jax.random.key(1))
            losses.append(float(metrics["loss"]))
    return losses, state


def check(family: str, mesh: str, scan: bool = True) -> None:
    sizes = collectives.MESHES[mesh]
    losses, state = trained(family, sizes, scan)
    expected_losses, expected = trained(family, ONE)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for part in ("params", "ema"):
        got, wanted = params_lib.flatten(getattr(state, part)), params_lib.flatten(getattr(expected, part))
        for name in wanted:
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=f"{part} {name}")
    check_cut(family, sizes, state)


def check_cut(family: str, sizes: tuple[int, ...], state: Any) -> None:
    """Every parameter, moment and average is on each device the part that the table says, and no more."""
    parts = dict(zip(sharding.MESH_AXES, sizes, strict=True))
    declared = params_lib.flatten(compiled(family, ONE)[0].declaration)
    seen = dict.fromkeys(declared, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = "/".join(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
        if not leaf.shape:
            continue
        p = declared[name]
        cut = tuple(size // parts.get(CUT_BY.get(axis, ""), 1) for size, axis in zip(p.shape, p.axes, strict=True))
        assert {shard.data.shape for shard in leaf.addressable_shards} == {cut}, (name, path)
        seen[name] += 1
    assert set(seen.values()) == {4}  # the parameter, two moments, the average
    total = sum(math.prod(p.shape) for p in declared.values())
    on_one = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state.params))
    assert on_one < total / (parts["fsdp"] * parts["tensor"]) * 1.5  # vectors and tables of positions are small


def check_sent(family: str, mesh: str) -> None:
    """What the compiled step sends is what was committed for this jax, and what first principles allow.

    Along data and fsdp no activation moves: parameters are gathered once for each pass, gradients summed once. Along
    tensor, activations are summed after each sublayer, in both passes. Along sequence, keys and values are gathered.
    Matrices that no rule cuts by tensor or sequence (small heads) may be cut and gathered by the compiler's choice.
    """
    sizes = collectives.MESHES[mesh]
    data, fsdp, sequence, tensor = sizes
    program, step = compiled(family, sizes)
    found, cfg = collectives.rows(step, sizes), program.model
    known = json.loads(collectives.EXPECTED.read_text()).get(jax.__version__, {})
    assert collectives.differences(known.get(f"{family} {mesh}"), found) == []

    def sent(kind: str, along: str) -> int:
        return sum(size for name, (_, size) in found.items() if name.startswith(kind) and along in name)

    def on_one(p: Any) -> int:
        return 4 * math.prod(p.shape) // (tensor if {CUT_BY.get(axis, "") for axis in p.axes} & {"tensor"} else 1)

    leaves = params_lib.flatten(program.declaration)
    table = on_one(leaves["embed/token/embedding"]) if "embed/token/embedding" in leaves else 0
    uses = {"gpt": 2, "bert": 2, "seq2seq": 3, "vit": 0}[family]  # of the one table: each has its gather and gradient
    parameters = sum(map(on_one, leaves.values())) + max(uses - 1, 0) * table
    vectors = 4 * sum(math.prod(p.shape) for name, p in leaves.items() if name.endswith("/bias"))
    summed = parameters + 7 * vectors  # on CPUs a bias's gradient is computed as eight equal rows
    small = sum(on_one(p) for p in leaves.values() if len(p.shape) > 1 and not {*p.axes} & {*CUT_BY} - {"embed"})
    activations = 4 * collectives.ROWS // (data * fsdp) * collectives.LENGTH // sequence * cfg.width
    keys_values = 2 * activations * sequence // tensor
    attentions, sublayers = (6, 10) if family == "seq2seq" else (2, 4)
    slack = 4096  # sums, statistics of the softmax, segments

    assert sent("all-gather", "data") == sent("all-to-all", "data") == 0
    assert sent("all-gather", "fsdp") <= 2 * parameters
    for along in ("data", "fsdp"):
        if sizes[sharding.MESH_AXES.index(along)] > 1:
            assert sent("all-reduce", along) <= summed + slack
    assert sent("all-gather", "tensor") <= 2 * small
    assert sent("collective-permute", "") + sent("all-to-all", "") <= 2 * small + slack
    if tensor > 1:  # XLA's CPU compiler sums the gradients by queries, keys and values each for itself
        assert 2 * sublayers * activations <= sent("all-reduce", "tensor")
        assert sent("all-reduce", "tensor") <= (2 * sublayers + 2 * attentions + uses) * activations + slack
    if sequence > 1:
        whole = activations * sequence if family == "vit" else 0  # patches are embedded before their length is cut
        gathered = sent("all-gather", "sequence")
        assert attentions * keys_values <= gathered <= attentions * keys_values + whole + 2 * small + slack
        assert sent("all-reduce", "sequence") <= summed + attentions * keys_values + slack + small


@pytest.mark.parametrize(("family", "mesh"), FEW, ids=lambda value: value)
def test_eight_devices_train_as_one(family, mesh):
    check(family, mesh)
    check_sent(family, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize(("family", "mesh"), ALL, ids=lambda value: value)
def test_every_family_on_every_mesh(family, mesh, scan):
    check(family, mesh, scan)
    if scan:
        check_sent(family, mesh)


def test_one_device_runs_the_plain_program():
    """A mesh of one device costs nothing: operation by operation, shape by shape and layout by layout, its compiled
    step is that of `jax.jit` without mesh, shardings or constraints."""
    program, step = compiled("gpt", ONE)
    bare: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (program.state, program.batch))
    key = jax.eval_shape(lambda: jax.random.key(0))
    plain = jax.jit(program.step.__wrapped__, donate_argnums=0).lower(*bare, key).compile(collectives.QUICK)
    assert hlo.operations(step.as_text()) == hlo.operations(plain.as_text())


@pytest.mark.parametrize("family", [*FAMILIES, "augmented"])
@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 2, 2, 2)])
def test_explicit_axes(family, shape):
    """The loss and its gradient are well typed where layouts are types; augmentation and mixing of images included."""
    made = EXPERIMENTS.get(family, EXPERIMENTS["vit"])
    if family == "augmented":
        steps = (augment.Flip(), augment.Crop(), augment.ResizedCrop(), augment.RandAugment(), augment.Erase())
        task = dataclasses.replace(made.task, augment=steps, mixup=0.2, cutmix=1.0)
        made = dataclasses.replace(made, task=task)
    mesh = jax.make_mesh(shape, sharding.MESH_AXES, axis_types=(AxisType.Explicit,) * 4)
    program = programs.make(made, mesh)
    with jax.set_mesh(mesh):
        grad = jax.grad(lambda params, batch, key: program.loss(params, batch, key)[0])
        grads = jax.eval_shape(grad, program.state.params, program.batch, jax.eval_shape(lambda: jax.random.key(0)))
    specs = jax.tree.map(lambda g, p: (g.sharding.spec, p.sharding.spec), grads, program.state.params)
    assert all(got == wanted for got, wanted in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, tuple)))


@pytest.mark.parametrize("family", ["bert", "seq2seq", "vit"])
def test_in_a_callers_own_shard_map(family):
    """Manual over the batch, the tensor axis left to the compiler: sums of the shards are the whole batch's. (GPT, and
    other ways to map, are in models/test_gpt_modes.)"""
    program, _ = compiled(family, ONE)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: rng.normal(0, 0.2, p.shape).astype(np.float32), params_lib.abstract(program.declaration)
    )
    rows = batch(family, 0)

    def sums(params: Any, rows: Any) -> tuple[jax.Array, jax.Array]:
        total, weight, _ = EXPERIMENTS[family].task.loss(params, program.model, rows)
        return (total, weight) if family != "bert" else (total / weight, jnp.ones(()))

    def shard(params: Any, rows: Any) -> Any:
        return jax.lax.psum(sums(params, rows), ("data", "fsdp"))

    mesh = sharding.make_mesh(2, 2, 1, 2)
    specs = {"in_specs": (P(), P(("data", "fsdp"))), "out_specs": (P(), P())}
    mapped = jax.shard_map(shard, mesh=mesh, axis_names={"data", "fsdp"}, **specs)
    parts = [sums(params, jax.tree.map(lambda x: x[i : i + 2], rows)) for i in range(0, 8, 2)]
    expected = np.sum(parts, axis=0)
    np.testing.assert_allclose(jax.jit(mapped)(params, rows), expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("family", "changes", "sizes", "message"),
    [
        ("gpt", {"vocab_size": 50257}, (4, 1, 1, 2), "^embed/token/embedding: axis 'vocab' of size 50257 does not "),
        ("gpt", {"vocab_size": 50257}, (4, 1, 1, 2), "change mesh.tensor, or the size .50258 divides.$"),
        (
            "gpt",
            {"num_heads": 6, "width": 48},
            (2, 1, 1, 4),
            "^model.num_heads: axis 'heads' of size 6 does not divide",
        ),
        (
            "gpt",
            {"num_kv_heads": 2},
            (2, 1, 1, 4),
            "^model.num_kv_heads: axis 'kv_heads' of size 2 .* change mesh.tensor",
        ),
        ("bert", {"width": 36}, (1, 8, 1, 1), "blocks/.*: axis 'embed' of size 36 .* change mesh.fsdp, .*40 divides"),
        ("bert", {"mlp_width": 70}, (2, 1, 1, 4), "^blocks/mlp/.*: axis 'mlp' of size 70 does not divide"),
        ("vit", {"pool": "class"}, (4, 1, 2, 1), "^the tokens of an image: axis 'length' of size 17 .* mesh.sequence"),
        (
            "seq2seq",
            {},
            (16, 1, 1, 1),
            "^the batch's 'source': axis 'batch' of size 8 .* change mesh.data, .*16 divides",
        ),
    ],
)
def test_what_does_not_divide_is_named(family, changes, sizes, message):
    """The parameter, field or input, its size, and what to change, in one line, before anything is compiled."""
    made = EXPERIMENTS[family]
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, **changes))
    mesh = AbstractMesh(sizes, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 4)

    with pytest.raises(InputError, match=message) as caught, jax.sharding.use_abstract_mesh(mesh):
        program = programs.make(made, mesh)
        program.step.trace(program.state, program.batch, jax.eval_shape(lambda: jax.random.key(0)))
    assert "\n" not in str(caught.value)
