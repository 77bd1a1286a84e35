"""The task Transcription: rows of a wave and a text after the first tokens, the loss, error rates, what is refused."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.sound.waves_of_tests import utterances as waves_of_tests
from transformer_jax import hub
from transformer_jax.data import tokenizers
from transformer_jax.decoding import timestamps
from transformer_jax.errors import InputError
from transformer_jax.models import whisper
from transformer_jax.tasks import Transcription
from transformer_jax.tasks.speech_recognition import utterances
from transformer_jax.tasks.speech_recognition.utterances import Speech, Utterance, Utterances

FOLDER = Path(__file__).parents[1] / "data" / "hf" / "whisper"
TEXTS = ("the", "he at", "cab", "a thing")
PROMPT = [31, 32, 36, 40]  # <|startoftranscript|><|en|><|transcribe|><|notimestamps|>
END = 30
TASK = Transcription(language="en")


@dataclasses.dataclass(frozen=True)
class Four(utterances.Source):
    """Four waves of a second."""

    def utterances(self, side):
        held = [Utterance(wave, text, text) for wave, text in zip(waves_of_tests(4, 16_000), TEXTS, strict=True)]
        return Utterances("four", held)


DATA = Speech(Four(), tokenizers.TokenizerFile(str(FOLDER)), seconds=1.5, labels=8)


@pytest.fixture(scope="module")
def loaded():
    return hub.load(FOLDER)


@pytest.fixture(scope="module")
def prepared(loaded):
    return TASK.prepare(DATA, loaded[0], seed=0)


def test_a_row_is_a_wave_and_a_text_after_the_first_tokens(loaded, prepared):
    row, shapes = prepared.validation.examples[1], TASK.example(DATA)
    assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
        name: (x.shape, x.dtype) for name, x in row.items()
    }
    text = loaded[2].encode("he at").tolist()
    assert len(text) == 4  # "he", the space and "a" apart, "t"
    assert row["inputs"].tolist() == [*PROMPT, *text, 0, 0, 0, 0]
    assert row["targets"].tolist()[3:8] == [*text, END]  # each input's next token
    assert row["weights"].tolist() == [0] * 3 + [1] * 5 + [0] * 4
    assert row["lengths"] == 16_000 and not row["waves"][16_000:].any()


def test_the_loss_is_the_mean_of_the_texts_tokens_and_falls(loaded, prepared, tmp_path):
    config, params, tokenizer = loaded
    batch = {name: np.stack([prepared.validation.examples[i][name] for i in range(4)]) for name in TASK.example(DATA)}
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def mean(params):
            total, weight, _ = TASK.loss(params, config, batch)
            return total / weight

        loss, gradients = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss, gradients

    @jax.jit
    def logits(params):
        features = whisper.features(config, batch["waves"], lengths=batch["lengths"])
        return whisper.apply(params, config, features, batch["inputs"])

    log_p = np.asarray(jax.nn.log_softmax(logits(params)), np.float64)
    nats = -np.take_along_axis(log_p, batch["targets"][..., None], axis=-1)[..., 0]
    state, start = optimizer.init(params), params
    params, state, loss, gradients = step(params, state)
    np.testing.assert_allclose(loss, (nats * batch["weights"]).sum() / batch["weights"].sum(), rtol=1e-5)
    assert not np.asarray(gradients["encoder"]["position"]["embedding"]).any()  # fixed, as Whisper's
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients["encoder"]["blocks"]))
    for _ in range(60):
        params, state, loss, _ = step(params, state)
    assert loss < 0.2
    same = jax.tree.map(
        lambda a, b: bool(jnp.array_equal(a, b)), start["encoder"]["position"], params["encoder"]["position"]
    )
    assert all(jax.tree.leaves(same))
    log: list[str] = []
    scores = TASK.score(
        params,
        config,
        tokenizer,
        prepared.validation,
        tmp_path,
        "validation",
        mesh=None,
        log=log.append,
    )
    assert scores["wer"] <= 0.5 and len(log) == 4 and "said" in log[0]


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (TASK, {"seconds": 2.5}, "data.seconds = 2.5 is longer than the model's window of 2 s"),
        (TASK, {"labels": 21}, "data.labels = 21 and 4 first tokens are more than model.max_length = 24"),
        (TASK, {"pack": 2}, "data.pack = 2: a window holds one utterance"),
        (Transcription(language="auto"), {}, "cannot be trained"),
        (Transcription(language="xx"), {}, "language 'xx' is not one of the model's: de, en, fr"),
        (TASK, {"labels": 3}, "more than data.labels 3 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(loaded, task, data, message):
    with pytest.raises(InputError, match=message):
        task.prepare(dataclasses.replace(DATA, **data), loaded[0], seed=0)


def test_segments_end_where_pairs_of_times_meet():
    def of(*tokens):
        return timestamps.segments(tokens, first=100, seconds=2.0)

    assert of(100, 1, 2, 150, 150, 3, 180) == ([(0.0, 1.0, [1, 2]), (1.0, 1.6, [3])], 2.0)  # nothing after 1.6 s
    assert of(100, 1, 150, 155, 3) == ([(0.0, 1.0, [1])], 1.0)  # 3 is read again from there
    assert of(100, 1, 2) == ([(0.0, 2.0, [1, 2])], 2.0)
    assert of(100, 1, 140) == ([(0.0, 0.8, [1])], 2.0)
    assert of() == ([(0.0, 2.0, [])], 2.0)
    assert of(100, 100)[1] == 2.0  # no window begins where it began
