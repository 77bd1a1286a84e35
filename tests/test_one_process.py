"""Several commands in one process: in threads, one after the other, and in a notebook's cell."""

import asyncio
import io
import json
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.__main__ import main

MINE = '''"""A tiny run."""
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.experiment import Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Optim


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2, dropout=0.1),
        data=TextCorpus(TextFiles(({text!r},)), Bytes(), length=16),
        optim=Optim(peak_lr=1e-2),
        train=Train(steps=4, batch_size=8, log_every=1),
        sample=Sample(max_new_tokens=0),
    )
'''


def train(folder: Path, name: str, seed: int = 0) -> int:
    return main(["train", str(folder / "mine.py"), "--workdir", str(folder / name), "--seed", str(seed)])


def losses(folder: Path, name: str) -> np.ndarray:
    """[step, training loss or validation loss] of each row."""
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row["step"], row.get("loss", row.get("validation/bits_per_byte"))] for row in rows], float)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A folder with mine.py and its run "alone"."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "text.txt").write_text("a rose is a rose is a rose\n" * 60)
    (folder / "mine.py").write_text(MINE.replace("{text!r}", repr(str(folder / "text.txt"))))
    assert train(folder, "alone") == 0
    assert len(losses(folder, "alone")) >= 5 and np.isfinite(losses(folder, "alone")).all()
    return folder


def test_two_trainings_in_threads_do_not_disturb_each_other(alone):
    """The second has another seed: rows of the wrong run would differ."""
    codes = {}
    threads = [
        threading.Thread(target=lambda seed=seed: codes.update({seed: train(alone, f"thread{seed}", seed)}))
        for seed in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {0: 0, 1: 0}
    np.testing.assert_allclose(losses(alone, "thread0"), losses(alone, "alone"), rtol=1e-5)
    assert not np.allclose(losses(alone, "thread1"), losses(alone, "alone"), rtol=1e-5)


class Outstream(io.StringIO):
    """A notebook's stdout: text without a file descriptor."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def test_a_notebook_trains_and_evaluates(alone, monkeypatch):
    """A kernel runs each cell on the main thread inside of a running event loop, and `__main__` has no file."""
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(sys, "stdout", out := Outstream())

    async def cell(*words: str) -> int:
        return main([*words])

    words = ("train", str(alone / "mine.py"), "--workdir", str(alone / "cell"))

    async def notebook() -> list[int]:
        return [await cell(*words), await cell(*words), await cell("evaluate", str(alone / "cell"))]

    assert asyncio.run(notebook()) == [0, 0, 0], out.getvalue()
    np.testing.assert_allclose(losses(alone, "cell"), losses(alone, "alone"), rtol=1e-5)
    evaluated = json.loads((alone / "cell" / "evaluation.json").read_text())["report"]
    reported = json.loads((alone / "alone" / "results.json").read_text())["report"]
    np.testing.assert_allclose(list(evaluated.values()), [reported[name] for name in evaluated], rtol=1e-5)
