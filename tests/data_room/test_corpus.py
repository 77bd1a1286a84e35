"""Windows of a corpus against plain loops over the token stream."""

import numpy as np
import pytest

from transformer_jax.data import corpus, pipeline, sources, tokenizers, tokens
from transformer_jax.errors import InputError

COUNT = 104  # a multiple of 8: the window that would begin at 96 lacks its last target


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    text = "".join(map(chr, range(0x100, 0x100 + COUNT)))  # every token different: token i is i
    made = tokens.prepare(
        sources.in_memory([("a", text)]), tokenizers.CharacterTokenizer(text), tmp_path_factory.mktemp("tokens")
    )
    assert made.tokens.tolist() == list(range(COUNT))
    return made


def test_an_example_is_a_window_and_the_one_after(file):
    for sampling in ("epochs", "random"):
        example = corpus.training_windows(file, 8, sampling, seed=1)[5]
        assert {name: (a.shape, a.dtype) for name, a in example.items()} == {
            "inputs": ((8,), np.int32), "targets": ((8,), np.int32), "weights": ((8,), np.float32),
        }  # fmt: skip
        start = example["inputs"][0]
        np.testing.assert_array_equal(example["inputs"], np.arange(start, start + 8))
        np.testing.assert_array_equal(example["targets"], np.arange(start + 1, start + 9))
        np.testing.assert_array_equal(example["weights"], 1)


def test_every_window_once_an_epoch_in_another_order_each(file):
    windows = corpus.training_windows(file, 8, "epochs", seed=1)
    n = (COUNT - 1) // 8
    epochs = [[int(windows[row]["inputs"][0]) for row in range(e * n, (e + 1) * n)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, n * 8, 8))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other_seed = corpus.training_windows(file, 8, "epochs", seed=2)
    assert [int(other_seed[row]["inputs"][0]) for row in range(n)] != epochs[0]


def test_random_positions_are_uniform_to_both_ends(file):
    windows = corpus.training_windows(file, 8, "random", seed=3)
    starts = windows.stacked(range(20_000))["inputs"][:, 0]
    counts = np.bincount(starts, minlength=COUNT - 8)
    assert len(counts) == COUNT - 8  # nanoGPT's randint(len(data) - block_size): the last target is the last token
    expected = 20_000 / (COUNT - 8)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 50 < chi_squared < 145  # 95 degrees of freedom: the 0.1 % tails
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.03
    assert (starts[:50] != corpus.training_windows(file, 8, "random", seed=4).stacked(range(50))["inputs"][:, 0]).any()


@pytest.mark.parametrize("sampling", ["epochs", "random"])
def test_the_batch_is_its_rows_to_the_bit(file, sampling):
    rows = [0, 11, 12, 13, 7, 100_000, 5_000_000_000]
    for length in (1, 8, COUNT - 1):
        windows = corpus.training_windows(file, length, sampling, seed=0)
        stacked = windows.stacked(rows)
        for b, row in enumerate(rows):
            for name, array in corpus.training_windows(file, length, sampling, seed=0)[row].items():
                np.testing.assert_array_equal(stacked[name][b], array)
                assert stacked[name].dtype == array.dtype


@pytest.mark.parametrize("length", [8, 17, 51, 102, 103, 200])
def test_validation_predicts_every_token_once(file, length):
    windows = corpus.validation_windows(file, length)
    predicted = []
    for row in range(len(windows)):
        example = windows[row]
        for t in range(length):
            if example["weights"][t]:
                target = int(example["targets"][t])
                predicted.append(target)
                start = row * length
                assert target == start + t + 1
                np.testing.assert_array_equal(example["inputs"][: t + 1], np.arange(start, target))
    assert predicted == list(range(1, COUNT))


def test_padding_is_zeros_of_weight_zero(file):
    last = corpus.validation_windows(file, 20)[5]
    np.testing.assert_array_equal(last["weights"], [1, 1, 1] + [0] * 17)
    np.testing.assert_array_equal(last["inputs"][4:], 0)
    np.testing.assert_array_equal(last["targets"][3:], 0)
    with pytest.raises(IndexError):
        corpus.validation_windows(file, 20)[6]


def test_a_short_corpus_is_refused_with_both_numbers(file):
    assert len(corpus.training_windows(file, COUNT - 1, "epochs", 0)[0]["targets"]) == COUNT - 1
    for sampling in ("epochs", "random"):
        with pytest.raises(InputError, match=r"books has 104 tokens, .* data\.length \+ 1 = 105"):
            corpus.training_windows(file, COUNT, sampling, 0, "books")


def test_bad_fields_are_named():
    for fields, message in (
        ({"length": 0}, r"length = 0"),
        ({"sampling": "shuffled"}, "'shuffled'"),
    ):
        with pytest.raises(InputError, match=message):
            corpus.TextCorpus(**fields)


def test_prepare_from_text_to_windows(tmp_path):
    (tmp_path / "a.txt").write_text("To be, or not to be: that is the question.\n" * 50)
    stated = corpus.TextCorpus(sources.TextFiles(str(tmp_path / "a.txt")), tokenizers.Characters(), length=16)
    made = corpus.prepare(stated, seed=0, cache=tmp_path / "cache")
    assert made.tokenizer.decode(made.train_tokens.tokens[:5]) == "To be"
    assert len(made.train_tokens.tokens) + len(made.validation_tokens.tokens) == 43 * 50
    scored = sum(made.validation[row]["weights"].sum() for row in range(len(made.validation)))
    assert scored == len(made.validation_tokens.tokens) - 1
    given = tokenizers.ByteTokenizer()  # a run that goes on keeps its tokenizer
    assert corpus.prepare(stated, seed=0, tokenizer=given, cache=tmp_path / "cache").tokenizer is given


def test_rows_of_a_seed_never_change(file):
    """A new Grain or NumPy that drew other rows would break every resumed run; this says so first."""

    def rows(sampling, rule):
        with pipeline.order_rule(rule):
            return corpus.training_windows(file, 8, sampling, seed=1).stacked(range(10, 16))["inputs"][:, 0].tolist()

    assert rows("epochs", 1) == [8, 40, 64, 32, 8, 56]
    assert rows("epochs", 2) == [8, 88, 80, 40, 56, 24]
    assert rows("random", 1) == rows("random", 2) == [35, 46, 23, 10, 82, 29]
