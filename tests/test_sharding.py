"""The mesh, the rule table, and the three functions that read it; the model as a whole is in models/test_gpt_modes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax import kernels, sharding
from transformer_jax.errors import InputError
from transformer_jax.kernels import gradients
from transformer_jax.mesh import device_grid, mesh_shape
from transformer_jax.nn import layers
from transformer_jax.tasks.pixels import in_auto_mesh


def mesh_of(shape, kind=AxisType.Auto, names=sharding.MESH_AXES):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def test_mesh_sizes():
    assert mesh_shape(-1, 1, 1, 1, num_devices=8) == (8, 1, 1, 1)
    assert mesh_shape(2, -1, 1, 2, num_devices=8) == (2, 2, 1, 2)
    assert mesh_shape(1, 1, 1, 1, num_devices=1) == (1, 1, 1, 1)
    mesh = sharding.make_mesh(tensor=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sharding.make_mesh(devices=jax.devices()[:2]).size == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, -1, 1, 1), "one of them may be -1"),
        ((0, 1, 1, 1), "must be positive.* mesh.data 0"),
        ((1, 1, -2, 1), "must be positive.* mesh.sequence -2"),
        ((3, 1, 1, 1), "mesh.data 3.* do not multiply to the 8 devices"),
        ((-1, 3, 1, 1), "mesh.fsdp 3.* do not multiply to the 8 devices"),
        ((2, 2, 1, 1), "do not multiply to the 8 devices here; set one size to -1"),
    ],
)
def test_mesh_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(*sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU as JAX describes it to `mesh_utils`: no machine with several slices exists here."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    core_on_chip: int = 0
    process_index: int = 0


def slices(*sizes):
    """Slices of 2x2x1 chips or the like, numbered on."""
    made = []
    for number, (x, y, z) in enumerate(sizes):
        made += [(number, at) for at in np.ndindex(x, y, z)]
    return [Chip(i, number, at) for i, (number, at) in enumerate(made)]


@pytest.mark.parametrize(
    ("sizes", "between"),
    [((8, 1, 1, 1), "data"), ((2, 4, 1, 1), "data"), ((1, 8, 1, 1), "fsdp"), ((4, 1, 1, 2), "data")],
)
def test_the_slow_network_lies_along_the_first_axis_that_has_room(sizes, between):
    grid = device_grid(sizes, slices((2, 2, 1), (2, 2, 1)))
    assert grid.shape == sizes and len({chip.id for chip in grid.flat}) == 8
    slice_of = np.vectorize(lambda chip: chip.slice_index)(grid)
    for axis, name in enumerate(sharding.MESH_AXES):
        crossed = np.diff(slice_of, axis=axis)
        assert crossed.any() == (name == between)
        assert np.all(crossed >= 0)  # a slice is one stretch of the axis


def test_slices_over_two_axes_and_slices_of_different_sizes():
    grid = device_grid((2, 2, 1, 4), slices(*[(2, 2, 1)] * 4))
    assert np.vectorize(lambda chip: chip.slice_index)(grid)[:, :, 0, 0].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(InputError, match="the devices are slice 0: 4, slice 1: 2; a mesh needs as many of every slice"):
        device_grid((6, 1, 1, 1), slices((2, 2, 1), (2, 1, 1)))


def test_partition_specs():
    mesh = sharding.make_mesh(2, 2, 1, 2)
    assert sharding.partition_spec(("batch", "length", "mlp"), (8, 5, 6), mesh) == P(("data", "fsdp"), None, "tensor")
    assert sharding.partition_spec(("vocab", "embed"), (6, 4), mesh) == P("tensor", "fsdp")
    assert sharding.partition_spec((None, "layers"), (3, 5), mesh) == P(None, None)
    assert sharding.partition_spec(("batch",), (7,), sharding.make_mesh(1, 1, 1, 1, devices=jax.devices()[:1])) == P(
        None
    )


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (("batch", "lenght"), (8, 8), "w: no rule for the logical axis 'lenght'; the table has"),
        (
            ("mlp",),
            (7,),
            "w: axis 'mlp' of size 7 does not divide over .* of 2 devices; change mesh.tensor, or the size .8 divides",
        ),
        (("batch",), (2,), "w: axis 'batch' of size 2 does not divide over mesh axes .'data', 'fsdp'. of 4 devices"),
        (("heads", "mlp"), (8, 8), "w: axes 'heads' and 'mlp' of .* both go to mesh axis 'tensor'"),
        (("batch", "embed"), (8, 8), "w: axes 'batch' and 'embed' of .* both go to mesh axis 'fsdp'"),
    ],
)
def test_specs_that_cannot_be(axes, shape, message):
    with pytest.raises(InputError, match=message):
        sharding.partition_spec(axes, shape, sharding.make_mesh(2, 2, 1, 2), name="w")


def test_a_mesh_without_the_rules_axes_is_an_error_with_its_mend():
    mesh = mesh_of((8,), names=("model",))
    with pytest.raises(InputError, match=r"goes to mesh axis 'data', but the mesh has \('model',\); .*sharding.rules"):
        sharding.partition_spec(("batch",), (8,), mesh)
    with jax.set_mesh(mesh), pytest.raises(InputError, match="sharding.rules"):
        sharding.constrain(jnp.ones(8), ("batch",))
    with jax.set_mesh(mesh), sharding.rules({"batch": "model"}):
        assert sharding.constrain(jnp.ones(8), ("batch",)).sharding.spec == P("model")


def test_another_table_is_another_compilation():
    mesh = mesh_of((2, 4), names=("x", "y"))
    f = jax.jit(lambda a: sharding.constrain(a * 2, ("batch",)))
    with jax.set_mesh(mesh):
        for axis in ("x", "y", "x", ("x", "y")):
            with sharding.rules({"batch": axis}):
                assert f(jnp.ones(8)).sharding.spec == P(axis)
    assert sharding.current_rules() is sharding.RULES


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((3, 5))
    assert sharding.constrain(x, ("batch", "nonsense")) is x
    assert sharding.shards("batch") == 1


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 2, 2, 2)])
def test_products_and_rows_on_a_mesh_are_those_without(kind, shape):
    """Every form of product that the layers and losses use, and rows of a table cut both ways."""
    rng = np.random.default_rng(0)
    arrays = {"BTD": (8, 4, 6), "DF": (6, 10), "VD": (10, 6), "BTF": (8, 4, 10), "BTV": (8, 4, 10), "DV": (6, 10)}
    forms = [
        ("BTD,DF->BTF", ("batch", "length", "mlp")),
        ("BTF,DF->BTD", ("batch", "length", None)),
        ("BTD,VD->BTV", ("batch", "length", "vocab")),
        ("BTD,BTF->DF", ("embed", "mlp")),
    ]
    axes = {"B": "batch", "T": "length", "D": None, "F": "mlp", "V": "vocab"}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    ids = rng.integers(0, 10, (8, 4))
    mesh = mesh_of(shape, kind)

    def place(name):
        logical = [("embed" if letter == "D" else axes[letter]) for letter in name]
        if name.startswith("BT"):
            logical = [axes[letter] for letter in name]
        return jax.device_put(
            values[name], NamedSharding(mesh, sharding.partition_spec(logical, values[name].shape, mesh))
        )

    @jax.jit
    def all_of_them(placed, ids):
        products = []
        for eq, out in forms:
            left, right = eq.split("->")[0].split(",")
            products.append(sharding.einsum(eq, placed[left], placed[right], out=out))
        return products, sharding.take(placed["VD"], ids, out=("batch", "length", None))

    with jax.set_mesh(mesh):
        products, rows = all_of_them({name: place(name) for name in values}, jnp.asarray(ids))
        assert sharding.shards("length") == shape[2] and sharding.shards("batch") == shape[0] * shape[1]
    for (eq, out), product in zip(forms, products, strict=True):
        left, right = eq.split("->")[0].split(",")
        np.testing.assert_allclose(product, np.einsum(eq, values[left], values[right]), rtol=1e-4, atol=1e-5)
        expected = NamedSharding(mesh, sharding.partition_spec(out, product.shape, mesh))
        assert product.sharding.is_equivalent_to(expected, product.ndim), eq
    np.testing.assert_array_equal(rows, values["VD"][ids])


def test_a_table_of_positions_is_cut_by_its_own_rule():
    """Nine positions do not divide over two devices, and need not: "position" goes to no mesh axis."""
    table = jnp.arange(18.0).reshape(9, 2)
    with jax.set_mesh(sharding.make_mesh(-1, tensor=2)):
        take = jax.jit(lambda ids: sharding.take(table, ids, out=("batch", "length", None), rows="position"))
        rows = take(jnp.full((4, 2), 8))
    assert rows[0, 0].tolist() == [16, 17]


def test_ids_out_of_range_are_clipped_as_documented():
    assert sharding.take(jnp.arange(4.0)[:, None], jnp.array([[-1, 4]]), out=(None, None, None)).ravel().tolist() == [
        0,
        3,
    ]


@pytest.mark.parametrize("shape", [(4, 2, 1, 1), (2, 1, 4, 1)])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_one_token_of_each_row(shape, kind):
    x_BTD = np.random.default_rng(0).standard_normal((8, 4, 3)).astype(np.float32)
    mesh = mesh_of(shape, kind)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, sharding.partition_spec(("batch", "length", None), x_BTD.shape, mesh))
        got = jax.jit(lambda x: layers.token(x, 2))(jax.device_put(x_BTD, place))
    np.testing.assert_array_equal(got, x_BTD[:, 2:3])


def test_code_without_layouts_runs_in_an_explicit_mesh():
    """A roll over rows that are cut, which Explicit axes have no rule for."""
    mesh, x = mesh_of((2, 4, 1, 1), AxisType.Explicit), np.arange(16.0).reshape(8, 2)
    with jax.set_mesh(mesh):
        cut = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))
        (rolled,) = jax.jit(lambda x: in_auto_mesh(lambda x: (jnp.roll(x, 1, 0),), x, out=[("batch", None)]))(cut)
        assert jax.typeof(rolled).sharding.spec == P(("data", "fsdp"), None)
    np.testing.assert_array_equal(rolled, np.roll(x, 1, 0))


def test_manual_axes_are_the_callers():
    mesh = mesh_of((2, 2, 1, 2))

    def inside(x):
        assert sharding.shards("batch") == 1 and sharding.shards("mlp") == 2
        return sharding.constrain(x, ("batch", "mlp"))  # 3 rows of this shard, which divide over nothing

    f = jax.shard_map(
        inside, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")), axis_names={"data", "fsdp"}
    )
    np.testing.assert_array_equal(jax.jit(f)(jnp.arange(24.0).reshape(12, 2)), np.arange(24.0).reshape(12, 2))


def test_vary_together_marks_what_is_shared_and_sums_its_gradient():
    mesh = mesh_of((8, 1, 1, 1))

    def inside(w, x):
        def loss(w):
            one, two, none = gradients.vary_alike(w, x, None)
            assert none is None and jax.typeof(one).manual_axis_type == jax.typeof(two).manual_axis_type
            return jnp.sum(one * two)

        return jax.grad(loss)(w)

    grad = jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))(
        jnp.ones(()), jnp.arange(8.0)
    )
    assert grad == sum(range(8))
    assert gradients.vary_alike(x := jnp.ones(2), None)[0] is x


def test_sums_as_products_are_sums():
    def on_tpu(x):
        with kernels.use("tpu"):
            return kernels.row_sums(x)

    x = np.random.default_rng(0).standard_normal((3, 5, 700), np.float32)
    plain = kernels.row_sums(jnp.asarray(x))
    product = on_tpu(jnp.asarray(x))
    for sums in (plain, product):
        assert sums.dtype == jnp.float32
        np.testing.assert_allclose(sums, x.astype(np.float64).sum(axis=-1), atol=1e-4)
    mesh = mesh_of((2, 2, 1, 2))
    with jax.set_mesh(mesh):
        cut = jax.device_put(x[:, :4], jax.NamedSharding(mesh, P(None, "fsdp", "tensor")))
        np.testing.assert_allclose(jax.jit(on_tpu)(cut), product[:, :4], atol=1e-4)
    for bad in (np.inf, -np.inf, np.nan):  # by which a step is known to be skipped
        assert not np.isfinite(on_tpu(jnp.asarray([1.0, bad, 2.0])))
