"""Masking by its published statistics: the bounds are three standard deviations of what the papers state."""

import math

import numpy as np
import pytest

from transformer_jax import objectives
from transformer_jax.errors import InputError
from transformer_jax.objectives import masking
from transformer_jax.objectives.masking import Masking

V, T = 1000, 128
CLS, SEP, MASK = 0, 1, 2
ORDINARY = np.arange(5, V)
CONTINUES = np.arange(V) % 3 == 0  # two of three tokens begin a word
UNITS = ("token", "word", "span", "ngram")


def row(seed: int) -> np.ndarray:
    """[CLS] 80 tokens [SEP] 40 tokens [SEP] and padding."""
    ids_T = np.random.default_rng(seed).choice(ORDINARY, T).astype(np.int32)
    ids_T[0], ids_T[81], ids_T[122], ids_T[123:] = CLS, SEP, SEP, 3
    return ids_T


def masked(index: int, how: Masking, seed: int = 0, count: int | None = None):
    ids_T = row(index)
    return ids_T, masking.mask(
        ids_T,
        ids_T >= 5,
        how,
        objectives.generator(seed, index),
        mask_id=MASK,
        random_ids=ORDINARY,
        count=how.count(T) if count is None else count,
        continues=CONTINUES,
    )


def near(count: int, n: int, share: float) -> bool:
    """Whether `count` of `n` is within three standard deviations of a share."""
    return abs(count - n * share) < 3 * math.sqrt(n * share * (1 - share))


@pytest.mark.parametrize("unit", UNITS)
def test_a_row_keeps_its_promises(unit):
    """120 maskable tokens: 18 to predict. Special tokens and padding stay, unused slots weigh nothing."""
    for index in range(300):
        ids_T, made = masked(index, Masking(unit=unit))
        used = made.weights_P == 1
        n = int(used.sum())
        at = made.positions_P[:n]
        assert used[:n].all() and n <= 18 and (n == 18 or unit == "word")
        assert (np.diff(at) > 0).all() and (ids_T[at] >= 5).all()
        assert (made.labels_P[:n] == ids_T[at]).all()
        assert not made.positions_P[n:].any() and not made.labels_P[n:].any() and not made.weights_P[n:].any()
        untouched = np.setdiff1d(np.arange(T), at)
        assert (made.ids_T[untouched] == ids_T[untouched]).all()
        assert (made.ids_T != CLS)[1:].all() and ((made.ids_T >= 5) | (made.ids_T == MASK))[at].all()
        assert {a.dtype for a in made} == {np.dtype(np.int32), np.dtype(np.float32)}


