"""Classification of sounds: the loss against NumPy, what a run reports, the sources, bad input in one line."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from transformer_jax import restore, sharding
from transformer_jax.augment.speech import Noise, SpecAugment, Speed
from transformer_jax.data import waves
from transformer_jax.errors import InputError
from transformer_jax.experiment import Evaluate, Experiment, Train
from transformer_jax.models import spectrogram
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.tasks import AudioClassification
from transformer_jax.tasks.audio_classification import commands, sounds
from transformer_jax.tasks.speech_recognition import spoken, utterances
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import loop

PITCHES = {"high": 3000, "low": 400, "middle": 1200}


@dataclasses.dataclass(frozen=True)
class Tones(utterances.Source):
    """Tones of three pitches, of random phase and loudness."""

    has_test = True

    def utterances(self, side: Any) -> utterances.Utterances:
        rng, held = np.random.default_rng({"train": 0, "validation": 1, "test": 2}[side]), []
        for i in range(24 if side == "train" else 7):
            name = sorted(PITCHES)[i % 3]
            t = np.arange(rng.integers(3000, 5000)) / waves.RATE
            wave = rng.uniform(0.05, 0.5) * np.sin(2 * np.pi * (PITCHES[name] * t + rng.random()))
            held.append(utterances.Utterance(waves.as_int16(wave), name, f"{side}:{i}", i % 2))
        return utterances.Utterances(f"tones ({side})", held, ("even", "odd") if side == "test" else ())


def model(**fields) -> spectrogram.Config:
    small = {"num_mels": 20, "max_frames": 29, "patch_size": 8, "width": 16, "num_layers": 1, "num_heads": 2}
    return spectrogram.Config(**(small | {"norm_eps": 1e-6, "num_classes": 3} | fields))


def test_a_run_learns_reports_and_predicts(tmp_path):
    experiment = Experiment(
        model=model(num_classes=527),  # the default is replaced
        data=sounds.Sounds(Tones(), seconds=0.28),
        task=AudioClassification(waves=(Noise(20, 40),), masks=SpecAugment(1, 2, 2.0, 2), label_smoothing=0.1),
        optim=Optim(peak_lr=5e-3, warmup_steps=2, weight_decay=0.0),
        train=Train(steps=24, batch_size=8),
        evaluate=Evaluate(batch_size=8),
    )
    results = loop.run(experiment, tmp_path / "run", load=restore.load)
    loaded = restore.load(tmp_path / "run", types=(Tones,))
    assert loaded.task.labels == ("high", "low", "middle") and loaded.config.num_classes == 3
    assert results.report["loss_nats_per_sound"] < 1.0 < np.log(3)  # of one class in three
    assert results.report["baseline_accuracy"] == 1.0
    assert {"accuracy_even", "accuracy_odd", "baseline_accuracy_even"} <= set(results.test)

    made = loaded.task.prepare(experiment.data, loaded.config, seed=0)
    assert made.facts["train_sounds"] == 24 and made.facts["train_truncated"] > 0
    rows = [made.validation.examples[i] for i in range(7)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["weights"][5:] = 0
    task = dataclasses.replace(loaded.task, label_smoothing=0.3)
    total, weight, sums = jax.jit(lambda params, batch: task.loss(params, loaded.config, batch))(loaded.params, batch)
    logits = np.asarray(task.evaluate(loaded.params, loaded.config, batch)[1]["logits"], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    plain = -log_p[np.arange(7), batch["labels"]][:5].sum()
    assert float(sums["loss"][0]) == pytest.approx(plain, rel=1e-4) and float(weight) == 5
    assert float(total) == pytest.approx(0.7 * plain - 0.3 * log_p[:5].mean(-1).sum(), rel=1e-4)
    right = int((logits.argmax(-1) == batch["labels"])[:5].sum())
    assert [float(x) for x in sums["accuracy"]] == [right, 5]

    waves.write(tmp_path / "a.wav", made.validation.examples[0]["waves"])
    (asked,) = loaded.task.read([str(tmp_path / "a.wav")], loaded.task.predict_options(loaded.task.default_sample()))
    (answer,) = loaded.task.predict(loaded.params, loaded.config, None, [asked.query], top=2)
    assert answer["label"] == loaded.task.labels[logits[0].argmax()] and len(answer["top"]) == 2
    assert loaded.task.describe(answer).startswith(answer["label"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_loss_and_its_gradient_are_the_same_on_a_mesh(kind):
    """Eight devices: two replicas, two shards of the parameters, two of the heads."""
    cfg, data = model(), sounds.Sounds(Tones(), seconds=0.28)
    task = AudioClassification(("high", "low", "middle"), (Speed(), Noise()), SpecAugment(1, 3, 5.0, 5))
    prepared = sounds.prepare(data, task.labels, seed=0)
    rows = [prepared.train[i] for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    leaves, tree = jax.tree.flatten(spectrogram.init(jax.random.key(0), cfg))
    keys = jax.random.split(jax.random.key(1), len(leaves))  # the head is zero at first
    drawn = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, drawn)

    def value(params, batch, key):
        total, weight, _ = task.loss(params, cfg, batch, key=key)
        return total / weight

    both = jax.value_and_grad(value)
    alone, gradients = jax.jit(both)(params, batch, jax.random.key(3))
    mesh = jax.make_mesh((2, 2, 1, 2), sharding.MESH_AXES, axis_types=(kind,) * 4)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, params_lib.shardings(spectrogram.declare(cfg), mesh))
        given = batch_lib.place(batch, batch_lib.shardings(task.example(data), 8, mesh))
        together, sharded = jax.jit(both)(placed, given, jax.random.key(3))
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, float(np.abs(one).max())))


def test_folders(tmp_path):
    for name in ("no/a.wav", "no/b.wav", "yes/a.wav", "yes/c.wav", "_noise/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        waves.write(tmp_path / name, np.zeros(500))
    (tmp_path / "held.txt").write_text("no/a.wav\nyes/c.wav\n")
    source = sounds.Folders(str(tmp_path), validation="held.txt")
    assert source.classes() == ("no", "yes") == sounds.Sounds(source).classes() and not source.has_test
    assert [(one.where, one.text) for one in source.utterances("validation").held] == [
        ("no/a.wav", "no"),
        ("yes/c.wav", "yes"),
    ]
    assert {one.where for one in source.utterances("train").held} == {"no/b.wav", "yes/a.wav"}
    (tmp_path / "held.txt").write_text("no/a.wav\nno/z.wav\n")
    with pytest.raises(InputError, match=r"lists 1 that are not in .*no/z.wav"):
        source.utterances("train")
    with pytest.raises(InputError, match="is not a folder"):
        sounds.Folders(str(tmp_path / "none")).classes()
    with pytest.raises(InputError, match="1 of classes that are none of the 2 labels: yes/a.wav"):
        (tmp_path / "held.txt").write_text("no/a.wav\n")
        sounds.prepare(sounds.Sounds(dataclasses.replace(source, test="held.txt", validation="")), ("no", "up"), seed=0)


def test_a_model_or_data_that_do_not_fit_are_refused():
    task = AudioClassification(labels=("a", "b", "c"))
    data = sounds.Sounds(Tones(), seconds=0.28)
    task.check(model(), data)
    with pytest.raises(InputError, match=r"data.seconds = 1 is longer than the 0.305 s that the model reads"):
        task.check(model(), sounds.Sounds(Tones(), seconds=1))
    with pytest.raises(InputError, match="give --model.num-classes 3"):
        task.check(model(num_classes=4), data)
    with pytest.raises(InputError, match="two or more different names"):
        AudioClassification(labels=("a",))
    with pytest.raises(InputError, match="larger than a spectrogram"):
        model(num_mels=7)


def test_the_voices_of_spoken_commands_are_held_out():
    """The lines that are spoken; no sound is made."""
    lines = commands.SpokenCommands(takes=2).lines()
    voices = {side: {line.voice for of, part, line in lines if (of, part) == side} for side in {x[:2] for x in lines}}
    assert voices["train", 0] == voices["test", 1] == set(spoken.VOICES)
    assert not voices["test", 0] & (voices["train", 0] | voices["validation", 0])
    assert not voices["validation", 0] & voices["train", 0]
    assert {line.text for _, _, line in lines} == set(commands.WORDS) and len(commands.WORDS) == 20
    assert len(lines) == 20 * (2 * 16 + 2 * 2 + 2 * 4 + 16)
