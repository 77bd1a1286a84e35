"""`prepare`: one process, several, an array of jobs and a Beam pipeline write one store, from which `train` trains."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from transformer_jax.cli import evaluate, prepare
from transformer_jax.cli.main import main
from transformer_jax.data import corpus, sources, token_shards
from transformer_jax.experiment import Experiment
from transformer_jax.models import gpt

RECIPE = """
import dataclasses
from transformer_jax.data import cleaning, corpus, sources, tokenizers
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt

def experiment():
    source = cleaning.Cleaned(sources.Records(("texts",), validation=("texts/0.jsonl",)))
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2),
        data=corpus.TextCorpus(source=source, tokenizer=tokenizers.Bytes(), length=16),
        train=Train(steps=2, batch_size=8), evaluate=Evaluate(every=0, batch_size=8), sample=Sample(max_new_tokens=0),
        checkpoint=Checkpoint(every=0),
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(token_shards, "SHARD", 1)  # a shard for each file
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "cache"))
    Path("mine.py").write_text(RECIPE)
    Path("texts").mkdir()
    for file in range(4):
        lines = (json.dumps({"text": f"document {(i + 2 * file) % 9} " * 3}) for i in range(5))
        Path(f"texts/{file}.jsonl").write_text("\n".join(lines))
    prepare._work.cache_clear()
    return tmp_path


def test_an_array_of_jobs_and_a_pipeline_write_the_store_of_one_process(folder, monkeypatch, capsys):
    assert main(["prepare", "mine.py", "--out", "one"]) == 0
    assert "dropped by duplicates" in capsys.readouterr().out
    for _ in range(2):  # the first time the jobs write hashes
        for job in range(3):
            assert main(["prepare", "mine.py", "--out", "array", "--shards", f"{job}/3"]) == 0
    made: list[str] = []
    monkeypatch.setitem(sys.modules, "apache_beam", fake_beam(made))
    monkeypatch.setitem(sys.modules, "apache_beam.options", types.ModuleType("options"))
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", fake_beam(made))
    monkeypatch.setattr(prepare.extras, "need", lambda *_: None)
    assert main(["prepare", "mine.py", "--out", "beam", "--beam", "--runner", "FnApiRunner"]) == 0
    assert made[0] == "['--runner', 'FnApiRunner']" and sorted(made[2:7]) == sorted(made[9:])  # hashes, then shards
    for other in ("array", "beam"):
        assert Path(other, "store.json").read_bytes() == Path("one/store.json").read_bytes()
        assert Path(other, "train/00002/tokens.bin").read_bytes() == Path("one/train/00002/tokens.bin").read_bytes()


def fake_beam(made: list[str]) -> Any:
    """As much of Apache Beam as `prepare` uses, in this process."""

    class Step:
        def __init__(self, do):
            self.do = do

        def __ror__(self, other):  # "name" >> step, and values | step
            return self.do(other)

        def __rrshift__(self, name):
            return self

    class Pipeline:
        def __init__(self, options):
            made.append(str(options))

        def __enter__(self):
            return "pipeline"

        def __exit__(self, *_):
            made.append("end")

    beam: Any = types.ModuleType("apache_beam")
    beam.Pipeline = Pipeline
    beam.PipelineOptions = list
    beam.Create = lambda values: Step(lambda _: values)
    beam.Reshuffle = lambda: Step(lambda values: values[::-1])
    beam.Map = lambda do, **settings: Step(lambda values: made.extend(do(value, **settings) for value in values))
    return beam


@pytest.mark.slow  # two compilations; the examples are compared in data_room/test_packed.py
def test_a_run_trains_from_a_store_as_from_the_text(folder):
    """The same losses to the bit, of packed documents."""
    assert main(["prepare", "mine.py", "--out", "store"]) == 0
    losses = []
    for name, flags in (("text", []), ("store", ["--data.store", "store"])):
        assert main(["train", "mine.py", "--workdir", f"run-{name}", "--data.documents", "packed", *flags]) == 0
        rows = [json.loads(line) for line in Path(f"run-{name}/metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == losses[1] and losses[0]


def test_evaluating_other_files_reads_them_and_not_the_store():
    data = corpus.TextCorpus(store=("gs://mine/store",))
    changed = evaluate._reading(Experiment(model=gpt.Config(vocab_size=9), data=data), ("a.txt",)).data
    assert changed == corpus.TextCorpus(source=sources.TextFiles(("a.txt",), validation=("a.txt",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out is missing"),
        (["--out", "x", "--shards", "3/3"], "--shards 3/3: give I/N"),
        (["--out", "x", "--workers", "many"], "--workers many: give a number"),
        (["--out", "texts"], "texts holds files that are not of a token store"),
        (["--out", "x", "--data.source.source.paths", "gone"], "no such file or folder: gone"),
        (["nothing", "--out", "x"], "has no variant 'nothing'"),
        (["--out", "x", "--data.source.source.field", "body"], "0.jsonl:1: no column 'body'; there are 'text'"),
        (["--out", "x", "--data.source.source.paths", "texts", "other.jsonl"], "other.jsonl:1: no column 'text'"),
    ],
)
def test_what_is_refused(folder, capsys, arguments, message):
    """And nothing is written, also where only the last file has another schema."""
    Path("other.jsonl").write_text('{"body": "x"}')
    assert main(["prepare", "mine.py", *arguments]) == 2
    assert message in capsys.readouterr().err and not Path("x").exists()
