"""Whole train steps by every optimiser: on eight devices as on one, and a run stopped and taken up. Slow: 16 and more
compilations of a model."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim.test_optimizers import OPTIMIZERS
from tools.targets import collectives
from transformer_jax import optim, restore
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Ema, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.tasks import CausalLM
from transformer_jax.train import loop
from transformer_jax.train import program as programs
from transformer_jax.train import state as state_lib

# Adam divides a gradient by its own size: one that is zero but for rounding becomes a step of full length in a random
# direction, unless eps is above it. Sizes of updates are those of a first run.
RATES = {"Adafactor": 1e-3, "Lamb": 1e-3, "Lion": 1e-4, "Muon": 1e-2, "Sgd": 1e-2}


def experiment(name):
    base = collectives.experiments()["gpt"]
    optimizer = dataclasses.replace(OPTIMIZERS[name], peak_lr=RATES.get(name, 1e-3), clip_norm=1.0)
    if hasattr(optimizer, "eps") and name != "Adafactor":
        optimizer = dataclasses.replace(optimizer, eps=1e-4)
    return dataclasses.replace(base, optim=optimizer, ema=Ema(0.0))


def losses(name, mesh):
    """Of three steps on the same batch, and a fourth with a NaN in a parameter's place of the batch's weights."""
    program, step = collectives.compile_step(experiment(name), mesh)
    devices = collectives.mesh_of(mesh)
    state = state_lib.init(jax.random.key(0), program.declaration, program.optimizer, devices)
    rng = np.random.default_rng(0)
    batch = {
        key: jax.device_put(
            rng.integers(0, collectives.VOCABULARY, leaf.shape).astype(leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.integer)
            else np.ones(leaf.shape, leaf.dtype),
            leaf.sharding,
        )
        for key, leaf in program.batch.items()
    }
    found = []
    for _ in range(3):
        state, metrics = step(state, batch, jax.random.key(1))
        found.append(float(metrics["loss"]))
    before = jax.tree.map(np.asarray, (state.params, state.opt_state))
    batch["weights"] = batch["weights"] * jnp.nan
    state, metrics = step(state, batch, jax.random.key(1))
    assert int(metrics["skipped"]) == 1
    for a, b in zip(jax.tree.leaves((state.params, state.opt_state)), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_steps_on_eight_devices_are_those_on_one(name):
    alone = losses(name, (1, 1, 1, 1))
    assert alone[-1] < alone[0] - 1e-3
    for mesh in ("fsdp8", "data2-fsdp2-tensor2"):
        np.testing.assert_allclose(losses(name, collectives.MESHES[mesh]), alone, atol=1e-5, rtol=0, err_msg=mesh)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ScheduleFree", "Muon", "Adafactor"])
def test_a_run_that_is_stopped_and_taken_up_ends_with_the_same_bits(name, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(["to", "be", "or", "not", "that"], 2000)))
    tiny = Experiment(
        model=gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=2, num_heads=2),
        data=corpus.TextCorpus(sources.TextFiles((str(text),)), tokenizers.Bytes(), length=16),
        task=CausalLM(),
        optim=dataclasses.replace(OPTIMIZERS[name], groups=(("embed/position", 0.0),)),
        train=Train(steps=6, batch_size=8, log_every=1),
        checkpoint=Checkpoint(every=2),
        sample=Sample(max_new_tokens=0),
    )
    loop.run(tiny, tmp_path / "whole", load=restore.load)

    def stop(row):
        if row["step"] == 3 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = loop.run(tiny, tmp_path / "run", load=restore.load, on_row=stop)
    assert stopped.signal == signal.SIGTERM and stopped.step < 6
    ended = loop.run(tiny, tmp_path / "run", load=restore.load)
    whole, taken_up = (restore.load(tmp_path / folder) for folder in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, taken_up.params)
    assert ended.step == 6 and ended.report["bits_per_byte"] > 0


def test_an_average_of_an_average_is_refused():
    with pytest.raises(InputError, match=r"ema.decay is 0.9, but ScheduleFree averages the parameters"):
        programs.make(
            dataclasses.replace(collectives.experiments()["gpt"], optim=optim.ScheduleFree()),
            collectives.mesh_of((1, 1, 1, 1)),
        )
