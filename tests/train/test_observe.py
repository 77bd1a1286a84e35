"""Rows: what is kept of them after a kill, how they read, and how fast and how hard the device worked."""

import types

import jax.numpy as jnp
import pytest

from transformer_jax import observe


def test_rows_after_a_kill(tmp_path):
    """A line cut short by a kill, and rows after the step that is gone on from, are not in the file again."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert [row["step"] for row in observe.read_rows(path)] == [1, 2]
    heard = []
    with observe.Observer(tmp_path, steps=9, first_step=1, on_row=heard.append) as observer:
        observer.row({"step": 2, "loss": 2.5})
        observer.row({"step": 3, "loss": float("nan")})
    assert observe.read_rows(path) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.5},
        {"step": 3, "loss": None},
    ]
    assert [row["step"] for row in heard] == [2, 3]
    observe.plot_loss(observe.read_rows(path), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_describe():
    row = {
        "step": 5,
        "loss": 1.23456,
        "learning_rate": 3e-4,
        "tokens_per_second": 12345.6,
        "mfu": 0.416,
        "skipped": 0.0,
    }
    assert observe.describe(row) == "loss 1.2346  lr 3.00e-04  tokens/s 12,346  MFU 41.6%"
    assert observe.describe({"step": 5, "validation/bits_per_byte": 1.5}) == "validation  bits per byte 1.5000"
    assert [observe.duration(s) for s in (7, 187, 7500, 273600)] == ["0:07", "3:07", "2:05:00", "3 d 4 h"]


def test_describe_leaves_a_classifiers_details_to_the_table():
    report = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "precision_macro": 0.1, "recall": 0.2}
    report |= {"f1_macro": 0.3, "f1_micro": 0.5, "matthews": 0.7}
    row = {"step": 3} | {f"validation/{name}": value for name, value in report.items()}
    line = "validation  accuracy 0.5000 (0.4000 to 0.6000)  f1 macro 0.3000  matthews 0.7000"
    assert observe.describe(row) == line
    assert "recall 0.2000" in observe.describe(row, "recall"), "what the run is judged by is always there"
    assert observe.table(report).splitlines()[2:4] == ["  accuracy high    0.6000", "  precision macro  0.1000"]


def test_meter_counts_tokens_between_rows(monkeypatch):
    """4 steps of 100 tokens in 2 seconds, 0.5 s of them paused: 266.7 tokens/s; at 3 FLOPs each of a peak of 8,000."""
    now = [0.0]
    monkeypatch.setattr(observe, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    meter = observe.Meter(first_step=10, steps=20, tokens_per_step=100, flops_per_step=300.0, peak=8000.0)
    metrics = {
        "sums": {"loss": (jnp.float32(250.0), jnp.float32(100.0))},
        "weight": jnp.float32(100.0),
        "learning_rate": jnp.float32(0.5),
        "grad_norm": jnp.float32(1.0),
        "skipped": jnp.int32(0),
    }
    now[0] = 1.5
    with meter.pause("evaluating"):
        now[0] = 2.0
    with meter.waiting():
        now[0] = 2.3
    now[0] = 2.0
    row = meter.row(14, metrics)
    assert row["loss"] == 2.5 and row["step"] == 14
    assert row["tokens_per_second"] == pytest.approx(400 / 1.5)
    assert row["mfu"] == pytest.approx(400 / 1.5 * 3 / 8000)
    assert row["seconds_left"] == pytest.approx(6 * 1.5 / 4)
    assert row["data_wait"] == pytest.approx(0.3 / 1.5)
    now[0] = 3.0
    assert meter.row(15, metrics)["data_wait"] == 0.0


def test_peaks_by_device_kind():
    def peak(*kinds):
        return observe.peak_flops([types.SimpleNamespace(device_kind=kind) for kind in kinds])

    assert peak("NVIDIA H200", "NVIDIA H200") == 2 * 989e12
    assert peak("TPU v5 lite") == 197e12 and peak("TPU v5") == 459e12 and peak("TPU v6 lite") == 918e12
    assert peak("cpu") is None
