"""Decoding: against the forward pass repeated token by token, and each step of sampling against NumPy in float64."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.decoding import decode
from transformer_jax.decoding.decode import Sampling
from transformer_jax.errors import InputError
from transformer_jax.models import gpt

V = 40
CONFIGS = {
    "gpt2": gpt.Config(vocab_size=V, max_length=80, width=32, num_layers=2, num_heads=4, init_std=0.3),
    "llama": gpt.Config(
        vocab_size=V, max_length=80, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48, init_std=0.3,
        norm="rms", position="rotary", gated=True, activation="silu", bias=False, tie_embeddings=False,
    ),
    "relative": gpt.Config(
        vocab_size=V, max_length=80, width=32, num_layers=2, num_heads=4, init_std=0.3, position="relative"
    ),
    "alibi": gpt.Config(
        vocab_size=V, max_length=80, width=32, num_layers=2, num_heads=4, init_std=0.3, position="alibi"
    ),
}  # fmt: skip
PROMPTS = [[5, 1, 4], [2], [7, 7, 31, 0, 12, 9, 8, 3, 30]]  # 0 is a token like any other

generate = jax.jit(decode.generate, static_argnames=("model", "cfg", "sampling"))
apply = jax.jit(gpt.apply, static_argnums=1)


def run(cfg, prompts, sampling, keys_B=None, *, length=None, params=None):
    """`generate` with everything around it; the new tokens of each row, cut at its length, and the state."""
    padded = decode.left_pad(prompts, length=length)
    cache = gpt.init_cache(cfg, len(prompts), padded.tokens_BT.shape[1] + sampling.max_new_tokens - 1)
    keys_B = decode.row_keys(jax.random.key(1), len(prompts)) if keys_B is None else keys_B
    state = generate(gpt, make_params(cfg) if params is None else params, cfg, cache, padded, keys_B, sampling)
    return [row[:n].tolist() for row, n in zip(np.array(state.tokens_BM), state.length_B, strict=True)], state


def make_params(cfg):
    return gpt.init(jax.random.key(0), cfg)


class Fixed:
    """A model that has read nothing and knows one answer: its parameters are its logits [V]."""

    @staticmethod
    def for_decoding(params, cfg):
        return params

    @staticmethod
    def prefill(params, cfg, tokens_BT, cache, *, start_B):
        return jnp.broadcast_to(params, (tokens_BT.shape[0], len(params))), cache

    @staticmethod
    def decode_step(params, cfg, token_B, cache):
        return jnp.broadcast_to(params, (len(token_B), len(params))), cache


# ----------------------------------------------------------------------------------------------------- Against no cache


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scan", [True, False], ids=["scan", "unrolled"])
def test_greedy_equals_the_forward_pass_repeated(name, scan):
    cfg = dataclasses.replace(CONFIGS[name], scan_layers=scan)
    made, _ = run(cfg, PROMPTS, Sampling(64, temperature=0.0))
    params = make_params(cfg)
    tokens = np.zeros((3, 80), np.int32)  # padded on the right, which a causal model does not see
    ends = np.array([len(p) for p in PROMPTS])
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    for _ in range(64):
        logits = np.array(apply(params, cfg, tokens))[np.arange(3), ends - 1]
        tokens[np.arange(3), ends] = logits.argmax(-1)
        ends += 1
    for b, prompt in enumerate(PROMPTS):
        assert made[b] == tokens[b, len(prompt) : ends[b]].tolist()
    assert len({token for row in made for token in row}) > 5, "a constant answer would prove nothing"


# ---------------------------------------------------------------------------------------------------------- Stop tokens


def test_rows_stop_by_themselves_and_the_loop_when_all_have():
    cfg = CONFIGS["llama"]
    free, state = run(cfg, PROMPTS, Sampling(24, temperature=0.0))
    assert [len(row) for row in free] == [24] * 3 and int(state.step) == 24
    stops = free[0][3], free[1][6]
    made, state = run(cfg, PROMPTS, Sampling(24, temperature=0.0, stop_ids=stops))
    expected = [row[: min([row.index(s) for s in stops if s in row], default=23) + 1] for row in free]
    assert made == expected
    assert len({len(row) for row in expected}) > 1, "rows must end at different steps"
    for row, n, tokens in zip(made, state.length_B, state.tokens_BM, strict=True):
        assert row[-1] in stops or n == 24
        assert (tokens[n:] == stops[0]).all()
    assert int(state.step) == max(len(row) for row in expected)

    first = [row[0] for row in free]
    made, state = run(cfg, PROMPTS, Sampling(24, temperature=0.0, stop_ids=tuple(first)))
    assert made == [[token] for token in first] and int(state.step) == 1, "the prompts' own logits can end a row"


# ---------------------------------------------------------------------------------------------------------------- Draws


WILD = Sampling(12, temperature=1.3, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.2, stop_ids=(3,))


def test_a_row_is_its_own():
    """Neither the other rows, nor the place in the batch, nor the padding change what a row draws."""
    cfg = CONFIGS["gpt2"]
    keys_B = decode.row_keys(jax.random.key(5), [10, 11, 12])
    made, _ = run(cfg, PROMPTS, WILD, keys_B)
    flipped, _ = run(cfg, PROMPTS[::-1], WILD, keys_B[::-1], length=13)
    assert flipped == made[::-1]
    alone, _ = run(cfg, PROMPTS[1:2], WILD, keys_B[1:2])
    assert alone == made[1:2]
    again, _ = run(cfg, PROMPTS, WILD, keys_B)
    assert again == made
    other, _ = run(cfg, PROMPTS, WILD, decode.row_keys(jax.random.key(6), [10, 11, 12]))
    assert other != made
    same, _ = run(cfg, [PROMPTS[0]] * 3, WILD, keys_B)
    assert same[0] != same[1] != same[2], "rows with one prompt say different things"


def test_row_keys_are_the_numbers():
    key = jax.random.key(3)
    data = jax.random.key_data
    np.testing.assert_array_equal(data(decode.row_keys(key, 4)), data(decode.row_keys(key, [0, 1, 2, 3])))
    np.testing.assert_array_equal(data(decode.row_keys(key, 4)[2]), data(jax.random.fold_in(key, 2)))


def chi_square(tokens, probabilities):
    """Pearson's statistic; a token of probability 0 that was drawn makes it infinite."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    if counts[probabilities == 0].any():
        return np.inf
    expected = (probabilities * len(tokens))[probabilities > 0]
    return float((((counts[probabilities > 0] - expected) ** 2) / expected).sum())


