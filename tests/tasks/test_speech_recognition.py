"""Recognition of speech: packed rows, the loss, what is reported, bad data, a run from training to `predict`."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from experiments.speech import spoken_numbers
from transformer_jax import experiment, metrics, restore, sharding
from transformer_jax.augment import speech as augmentations
from transformer_jax.augment.speech import Noise, SpecAugment, Speed
from transformer_jax.cli import process
from transformer_jax.cli.main import main
from transformer_jax.data import tokenizers, waves
from transformer_jax.decoding import ctc as decoding
from transformer_jax.errors import InputError
from transformer_jax.losses import ctc
from transformer_jax.models import fastspeech, speech
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.tasks import SpeechRecognition, SpeechSynthesis
from transformer_jax.tasks.speech_recognition import espeak, recordings, spoken, utterances
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import loop

CFG = speech.Config(vocab_size=5, mels=20, width=16, num_layers=1, num_heads=2, dropout=0.0, scan_layers=False)
TASK = SpeechRecognition()
HERTZ = {"a": 400, "b": 900, "c": 1700, " ": 0}


def tones(text: str, letter: float = 0.12) -> np.ndarray:
    """Each letter as a tone of its own, int16; a space is silence."""
    at = np.arange(int(letter * waves.RATE)) / waves.RATE
    parts = [0.3 * np.sin(2 * np.pi * HERTZ[one] * at) * np.hanning(len(at)) for one in text]
    return waves.as_int16(np.concatenate(parts))


def table(folder, texts, name="a.tsv"):
    lines = ["path\tsentence"]
    for i, text in enumerate(texts):
        waves.write(folder / f"{i}.wav", tones(text))
        lines.append(f"{i}.wav\t{text}")
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


TEXTS = ["ab", "cab a", "b c", "abc abc", "ca", "bb a", "c", "a c b", "cc", "ba ba"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> utterances.Speech:
    folder = tmp_path_factory.mktemp("tones")
    path = table(folder, TEXTS)
    source = recordings.Recordings((path,), (path,))
    return utterances.Speech(source, tokenizers.Characters(), seconds=1.2, labels=8, pack=2, room=1.1)


@pytest.fixture(scope="module")
def prepared(data):
    return TASK.prepare(data, CFG, seed=0)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(speech.init, static_argnums=1)(jax.random.key(0), CFG)


def alone(params, samples_W, cfg=CFG):
    """The logits [T, V] of an utterance in a row of its own, without a task."""
    row_W = np.zeros((1, 40 * cfg.step_samples), np.float32)
    row_W[0, : len(samples_W)] = samples_W / 32768
    return np.asarray(logits_of(params, cfg, row_W, np.array([[len(samples_W)]])))[: speech.steps(cfg, len(samples_W))]


@functools.partial(jax.jit, static_argnums=1)
def logits_of(params, cfg, row_BW, lengths_BU):
    where = (jnp.zeros_like(lengths_BU), lengths_BU)
    return speech.logits(params, cfg, speech.features(cfg, row_BW, *where), *where)[0]


def nats_of(logits_TV, labels):
    """The loss of one utterance."""
    padded_TV, padded_S = np.zeros((40, logits_TV.shape[1]), np.float32), np.zeros(8, np.int32)
    padded_TV[: len(logits_TV)], padded_S[: len(labels)] = logits_TV, labels
    numbers = (np.array([len(logits_TV)]), padded_S[None], np.array([len(labels)]))
    return float(jitted_ctc(padded_TV[None], *numbers))


jitted_ctc = jax.jit(lambda *given: ctc.ctc(*given, blank=4).sum)


def test_a_packed_utterance_has_the_logits_and_the_loss_that_it_has_alone(data, prepared, params):
    made = prepared.validation.examples
    assert sorted(made.packed.pieces.tolist()) == list(range(len(TEXTS)))
    batch = {name: np.stack([made[i][name] for i in range(len(made))]) for name in made[0]}
    total, weight, sums = jax.jit(TASK.loss, static_argnums=1)(params, CFG, batch)
    nats, wrong, blank, steps = 0.0, 0, 0, 0
    for _p, text in enumerate(TEXTS):
        logits_TV = alone(params, tones(text))
        labels = prepared.tokenizer.encode(text)
        nats += nats_of(logits_TV, labels)
        wrong += metrics.edit_distance(decoding.greedy(logits_TV, blank=4), list(labels))
        blank, steps = blank + (logits_TV.argmax(-1) == 4).sum(), steps + len(logits_TV)
    assert weight == len(TEXTS) and float(total) == pytest.approx(nats, rel=1e-4)
    assert sums["label_error_rate"] == (wrong, sum(map(len, TEXTS))) and sums["blank_rate"] == (blank, steps)
    _, outputs = jax.jit(TASK.evaluate, static_argnums=1)(params, CFG, batch)
    report = TASK.report(sums, jax.device_get(outputs), prepared.validation)
    said = [prepared.tokenizer.decode(decoding.greedy(alone(params, tones(text)), blank=4)) for text in TEXTS]
    assert report["wer"] == metrics.error_rates(said, TEXTS)["wer"]
    assert report["loss_nats_per_utterance"] == pytest.approx(nats / len(TEXTS), rel=1e-4)


def test_a_batch_is_a_function_of_seed_and_row(data, prepared):
    again = TASK.prepare(data, CFG, seed=0).train
    for i in (0, 7):
        for name, array in prepared.train[i].items():
            np.testing.assert_array_equal(array, again[i][name])
    other = TASK.prepare(data, CFG, seed=1).train
    assert any((other[i]["waves"] != again[i]["waves"]).any() for i in range(4))
    row = prepared.train[0]
    for start, size, weight in zip(row["starts"], row["lengths"], row["weights"], strict=True):
        assert start % CFG.step_samples == 0 and (size > 0) == (weight > 0)
    ends = row["starts"] + row["lengths"]
    assert all(row["starts"][u + 1] >= ends[u] + CFG.gap for u in range(int(row["weights"].sum()) - 1))


@pytest.fixture(scope="module")
def augmented(prepared):
    """(row, what each augmentation makes of it): one compilation."""
    row = {name: jnp.asarray(array)[None] for name, array in prepared.train[0].items()}
    wave_BW = row["waves"].astype(jnp.float32) / 32768

    @jax.jit
    def all_of(key):
        given = (wave_BW, row["starts"], row["lengths"])
        features = speech.features(CFG, *given)
        return {
            "same": augmentations.apply(key, *given, (Speed(1.0, 1.0),)),
            "fast": augmentations.apply(key, *given, (Speed(1.25, 1.25),)),
            "slow": augmentations.apply(key, *given, (Speed(0.5, 0.5),)),
            "noisy": augmentations.apply(key, *given, (Noise(20.0, 20.0, 1.0),)),
            "masked": augmentations.masked(key, jnp.ones_like(features), SpecAugment(1, 5, 2.0, 10)),
        }

    return row, wave_BW[0], jax.device_get(all_of(jax.random.key(1)))


def test_speed_keeps_starts_and_changes_pitch(augmented):
    row, wave_W, made = augmented
    starts, lengths, held = (np.asarray(row[name][0]) for name in ("starts", "lengths", "weights"))
    np.testing.assert_allclose(made["same"][0][0], wave_W, atol=1e-6)
    np.testing.assert_array_equal(made["fast"][1][0], np.floor(lengths / 1.25))
    ends = np.append(starts[1:], len(wave_W))[: int(held.sum())]
    assert (starts[: len(ends)] + made["slow"][1][0][: len(ends)] <= np.where(ends == 0, len(wave_W), ends)).all()
    first = np.asarray(wave_W)[: lengths[0]]
    fast = made["fast"][0][0][: int(made["fast"][1][0][0])]
    np.testing.assert_allclose(fast, np.interp(np.arange(len(fast)) * 1.25, np.arange(len(first)), first), atol=1e-4)


def test_noise_has_the_stated_ratio_and_stays_inside(augmented):
    row, wave_W, made = augmented
    added = made["noisy"][0][0] - wave_W
    inside = np.zeros(len(wave_W), bool)
    for start, size in zip(row["starts"][0], row["lengths"][0], strict=True):
        inside[start : start + size] = True
    ratio = 10 * np.log10(np.mean(np.square(wave_W)[inside]) / np.mean(np.square(added)[inside]))
    assert ratio == pytest.approx(20.0, abs=0.3) and not added[~inside].any()


def test_spec_augment_zeroes_bands_and_spans(augmented):
    kept_FM = augmented[2]["masked"][0] == 1
    frames_F, bins_M = kept_FM.any(1), kept_FM.any(0)
    np.testing.assert_array_equal(kept_FM, frames_F[:, None] & bins_M)
    assert 0 < (~bins_M).sum() <= 5 and 0 < (~frames_F).sum() <= 2 * 2.4 * 10


# ---- Bad data ------------------------------------------------------------------------------------------------------


def refused(data, **changes):
    with pytest.raises(InputError) as error:
        TASK.prepare(dataclasses.replace(data, **changes), CFG, seed=0)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_data_are_refused_by_name_and_count(tmp_path, data):
    source = lambda path: {"source": recordings.Recordings((path,), (path,))}  # noqa: E731
    assert "data.seconds" in refused(data, seconds=1.21)
    assert "4 with longer than data.seconds 0.6" in refused(data, seconds=0.6)
    assert "more than data.labels 2 tokens" in refused(data, labels=2)
    waves.write(tmp_path / "short.wav", tones("a", 0.02))
    path = tmp_path / "b.tsv"
    path.write_text("path\tsentence\nshort.wav\tab\nshort.wav\ta\n")
    assert f"1 with fewer steps than its transcript needs: {path}:2" in refused(data, **source(str(path)))
    path.write_text("path\tsentence\nshort.wav\t \n")
    assert f"1 without a transcript: {path}:2" in refused(data, **source(str(path)))
    path.write_text("path\tsentence\nmissing.wav\ta\n")
    assert f"{path}:2: " in refused(data, **source(str(path))) and "missing.wav" in refused(data, **source(str(path)))
    (tmp_path / "text.wav").write_text("this is no sound")
    path.write_text("path\tsentence\ntext.wav\ta\ntext.wav\tb\n")
    assert "cannot be read as sound" in refused(data, **source(str(path)))
    assert "(and 1 more)" in refused(data, **source(str(path)))
    path.write_text("path\tother\nshort.wav\ta\n")
    assert "sentence" in refused(data, **source(str(path)))


def test_training_utterances_that_do_not_fit_can_be_dropped(tmp_path, data):
    train, held = table(tmp_path, ["ab", "abc abc", "c"]), str(tmp_path / "held.tsv")
    (tmp_path / "held.tsv").write_text("path\tsentence\n0.wav\tab\n")
    source = recordings.Recordings((train,), (held,))
    made = TASK.prepare(dataclasses.replace(data, source=source, seconds=0.6, unfit="drop"), CFG, seed=0)
    assert made.facts["train_utterances"] == 2
    assert made.facts["train_dropped_longer than data.seconds 0.6"] == 1


def test_a_model_and_data_that_do_not_suit_each_other_are_refused(data):
    with pytest.raises(InputError, match=r"give --model.vocab-size 5"):
        TASK.prepare(data, dataclasses.replace(CFG, vocab_size=4), seed=0)
    with pytest.raises(InputError, match="seconds above 0"):
        utterances.Speech(data.source, data.tokenizer, seconds=0)
    for changes in ({"context": 4}, {"window": 401}, {"blank_id": 9}):
        with pytest.raises(InputError, match="model"):
            dataclasses.replace(CFG, **changes)
    for made in (lambda: Speed(0.0), lambda: Noise(9, 3), lambda: SpecAugment(bands=-1)):
        with pytest.raises(InputError):
            made()


def test_librispeech_folders(tmp_path):
    folder = tmp_path / "dev-clean" / "84" / "121"
    folder.mkdir(parents=True)
    for i in range(2):
        waves.write(folder / f"84-121-000{i}.wav", tones("ab"))
    source = recordings.LibriSpeech(str(tmp_path), ("dev-clean",), "dev-clean", "")
    (folder / "84-121.trans.txt").write_text("84-121-0000 AB\n")
    with pytest.raises(InputError, match="1 recordings have no transcript: .*84-121-0001"):
        source.utterances("train")
    (folder / "84-121.trans.txt").write_text("84-121-0000 AB\n84-121-0001 B A\n")
    assert [one.text for one in source.utterances("train").held] == ["AB", "B A"]
    (folder / "84-121.trans.txt").write_text("84-121-0007 AB\n")
    with pytest.raises(InputError, match="there is no recording 84-121-0007"):
        source.utterances("train")
    with pytest.raises(InputError, match="is not a folder"):
        dataclasses.replace(source, train=("nowhere",)).utterances("train")


# ---- Spoken numbers ------------------------------------------------------------------------------------------------


def test_numbers_and_dates_in_words():
    assert spoken.number(0) == "zero" and spoken.number(7305) == "seven thousand three hundred and five"
    assert spoken.number(9999) == "nine thousand nine hundred and ninety nine" and spoken.number(40) == "forty"
    assert len({spoken.number(n) for n in range(10_000)}) == 10_000


def test_no_text_and_no_new_voice_of_the_test_set_is_in_training():
    lines = spoken.SpokenNumbers(train=300, validation=30, test=30).lines()
    said = {side: {line.text for of, _, line in lines if of == side} for side in ("train", "validation", "test")}
    assert not said["train"] & (said["validation"] | said["test"]) and not said["validation"] & said["test"]
    new = {line.voice for of, part, line in lines if part == 1}
    assert new == set(spoken.NEW_VOICES) and not new & {line.voice for _, part, line in lines if part == 0}
    assert lines == spoken.SpokenNumbers(train=300, validation=30, test=30).lines()


def test_parts_of_the_test_set_are_scored_apart(monkeypatch):
    monkeypatch.setattr(espeak, "speak", lambda lines: [np.zeros(16_000, np.int16) for _ in lines])
    made = spoken.SpokenNumbers(train=3, validation=2, test=4).utterances("test")
    assert made.parts == ("new_texts", "new_voices") and [one.part for one in made.held] == [0] * 4 + [1] * 4


def test_espeak_is_missing_or_fails_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install espeakng-loader"):
        espeak.speak([espeak.Line("en", 150, 50, "one")])


# ---- A run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """(the folder of a run that has learned tones, the folder of the sounds, their transcripts)."""
    top = tmp_path_factory.mktemp("run")
    (top / "sound").mkdir()
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc"), rng.integers(1, 6))) for _ in range(60)] + ["a b"]
    path = table(top / "sound", texts)
    one = experiment.Experiment(
        model=dataclasses.replace(CFG, width=32),
        data=dataclasses.replace(data, source=recordings.Recordings((path,), (path,))),
        task=SpeechRecognition(masks=SpecAugment(1, 2, 0.5, 4)),
        optim=Optim(peak_lr=5e-3, warmup_steps=10),
        train=experiment.Train(steps=60, batch_size=8, log_every=20),
        evaluate=experiment.Evaluate(batch_size=8),
    )
    loop.run(one, top / "run", load=restore.load)
    return top / "run", top / "sound", texts


def test_a_run_learns_tones_and_predicts(run, capsys):
    folder, sounds, texts = run
    results = json.loads((folder / "results.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if "label_error_rate" in row]
    assert training[0]["label_error_rate"] > 0.8 and training[-1]["label_error_rate"] < 0.2
    assert all(0 < row["blank_rate"] < 1 for row in training)
    assert results["report"]["wer"] < 0.3, results
    assert (folder / "validation_alignment.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "validation.hypotheses.txt").read_text().splitlines()) == len(texts)
    (sounds / "no.wav").write_text("no sound")
    files = [str(sounds / name) for name in ("0.wav", "1.wav", "no.wav")]
    assert main(["predict", str(folder), *files]) == 0
    out = capsys.readouterr().out.splitlines()
    assert metrics.error_rates(out[:2], texts[:2])["cer"] < 0.5 and "cannot be read as sound" in out[2]
    assert main(["predict", str(folder), files[0], "--beam", "4", "--top", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["texts"]) == 2 and answer["log_probabilities"][0] >= answer["log_probabilities"][1]
    long = np.concatenate([tones("ab"), np.zeros(8000, np.int16)] * 50)  # 37 s, read in two windows
    waves.write(sounds / "long.wav", long)
    assert main(["predict", str(folder), str(sounds / "long.wav")]) == 0
    assert capsys.readouterr().out.count("a") == pytest.approx(50, abs=5)


# ---- Synthesis -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tones_are_spoken_and_heard(run, data, tmp_path, capsys):
    folder, sounds, _ = run
    path = str(sounds / "a.tsv")
    one = experiment.Experiment(
        model=fastspeech.Config(vocab_size=5, mels=40, width=32, num_layers=1, decoder_layers=1, num_heads=2),
        data=dataclasses.replace(data, source=recordings.Recordings((path,), (path,)), pack=1, room=1.0),
        task=SpeechSynthesis(dataclasses.replace(CFG, width=32), recogniser=str(folder)),
        optim=Optim(peak_lr=5e-3, warmup_steps=10),
        train=experiment.Train(steps=150, batch_size=16, log_every=50),
        evaluate=experiment.Evaluate(batch_size=16),
    )
    loop.run(one, tmp_path / "voice", load=restore.load)
    results = json.loads((tmp_path / "voice" / "results.json").read_text())
    assert results["report"]["wer_recordings"] < 0.3 and results["report"]["cer_round_trip"] < 0.6, results
    assert (tmp_path / "voice" / "validation_alignment.png").read_bytes().startswith(b"\x89PNG")
    assert waves.header(tmp_path / "voice" / "validation_1.wav").seconds > 0.1
    out = str(tmp_path / "a.wav")
    assert main(["predict", str(tmp_path / "voice"), "abc", "--out", out]) == 0
    assert main(["predict", str(tmp_path / "voice"), "abc"]) == 2
    capsys.readouterr()
    assert main(["predict", str(folder), out]) == 0
    assert metrics.error_rates([capsys.readouterr().out], ["abc"])["cer"] < 1


# ---- Slow ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_loss_and_its_gradient_are_the_same_on_a_mesh(prepared, params, kind):
    """Eight devices: two replicas, two shards of the parameters, two of the heads."""
    rows = [prepared.train[i] for i in range(8)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    task = SpeechRecognition(waves=(Speed(), Noise()), masks=SpecAugment(1, 3, 1.0, 5))

    def value(params, batch, key):
        total, weight, _ = task.loss(params, CFG, batch, key=key)
        return total / weight

    both = jax.value_and_grad(value)
    alone, gradients = jax.jit(both)(params, batch, jax.random.key(3))
    mesh = jax.make_mesh((2, 2, 1, 2), sharding.MESH_AXES, axis_types=(kind,) * 4)
    shardings = params_lib.shardings(speech.declare(CFG), mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        given = batch_lib.place(batch, batch_lib.shardings(TASK.example(prepared.train.data), 8, mesh))
        together, sharded = jax.jit(both)(placed, given, jax.random.key(3))
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, float(np.abs(one).max())))


@pytest.mark.slow
def test_spoken_numbers_are_learned(tmp_path):
    """A sixth of the recipe's steps: letters appear."""
    pytest.importorskip("espeakng_loader")
    recipe = spoken_numbers.experiment()
    short, _ = process.smoke(dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps=150)), recipe)
    loop.run(short, tmp_path / "run", load=restore.load)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [row["label_error_rate"] for row in map(json.loads, lines) if "label_error_rate" in row]
    assert rates[-1] < 0.6 < rates[0], rates
