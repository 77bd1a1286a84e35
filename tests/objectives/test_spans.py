"""Gaps and what fills them: published lengths, the pair gives the text back, and the statistics of the papers."""

import math

import numpy as np
import pytest

from transformer_jax import objectives
from transformer_jax.errors import InputError
from transformer_jax.objectives.spans import Marks, PrefixLM, SpanCorruption, TextInfilling, split_sentences

V, STOP, EOS, BOS, MASK = 1000, 10, 1, 2, 3
SENTINELS = np.arange(V - 1, V - 101, -1).astype(np.int32)
T5 = Marks(end=EOS, sentinels=SENTINELS)
BART = Marks(end=EOS, begin=(BOS,), mask=MASK, ends_sentence=np.arange(V) == STOP)


def text(index: int, length: int) -> np.ndarray:
    """Words that are all different, so that a token tells where it was; every seventh or so is a full stop."""
    rng = np.random.default_rng(index)
    ids = np.arange(20, 20 + length).astype(np.int32)
    return np.where(rng.random(length) < 1 / 7, STOP, ids).astype(np.int32)


def pairs(objective, marks, *, length: int, count: int, seed: int = 0):
    for i in range(count):
        ids = text(i, length)
        yield ids, *objective.make(ids, objectives.generator(seed, i), marks)


# ---- T5


@pytest.mark.parametrize(
    ("objective", "length", "raw", "target"),
    [
        (SpanCorruption(), 512, 568, 114),  # Raffel et al. 2020, section 3.1.4: the baseline objective
        (SpanCorruption(0.2, 2.0), 64, 70, 22),  # t5's own tests, test_random_spans_helper
        (SpanCorruption(0.2, 1.0), 64, 63, 27),
    ],
)
def test_published_lengths(objective, length, raw, target):
    assert objective.sizes(length) == (raw, length, target)


def test_hidden_tokens_and_spans_of_t5s_own_test():
    assert SpanCorruption(0.25, 2.0).hidden(32) == (8, 4)  # test_random_spans_noise_mask
    assert SpanCorruption().hidden(568) == (85, 28)


@pytest.mark.parametrize("length", [3, 4, 5, 16, 100, 512])
@pytest.mark.parametrize("objective", [SpanCorruption(), SpanCorruption(0.5), SpanCorruption(0.8, 1.0)])
def test_rows_are_full(objective, length):
    """No padding whatever the draw, and no longer text would fit."""
    raw, source, target = objective.sizes(length)
    marks = Marks(end=EOS, sentinels=np.arange(10**4, 10**4 + raw))
    made = objective.make(np.arange(20, 20 + raw), objectives.generator(0, 5), marks)
    assert (len(made.source), len(made.target)) == (source, target) and source <= length
    hidden, spans = objective.hidden(raw + 1)
    assert raw + 1 - hidden + spans + 1 > length


def test_target_put_into_source_is_the_text():
    """A sentinel of the source stands for what follows it in the target; they come in the order given."""
    for ids, source, target in pairs(SpanCorruption(), T5, length=568, count=100):
        assert source.dtype == target.dtype == np.int32 and source[-1] == target[-1] == EOS
        at = np.flatnonzero(np.isin(target, SENTINELS))
        assert (target[at] == SENTINELS[: len(at)]).all() and at[0] == 0
        fills = dict(zip(target[at].tolist(), np.split(target[:-1], at[1:]), strict=True))
        filled = [fills[token][1:] if token in fills else [token] for token in source[:-1].tolist()]
        np.testing.assert_array_equal(np.concatenate(filled), ids)
        assert [token for token in source if token in fills] == list(fills)


