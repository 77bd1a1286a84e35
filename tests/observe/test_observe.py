"""What is reported of a run: rows and what is kept of them after a kill, how they read, and who may fail."""

import errno
import importlib.util
import json
import math
import os
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import contracts, observe
from transformer_jax.observe import meter as meters


def facts(folder, **changes):
    known = {"workdir": str(folder), "run_id": "a1", "config": {"seed": 0}, "first_step": 0, "steps": 9, "metric": "f1"}
    return contracts.RunFacts(folder, **(known | changes))


class Heard(contracts.Observer):
    """Keeps all calls, and raises at one of them."""

    def __init__(self, raises=""):
        self.calls, self.raises = [], raises

    def _hear(self, *call):
        self.calls.append(call)
        if call[0] == self.raises:
            raise ConnectionError("no route\nto host")

    def start(self, run):
        self._hear("start", run.run_id)

    def row(self, row):
        self._hear("row", row["step"], row["loss"])
        row["loss"] = "spoilt"  # its own copy

    def evaluation(self, step, name, report):
        self._hear("evaluation", step, name, report)

    def save(self, step):
        self._hear("save", step)

    def end(self, results):
        self._hear("end", results)


def test_a_run_as_its_observers_hear_it(tmp_path, capsys):
    first, second = Heard(), Heard()
    with observe.start((first, second), facts(tmp_path), primary=True) as observing:
        observing.row({"step": 1, "loss": 2.5, "skipped": 0.0})
        observing.evaluation(1, "validation", {"f1": 0.5, "signature": "v2"})
        observing.save(1)
        observing.evaluation(9, "test", {"f1": math.inf, "loss": np.float32(0.5)})
        observing.end({"step": 9})
        observing.print_line("a line")
    calls = [
        ("start", "a1"),
        ("row", 1, 2.5),
        ("evaluation", 1, "validation", {"f1": 0.5, "signature": "v2"}),
        ("save", 1),
    ]
    calls += [("evaluation", 9, "test", {"f1": math.inf, "loss": 0.5}), ("end", {"step": 9})]
    assert first.calls == second.calls == calls
    lines = [
        "step 1/9  loss 2.5000",
        "step 1/9  validation  f1 0.5000",
        "step 9/9  test  f1 inf  loss 0.5000",
        "a line",
    ]
    assert capsys.readouterr().out.splitlines() == lines
    rows = [
        {"step": 1, "loss": 2.5, "skipped": 0.0},
        {"step": 1, "validation/f1": 0.5},
        {"step": 9, "test/f1": None, "test/loss": 0.5},
    ]
    assert observe.read_rows(tmp_path / "metrics.jsonl") == rows


def test_an_error_of_the_run_ends_its_observers_with_nothing(tmp_path):
    heard = Heard()
    with pytest.raises(ZeroDivisionError), observe.start((heard,), facts(tmp_path), primary=True):
        _ = 1 / 0
    assert heard.calls == [("start", "a1"), ("end", {})]


def test_only_one_host_is_heard(tmp_path, capsys):
    heard = Heard()
    with observe.start((heard,), facts(tmp_path), primary=False) as observing:
        observing.row({"step": 1, "loss": 2.5})
        observing.print_line("a line")
    assert heard.calls == [] and capsys.readouterr().out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["start", "row", "evaluation", "save", "end"])
def test_an_observer_that_raises_is_logged_once_and_dropped(tmp_path, capsys, method):
    broken, well = Heard(raises=method), Heard()
    with observe.start((broken, well), facts(tmp_path), primary=True) as observing:
        for step in (1, 2):
            observing.row({"step": step, "loss": 2.5})
            observing.evaluation(step, "validation", {"f1": 0.5})
            observing.save(step)
    assert [name for name, *_ in broken.calls] == [name for name, *_ in well.calls[: len(broken.calls)]]
    assert broken.calls[-1][0] == method and len(well.calls) == 8
    line = "observer Heard is dropped and the run goes on without it: ConnectionError: no route to host"
    assert capsys.readouterr().err.splitlines() == [line]


def test_an_observer_needs_no_method(tmp_path, capsys):
    class RowsAlone:
        def __init__(self):
            self.steps = []

        def row(self, row):
            self.steps.append(row["step"])

    mine = RowsAlone()
    with observe.start((mine,), facts(tmp_path), primary=True) as observing:
        observing.row({"step": 1, "loss": 2.5})
        observing.save(1)
    assert mine.steps == [1] and capsys.readouterr().err == ""


