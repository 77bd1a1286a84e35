"""Numbers gone bad: what is said, when a run stops, and that its diagnosis names row, layer and operation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import restore
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import RunError
from transformer_jax.experiment import Checkpoint, Ema, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.nn import stack
from transformer_jax.optim import Optim
from transformer_jax.tasks import CausalLM
from transformer_jax.train import diagnose, loop

MODEL = gpt.Config(vocab_size=257, max_length=8, width=8, num_layers=2, num_heads=1)
POISON = 200  # a token that is in no text


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    text = tmp_path_factory.mktemp("text") / "words.txt"
    text.write_text("a rose is a rose is a rose\n" * 40)
    return Experiment(
        model=MODEL,
        data=corpus.TextCorpus(sources.TextFiles((str(text),)), tokenizers.Bytes(), length=8),
        optim=Optim(peak_lr=1e-2),
        train=Train(steps=9, batch_size=8, log_every=1, max_skips=3),
        checkpoint=Checkpoint(every=2, keep=9),
        ema=Ema(0.9),
        sample=Sample(max_new_tokens=0),
    )


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# ---- What is noticed


def test_skipped_steps_are_counted_in_a_row():
    watch = diagnose.Watch(limit=2, spike=10.0, skipped=4)

    def note(step, skipped, loss=1.0, grad_norm=2.0, **more):
        return list(watch.update(step, {"skipped": skipped, "loss": loss, "grad_norm": grad_norm, **more}))

    assert note(1, 4) == [] and not watch.limit_reached
    assert note(2, 5, loss=np.nan) == ["step 2 skipped, 1 in a row: its loss is nan"]
    assert note(3, 5, deviations=9.0) == [] and watch.in_a_row == 0
    assert note(4, 5, 30.0, deviations=58.2) == ["step 4: its loss 30 is a spike, 58 deviations above the last ones"]
    assert (
        note(5, 6, grad_norm=np.inf) == ["step 5 skipped, 1 in a row: its gradient is inf"] and not watch.limit_reached
    )
    assert note(6, 7, np.inf, np.nan) == ["step 6 skipped, 2 in a row: its loss is inf"] and watch.limit_reached


# ---- Where it is


def test_the_row_the_layer_and_the_operation_are_found():
    """Token 9 is in one row; layer 1 alone makes a NaN of a large number, forward; the others are finite."""

    def block(p, x_BD, layer, key):
        return jnp.log1p(p["w"] * x_BD)

    declaration = {"w": params_lib.Param((3,), ("layers",), params_lib.ones)}
    params = {"w": jnp.array([1.0, -2.0, 1.0])}

    def loss(params, batch, key):
        x_BD = stack.run(block, params, batch["x"], num_layers=3, scan=True, remat="none", key=None)
        return jnp.sum(x_BD), jnp.float32(x_BD.shape[0]), {}

    x = np.full((4, 2), 0.1, np.float32)
    x[2, 1] = 9.0  # log1p(log1p(9) * -2) is not a number
    found = diagnose.diagnose(loss, params, {"x": x}, jax.random.key(0), declaration=declaration, copies=2)
    assert found.bad == [2] and np.isnan(found.losses[2]) and np.isfinite(found.losses[[0, 1, 3]]).all()
    assert found.operation.startswith("log1p at test_diagnose.py:") and found.operation.endswith(", layer 1")
    assert "block" in found.operation
    np.testing.assert_array_equal(found.parameter_norms["w"], [1.0, 2.0, 1.0])
    assert np.isnan(found.gradient_norms["w"]).all()
    assert found.describe(100).startswith(
        "1 of data rows 100-103 are not finite (102); in the first a NaN is made by log"
    )
    json.dumps(found.to_json(), allow_nan=False)


def test_a_nan_of_the_backward_pass_alone():
    """sqrt at 0: the value is fine, and the gradient 0 times infinity."""
    found = diagnose.find_nan(lambda w: jnp.sqrt(0.0 * w).sum(), jnp.ones(2))
    assert found.endswith("in the backward pass")
    assert diagnose.find_nan(lambda w: jnp.where(w > 0, -jnp.inf, w).max(), jnp.ones(2)) == "", "a mask is no fault"


# ---- A run


def leaves(step_folder):
    """Parameters, average and moments, as they are stored."""
    import orbax.checkpoint as ocp

    found = {}
    for item in ("params", "ema", "optimizer"):
        tree = ocp.StandardCheckpointer().restore((step_folder / item).absolute())
        found |= {f"{item}/{name}": np.asarray(x) for name, x in params_lib.flatten(tree).items()}
    return found


def test_a_run_stops_with_a_diagnosis_and_its_state_is_that_before(experiment, tmp_path, monkeypatch, capsys):
    """Steps 5, 6 and 7: one on its own would be forgiven. Nothing of them is in the state."""
    usual = CausalLM.loss

    def loss(self, params, model, batch, *, key=None):
        total, weight, sums = usual(self, params, model, batch, key=key)
        bad = jnp.any(batch["targets"] == POISON)
        return total * jnp.where(bad, jnp.log(-1.0 - weight), 1.0), weight, sums

    monkeypatch.setattr(CausalLM, "loss", loss)
    held = corpus.Windows.stacked

    def stacked(self, numbers):
        batch = held(self, numbers)
        if min(numbers) >= 4 * 8 and len(self) > 10**6:
            batch["targets"][3, 5] = POISON
        return batch

    monkeypatch.setattr(corpus.Windows, "stacked", stacked)
    with pytest.raises(RunError) as stopped:
        loop.run(experiment, tmp_path / "run", load=restore.load)
    message = str(stopped.value)
    assert "steps 5-7 were skipped; of the last, 1 of data rows 48-55 are not finite (51)" in message
    assert (
        "a NaN is made by log at test_diagnose.py:" in message
        and "goes on from the newest checkpoint, step 6" in message
    )
    assert [row["skipped"] for row in rows(tmp_path / "run")] == [0, 0, 0, 0, 1, 2]
    said = capsys.readouterr().out
    assert "step 6 skipped, 2 in a row: its loss is nan" in said and "blocks/mlp/up/kernel" in said
    written = json.loads((tmp_path / "run/diagnosis.json").read_text())
    assert (written["step"], written["first_row"], written["bad"]) == (7, 48, [3])
    assert len(written["parameter_norms"]["blocks/mlp/up/kernel"]) == 2
    before, after = (leaves(tmp_path / f"run/checkpoints/{step}") for step in (4, 6))
    assert after.pop("optimizer/skipped") == before.pop("optimizer/skipped") + 2
    assert {name for name in before if (before[name] != after[name]).any()} == set()