def draw(logits_V, seen_V, sampling, number=40_000):
    keys_B = decode.row_keys(jax.random.key(11), number)
    shape = (number, len(logits_V))
    seen_BV = None if seen_V is None else jnp.broadcast_to(seen_V, shape)
    return np.array(decode.choose(jnp.broadcast_to(logits_V, shape), seen_BV, keys_B, 7, sampling))


LOGITS = np.array([2.0, 1.6, 1.1, 0.9, 0.2, -0.4, -0.5, -1.5], np.float32)
SEEN = np.array([1, 0, 0, 1, 0, 0, 1, 0], bool)
LIMIT = 29.9  # of chi-square with 7 degrees of freedom: one in 10,000 fair draws is above


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1),
        Sampling(1, temperature=0.6),
        Sampling(1, temperature=2.0, top_k=5),
        Sampling(1, temperature=1.5, top_p=0.8),
        Sampling(1, min_p=0.3),
        Sampling(1, repetition_penalty=1.7),
        Sampling(1, temperature=1.4, top_k=7, top_p=0.93, min_p=0.21, repetition_penalty=1.5),
    ],
    ids=str,
)
def test_draws_have_the_distribution(sampling):
    seen = SEEN if sampling.repetition_penalty != 1.0 else None
    tokens = draw(LOGITS, seen, sampling)
    probabilities = naive(LOGITS, SEEN, sampling)
    assert chi_square(tokens, probabilities) < LIMIT
    bent = 0.97 * probabilities + 0.03 * (np.arange(8) == 1)
    assert chi_square(tokens, bent) > LIMIT, "40,000 draws see three percent"


