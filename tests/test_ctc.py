"""CTC: the loss against a sum over all paths in float64, and decoding against an enumeration of a tiny alphabet."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import metrics
from transformer_jax.decoding import ctc as decoding
from transformer_jax.errors import InputError
from transformer_jax.losses import ctc


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def by_enumeration(log_p_TV, blank=0):
    """{labels: log p}, over every path of T frames."""
    found = {}
    for path in itertools.product(range(log_p_TV.shape[1]), repeat=len(log_p_TV)):
        merged = [symbol for symbol, _ in itertools.groupby(path)]
        labels = tuple(symbol for symbol in merged if symbol != blank)
        log_p = sum(log_p_TV[t, symbol] for t, symbol in enumerate(path))
        found[labels] = np.logaddexp(found.get(labels, -np.inf), log_p)
    return found


def forward(log_p_TV, labels, blank):
    """-log p of the labels by the recursion of Graves et al. 2006, section 4.1, in float64."""
    states = [blank, *itertools.chain.from_iterable((label, blank) for label in labels)]
    alpha = np.full(len(states), -np.inf)
    alpha[:2] = log_p_TV[0, states[:2]]
    for log_p_V in log_p_TV[1:]:
        before = alpha.copy()
        for s, symbol in enumerate(states):
            skips = s > 1 and symbol != blank and symbol != states[s - 2]
            ways = [before[s], *(before[s - back] for back in (1, 2)[: (s > 0) + skips])]
            alpha[s] = np.logaddexp.reduce(ways) + log_p_V[symbol]
    return -np.logaddexp.reduce(alpha[-2:])


ROWS = [([2, 1, 1, 3], 9), ([3], 4), ([1, 2, 3, 1, 2], 5), ([], 3), ([2, 2, 2], 9)]


@pytest.fixture(scope="module")
def computed():
    """(logits, loss of each row, gradient of the weighted sum): one compilation for all rows."""
    B, T, V, S, blank = len(ROWS), 9, 4, 5, 0
    logits_BTV = np.random.default_rng(0).normal(size=(B, T, V)).astype(np.float32) * 2
    labels_BS = np.zeros((B, S), np.int32)
    for row, (labels, _) in zip(labels_BS, ROWS, strict=True):
        row[: len(labels)] = labels
        row[len(labels) :] = labels[-1:] or 1  # padding that equals the last label must not count as a repeat
    frames_B, sizes_B = np.array([frames for _, frames in ROWS]), np.array([len(labels) for labels, _ in ROWS])
    weights_B = np.array([1.0, 2.0, 0.5, 1.0, 0.0], np.float32)

    def total(logits_BTV, weights_B):
        return ctc.ctc(logits_BTV, frames_B, labels_BS, sizes_B, weights_B, blank=blank).sum

    both = jax.jit(jax.value_and_grad(total))
    each = [float(both(logits_BTV, jnp.eye(B)[b])[0]) for b in range(B)]
    return logits_BTV, each, np.asarray(both(logits_BTV, weights_B)[1]), weights_B


def test_the_loss_is_that_of_the_recursion_and_of_all_paths(computed):
    logits_BTV, each, _, _ = computed
    for row, (labels, frames) in enumerate(ROWS):
        log_p_TV = log_softmax(logits_BTV[row])[:frames]
        wanted = forward(log_p_TV, labels, 0)
        assert each[row] == pytest.approx(wanted, rel=1e-5)
        if frames <= 5:
            assert wanted == pytest.approx(-by_enumeration(log_p_TV)[tuple(labels)], rel=1e-9)


def test_the_gradient_is_that_of_float64_differences(computed):
    logits_BTV, _, gradient, weights_B = computed
    for row, (labels, frames) in enumerate(ROWS):
        for t, v in itertools.product(range(9), range(4)):
            moved = np.repeat(logits_BTV[row][None].astype(np.float64), 2, 0)
            moved[:, t, v] += (1e-5, -1e-5)
            up, down = (forward(log_softmax(one)[:frames], labels, 0) for one in moved)
            assert gradient[row, t, v] == pytest.approx(weights_B[row] * (up - down) / 2e-5, abs=2e-5)


def test_a_certain_row_is_not_below_zero_and_still_has_a_gradient():
    logits = jnp.full((1, 300, 5), -20.0).at[:, ::2, 1].set(20.0).at[:, 1::2, 0].set(20.0)
    arguments = (np.array([300]), np.ones((1, 150), np.int32), np.array([150]))
    value, gradient = jax.value_and_grad(lambda x: ctc.ctc(x, *arguments).sum)(logits)
    assert 0.0 <= float(value) < 1e-3 and np.isfinite(gradient).all()


def test_frames_needed():
    assert [ctc.frames_needed(np.array(x, int)) for x in ([], [1], [1, 1], [1, 2, 2, 2, 1])] == [0, 1, 3, 7]


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_is_the_enumeration(seed):
    log_p_TV = log_softmax(np.random.default_rng(seed).normal(size=(6, 3)) * 1.5)
    wanted = sorted(by_enumeration(log_p_TV).items(), key=lambda one: -one[1])[:8]
    found = decoding.prefix_beam(log_p_TV, width=500, nbest=8)
    assert [one.labels for one in found] == [labels for labels, _ in wanted]
    np.testing.assert_allclose([one.score for one in found], [score for _, score in wanted], rtol=1e-9)


def test_a_language_model_adds_its_log_probabilities():
    log_p_TV = log_softmax(np.random.default_rng(3).normal(size=(5, 3)))
    table = log_softmax(np.random.default_rng(4).normal(size=(3, 3)))  # of the next label by the last one

    def model(prefix):
        return table[prefix[-1] if prefix else 0]

    def said(labels):
        before = (0, *labels)
        return sum(table[a, b] for a, b in zip(before, (*labels, 0), strict=True))

    wanted = {x: p + 0.7 * said(x) + 0.2 * len(x) for x, p in by_enumeration(log_p_TV).items()}
    found = decoding.prefix_beam(log_p_TV, width=500, nbest=5, language_model=model, weight=0.7, bonus=0.2)
    best = sorted(wanted.items(), key=lambda one: -one[1])[:5]
    assert [one.labels for one in found] == [labels for labels, _ in best]
    np.testing.assert_allclose([one.score for one in found], [score for _, score in best], rtol=1e-9)


def test_a_beam_of_one_symbol_is_greedy_and_greedy_merges():
    assert decoding.collapsed(np.array([0, 1, 1, 0, 1, 2, 2, 0, 0])) == [1, 1, 2]
    assert decoding.greedy(np.zeros((0, 3))) == [] and decoding.collapsed(np.array([2, 2, 1]), blank=2) == [1]
    for given in ({"width": 0}, {"nbest": 20}, {"symbols": 0}):
        with pytest.raises(InputError, match="each at least 1"):
            decoding.prefix_beam(np.zeros((2, 3)), **given)


def test_the_alignment_is_the_best_path_of_the_labels():
    rows = [([1, 2], 7), ([1, 1], 7), ([2, 1, 2], 5), ([], 6), ([2], 1)]
    log_p_BTV = log_softmax(np.random.default_rng(5).normal(size=(len(rows), 7, 3)) * 2)
    labels_BS = np.zeros((len(rows), 3), np.int32)
    for row, (labels, _) in zip(labels_BS, rows, strict=True):
        row[: len(labels)] = labels
    given = (np.array([steps for _, steps in rows]), labels_BS, np.array([len(labels) for labels, _ in rows]))
    path_BT = np.asarray(jax.jit(decoding.align)(log_p_BTV.astype(np.float32), *given))
    lasts_BS = np.asarray(jax.jit(decoding.durations)(log_p_BTV.astype(np.float32), *given))
    for log_p_TV, path_T, lasts_S, (labels, steps) in zip(log_p_BTV, path_BT, lasts_BS, rows, strict=True):
        path_T = path_T[:steps]
        symbols = [labels[s] if s >= 0 else 0 for s in path_T]
        assert decoding.collapsed(np.array(symbols)) == labels and (np.diff(path_T[path_T >= 0]) >= 0).all()
        paths = [p for p in itertools.product(range(3), repeat=steps) if decoding.collapsed(np.array(p)) == labels]
        best = max(sum(log_p_TV[t, symbol] for t, symbol in enumerate(path)) for path in paths)
        assert sum(log_p_TV[t, symbol] for t, symbol in enumerate(symbols)) == pytest.approx(best)
        assert lasts_S.sum() == (steps if labels else 0) and (lasts_S[: len(labels)] > 0).all()
        token_T = np.repeat(np.arange(3), lasts_S)
        assert all(path_T[t] in (-1, token) for t, token in enumerate(token_T))


def test_error_rates_of_transcripts():
    made = ["seven  hundred and one", "", "the the cat", "exact"]
    wanted = ["seven hundred one", "two words", "the cat", "exact"]
    rates = metrics.error_rates(made, wanted)
    assert rates["wer"] == pytest.approx((1 + 2 + 1 + 0) / 8)
    letters = sum(map(len, wanted))
    assert rates["cer"] == pytest.approx((4 + 9 + 4 + 0) / letters)
    assert rates["wer_low"] <= rates["wer"] <= rates["wer_high"]
    assert metrics.error_rates([""] * 3, ["a b", "c", "d e"])["wer"] == 1.0
    assert metrics.error_rates(["a b c"], ["a"])["wer"] == 2.0


def test_error_rates_are_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer")
    rng, words = np.random.default_rng(0), ["one", "two", "three", "four", "five"]
    texts = [[" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(40)] for _ in range(2)]
    rates = metrics.error_rates(*texts)
    assert rates["wer"] == pytest.approx(jiwer.wer(texts[1], texts[0]))
    assert rates["cer"] == pytest.approx(jiwer.cer(texts[1], texts[0]))
