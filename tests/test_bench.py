"""tools/bench runs, what it counts is right, and what it cannot do it refuses in one line."""

import importlib.util
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools import bench
from tools.bench import mlm as bench_mlm
from tools.bench import operations
from tools.bench import startup as bench_startup
from tools.bench import step as bench_step
from transformer_jax.models import vit
from transformer_jax.nn import params

TINY = ["--model.num-layers", "1", "--model.width", "16", "--model.num-heads", "2", "--train.batch-size", "8"]
TINY += ["--model.max-length", "8", "--data.length", "8"]
QUICK = ["--rounds", "2", "--block-seconds", "0.001"]


def test_numbers_of_a_tiny_shape(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert bench.main(["gpt-4x128", *TINY, *QUICK, "--json", str(path)]) == 0
    printed, result = capsys.readouterr().out, json.loads(path.read_text())
    ours, tokens = result["ours"], 8 * 8
    kernels, head, attention = 12 * 16**2, 16 * 65, 16 * 8  # one layer
    assert ours["flops_per_step"] == tokens * (6 * (kernels + head) + 12 * attention)
    assert ours["parameters"] == kernels + head + 8 * 16 + 3 * 16
    assert ours["steps_timed"] >= 2 * 3
    step = ours["step_ms"]
    assert 0 < step["p10"] <= step["median"] <= step["p90"]
    assert ours["tokens_per_second"] == pytest.approx(tokens / (1e-3 * step["median"]))
    assert ours["share_of_matmul_rate"] == pytest.approx(ours["flops_per_second"] / result["matmul_flops_per_second"])
    assert ours["compiled_bytes_per_device"]["argument"] >= 3 * 4 * ours["parameters"]  # and its two moments
    assert result["machine"]["jax"] == jax.__version__ and jax.__version__ in printed


def test_an_encoders_step(tmp_path):
    """Fine-tuning: labels below their number, texts as long as their rows; the first loss is that of guessing."""
    path = tmp_path / "out.json"
    tiny = [*TINY, "--model.vocab-size", "50", "--model.dropout", "0"]
    assert bench.main(["bert-base", *tiny, *QUICK, "--json", str(path)]) == 0
    assert json.loads(path.read_text())["ours"]["first_loss"] == pytest.approx(math.log(2), abs=0.1)


def test_an_encoder_decoders_step(tmp_path):
    """Rows of packed pairs: what counts are their target tokens; the first loss is about that of guessing."""
    path = tmp_path / "out.json"
    tiny = ["--model.num-layers", "1", "--model.width", "16", "--model.num-heads", "2", "--model.mlp-width", "32"]
    tiny += ["--model.vocab-size", "50", "--train.batch-size", "8", "--model.dropout", "0"]
    tiny += ["--data.source-length", "32", "--data.target-length", "32"]
    assert bench.main(["transformer-tiny", *tiny, *QUICK, "--json", str(path)]) == 0
    ours = json.loads(path.read_text())["ours"]
    assert 8 * 16 < ours["tokens_per_step"] <= 8 * 32
    assert ours["first_loss"] == pytest.approx(math.log(50), abs=1.0)  # embeddings of std 1/sqrt(D), tied


def test_a_vision_transformers_step(tmp_path, capsys):
    """What counts are images; the head starts at zero, so the first loss is that of guessing."""
    path = tmp_path / "out.json"
    tiny = ["--model.num-layers", "1", "--model.width", "16", "--model.num-heads", "2", "--model.num-classes", "5"]
    tiny += ["--model.image-size", "8", "--task.preprocess.size", "8", "--model.patch-size", "4"]
    assert bench.main(["vit-s16", *tiny, *QUICK, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    ours, tokens, kernels = result["ours"], 1 + 4, 12 * 16**2
    assert "images/s" in capsys.readouterr().out and result["length"] == tokens
    assert ours["images_per_second"] == pytest.approx(8 / (1e-3 * ours["step_ms"]["median"]))
    patches, attention = 6 * 4 * (3 * 4**2 * 16), 12 * 16 * tokens
    assert ours["flops_per_step"] == 8 * (tokens * (6 * kernels + attention) + patches)
    assert ours["first_loss"] == pytest.approx(math.log(5), abs=1e-3)


def test_the_vision_transformer_is_the_published_one():
    assert params.count(vit.declare(bench.SHAPES["vit-s16"]().model)) == 22_050_664


def test_pairs_fit_into_their_rows():
    rows = bench_step.pairs_in_rows(40, 128, 100)
    assert len(rows) == 40 and all(sum(s for s, _ in row) <= 128 and sum(t for _, t in row) <= 100 for row in rows)
    assert 12 < np.mean([s for row in rows for s, _ in row]) < 15


@pytest.mark.slow
def test_the_gathered_loss_beside_every_position(capsys):
    """It ends with an error where the two losses differ."""
    tiny = [*TINY, "--model.vocab-size", "50", "--rounds", "1", "--steps", "1"]
    assert bench_mlm.main(tiny) == 0
    assert "gathered / every position" in capsys.readouterr().out


def test_profile_names_the_parts_of_the_model(capsys):
    assert bench.main(["gpt-4x128", *TINY, "--profile"]) == 0
    printed = capsys.readouterr().out
    assert "matrix products" in printed
    assert "zD,zF->DF dot_general" in printed


def test_time_inside_an_operation_counts_once():
    times = {
        "while.1": (0, 10),
        "dot.1": (1, 3),
        "dot.2": (5, 4),
        "copy": (12, 1),
    }  # start and duration in milliseconds
    events = [
        SimpleNamespace(start_ns=1e6 * start, duration_ns=1e6 * duration, stats=[("hlo_op", name)])
        for name, (start, duration) in times.items()
    ]
    profile = SimpleNamespace(planes=[SimpleNamespace(lines=[SimpleNamespace(events=events)])])
    assert sorted(operations.read(profile)) == [("copy", 1.0), ("dot.1", 3.0), ("dot.2", 4.0), ("while.1", 3.0)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("all-reduce.4", "communication"),
        ("ynn_fusion.12", "matrix products"),
        ("transpose_copy_fusion", "copies and transposes"),
        ("multiply_add_fusion.3", "elementwise (fused)"),
        ("while.2", "other"),
    ],
)
def test_kinds_of_operations(name, kind):
    assert operations.kind(name) == kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-9"], "no shape 'gpt-9'; there are gpt-4x128"),
        (["gpt-4x128", "--model.num-layer", "2"], "the nearest is --model.num-layers"),
        (["gpt-4x128", "--rounds", "0"], "--rounds 0: give 1 or more"),
        (["gpt-4x128", "--json", "no/such/folder/out.json"], "no such folder"),
        (["gpt-4x128", "--against", "torch", "--torch-python", "x", "--nanogpt", "no/such"], "no model.py there"),
        (["vit-s16", "--against", "torch", "--torch-python", "x", "--nanogpt", "."], "this experiment's a vit"),
        (["gpt-4x128", "--against", "torch", "--torch-python", "x", "--model.norm", "rms"], "model.norm 'rms'"),
        (["vit-s16", "--against", "torch", "--torch-python", "x", "--task.mixup", "0.2"], "images as they are"),
    ],
)
def test_refused_in_one_line(arguments, message, capsys):
    assert bench.main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_against_torch_trains_the_same_model(tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("this interpreter has no torch")
    path = tmp_path / "out.json"
    assert bench.main(["gpt-4x128", *TINY, *QUICK, "--against", "torch", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["torch"]["parameters"] == result["ours"]["parameters"]
    assert result["torch"]["first_loss"] == pytest.approx(result["ours"]["first_loss"], abs=0.1)
    assert result["ours_over_torch"]["median"] > 0


def test_compilations_are_counted():
    before = bench_startup.count_compilations()
    f = jax.jit(lambda x: jnp.tan(x) * 2.5)
    f(jnp.ones(3))
    first = len(before)
    f(jnp.zeros(3))
    assert first >= 1 and len(before) == first  # another value is not another program
    f(jnp.ones(4))
    assert len(before) > first


@pytest.mark.slow
def test_start_up_of_a_step():
    found = bench_startup.measure(1, scan=True)
    assert found["warm"]["compiling"] < found["cold"]["compiling"]
    assert found["warm"]["recompilations"] == 0
    assert "1 layers, cold" in bench_startup.table({1: found})
