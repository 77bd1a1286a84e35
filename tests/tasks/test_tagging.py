"""Tagging against NumPy and hand-made sentences: which words count, what is reported, which entities a text has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.data.tokenizers import TokenizerFile, load
from transformer_jax.errors import InputError
from transformer_jax.models import bert, gpt
from transformer_jax.tasks import encoder
from transformer_jax.tasks.tagging import Tagging
from transformer_jax.tasks.tagging.tagged import Conll, TaggedWords

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASK = Tagging(LABELS)
PIECES = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "jim",
    "hen",
    "##son",
    "was",
    "in",
    "new",
    "york",
    ".",
    "at",
    "t",
)
CFG = bert.Config(
    vocab_size=15, max_length=16, width=16, num_layers=1, num_heads=2, heads=("tokens",), num_labels=5, init_std=0.5
)
TEXT = "Jim B-PER\nHenson I-PER\nwas O\nin O\nNew B-LOC\nYork I-LOC\n\nJim B-PER\n. O\n"
LOSS, EVALUATE, APPLY = (jax.jit(f, static_argnums=1) for f in (TASK.loss, TASK.evaluate, bert.apply))


@pytest.fixture(scope="module")
def params():
    return jax.jit(bert.init, static_argnums=1)(jax.random.key(1), CFG)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return str(tmp_path)


def data(tmp_path, folder, text=TEXT, length=10) -> TaggedWords:
    path = tmp_path / "a.txt"
    path.write_text(text)
    return TaggedWords(Conll(str(path), str(path), str(path)), TokenizerFile(folder), length)


def stacked(examples) -> dict[str, np.ndarray]:
    rows = [examples[i] for i in range(len(examples))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_loss_and_tags_are_those_of_the_first_tokens(tmp_path, folder, params):
    prepared = TASK.prepare(data(tmp_path, folder), CFG, seed=0)
    batch = stacked(prepared.validation.examples)
    example = TASK.example(data(tmp_path, folder))
    assert {n: (a.shape[1:], a.dtype) for n, a in batch.items()} == {n: (a.shape, a.dtype) for n, a in example.items()}
    total, weight, sums = LOSS(params, CFG, batch)
    x_BTD = APPLY(params, CFG, batch["tokens"], lengths=batch["lengths"])
    logits_BTC = np.asarray(bert.tag(params, CFG, x_BTD), np.float64)
    log_probs = logits_BTC - np.log(np.exp(logits_BTC).sum(-1, keepdims=True))
    places = [(0, 1, 1), (0, 2, 2), (0, 4, 0), (0, 5, 0), (0, 6, 3), (0, 7, 4), (1, 1, 1), (1, 2, 0)]  # row, token, tag
    assert float(weight) == 8
    np.testing.assert_allclose(float(total), -sum(log_probs[place] for place in places), rtol=1e-5)
    right = sum(logits_BTC[row, at].argmax() == tag for row, at, tag in places)
    assert [float(x) for x in sums["token_accuracy"]] == [right, 8]
    evaluated, outputs = EVALUATE(params, CFG, batch)
    np.testing.assert_array_equal(outputs["tags"], logits_BTC.argmax(-1))
    assert float(evaluated["loss"][0]) == pytest.approx(float(total))
    dropped = LOSS(params, CFG, batch, key=jax.random.key(0))[0]
    assert abs(float(dropped) - float(total)) > 1e-3


def test_report_counts_every_word(tmp_path, folder):
    """Three tokens fit: of "Jim Henson was in New York" the last four words have none, and count as O."""
    prepared = TASK.prepare(data(tmp_path, folder, length=5), CFG, seed=0)
    outputs = {"tags": np.array([[4, 1, 2, 4, 4], [4, 1, 3, 4, 4]])}  # PER right, LOC missed; PER right, LOC made up
    report = TASK.report({"loss": (3.0, 4.0)}, outputs, prepared.validation)
    assert report == pytest.approx(
        {
            "loss_nats_per_word": 0.75,
            "entity_precision": 2 / 3,
            "entity_recall": 2 / 3,
            "entity_f1": 2 / 3,
            "token_accuracy": 5 / 8,
        }
    )
    (picture,) = TASK.pictures(outputs, prepared.test, tmp_path, "test")
    assert picture == tmp_path / "test_confusion.png" and picture.read_bytes().startswith(b"\x89PNG")
    assert prepared.facts["training_sentences_truncated"] == 1 and prepared.facts["test_words_without_token"] == 4


def test_predict_finds_entities_where_they_stand(folder, params, monkeypatch):
    """With logits that read the tag off the token: jim B-PER, hen I-PER, new B-LOC, york I-LOC, all others O."""
    tags = {"jim": 1, "hen": 2, "new": 3, "york": 4}
    wanted = np.array([tags.get(piece, 0) for piece in PIECES])

    def logits_and_states(self, params, model_cfg, batch):
        return 4.0 * jax.nn.one_hot(jnp.asarray(wanted)[batch["tokens"]], 5), None, None

    monkeypatch.setattr(Tagging, "logits_and_states", logits_and_states)
    text = "Jim  Henson was in New York."
    (found,) = TASK.predict(None, CFG, load(folder), [text], top=1)
    share = np.exp(4) / (np.exp(4) + 4)
    assert found["text"] == text
    assert [(e["type"], e["text"], e["start"], e["end"]) for e in found["entities"]] == [
        ("PER", "Jim  Henson", 0, 11),
        ("LOC", "New York", 19, 27),
    ]
    assert found["entities"][0]["probability"] == pytest.approx(share**2, rel=1e-5)
    assert TASK.describe(found) == "[Jim  Henson PER] was in [New York LOC]."
    # Longer than the context of 16: in parts, the entities of all parts with their places in the whole.
    (long,) = TASK.predict(None, CFG, load(folder), ["was " * 30 + "Jim Henson"], top=1)
    assert [(e["start"], e["end"]) for e in long["entities"]] == [(120, 130)]
    assert list(TASK.predict(None, CFG, load(folder), [""], top=1)) == [{"text": "", "entities": []}]


def test_predict_is_the_model_on_the_words(tmp_path, folder, params):
    """The tags of a text are those that evaluation gives the same words."""
    prepared = TASK.prepare(data(tmp_path, folder, "Jim O\nHenson O\nwas O\n"), CFG, seed=0)
    _, outputs = EVALUATE(params, CFG, stacked(prepared.validation.examples))
    names = [LABELS[tag] for tag in np.asarray(outputs["tags"])[0, [1, 2, 4]]]
    (found,) = TASK.predict(params, CFG, prepared.tokenizer, ["Jim Henson was"], top=1)
    covered = {word for e in found["entities"] for word in e["text"].split()}
    assert covered == {word for word, name in zip(("Jim", "Henson", "was"), names, strict=True) if name != "O"}


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (gpt.Config(vocab_size=15), "the model is of the family gpt, and this task needs an encoder"),
        (bert.Config(vocab_size=15), "heads are pooler, mlm, pair; this task needs --model.heads tokens"),
        (bert.Config(vocab_size=15, heads=("tokens",)), "num_labels is 2, but the task has 5 labels"),
        (bert.Config(vocab_size=9, heads=("tokens",), num_labels=5), "ids up to 14, but model.vocab_size is 9"),
    ],
)
def test_models_that_do_not_fit(tmp_path, folder, cfg, message):
    with pytest.raises(InputError, match=message):
        TASK.prepare(data(tmp_path, folder), cfg, seed=0)


def test_flops_of_bert_base():
    """6 x 12 layers of 12 x 768^2, and 12 x 12 x 768 x 128 of attention; ALBERT's shared layer counts twelve times."""
    assert encoder.flops(bert.Config(), 128) == 128 * (6 * 12 * 12 * 768**2 + 12 * 12 * 768 * 128)
    albert = bert.Config(embedding_width=128, share_layers=True)
    assert encoder.flops(albert, 128) == 128 * (6 * (12 * 12 * 768**2 + 128 * 768) + 12 * 12 * 768 * 128)
