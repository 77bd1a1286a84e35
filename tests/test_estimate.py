"""tools.targets.estimate: cycles become milliseconds by kind, loops count their turns, missing estimates are named."""

import json

import pytest

from tools import bench
from tools.bench import target as bench_target
from tools.targets import estimate
from transformer_jax.errors import InputError


def line(name, shape, opcode, operands, *, cycles=None, where="", more=""):
    cost = "" if cycles is None else f', backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    return f'  %{name} = {shape} {opcode}({operands}){more}, metadata={{op_name="{where}"}}{cost}'


MODULE = "\n".join(
    [
        "HloModule m, num_partitions=4",
        "",
        "%fused_product (p: bf16[8,8]) -> bf16[8,8] {",
        "  %p = bf16[8,8] parameter(0)",
        "  ROOT %c = bf16[8,8] convolution(%p, %p), dim_labels=bf_io->bf",
        "}",
        "",
        "%fused_copy (p: bf16[8,8]) -> bf16[8,8] {",
        "  %p = bf16[8,8] parameter(0)",
        "  ROOT %t = bf16[8,8] transpose(%p), dimensions={1,0}",
        "}",
        "",
        "%fused_sum (p: bf16[8,8]) -> f32[8] {",
        "  %p = bf16[8,8] parameter(0)",
        "  ROOT %t = f32[8] reduce(%p), dimensions={1}",
        "}",
        "",
        "%condition (p: (s32[])) -> pred[] {",
        "  %n = s32[]{:T(128)} constant(12)",
        "  ROOT %c = pred[] compare(%i, %n), direction=LT",
        "}",
        "",
        "%body (p: (s32[])) -> (s32[]) {",
        line("f", "bf16[8,8]", "fusion", "%x", cycles=1000, more=", kind=kOutput, calls=%fused_product"),
        line("k", "bf16[8,8]", "custom-call", "%x", more=', custom_call_target="tpu_custom_call"').replace(
            "}", '}, backend_config={"cost_estimate":{"flops":"500"}}', 1
        ),
        "}",
        "",
        "ENTRY %main (p: f32[2,4]) -> f32[] {",
        "  %w = (s32[]) while(%t), condition=%condition, body=%body",
        line("a", "bf16[8,8]", "fusion", "%x", cycles=300, more=", kind=kLoop, calls=%fused_copy"),
        line(
            "b", "f32[8]", "fusion", "%x", cycles=50, where="jit(step)/jvp(norm)/reduce_sum", more=", calls=%fused_sum"
        ),
        line("c", "f32[8]", "fusion", "%x", cycles=7, where="jit(step)/optimizer/mul", more=", calls=%fused_sum"),
        line("d", "f32[8]", "fusion", "%x", cycles=2**63 - 1, more=", calls=%fused_sum"),
        line("e", "f32[8]", "all-reduce", "%x", more=", replica_groups={{0,1,2,3}}, to_apply=%add"),
        "}",
        "",
    ]
)


def test_cycles_by_kind():
    found = estimate.estimate(MODULE, clock=1e6, peak=1e6)
    assert found.milliseconds == pytest.approx(
        {"products": 12.0, "layout copies": 0.3, "norms": 0.05, "optimizer": 0.007}
    )
    assert found.outside == pytest.approx(12.357)
    assert found.attention_flops == 12 * 500 and found.attention == pytest.approx(12.0)  # 6,000 FLOPs at 500,000 FLOP/s
    assert found.unknown == {"fusion": 1, "all-reduce": 1} and found.kernels == {"tpu_custom_call": 12}
    assert (found.operations[0].times, found.operations[0].shape) == (12, "bf16[8,8]")


def test_two_results_side_by_side(tmp_path, capsys):
    result = {
        "shape": "gpt", "target": "tpu:v5e:2x2", "bytes": {"total": 4e9, "temporaries": 3e9}, "seconds_compiling": 9.0,
        "milliseconds": {"products": 20.0}, "attention_ms": 2.0, "outside_attention_ms": 20.0,
    }  # fmt: skip
    for name, factor in (("a", 1.0), ("b", 0.5)):
        changed = {**result, "milliseconds": {"products": 20.0 * factor}, "outside_attention_ms": 20.0 * factor}
        (tmp_path / name).write_text(json.dumps(changed))
    assert bench.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    rows = {row.split(",")[0]: row.split()[-1] for row in capsys.readouterr().out.splitlines() if "," in row}
    assert rows["products"] == "0.50" and rows["in all"] == "0.55" and rows["memory"] == "1.00"
    (tmp_path / "c").write_text("{}")
    assert bench.main(["--compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "not what tools.bench --target" in capsys.readouterr().err


def test_targets_that_there_are_not():
    assert bench_target.parse("cuda:h200:1x1x8").name == "cuda:h200:1x8"
    with pytest.raises(InputError, match="no chip tpu:v9"):
        bench_target.parse("tpu:v9:2x2")