def test_a_rows_draws_are_independent():
    """The pairs of a row's second and third token, over many rows, are spread evenly over the sixteen."""
    rows = 4000
    cache, prompts = gpt.init_cache(CONFIGS["gpt2"], rows, 4), decode.left_pad([[0]] * rows)
    keys_B = decode.row_keys(jax.random.key(2), rows)
    made = generate(Fixed, jnp.zeros(4), None, cache, prompts, keys_B, Sampling(3)).tokens_BM
    assert chi_square(np.asarray(4 * made[:, 1] + made[:, 2]), np.full(16, 1 / 16)) < 44.3  # 15 degrees of freedom


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-45, 1e-300])
def test_the_smaller_the_temperature_the_surer_the_largest(temperature):
    """Whatever float32 makes of the division: the limit is greedy, with and without the filters."""
    close = np.array([40.0, 0.0, 39.0, -100.0], np.float32)
    for sampling in (Sampling(1, temperature), Sampling(1, temperature, top_k=2, top_p=0.9, min_p=0.1)):
        assert not draw(close, None, sampling, number=8).any()


def test_extreme_settings_leave_numbers():
    """Temperatures and penalties beyond float32 neither divide by zero nor subtract infinity from infinity."""
    hot = draw(LOGITS, None, Sampling(1, 1e300), number=400)
    assert len(np.unique(hot)) == len(LOGITS)  # close to uniform
    favoured = draw(LOGITS, SEEN, Sampling(1, 0.7, repetition_penalty=1e-300), number=50)
    assert set(favoured.tolist()) <= {0, 3}  # seen and positive
    shunned = draw(LOGITS, SEEN, Sampling(1, 1e-6, repetition_penalty=1e300), number=50)
    assert set(shunned.tolist()) == {1}


def test_greedy_takes_the_largest_after_the_penalty():
    tokens = draw(LOGITS, None, Sampling(1, temperature=0.0, top_k=3, top_p=0.5), number=4)
    assert tokens.tolist() == [0] * 4
    tokens = draw(LOGITS, SEEN, Sampling(1, temperature=0.0, repetition_penalty=1.5), number=4)
    assert tokens.tolist() == [1] * 4


# --------------------------------------------------------------------------------- Each step of choosing, against NumPy


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def naive_penalty(x, seen, penalty):
    return np.array([(v * penalty if v < 0 else v / penalty) if s else v for v, s in zip(x, seen, strict=True)])


def naive_top_k(x, k):
    kth = sorted(x)[::-1][: len(x)][min(k, len(x)) - 1]
    return np.array([v if v >= kth else -np.inf for v in x])


def naive_top_p(x, p):
    """As Transformers has it: from the least likely up, drop tokens while their sum stays within 1 - p; keep one."""
    probabilities, out, dropped = softmax(x), x.copy(), 0.0
    for token in np.argsort(x, kind="stable")[:-1]:
        dropped += probabilities[token]
        if dropped > 1 - p:
            break
        out[token] = -np.inf
    return out


def naive_min_p(x, p):
    probabilities = softmax(x)
    return np.where(probabilities < p * probabilities.max(), -np.inf, x)


def naive(logits, seen, s):
    """The probabilities of one draw, with the steps in Transformers' order."""
    x = naive_penalty(logits.astype(np.float64), seen, s.repetition_penalty) / s.temperature
    x = naive_top_k(x, s.top_k) if s.top_k else x
    return softmax(naive_min_p(naive_top_p(x, s.top_p), s.min_p))