def test_a_full_disk_under_metrics_jsonl_ends_the_run(tmp_path):
    """/dev/full answers ENOSPC to every write."""
    heard = Heard()
    with pytest.raises(OSError) as failed, observe.start((heard,), facts(tmp_path), primary=True) as observing:
        lines = next(x for x in observing.required if isinstance(x, observe.JsonLines))
        lines.file.close()
        lines.file = Path("/dev/full").open("w")  # noqa: SIM115
        observing.row({"step": 1, "loss": 2.5})
    assert failed.value.errno == errno.ENOSPC
    assert heard.calls == [("start", "a1"), ("end", {})], "what was not written is not reported elsewhere"


BEFORE = '{"step": 1, "loss": 3.0}\n{"step": 1, "validation/f1":0.25}\n'


def test_rows_after_a_kill(tmp_path):
    """A truncated line, and rows after the step that the run goes on from, are removed; other lines keep their bytes.

    The old file is not written to: a link to it still shows what was there.
    """
    path = tmp_path / "metrics.jsonl"
    after = '{"step": 2, "loss": 2.0}\n["no row"]\n{"step": 3, "lo'
    path.write_text(BEFORE + after)
    os.link(path, tmp_path / "old")
    assert [row["step"] for row in observe.read_rows(path)] == [1, 1, 2]
    with observe.start((), facts(tmp_path, first_step=1), primary=True) as observing:
        assert path.read_text() == BEFORE and (tmp_path / "old").read_text() == BEFORE + after
        observing.row({"step": 2, "loss": 2.5})
        observing.row({"step": 3, "loss": float("nan")})
    assert path.read_text() == BEFORE + '{"step": 2, "loss": 2.5}\n{"step": 3, "loss": null}\n'
    observe.plot_loss(observe.read_rows(path), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_appended_where_nothing_is_removed(tmp_path):
    """And an evaluation that is there already is not written again."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(BEFORE)
    node = path.stat().st_ino
    with observe.start((), facts(tmp_path, first_step=1), primary=True) as observing:
        observing.evaluation(1, "validation", {"f1": 0.25})
        observing.row({"step": 2, "loss": 2.5})
    assert path.stat().st_ino == node and path.read_text() == BEFORE + '{"step": 2, "loss": 2.5}\n'


@pytest.mark.parametrize("line", ["[" * 10_000, '{"step": "1"}', '{"step": null}', '{"step": true}', "\udcff{}", "7"])
def test_what_is_no_row_is_left_out(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(BEFORE + line + "\n", errors="surrogateescape")
    assert observe.read_rows(path) == [json.loads(row) for row in BEFORE.splitlines()]


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
    assert observe.describe({"bits_per_byte": 1.5}) == "bits per byte 1.5000"
    assert [observe.duration(s) for s in (7, 187, 7500, 273600)] == ["0:07", "3:07", "2:05:00", "3 d 4 h"]


def test_describe_leaves_a_classifiers_details_to_the_table():
    report = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "precision_macro": 0.1, "recall": 0.2}
    report |= {"f1_macro": 0.3, "f1_micro": 0.5, "matthews": 0.7}
    line = "accuracy 0.5000 (0.4000 to 0.6000)  f1 macro 0.3000  matthews 0.7000"
    assert observe.describe(report) == line
    assert "recall 0.2000" in observe.describe(report, "recall"), "what the run is judged by is always there"
    assert observe.table(report).splitlines()[2:4] == ["  accuracy high    0.6000", "  precision macro  0.1000"]


def test_meter_counts_tokens_between_rows(monkeypatch):
    """4 steps of 100 tokens in 2 seconds, 0.5 s of them paused: 266.7 tokens/s; at 3 FLOPs each of a peak of 8,000."""
    now = [0.0]
    monkeypatch.setattr(meters, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
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

    assert peak("NVIDIA H200", "NVIDIA H200") == 2 * 989.5e12 and peak("NVIDIA H100 80GB HBM3") == 989.5e12
    assert peak("TPU v5 lite") == peak("TPU v5e") == 197e12 and peak("TPU v5") == peak("TPU v5p") == 459e12
    assert peak("TPU v6 lite") == 918e12 and peak("TPU7x", "TPU7x") == 2307e12  # two devices a chip
    assert peak("cpu") is None


def test_the_observer_of_the_page(tmp_path):
    """docs/logging.md shows one; it does what the page says."""
    page = (Path(__file__).parents[2] / "docs/logging.md").read_text()
    (tmp_path / "page_observer.py").write_text(page.split("```python\n")[1].split("```")[0])
    spec = importlib.util.spec_from_file_location("page_observer", tmp_path / "page_observer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with observe.start((module.BestSoFar(),), facts(tmp_path, metric="loss"), primary=True) as observing:
        for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5)):
            observing.evaluation(step, "validation", {"loss": loss})
    assert (tmp_path / "best.txt").read_text() == "2.0000 at step 2\n"
