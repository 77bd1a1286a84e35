"""Beam search: against all sentences there are, against a plain Python search, and against greedy decoding."""

import dataclasses
import functools
import itertools
import math
import re

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from transformer_jax.decoding import beam, decode
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.models import gpt

search = jax.jit(beam.search, static_argnames=("model", "cfg", "settings"))


# ------------------------------------------------------------------------------ A model that is a table of all prefixes


@flax.struct.dataclass
class Place:
    """Where each row is in its tree: node 0 is the root, and token t leads from node n to node n * V + 1 + t."""

    tree_B: jax.Array
    node_B: jax.Array
    num_slots: int = flax.struct.field(pytree_node=False, default=1000)


class Tree:
    """A model whose parameters are its logits after every prefix, [trees, nodes, V]; its cache is the prefix."""

    @staticmethod
    def for_decoding(params, cfg):
        return params

    @staticmethod
    def prefill(params, cfg, tokens_BT, cache, *, start_B):
        return params[cache.tree_B, cache.node_B], cache

    @staticmethod
    def decode_step(params, cfg, token_B, cache):
        node_B = cache.node_B * params.shape[-1] + 1 + token_B
        return params[cache.tree_B, node_B], dataclasses.replace(cache, node_B=node_B)

    @staticmethod
    def reorder(cache, rows_R):
        return jax.tree.map(lambda x: x[rows_R], cache)

    @staticmethod
    def repeat(cache, times):
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), cache)


V, M, STOP = 5, 6, 4
NODES = sum(V**depth for depth in range(M))


def forest(trees, *, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (trees, NODES, V)).astype(np.float32)


def find(trees, settings, prompts=None, run=search):
    """`search` over trees: for each, its hypotheses as (tokens, score), best first; and the steps made."""
    B = len(trees)
    place = Place(jnp.arange(B), jnp.zeros(B, jnp.int32))
    return said(run(Tree, jnp.asarray(trees), None, place, decode.left_pad(prompts or [[0]] * B), settings))


def said(found):
    """The hypotheses of each row as [(tokens, score), ...], and the steps made."""
    rows = zip(np.array(found.tokens_BKM), np.array(found.length_BK), np.array(found.score_BK), strict=True)
    made = [[(tuple(t[:n].tolist()), float(s)) for t, n, s in zip(*row, strict=True) if s > -np.inf] for row in rows]
    return made, int(found.step)


