"""tools.targets.hlo counts what a compiled program sends: of a real one, and of forms other compilers write."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tools.targets import hlo

SIZES = {"data": 4, "tensor": 2}


def test_a_loop_counts_as_often_as_it_turns():
    """Three layers, kernels cut over "data" and products summed over "tensor"; what is gathered is known."""
    mesh = jax.make_mesh((4, 2), tuple(SIZES), axis_types=(AxisType.Auto,) * 2)

    def product(w_LDF, x_BD):
        def layer(x_BD, w_DF):
            return jax.lax.with_sharding_constraint(jnp.tanh(x_BD @ w_DF), P("data", None)), None

        return jax.lax.scan(layer, x_BD, w_LDF)[0]

    w = jax.ShapeDtypeStruct((3, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "tensor", "data")))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        compiled = jax.jit(product).lower(w, x).compile()
    found = hlo.collectives(compiled.as_text())
    assert hlo.totals(found, SIZES) == {
        ("all-gather", ("data",)): hlo.Total(3, 3 * 32 * 64 * 4),
        ("all-reduce", ("tensor",)): hlo.Total(3, 3 * 4 * 64 * 4),
    }
    gather = next(c for c in found if c.kind == "all-gather")
    assert (gather.shape, gather.group, gather.sent) == ("f32[32,64]", 4, 32 * 64 * 4 * 3 / 4)
    assert "while/body" in gather.where


def module(*lines, loop="", trips="", before=""):
    return f"""HloModule m, entry_computation_layout={{()->f32[]}}, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %s = f32[] add(%a, %b)
}}

%condition (p: (s32[])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(5)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}}

%body (p: (s32[])) -> (s32[]) {{
  {loop}
}}
{before}
ENTRY %main (p: f32[2,4]) -> f32[] {{
  %w = (s32[]) while(%t), condition=%condition, body=%body{trips}
  {chr(10).join(lines)}
}}
"""


FORMS = """
all-reduce 32 tensor         | f32[2,4]{1,0} all-reduce(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
all-reduce 16 data tensor    | bf16[2,4]{1,0} all-reduce(%p), replica_groups={}, to_apply=%add
all-reduce 64 data tensor    | (f32[2,4], f32[8]) all-reduce(%p, %q), replica_groups=[1,8]<=[8], to_apply=%add
all-gather 32 data           | f32[2,4]{1,0} all-gather(%p), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
all-gather 32 tensor         | f32[2,4]{1,0} all-gather(%p), replica_groups=[4,2]<=[8], dimensions={0}
all-gather 32 data           | f32[2,4]{1,0} all-gather(%p), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}
all-gather 32 tensor         | f32[8] all-gather(%p), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}
all-gather 32 tensor         | f32[8] all-gather(%p), replica_groups=mesh['a'=2], device_ids=(0,1) {'a'}
reduce-scatter 64 tensor     | f32[2,4]{1,0} reduce-scatter(%p), replica_groups=[4,2]<=[8], to_apply=%add
all-gather 64 tensor         | (f32[2,4]{1,0}, f32[4,4]{1,0:T(8,128)}) all-gather-start(%p), replica_groups=[4,2]<=[8]
                             | f32[4,4]{1,0} all-gather-done(%p)
collective-permute 36 data   | (f32[9], f32[9], u32[]) collective-permute-start(%p), source_target_pairs={{0,2},{2,0}}
all-gather 32 data           | ((f32[2]), f32[8], s32[]) async-start(%p), calls=%wrapped
                             | f32[8] async-done(%p), calls=%wrapped
reduce-scatter 32 data       | f32[2] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
all-gather 32 data           | pred[16] conditional(%p), branch_computations={%add, %wrapped}
"""


@pytest.mark.parametrize("form", FORMS.strip("\n").splitlines(), ids=lambda form: re.findall(r"([\w-]+)\(", form)[0])
def test_forms(form):
    """Each line as the CPU's, GPU's or TPU's compiler writes it, and what it stands for: kind, bytes, axes."""
    before = """
%wrapped (p: f32[2]) -> f32[8] {
  ROOT %g = f32[8]{0} all-gather(%p), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}
}

%all-reduce-scatter.1 (p: f32[8]) -> f32[2] {
  %r = f32[8]{0} all-reduce(%p), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  ROOT %d = f32[2]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={2}
}
"""
    expected, line = form.split("|")
    found = hlo.collectives(module("%x =" + line, before=before))
    assert " ".join(f"{c.kind} {c.bytes} {' '.join(hlo.axes(c, SIZES))}" for c in found) == expected.strip()


def test_turns_of_a_loop_from_the_compiler_or_its_condition():
    inside = "%x = f32[2] all-reduce(%p), replica_groups={}, to_apply=%add"
    known = ', backend_config={"known_trip_count":{"n":"7"}}'
    assert [c.count for c in hlo.collectives(module(loop=inside, trips=known))] == [7]
    assert [c.count for c in hlo.collectives(module(loop=inside))] == [5]
    unknown = module(loop=inside).replace("constant(5)", "parameter(0)")
    with pytest.raises(ValueError, match="its trip count is unknown"):
        hlo.collectives(unknown)
    assert hlo.collectives(module().replace("constant(5)", "parameter(0)")) == []


def test_sizes_of_shapes():
    sizes = [hlo.shape_bytes(s) for s in ("f32[]", "(bf16[3,5]{1,0:T(8,128)(2,1)S(1)}, s32[2])", "pred[7]", "u4[3]")]
    assert [*sizes, hlo.shape_bytes("f8e4m3fn[6]"), hlo.shape_bytes("token[]")] == [4, 38, 7, 2, 6, 0]


def test_what_it_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="replica groups in an unknown form"):
        hlo.collectives(module("%x = f32[2] all-reduce(%p), replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%add"))
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.collectives("nothing")
