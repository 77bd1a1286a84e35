"""Golden checkpoints: what earlier versions wrote is restored to the bit, and computes what it did."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tools.fixtures import make_golden_checkpoints as golden
from transformer_jax import restore
from transformer_jax.runs import checkpoint

FOLDERS = sorted(golden.GOLDEN.glob("format-*/*"))


def test_every_format_has_every_family():
    found = {folder.relative_to(golden.GOLDEN).as_posix() for folder in FOLDERS}
    assert found == {f"format-{n}/{name}" for n in checkpoint.FORMATS for name in golden.experiments_by_family()}


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