RANDOM = np.random.default_rng(0).normal(0, 2, (50, V)).astype(np.float32)


def check(ours, theirs):
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, V, V + 5])
def test_top_k(k):
    check(decode.keep_top_k(RANDOM, k), [naive_top_k(x, k) for x in RANDOM.astype(np.float64)])
    tied = np.array([[3.0, 1.0, 1.0, 0.0]], np.float32)
    check(decode.keep_top_k(tied, 2), [[3.0, 1.0, 1.0, -np.inf]])


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p(p):
    check(decode.keep_top_p(RANDOM, p), [naive_top_p(x, p) for x in RANDOM.astype(np.float64)])
    # After top-k some tokens have no probability at all.
    cut = np.where(np.arange(V) % 3 == 0, -np.inf, RANDOM)
    check(decode.keep_top_p(cut, p), [naive_top_p(x, p) for x in cut.astype(np.float64)])
    tied = np.log(np.array([[0.4, 0.2, 0.2, 0.2]], np.float32))
    np.testing.assert_array_equal(np.isinf(decode.keep_top_p(tied, 0.5)), [[False] * 4])


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p(p):
    check(decode.keep_min_p(RANDOM, p), [naive_min_p(x, p) for x in RANDOM.astype(np.float64)])


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty(penalty):
    seen = np.random.default_rng(1).random((50, V)) < 0.3
    theirs = [naive_penalty(x, s, penalty) for x, s in zip(RANDOM.astype(np.float64), seen, strict=True)]
    check(decode.penalize_repetition(RANDOM, seen, penalty), theirs)


def test_the_penalty_sees_prompt_and_new_tokens_and_no_padding():
    """Logits that never change: greedy decoding then names the vocabulary in order, the prompt's tokens last of all."""

    params = jnp.array([1.0, 0.99, 0.98, 0.97, 0.96])
    padded = decode.left_pad([[1], [4, 2, 3]])  # row 0 is padded with zeros, and 0 must not count as said
    cache = gpt.init_cache(CONFIGS["gpt2"], 2, 10)
    sampling = Sampling(5, temperature=0.0, repetition_penalty=2.0)
    state = decode.generate(Fixed, params, None, cache, padded, decode.row_keys(jax.random.key(0), 2), sampling)
    assert state.tokens_BM.tolist() == [[0, 2, 3, 4, 0], [0, 1, 0, 0, 0]]


# ---------------------------------------------------------------------------------------------- Streaming, compilations


@pytest.mark.parametrize("chunk", [1, 5])
def test_stream_gives_the_same_tokens(chunk):
    cfg = CONFIGS["llama"]
    for sampling in (WILD, Sampling(12, temperature=0.0)):
        _, state = run(cfg, PROMPTS, sampling)
        columns = decode.stream(
            gpt, make_params(cfg), cfg, gpt.init_cache(cfg, 3, 20), decode.left_pad(PROMPTS),
            decode.row_keys(jax.random.key(1), 3), sampling, chunk=chunk,
        )  # fmt: skip
        streamed = np.stack(list(columns), axis=1)
        assert streamed.shape[1] == int(state.step)
        np.testing.assert_array_equal(streamed, state.tokens_BM[:, : streamed.shape[1]])


