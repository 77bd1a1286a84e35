"""The mesh, the rule table, and the three functions that read it; the model as a whole is in models/test_gpt_modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax import sharding
from transformer_jax.errors import InputError


def mesh_of(shape, kind=AxisType.Auto, names=sharding.MESH_AXES):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def test_mesh_sizes():
    assert sharding.mesh_shape(-1, 1, 1, 1, num_devices=8) == (8, 1, 1, 1)
    assert sharding.mesh_shape(2, -1, 1, 2, num_devices=8) == (2, 2, 1, 2)
    assert sharding.mesh_shape(1, 1, 1, 1, num_devices=1) == (1, 1, 1, 1)
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
        (("mlp",), (7,), "w: axis 'mlp' of size 7 does not divide over mesh axes .'tensor',. of 2 devices"),
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
            one, two, none = sharding.vary_together(w, x, None)
            assert none is None and jax.typeof(one).manual_axis_type == jax.typeof(two).manual_axis_type
            return jnp.sum(one * two)

        return jax.grad(loss)(w)

    grad = jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))(
        jnp.ones(()), jnp.arange(8.0)
    )
    assert grad == sum(range(8))
    assert sharding.vary_together(x := jnp.ones(2), None)[0] is x
