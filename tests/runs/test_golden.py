"""Golden checkpoints: what earlier versions wrote is restored to the bit, and computes what it did."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.fixtures import make_golden_checkpoints as golden
from transformer_jax import restore
from transformer_jax.nn import params
from transformer_jax.runs import checkpoint, saved

FOLDERS = sorted(golden.GOLDEN.glob("format-*/*"))


def test_every_format_has_every_family():
    found = {folder.relative_to(golden.GOLDEN).as_posix() for folder in FOLDERS}
    assert found == {f"format-{n}/{name}" for n in saved.FORMATS for name in golden.experiments_by_family()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
@pytest.mark.filterwarnings("ignore:.*was written before there were manifests")
def test_a_golden_checkpoint(folder: Path):
    expected = np.load(folder / "expected.npz")
    experiment, step = golden.experiments_by_family()[folder.name], folder / "checkpoints" / str(golden.STEP)
    state, meta = checkpoint.restore_state(step, golden.abstract(experiment))
    assert (meta["step"], meta["rows"], meta["metric"], meta["family"]) == (7, 56, 1.5, folder.name)
    assert golden.digests(state) == dict(expected["leaves"].tolist())

    loaded = restore.load(folder)
    assert (loaded.step, type(loaded.task)) == (7, type(experiment.task))
    config = dataclasses.replace(loaded.config, dtype="float32")
    # The numbers of another XLA differ in their last bits.
    np.testing.assert_allclose(golden.logits(loaded.params, config), expected["logits"], rtol=1e-4, atol=1e-5)


def test_orbax_alone_reads_a_checkpoint():
    """examples/plain_orbax.py, which names none of our modules, prints what is in a golden checkpoint."""
    program, folder = golden.GOLDEN.parents[2] / "examples/plain_orbax.py", golden.GOLDEN / "format-3/gpt"
    statements = [line for line in program.read_text().rpartition('"""')[2].splitlines() if line]
    assert len([line for line in statements if not line.startswith(("import ", "from "))]) <= 10
    assert not any("transformer_jax" in line for line in statements)
    words = [sys.executable, str(program), str(folder / "checkpoints/7")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [line.split(" ", 2) for line in done.stdout.splitlines()]
    ours = params.flatten(restore.load(folder, dtype="float32").params)
    assert sorted(found) == sorted([name, str(x.dtype), str(x.shape)] for name, x in ours.items())