def test_one_compilation_for_many_calls():
    cfg, params = CONFIGS["gpt2"], make_params(CONFIGS["gpt2"])
    sampling = Sampling(6, temperature=0.7, stop_ids=(1,))
    functions = (generate, decode._start, decode._advance)
    before = [f._cache_size() for f in functions]
    for seed, prompts in enumerate([[[1, 2], [3]], [[4], [5, 6, 7, 8]]]):
        padded, keys_B = decode.left_pad(prompts, length=8), decode.row_keys(jax.random.key(seed), 2)
        generate(gpt, params, cfg, gpt.init_cache(cfg, 2, 13), padded, keys_B, sampling)
        list(decode.stream(gpt, params, cfg, gpt.init_cache(cfg, 2, 13), padded, keys_B, sampling, chunk=2))
    assert [f._cache_size() for f in functions] == [n + 1 for n in before]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_loop_copies_neither_the_cache_nor_the_kernels(batch):
    """A token's work is one read of the weights and of the cache; a copy of either would double it."""
    cfg = gpt.Config(
        vocab_size=101, max_length=64, width=48, num_layers=3, num_heads=4, mlp_width=112, scan_layers=False
    )
    prompts, keys_B = decode.left_pad([[1, 2, 3]] * batch), decode.row_keys(jax.random.key(0), batch)
    arguments = gpt, make_params(cfg), cfg, gpt.init_cache(cfg, batch, 52), prompts, keys_B
    lowered = generate.lower(*arguments, Sampling(50, temperature=0.0))
    program = lowered.compile().as_text()
    assert "while(" in program and f"f32[3,{batch},4,52,12]" in program
    moved = re.findall(r"= (f32\[[\d,]+\])\S* (?:copy|slice|dynamic-slice|transpose)\(.*while/body", program)
    kernels = {"f32[48,48]", "f32[48,112]", "f32[112,48]", "f32[1,48,48]", "f32[1,48,112]", "f32[1,112,48]"}
    assert not {f"f32[3,{batch},4,52,12]", "f32[101,48]", "f32[48,101]", *kernels} & set(moved)


# ------------------------------------------------------------------------------------------------------------ Bad input


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.01), ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0.0),
        ("stop_ids", (3, -1)),
    ],
)  # fmt: skip
def test_sampling_is_checked(field, value):
    with pytest.raises(InputError, match=field):
        Sampling(**{field: value})


def test_left_pad():
    padded = decode.left_pad([[5, 1], [2]], length=3)
    np.testing.assert_array_equal(padded.tokens_BT, [[0, 5, 1], [0, 0, 2]])
    np.testing.assert_array_equal(padded.start_B, [1, 2])
    for prompts, length, message in [
        ([], None, "0 prompts"),
        ([[1], []], None, "prompt 1 is empty"),
        ([[1, 2, 3]], 2, "longest of 3 tokens, for 2"),
    ]:
        with pytest.raises(InputError, match=message):
            decode.left_pad(prompts, length=length)


@pytest.mark.parametrize(
    ("prompt", "new", "context", "expected"),
    [
        (10, 20, 64, (10, 20)),
        (45, 20, 64, (45, 20)),  # the last token is made and never read
        (46, 20, 64, (45, 20)),
        (6, 500, 64, (6, 59)),
        (500, 500, 64, (32, 33)),
        (500, 1, 64, (64, 1)),
        (3, 5, 1, (1, 1)),
    ],
)
def test_what_fits_a_context(prompt, new, context, expected):
    assert decode.fit(prompt, new, context) == expected
    assert sum(expected) - 1 <= context


def test_the_whole_context_can_be_used_and_no_more():
    cfg = CONFIGS["gpt2"]
    kept, new = decode.fit(200, 3, cfg.max_length)
    prompt = np.random.default_rng(0).integers(0, V, 200)[-kept:]
    made, _ = run(cfg, [prompt], Sampling(new, temperature=0.0))
    tokens = [*prompt, *made[0]]
    assert len(tokens) == cfg.max_length + 1
    assert made[0] == np.array(apply(make_params(cfg), cfg, np.array([tokens[:-1]])))[0, -3:].argmax(-1).tolist()
    with pytest.raises(ValueError, match="need 6 slots; the cache has 5"):
        decode.generate(
            gpt, make_params(cfg), cfg, gpt.init_cache(cfg, 1, 5), decode.left_pad([[1, 2]]),
            decode.row_keys(jax.random.key(0), 1), Sampling(5),
        )  # fmt: skip