@pytest.mark.parametrize("unit", UNITS)
def test_eighty_ten_ten(unit):
    """Of 10^5 predictions: 80 % masks, 10 % random, of which one in 995 is the token itself, 10 % as they were."""
    masks = kept = n = 0
    for index in range(5600):
        ids_T, made = masked(index, Masking(unit=unit))
        at = made.positions_P[made.weights_P == 1]
        n += len(at)
        masks += int((made.ids_T[at] == MASK).sum())
        kept += int((made.ids_T[at] == ids_T[at]).sum())
    assert n > 1e5 * 0.99
    # In spans the draws are one for 3 tokens or so: fewer, so the counts spread sqrt(tokens in a span) times as wide.
    wider = 1 if unit != "span" else 4
    assert near(masks // wider, n // wider, 0.8) and near(kept // wider, n // wider, 0.1 + 0.1 / len(ORDINARY))


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_every_token_is_as_likely_as_any_other(rate):
    """Devlin et al. 2019: 15 % of all tokens at random. Each position by itself, over 10^5 / 18 rows."""
    rows = 5600
    times_T = np.zeros(T)
    for index in range(rows):
        _, made = masked(index, Masking(rate=rate))
        times_T[made.positions_P[made.weights_P == 1]] += 1
    share = round(rate * 120) / 120
    times = np.concatenate([times_T[1:81], times_T[82:122]])
    z = (times - rows * share) / math.sqrt(rows * share * (1 - share))
    assert times_T.sum() == times.sum() == rows * share * 120
    assert abs(z).max() < 4 and 0.7 < z.std() < 1.3


def test_random_tokens_are_uniform_over_the_ordinary_ones():
    made = [masked(i, Masking(mask_share=0.0, random_share=1.0))[1] for i in range(5600)]
    drawn = np.concatenate([m.ids_T[m.positions_P[m.weights_P == 1]] for m in made])
    counts = np.bincount(drawn, minlength=V)
    assert not counts[:5].any()
    mean = len(drawn) / len(ORDINARY)
    z = (counts[5:] - mean) / math.sqrt(mean)
    assert abs(z).max() < 5 and 0.9 < z.std() < 1.1


def words_of(ids_T: np.ndarray) -> list[list[int]]:
    """Positions of each word, by a plain loop: the reference."""
    words: list[list[int]] = []
    for position, token in enumerate(ids_T):
        if token < 5:
            words.append([])  # a special token ends the word before it
        elif CONTINUES[token] and words and words[-1]:
            words[-1].append(position)
        else:
            words.append([position])
    return [word for word in words if word]


@pytest.mark.parametrize("unit", ["word", "span", "ngram"])
def test_words_are_never_split(unit):
    for index in range(300):
        ids_T, made = masked(index, Masking(unit=unit))
        at = set(made.positions_P[made.weights_P == 1].tolist())
        for word in words_of(ids_T):
            assert not at & set(word) or at >= set(word), (index, word)


def test_spans_share_one_fate():
    """With replacement per span, neighbours that are both chosen within a word are both masked or neither is."""
    for index in range(300):
        ids_T, made = masked(index, Masking(unit="span", mask_share=0.5, random_share=0.0))
        at = set(made.positions_P[made.weights_P == 1].tolist())
        for word in words_of(ids_T):
            if at >= set(word):
                assert len(set((made.ids_T[word] == MASK).tolist())) == 1


def test_spans_stop_at_special_tokens():
    """A [SEP] after every word: each span is one word, so words that follow each other have fates of their own."""
    ids_T = np.where(np.arange(200) % 2, SEP, 5)
    how, alike, n = Masking(rate=0.8, unit="span", mask_share=0.5, random_share=0.0), 0, 0
    for index in range(60):
        rng = objectives.generator(0, index)
        made = masking.mask(
            ids_T, ids_T != SEP, how, rng, mask_id=MASK, random_ids=ORDINARY, count=160, continues=CONTINUES
        )
        at = made.positions_P[made.weights_P == 1]
        is_masked = made.ids_T[at] == MASK
        alike, n = alike + int((is_masked[1:] == is_masked[:-1]).sum()), n + len(at) - 1
    assert near(alike, n, 0.5)


def test_lengths_of_spans():
    """Joshi et al. 2020, 3.1: geometric, p = 0.2, at most 10, 3.8 on average."""
    lengths = masking.span_lengths(objectives.generator(0, 0), 100_000)
    p = 0.2 * 0.8 ** np.arange(10)
    p /= p.sum()
    mean = (p * np.arange(1, 11)).sum()
    assert round(mean, 1) == 3.8
    assert abs(lengths.mean() - mean) < 3 * lengths.std() / math.sqrt(len(lengths))
    assert all(near(int((lengths == n).sum()), len(lengths), p[n - 1]) for n in range(1, 11))


def test_lengths_of_ngrams():
    """Lan et al. 2020, 4.1: 6/11, 3/11, 2/11."""
    lengths = masking.ngram_lengths(objectives.generator(0, 0), 100_000)
    assert [near(int((lengths == n).sum()), 100_000, 6 / 11 / n) for n in (1, 2, 3)] == [True] * 3
    assert set(lengths.tolist()) == {1, 2, 3}


def test_spans_are_longer_than_ngrams_than_words():
    """In rows, too: the mean run of chosen positions grows with the unit. (Runs that meet count as one.)"""

    def mean_run(unit):
        runs = tokens = 0
        for index in range(300):
            at = (made := masked(index, Masking(unit=unit))[1]).positions_P[made.weights_P == 1]
            runs, tokens = runs + 1 + int((np.diff(at) > 1).sum()), tokens + len(at)
        return tokens / runs

    token, word, ngram, span = (mean_run(unit) for unit in ("token", "word", "ngram", "span"))
    assert token < word < ngram < span and span > 3


def test_the_budget():
    assert [Masking().count(n) for n in (20, 128, 512)] == [3, 20, 77]  # BERT's 20 and 77 (512 * 0.15 = 76.8)
    _, made = masked(0, Masking(), count=5)
    assert made.weights_P.sum() == 5
    words = np.full(8, 3)  # one word of eight tokens does not fit into a budget of one: it is masked by its tokens
    made = masking.mask(
        words,
        np.ones(8, bool),
        Masking(unit="word"),
        objectives.generator(0, 0),
        mask_id=MASK,
        random_ids=ORDINARY,
        count=2,
        continues=CONTINUES,
    )
    assert made.weights_P.sum() == 1


def test_nothing_to_mask():
    for unit in UNITS:
        made = masking.mask(
            np.full(6, SEP),
            np.zeros(6, bool),
            Masking(unit=unit),
            objectives.generator(0, 0),
            mask_id=MASK,
            random_ids=ORDINARY,
            count=2,
            continues=CONTINUES,
        )
        assert not made.weights_P.any() and (made.ids_T == SEP).all()


@pytest.mark.parametrize("unit", UNITS)
def test_deterministic_in_seed_and_index(unit):
    """In any order; another seed or another index gives other masks."""
    forwards = [masked(i, Masking(unit=unit))[1] for i in range(20)]
    backwards = [masked(i, Masking(unit=unit))[1] for i in reversed(range(20))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert (masked(3, Masking(unit=unit), seed=1)[1].positions_P != forwards[3].positions_P).any()


def test_generators_are_apart():
    """(seed, index, stream): any change is another sequence, and a long one does not run into the next index's."""
    draws = {
        tuple(objectives.generator(*which).integers(1 << 62, size=4).tolist())
        for which in [(0, 0), (1, 0), (0, 1), (0, 0, 1), (1, 1), (2**40, 5), (5, 2**40)]
    }
    assert len(draws) == 7
    long = objectives.generator(0, 0).integers(1 << 62, size=10_000)
    assert not set(long.tolist()) & set(objectives.generator(0, 1).integers(1 << 62, size=100).tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, r"masking.rate = 0.0"),
        ({"rate": 1.5}, r"masking.rate = 1.5"),
        ({"unit": "phrase"}, r"masking.unit = 'phrase'"),
        ({"mask_share": 0.8, "random_share": 0.3}, r"random_share = 0.3"),
        ({"random_share": -0.1}, r"random_share = -0.1"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Masking(**settings)


def test_a_word_longer_than_the_budget_is_masked_by_its_tokens():
    """A text without spaces is one such word: without this, no token of its row would be predicted."""
    ids = np.arange(10, 74, dtype=np.int32)
    for unit in ("word", "span", "ngram"):
        made = masking.mask(
            ids,
            np.ones(64, bool),
            masking.Masking(unit=unit),
            np.random.default_rng(0),
            mask_id=1,
            random_ids=ids,
            count=10,
            continues=np.ones(80, bool),
        )
        assert made.weights_P.sum() == 10