def test_density_and_spans_are_as_stated():
    """28 spans of 85 tokens in each; every division as likely: the first of M parts of N has P(size = 1) = (M-1)/(N-1).
    A text begins with a kept token and ends with a hidden one, as T5's; between them places are hidden as often."""
    ones, hidden = 0, np.zeros(568)
    for i in range(2000):
        target = SpanCorruption().make(np.arange(20, 588), objectives.generator(0, i), T5).target
        at = np.flatnonzero(target >= SENTINELS[27])
        sizes = np.diff(at, append=len(target) - 1) - 1
        assert len(sizes) == 28 and sizes.sum() == 85 and sizes.min() >= 1
        ones += int(sizes[0] == 1)
        hidden[target[target >= 20][target[target >= 20] < 588] - 20] += 1
    p = 27 / 84
    assert abs(ones - 2000 * p) < 3 * math.sqrt(2000 * p * (1 - p))
    assert hidden[0] == 0 and hidden[-1] == 2000 and hidden.sum() == 2000 * 85
    assert abs(hidden[50:-50].mean() / 2000 - 0.146) < 0.005 and hidden[50:-50].max() < 2000 * 0.2


# ---- BART


def test_a_mask_for_each_span():
    """Without permutation: what is not in the source lies where its masks are, 30 % of the tokens."""
    objective = TextInfilling(permute_sentences=False)
    for i in range(200):
        ids = np.arange(20, 220)
        source, target = objective.make(ids, objectives.generator(0, i), BART)
        assert target.tolist() == [BOS, *ids, EOS] and source[0] == BOS and source[-1] == EOS
        runs = np.split(source[1:-1], np.flatnonzero(source[1:-1] == MASK))
        kept = [run[run != MASK] for run in runs]
        assert sum(map(len, kept)) == 140
        assert all((np.diff(run) == 1).all() for run in kept), "within a run nothing is missing: each gap has its mask"
        assert all(len(run) for run in kept[1:-1]), "no two masks touch"
        edges = [19, *(edge for run in kept if len(run) for edge in (run[0], run[-1])), 220]
        spans = np.diff(edges)[::2] - 1  # what lies between two runs; 0 at the ends, if there is no mask
        assert spans.sum() == 60 and (source == MASK).sum() == len(runs) - 1 >= (spans > 0).sum()


def test_span_lengths_are_poisson():
    """Lambda 3: the mean, the shares of empty ones and of threes; the last span of a row, cut to fit, left out."""
    sizes = np.concatenate([TextInfilling()._spans(600, 1401, objectives.generator(0, i))[:-1] for i in range(60)])
    assert len(sizes) > 10_000
    assert abs(sizes.mean() - 3) < 3 * math.sqrt(3 / len(sizes)) + 0.02  # + the bias of stopping at a sum
    for k in (0, 3):
        p = math.exp(-3) * 3**k / math.factorial(k)
        assert abs((sizes == k).sum() - len(sizes) * p) < 3.5 * math.sqrt(len(sizes) * p * (1 - p))


def test_empty_spans_put_a_mask_between_neighbours():
    ids = np.arange(20, 220)
    found = 0
    for i in range(20):
        source = TextInfilling(permute_sentences=False).make(ids, objectives.generator(0, i), BART).source
        at = np.flatnonzero(source == MASK)
        found += int((source[at + 1] == source[at - 1] + 1).sum())
    assert found > 5  # e^-3 of about 20 spans in each of 20 texts: 20, and 4 either way


def test_permutation_keeps_sentences():
    objective = TextInfilling(rate=0.0)
    moved = 0
    for ids, source, target in pairs(objective, BART, length=100, count=100):
        before = [sentence.tolist() for sentence in split_sentences(ids, BART.ends_sentence)]
        assert target.tolist() == [BOS, *ids, EOS] and len(before) > 3
        inner = source[1:-1].tolist()
        assert sorted(inner) == sorted(ids.tolist())
        whole = "," + ",".join(map(str, inner)) + ","
        assert all("," + ",".join(map(str, sentence)) + "," in whole for sentence in before)
        moved += inner != ids.tolist()
    assert moved > 95