def log_probs(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def node(tokens):
    """The number of a prefix."""
    return 0 if not tokens else node(tokens[:-1]) * V + 1 + tokens[-1]


def penalty(n, settings):
    return (n if settings.length_convention == "hf" else (5 + n) / 6) ** settings.length_penalty


def agree(made, expected):
    assert [tokens for tokens, _ in made] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose([s for _, s in made], [s for _, s in expected], rtol=2e-5, atol=1e-5)


def agree_all(found, other):
    """What two compiled programs have found, as `find` returns it."""
    assert found[1] == other[1], "steps"
    for made, expected in zip(found[0], other[0], strict=True):
        agree(made, expected)


# -------------------------------------------------------------------------------------------------- All there is to say


def everything(tree):
    """Every hypothesis and its sum: it ends with its first STOP, or at length M without one."""
    logp, made = log_probs(tree), []
    for n in range(1, M + 1):
        for tokens in itertools.product(range(V), repeat=n):
            if STOP not in tokens[:-1] and (tokens[-1] == STOP or n == M):
                made.append((tokens, sum(logp[node(tokens[:i]), tokens[i]] for i in range(n))))
    return made


def best(hypotheses, settings):
    """The 20 best of them by score."""
    scored = [(tokens, total / penalty(len(tokens), settings)) for tokens, total in hypotheses]
    return sorted(scored, key=lambda hypothesis: -hypothesis[1])[:20]


ALL = V * (V - 1) ** (M - 2)  # the continuations of the last step but one: so many beams drop nothing before the last
WIDE = Beam(ALL, M, (STOP,), early_stopping="never", nbest=20)
PENALTIES = [(convention, alpha) for convention in ("hf", "gnmt") for alpha in (0.0, 0.6, 1.0, 2.0)]


def test_a_wide_beam_finds_the_best_of_all():
    trees, ranks = forest(2), set()
    hypotheses = [everything(tree) for tree in trees]
    for convention, alpha in PENALTIES:
        settings = dataclasses.replace(WIDE, length_penalty=alpha, length_convention=convention)
        made, steps = find(trees, settings)
        for row, all_of_them in zip(made, hypotheses, strict=True):
            agree(row, best(all_of_them, settings))
        assert steps == M
        ranks.add(tuple(tokens for tokens, _ in made[0]))
    assert len(ranks) == 7, "each penalty has an order of its own, but for the two that are none"


TINY = gpt.Config(vocab_size=V, max_length=8, width=16, num_layers=1, num_heads=2, init_std=0.8)


def test_a_wide_beam_finds_a_gpts_best():
    settings = dataclasses.replace(WIDE, length_penalty=0.6, length_convention="gnmt")
    params, prompts = gpt.init(jax.random.key(0), TINY), [[2, 0], [3]]
    padded = decode.left_pad(prompts)
    made, _ = said(search(gpt, params, TINY, gpt.init_cache(TINY, 2, 2 + M - 1), padded, settings))
    ends = np.array(list(itertools.product(range(V), repeat=M - 1)))
    apply = jax.jit(gpt.apply, static_argnums=1)
    for row, prompt in zip(made, prompts, strict=True):
        tokens = np.concatenate([np.tile(prompt, (len(ends), 1)), ends, np.zeros((len(ends), 2 - len(prompt)), int)], 1)
        logits = np.asarray(apply(params, TINY, tokens))[:, len(prompt) - 1 :]
        tree = np.concatenate([logits[:: V ** (M - 1 - depth), depth] for depth in range(M)])  # in the order of nodes
        agree(row, best(everything(tree), settings))
    assert made[0] != made[1]


# --------------------------------------------------------------------------------------------- A search in plain Python


def plain_search(tree, prompt, settings):
    """What Transformers documents of BeamSearchScorer, hypothesis by hypothesis: (hypotheses best first, steps)."""
    s, G, W = settings, settings.groups, settings.width // settings.groups
    logp = log_probs(tree)
    running, ended, done = [[((), 0.0)] for _ in range(G)], [[] for _ in range(G)], [False] * G
    for step in range(s.max_new_tokens):
        chosen = []
        for g in range(G):
            candidates = [
                (tokens + (t,), total + cost)
                for tokens, total in running[g]
                for t, cost in allowed(logp[node(tokens)] - s.diversity_penalty * counts(chosen), tokens, prompt, s)
            ]
            candidates.sort(key=lambda c: -c[1])
            running[g] = []
            for rank, (tokens, total) in enumerate(candidates[: (1 + len(s.stop_ids)) * W]):
                if tokens[-1] in s.stop_ids or step == s.max_new_tokens - 1:
                    if rank < W and not done[g]:
                        ended[g].append((tokens, total / penalty(step + 1, s)))
                elif len(running[g]) < W:
                    running[g].append((tokens, total))
            chosen += [tokens[-1] for tokens, _ in running[g]]
            ended[g] = sorted(ended[g], key=lambda h: -h[1])[:W]
            if not running[g]:
                done[g] = True
            elif len(ended[g]) == W:
                far = s.max_new_tokens if s.early_stopping == "never" and s.length_penalty > 0 else step + 1
                done[g] |= s.early_stopping == "first" or running[g][0][1] / penalty(far, s) <= ended[g][-1][1]
        if all(done):
            break
    return sorted(itertools.chain(*ended), key=lambda h: -h[1])[: s.nbest], step + 1


def counts(chosen):
    return np.bincount(np.array(chosen, int), minlength=V)


def allowed(logp, tokens, prompt, s):
    """[(token, what it adds to the sum), ...] after these tokens."""
    if s.forced_last is not None and len(tokens) == s.max_new_tokens - 1:
        return [(s.forced_last, 0.0)]
    if s.forced_first is not None and not tokens:
        return [(s.forced_first, 0.0)]
    forbidden = set(s.suppress_ids) | (set(s.stop_ids) if len(tokens) < s.min_new_tokens else set())
    return [
        (t, logp[t])
        for t in range(V)
        if t not in forbidden and not repeats((*prompt, *tokens, t), s.no_repeat_ngram, last=True)
    ]


def repeats(tokens, n, *, last=False):
    """Whether an n-gram is there twice (the last one)."""
    if n == 0:
        return False
    grams = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
    return grams[-1] in grams[:-1] if last and grams else len(set(grams)) < len(grams)


PLAIN = Beam(3, M, (STOP,), nbest=3)
CASES = [
    *({"early_stopping": rule} for rule in ("first", "bound", "never")),
    *({"early_stopping": rule, "length_penalty": -1.0} for rule in ("bound", "never")),
    {"early_stopping": "never", "length_penalty": 0.6, "length_convention": "gnmt"},
    {"width": 1, "nbest": 1, "length_penalty": 2.0},
    {"width": 4, "stop_ids": (1, STOP), "early_stopping": "first"},
    {"width": 2, "nbest": 2, "stop_ids": ()},
    {"no_repeat_ngram": 2, "min_new_tokens": 2, "length_penalty": 0.6},
    {"no_repeat_ngram": 1},
    {"forced_first": 3, "forced_last": STOP, "suppress_ids": (0,), "max_new_tokens": 5},
    {"width": 6, "nbest": 4, "groups": 3, "diversity_penalty": 0.7, "early_stopping": "first"},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_in_plain_python(case):
    settings = dataclasses.replace(PLAIN, **case)
    trees = forest(24, scale=1.5, seed=1)
    prompts = [[3, 2, 3] if b % 2 else [1] for b in range(len(trees))]
    made, steps = find(trees, settings, prompts)
    expected = [plain_search(tree, prompt, settings) for tree, prompt in zip(trees, prompts, strict=True)]
    for row, (hypotheses, _) in zip(made, expected, strict=True):
        agree(row, hypotheses)
    assert steps == max(n for _, n in expected)


def test_early_stopping_makes_a_difference():
    """On these trees the three rules stop at different steps, so the cases above tell them apart."""
    trees = forest(24, scale=1.5, seed=1)
    rules = [dataclasses.replace(PLAIN, early_stopping=rule) for rule in ("first", "bound", "never")]
    first, bound, never = ([plain_search(tree, [0], rule) for tree in trees] for rule in rules)
    assert first != bound != never != first
    assert sum(n for _, n in first) < sum(n for _, n in bound) < sum(n for _, n in never)
    assert all(n[0][0][1] >= b[0][0][1] for n, b in zip(never, bound, strict=True))


# ---------------------------------------------------------------------------------------------------- What is forbidden


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_repeats(n):
    settings = dataclasses.replace(WIDE, no_repeat_ngram=n)
    prompt, trees = [1, 0, 0, 2], forest(1, scale=0.5, seed=2)
    trees[:, :, [0, 1]] += 2.0  # without the rule it would say little else
    made, _ = find(trees, settings, [prompt])
    fresh = [h for h in everything(trees[0]) if not later_repeats(prompt, h[0], n)]
    agree(made[0], best(fresh, settings))
    free, _ = find(trees, WIDE, [prompt])
    assert any(later_repeats(prompt, tokens, n) for tokens, _ in free[0]), "the rule must matter"


def later_repeats(prompt, tokens, n):
    """Whether some new token completes an n-gram that stands before it."""
    return any(
        len(prompt) + i + 1 >= n and repeats((*prompt, *tokens[: i + 1]), n, last=True) for i in range(len(tokens))
    )


def test_the_first_token_is_forced():
    trees = forest(3, seed=3)
    settings = dataclasses.replace(PLAIN, forced_first=1, early_stopping="never", length_penalty=0.0)
    made, _ = find(trees, settings)
    assert all(tokens[0] == 1 for row in made for tokens, _ in row) and len(set(made[0])) == 3
    # The forced token costs nothing, so what is left is the search below it.
    below = np.stack([np.concatenate([tree[descendants(1)], tree[: NODES - len(descendants(1))]]) for tree in trees])
    rest, _ = find(below, dataclasses.replace(settings, forced_first=None, max_new_tokens=M - 1))
    assert [[tokens[1:] for tokens, _ in row] for row in made] == [[tokens for tokens, _ in row] for row in rest]


def descendants(token):
    """The nodes under the root's child `token`, in the order of a tree of their own."""
    return [node((token, *rest)) for depth in range(M - 1) for rest in itertools.product(range(V), repeat=depth)]


def test_groups_differ():
    trees = forest(4, scale=1.5, seed=4)
    settings = Beam(4, M, (STOP,), nbest=4, groups=2)
    twice, _ = find(trees, settings)
    once, _ = find(trees, Beam(2, M, (STOP,), nbest=2))
    assert twice == [[h for h in row for _ in range(2)] for row in once], "without a penalty the groups are copies"
    apart, _ = find(trees, dataclasses.replace(settings, diversity_penalty=5.0))
    assert all(len({tokens for tokens, _ in row}) > 2 for row in apart), "and with one they are not"


# --------------------------------------------------------------------------------------------------------- With a model

GPT = gpt.Config(vocab_size=40, max_length=48, width=32, num_layers=2, num_heads=4, init_std=0.3)
LLAMA = gpt.Config(
    vocab_size=40, max_length=48, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48, init_std=0.3,
    norm="rms", position="rotary", gated=True, activation="silu", bias=False, tie_embeddings=False, scan_layers=False,
)  # fmt: skip
PROMPTS = [[5, 1, 4], [2], [7, 7, 31, 0, 12, 9, 8, 3, 30]]
STOPS = (6, 17, 23)


def translate(cfg, prompts, settings, *, length=None, run=search):
    padded = decode.left_pad(prompts, length=length)
    cache = gpt.init_cache(cfg, len(prompts), padded.tokens_BT.shape[1] + settings.max_new_tokens - 1)
    return said(run(gpt, gpt.init(jax.random.key(0), cfg), cfg, cache, padded, settings))


@pytest.mark.parametrize("cfg", [GPT, LLAMA], ids=["gpt2", "llama"])
def test_one_beam_is_greedy(cfg):
    made, steps = translate(cfg, PROMPTS, Beam(1, 20, STOPS, early_stopping="first"))
    sampling = decode.Sampling(20, temperature=0.0, stop_ids=STOPS)
    padded, cache = decode.left_pad(PROMPTS), gpt.init_cache(cfg, 3, 9 + 20 - 1)
    keys_B = decode.row_keys(jax.random.key(0), 3)
    generate = jax.jit(decode.generate, static_argnames=("model", "cfg", "sampling"))
    state = generate(gpt, gpt.init(jax.random.key(0), cfg), cfg, cache, padded, keys_B, sampling)
    greedy = [tuple(row[:n].tolist()) for row, n in zip(np.array(state.tokens_BM), state.length_B, strict=True)]
    assert [row[0][0] for row in made] == greedy and steps == int(state.step)
    assert len(set(map(len, greedy))) > 1, "rows must end at different steps"


def test_batch_and_padding_change_nothing_and_scores_are_the_models():
    settings = Beam(4, 12, STOPS, length_penalty=0.6, nbest=4)
    made, _ = translate(GPT, PROMPTS, settings)
    turned, _ = translate(GPT, PROMPTS[1::-1], settings, length=13)
    for b in range(2):
        agree(turned[1 - b], made[b])
    apply, params = jax.jit(gpt.apply, static_argnums=1), gpt.init(jax.random.key(0), GPT)
    for prompt, row in zip(PROMPTS, made, strict=True):
        assert len({tokens for tokens, _ in row}) == 4 and sorted(s for _, s in row)[::-1] == [s for _, s in row]
        tokens = np.zeros((4, 21), np.int32)
        for t, (hypothesis, _) in zip(tokens, row, strict=True):
            t[: len(prompt) + len(hypothesis)] = (*prompt, *hypothesis)
        logp = log_probs(apply(params, GPT, tokens))
        for k, (hypothesis, score) in enumerate(row):
            total = sum(logp[k, len(prompt) + i - 1, token] for i, token in enumerate(hypothesis))
            assert score == pytest.approx(total / len(hypothesis) ** 0.6, rel=1e-5)


def test_jit_and_eager_agree_and_many_calls_compile_once():
    settings = dataclasses.replace(PLAIN, no_repeat_ngram=2)
    before, seeds = search._cache_size(), range(3)
    made = [find(forest(2, seed=seed), settings) for seed in seeds]
    assert search._cache_size() == before + 1
    assert made[1] != made[0]
    agree_all(find(forest(2, seed=1), settings, run=beam.search), made[1])


@pytest.mark.parametrize("k", [1, 4, 9])
def test_the_largest_of_a_large_vocabulary(k):
    """In parts, the last of them not full: what sorting finds, also where fewer than k tokens are allowed."""
    logits_VBW = np.random.default_rng(k).normal(size=(beam.VOCABULARY_PART * 2 * k + 37, 3, 2)).astype(np.float32)
    logits_VBW[-1, 0] = 9.0  # in the last part
    logits_VBW[:, 1, 1] = -np.inf
    logits_VBW[5, 1, 1] = 0.0
    best_BWk, token_BWk = jax.jit(beam.largest, static_argnums=1)(logits_VBW, k)
    expected_BWk = np.moveaxis(-np.sort(-logits_VBW, axis=0)[:k], 0, -1)
    np.testing.assert_array_equal(best_BWk, expected_BWk)
    np.testing.assert_array_equal(np.take_along_axis(np.moveaxis(logits_VBW, 0, -1), np.array(token_BWk), -1), best_BWk)


def test_rows_with_limits_of_their_own():
    """A row ends where its limit is, as it does with that limit for all; the length penalty's best case knows it."""
    trees, limits = forest(6, scale=1.5), np.array([6, 2, 4, 3, 1, 5])
    for rule in ("bound", "never"):
        settings = dataclasses.replace(PLAIN, early_stopping=rule, length_penalty=0.6, forced_last=STOP)
        made, _ = find(trees, settings, run=functools.partial(search, limit_B=limits))
        for b, limit in enumerate(limits):
            expected, _ = plain_search(trees[b], [0], dataclasses.replace(settings, max_new_tokens=int(limit)))
            agree(made[b], expected)


def test_the_loop_copies_no_cache():
    prompts, params = decode.left_pad([[1, 2, 3]]), gpt.init(jax.random.key(0), GPT)
    lowered = search.lower(gpt, params, GPT, gpt.init_cache(GPT, 1, 22), prompts, Beam(3, 20, STOPS))
    program = lowered.compile().as_text()
    assert "while(" in program and "f32[2,3,4,22,8]" in program
    assert not re.search(r"= f32\[2,3,4,22,8\]\S* (?:copy|slice|gather|transpose)\(.*while/body", program)


def test_each_device_searches_its_rows():
    settings = dataclasses.replace(PLAIN, length_penalty=0.6)
    trees, rows = forest(16, scale=1.5), PartitionSpec("data")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(model, params, cfg, cache, prompts, settings):
        def one(params, cache, prompts):
            found = beam.search(model, params, cfg, cache, prompts, settings)
            return dataclasses.replace(found, step=found.step[None])

        specs = {"in_specs": (PartitionSpec(), rows, rows), "out_specs": rows}
        found = jax.jit(jax.shard_map(one, mesh=mesh, **specs))(params, cache, prompts)
        return dataclasses.replace(found, step=found.step.max())

    agree_all(find(trees, settings, run=spread), find(trees, settings))


# ------------------------------------------------------------------------------------------------------------ Bad input


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0), ("max_new_tokens", 0), ("stop_ids", (1, -1)), ("length_penalty", math.inf),
        ("length_convention", "marian"), ("early_stopping", "maybe"), ("nbest", 0), ("nbest", 5),
        ("min_new_tokens", -1), ("min_new_tokens", 200), ("no_repeat_ngram", -1), ("suppress_ids", (-1,)),
        ("forced_first", -1), ("forced_last", -2), ("groups", 3), ("diversity_penalty", -0.5),
    ],
)  # fmt: skip
def test_settings_are_checked(field, value):
    with pytest.raises(InputError, match=field):
        Beam(**{field: value})


def test_what_does_not_fit_is_refused():
    params, prompts = gpt.init(jax.random.key(0), TINY), decode.left_pad([[1, 2]])
    with pytest.raises(ValueError, match="need 6 slots; the cache has 5"):
        beam.search(gpt, params, TINY, gpt.init_cache(TINY, 1, 5), prompts, Beam(2, 5))
    with pytest.raises(ValueError, match="name token 5; the vocabulary has 5 tokens"):
        beam.search(gpt, params, TINY, gpt.init_cache(TINY, 1, 6), prompts, Beam(2, 5, (4,), forced_first=5))