def test_sentences_end_after_the_last_of_several_stops():
    ids = np.array([20, 21, STOP, STOP, STOP, 22, STOP, 23])
    found = [sentence.tolist() for sentence in split_sentences(ids, BART.ends_sentence)]
    assert found == [[20, 21, STOP, STOP, STOP], [22, STOP], [23]]


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("length", [4, 5, 9, 64])
def test_infilling_fits_its_rows(rate, length):
    objective = TextInfilling(rate=rate, mean_span=0.5)
    raw, source, target = objective.sizes(length)
    for i in range(50):
        made = objective.make(text(i, raw), objectives.generator(0, i), BART)
        assert len(made.source) <= source and len(made.target) == target == raw + 2


# ---- Prefix LM


def test_prefix_and_continuation_are_the_text():
    cuts = []
    for ids, source, target in pairs(PrefixLM(), BART, length=20, count=2000):
        assert source[0] == target[0] == BOS and source[-1] == target[-1] == EOS
        np.testing.assert_array_equal(np.concatenate([source[1:-1], target[1:-1]]), ids)
        cuts.append(len(source) - 2)
    counts = np.bincount(cuts, minlength=20)[1:]
    assert len(counts) == 19 and counts.min() > 0  # every cut, about 105 times each
    assert ((counts - 2000 / 19) ** 2 / (2000 / 19)).sum() < 42.3  # chi-squared, 18 degrees of freedom, p = 0.001
    raw, source_length, target_length = PrefixLM().sizes(21)
    assert raw == 20 and source_length >= max(cuts) + 2 and target_length >= 20 - min(cuts) + 2


# ---- All


@pytest.mark.parametrize("objective", [SpanCorruption(), TextInfilling(), PrefixLM()], ids=lambda o: type(o).__name__)
def test_a_pair_tells_its_text(objective):
    marks = Marks(end=EOS, begin=(BOS,), mask=MASK, sentinels=SENTINELS, ends_sentence=BART.ends_sentence)
    for ids, source, target in pairs(objective, marks, length=100, count=20):
        assert source[0] == target[0] == BOS and source[-1] == target[-1] == EOS
        np.testing.assert_array_equal(objective.restore(source, target, marks), ids)


def test_what_a_model_makes_is_read_as_far_as_it_goes():
    """It ends too early, names a sentinel that nobody asked for, and leaves one out, which stays."""
    source, made = np.array([20, V - 1, 21, V - 2, EOS]), np.array([40, V - 1, 30, 31, V - 9, 32])
    assert SpanCorruption().restore(source, made, T5).tolist() == [20, 30, 31, 21, V - 2]
    assert TextInfilling().restore(source, np.array([20, 30]), BART).tolist() == [20, 30]


@pytest.mark.parametrize(("objective", "marks"), [(SpanCorruption(), T5), (TextInfilling(), BART), (PrefixLM(), BART)])
def test_a_function_of_seed_and_index(objective, marks):
    def drawn(seed, index):
        return [side.tolist() for side in objective.make(text(0, 64), objectives.generator(seed, index), marks)]

    assert drawn(0, 7) == drawn(0, 7) != drawn(0, 8) and drawn(1, 7) != drawn(0, 7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: SpanCorruption(rate=1.0), r"objective.rate = 1.0: must be above 0 and below 1"),
        (lambda: SpanCorruption(mean_span=0.5), r"objective.mean_span = 0.5: must be 1 or more"),
        (lambda: SpanCorruption().sizes(2), r"data.length = 2 has no room for span corruption; give 3 or more"),
        (lambda: TextInfilling(rate=1.0), r"objective.rate = 1.0"),
        (lambda: TextInfilling(mean_span=0.0), r"objective.mean_span = 0.0"),
        (lambda: TextInfilling().sizes(3), r"data.length = 3 has no room"),
        (lambda: PrefixLM().sizes(2), r"data.length = 2 has no room"),
    ],
)
def test_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
