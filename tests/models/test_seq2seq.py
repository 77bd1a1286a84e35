"""The encoder-decoder against a float64 version of the papers, and the identities that it must satisfy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from tests.nn import reference
from transformer_jax import losses, models, sharding
from transformer_jax.decoding import decode
from transformer_jax.errors import InputError
from transformer_jax.models import seq2seq
from transformer_jax.nn import params as params_lib

VASWANI = seq2seq.Config(vocab_size=32, max_length=16, width=16, num_layers=2, num_decoder_layers=3, num_heads=4)
T5 = dataclasses.replace(
    VASWANI,
    head_dim=6,
    norm="rms",
    norm_eps=1e-6,
    norm_order="pre",
    bias=False,
    position="relative",
    relative_buckets=8,
    relative_max_distance=10,
    scale_embedding=False,
    scale_scores=False,
    scale_head=True,
    initializer="t5",
)
BART = dataclasses.replace(
    VASWANI,
    position="learned",
    position_offset=2,
    embedding_norm=True,
    activation="gelu",
    scale_embedding=False,
    logits_bias=True,
    initializer="normal",
)
VARIANTS = {
    "vaswani": VASWANI,
    "pre_norm": dataclasses.replace(VASWANI, norm_order="pre", num_decoder_layers=None, norm="rms", bias=False),
    "t5": T5,
    "t5_v1_1": dataclasses.replace(T5, gated=True, activation="gelu_tanh", tie_embeddings=False, scale_head=False),
    "bart": BART,
    "mbart": dataclasses.replace(BART, norm_order="pre", scale_embedding=True),
    "marian": dataclasses.replace(VASWANI, position="sinusoidal_halves", activation="silu", logits_bias=True),
}
B, S, T = 4, 9, 7
RNG = np.random.default_rng(0)
SOURCE = RNG.integers(0, 32, (B, S)).astype(np.int32)
TARGET = RNG.integers(0, 32, (B, T)).astype(np.int32)
LENGTHS = np.array([9, 4, 1, 6], np.int32)


def double(cfg):
    """Float64 parameters in which every leaf matters; smaller for T5, whose unscaled scores would saturate."""
    params = reference.random_params(seq2seq.declare(cfg), seed=1)
    return params if cfg.scale_scores else jax.tree.map(lambda a: a / 2, params)


def single(cfg):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), double(cfg))


def close(got, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def same(one, other, tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max())))


def whole_and_stepwise(params, cfg, source, target, lengths):
    """The encoder's states, logits at once, and logits by prefill of two tokens and then one step at a time."""
    x_BSD = seq2seq.encode(params, cfg, source, lengths=lengths)
    ready = seq2seq.for_decoding(params, cfg)
    cache = seq2seq.init_cache(ready, cfg, x_BSD, lengths, T)
    logits, cache = seq2seq.prefill(ready, cfg, target[:, :2], cache)

    def step(cache, token_B):
        logits, cache = seq2seq.decode_step(ready, cfg, token_B, cache)
        return cache, logits

    cache, rest = jax.lax.scan(step, cache, target[:, 2:].T)
    stepwise = jnp.concatenate([logits[None], rest]).swapaxes(0, 1)
    return x_BSD, seq2seq.apply(params, cfg, source, target, source_lengths=lengths), stepwise


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_papers_at_once_and_token_by_token(name):
    """Within 1e-5 of float64, padding of the sources included; two of the variants unrolled."""
    cfg, params = VARIANTS[name], double(VARIANTS[name])
    config = dataclasses.replace(cfg, scan_layers=name not in ("t5_v1_1", "bart"))
    run = jax.jit(whole_and_stepwise, static_argnums=1)
    x_BSD, at_once, stepwise = run(single(cfg), config, SOURCE, TARGET, LENGTHS)
    assert x_BSD.shape == (B, S, 16) and at_once.shape == (B, T, 32) and at_once.dtype == jnp.float32
    for b, n in enumerate(LENGTHS):
        states, logits = reference.seq2seq_logits(params, cfg, SOURCE[b, :n], TARGET[b])
        close(x_BSD[b, :n], states)
        close(at_once[b], logits)
        close(stepwise[b], logits[1:])


def test_beginnings_padded_on_the_left():
    """Forced beginnings of 3, 1, 2 and 3 tokens in three columns, then two more tokens."""
    cfg, begin = BART, np.array([3, 1, 2, 3])
    padded = np.stack([np.r_[np.full(3 - n, 31), TARGET[b, :n]] for b, n in enumerate(begin)])
    follow = np.stack([TARGET[b, n : n + 2] for b, n in enumerate(begin)])

    @jax.jit
    def run(params, padded, start_B, follow):
        x_BSD = seq2seq.encode(params, cfg, SOURCE, lengths=LENGTHS)
        cache = seq2seq.init_cache(params, cfg, x_BSD, LENGTHS, 5)
        first, cache = seq2seq.prefill(params, cfg, padded, cache, start_B=start_B)
        second, cache = seq2seq.decode_step(params, cfg, follow[:, 0], cache)
        third, _ = seq2seq.decode_step(params, cfg, follow[:, 1], cache)
        whole = seq2seq.apply(params, cfg, SOURCE, TARGET, source_lengths=LENGTHS)
        return jnp.stack([first, second, third], axis=1), whole

    got, whole = run(single(cfg), padded, 3 - begin, follow)
    for b, n in enumerate(begin):
        close(got[b], whole[b, n - 1 : n + 2])


def test_packed_pairs_get_the_logits_that_they_get_alone():
    """Two pairs in one row: of 4 and 3 source tokens, 3 and 4 target tokens; padding behind the second source."""
    sources, targets = (np.stack([np.repeat(*row)] * B) for row in (([1, 2, 0], [4, 3, 2]), ([1, 2], [3, 4])))

    @jax.jit
    def run(params):
        packed = seq2seq.apply(params, BART, SOURCE, TARGET, source_segments=sources, target_segments=targets)
        one = seq2seq.apply(params, BART, SOURCE[:, :4], TARGET[:, :3])
        return packed, one, seq2seq.apply(params, BART, SOURCE[:, 4:7], TARGET[:, 3:])

    packed, one, two = run(single(BART))
    close(packed[:, :3], one)
    close(packed[:, 3:], two)


def test_no_token_sees_a_later_one_and_all_see_the_source():
    """By the gradient of each target position's logits with respect to the embeddings of target and source."""
    cfg = dataclasses.replace(VASWANI, vocab_size=S + T, logits_bias=False, tie_embeddings=False)
    source, target = jnp.arange(S)[None], S + jnp.arange(T)[None]  # every position its own row of the table

    def influence(params):
        def logits(table):
            p = {**params, "embed": {"token": {"embedding": table}}}
            return seq2seq.apply(p, cfg, source, target, source_lengths=jnp.array([6]))[0].sum(-1)

        return jnp.abs(jax.jacrev(logits)(params["embed"]["token"]["embedding"])).max(-1)

    seen = np.asarray(jax.jit(influence)(single(cfg))) != 0
    assert seen[:, S:].tolist() == np.tri(T, dtype=bool).tolist()
    assert seen[:, :6].all() and not seen[:, 6:S].any(), "the source's tokens, and not its padding"


@pytest.mark.parametrize("scan", [True, False])
def test_reorder_and_repeat(scan):
    """Row r of a reordered cache goes on as the row it came from; repeated rows do so over one copy of their source."""
    cfg = dataclasses.replace(T5, scan_layers=scan)
    rows, within = np.array([2, 0, 0, 1, 3]), np.array([1, 1, 3, 2, 4, 4, 7, 6])

    @jax.jit
    def run(params):
        x_BSD = seq2seq.encode(params, cfg, SOURCE, lengths=LENGTHS)
        _, cache = seq2seq.prefill(params, cfg, TARGET[:, :3], seq2seq.init_cache(params, cfg, x_BSD, LENGTHS, T))
        picked = seq2seq.reorder(cache, rows)
        once = seq2seq.decode_step(params, cfg, TARGET[rows, 3], picked)
        twice = seq2seq.decode_step(params, cfg, np.repeat(TARGET[:, 3], 2), seq2seq.repeat(cache, 2))
        other = np.array([5, 7] * B)  # the hypotheses of a row go separate ways
        _, apart = seq2seq.decode_step(params, cfg, other, seq2seq.repeat(cache, 2))
        swapped = seq2seq.decode_step(params, cfg, np.full(2 * B, 9), seq2seq.reorder(apart, within))
        return once, twice, swapped

    params = single(cfg)
    (once, cache), (twice, repeated), (swapped, _) = run(params)
    whole = jax.jit(lambda target: seq2seq.apply(params, cfg, SOURCE, target, source_lengths=LENGTHS))
    close(once, whole(TARGET)[rows, 3])
    close(twice, np.repeat(whole(TARGET)[:, 3], 2, 0))
    assert len(repeated.lengths_B) == B and len(cache.lengths_B) == 5, "after repeat, sources are still stored once"
    ways = [whole(np.c_[TARGET[:, :3], np.full(B, token), np.full(B, 9)])[:, 4] for token in (5, 7)]
    close(swapped, np.stack([ways[r % 2][r // 2] for r in within]))


def test_greedy_decoding_is_the_most_likely_token_each_time():
    """`decode.generate` takes this family as it takes GPT: prompts are the targets' beginnings."""
    sampling, prompts = decode.Sampling(max_new_tokens=5, temperature=0.0), decode.left_pad([[3]] * B)

    @jax.jit
    def run(params):
        x_BSD = seq2seq.encode(params, T5, SOURCE, lengths=LENGTHS)
        cache, keys_B = seq2seq.init_cache(params, T5, x_BSD, LENGTHS, 5), decode.row_keys(jax.random.key(0), B)
        tokens_BM = decode.generate(seq2seq, params, T5, cache, prompts, keys_B, sampling).tokens_BM
        inputs_BM = jnp.concatenate([prompts.tokens_BT, tokens_BM[:, :-1]], axis=1)
        return tokens_BM, seq2seq.apply(params, T5, SOURCE, inputs_BM, source_lengths=LENGTHS)

    tokens_BM, logits_BMV = run(single(T5))
    np.testing.assert_array_equal(tokens_BM, logits_BMV.argmax(-1))


def test_scanned_is_unrolled_with_dropout():
    """Values and gradients; another key gives others."""
    cfg = dataclasses.replace(VASWANI, num_layers=1, num_decoder_layers=2, dropout=0.2, attention_dropout=0.1)

    def loss(params, cfg, key):
        return jnp.sum(jnp.sin(seq2seq.apply(params, cfg, SOURCE, TARGET, source_lengths=LENGTHS, key=key)))

    configs = [cfg, dataclasses.replace(cfg, scan_layers=False)]
    run = jax.jit(lambda params, key: [jax.value_and_grad(loss)(params, c, key) for c in configs])
    one, other = run(single(cfg), jax.random.key(3, impl="rbg"))
    same(one, other, 2e-5)
    assert abs(one[0] - run(single(cfg), jax.random.key(4, impl="rbg"))[0][0]) > 0.1


def loss(params, cfg, source, target, lengths):
    """By `linear_cross_entropy`."""
    x_BTD = seq2seq.hidden(params, cfg, source, target, source_lengths=lengths)
    kernel, bias = seq2seq.head(params, cfg), seq2seq.head_bias(params, cfg)
    return losses.linear_cross_entropy(x_BTD, kernel, target, bias_V=bias, label_smoothing=0.1)[0]


@pytest.mark.parametrize(
    ("shape", "name", "kind"), [((2, 2, 1, 2), "t5", AxisType.Explicit), ((1, 2, 2, 2), "bart", AxisType.Auto)]
)
def test_eight_devices_are_one(shape, name, kind):
    """The loss, and logits by encode, prefill and decode_step, also where the length is cut; on Explicit axes, where a
    gradient has a type that may be wrong, the gradients too."""
    cfg = dataclasses.replace(VARIANTS[name], max_length=18)
    params = jax.tree.map(lambda a: np.asarray(a / 3, np.float32), double(cfg))
    source, target = np.concatenate([SOURCE, SOURCE])[:, :8], np.concatenate([TARGET, TARGET])[:, :6]
    lengths = np.minimum(np.concatenate([LENGTHS, LENGTHS]), 8)

    def run(params, source, target, lengths):
        x_BSD = seq2seq.encode(params, cfg, source, lengths=lengths)
        cache = seq2seq.init_cache(params, cfg, x_BSD, lengths, 8)
        first, cache = seq2seq.prefill(params, cfg, target, cache)
        second, cache = seq2seq.decode_step(params, cfg, target[:, 0], cache)
        value = (jax.value_and_grad(loss) if kind == AxisType.Explicit else loss)(params, cfg, source, target, lengths)
        return value, first, second

    expected = jax.jit(run)(params, source, target, lengths)
    mesh = jax.make_mesh(shape, sharding.MESH_AXES, axis_types=(kind,) * 4)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, params_lib.shardings(seq2seq.declare(cfg), mesh))
        got = jax.jit(run)(placed, jnp.asarray(source), jnp.asarray(target), jnp.asarray(lengths))
    same(got, expected, 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_decoder_layers": 0}, "model.num_decoder_layers is 0"),
        ({"position": "rotary"}, "model.position is 'rotary'; it is one of sinusoidal, sinusoidal_halves, learned"),
        ({"width": 15, "num_heads": 3}, "even model.width; it is 15"),
        ({"eos_id": 32}, "model.eos_id is 32; it must be below 32"),
        ({"relative_max_distance": 16}, "model.relative_max_distance 16 must be above half"),
        ({"relative_buckets": 3}, "model.relative_buckets is 3"),
        ({"attention_dropout": 1.0}, "model.attention_dropout is 1.0"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(VASWANI, **change)


def test_more_tokens_than_there_is_room_for():
    params = jax.eval_shape(lambda: seq2seq.init(jax.random.key(0), BART))
    long, short = np.zeros((1, 17), np.int32), np.zeros((1, 2), np.int32)
    for source, target in ((long, short), (short, long)):
        with pytest.raises(ValueError, match="17 tokens are more than the model's max_length of 16"):
            jax.eval_shape(lambda p, s=source, t=target: seq2seq.apply(p, BART, s, t), params)
    with pytest.raises(ValueError, match="have 17 tokens, the cache 4 slots"):
        x = jnp.zeros((1, 3, 16))
        jax.eval_shape(lambda p: seq2seq.prefill(p, BART, long, seq2seq.init_cache(p, BART, x, None, 4)), params)


def test_published_parameter_counts():
    """T5 small and base, v1.1 small and BART large as the checkpoints hold them; the paper's base and big, of which
    table 3 has 65 and 213 million."""
    t5 = dataclasses.replace(T5, vocab_size=32128, head_dim=64, relative_buckets=32, relative_max_distance=128)
    v1_1 = dataclasses.replace(t5, gated=True, tie_embeddings=False, scale_head=False)
    bart = dataclasses.replace(BART, vocab_size=50265, max_length=1024, logits_bias=False)
    small = {"width": 512, "num_layers": 6, "num_decoder_layers": None, "num_heads": 8}
    base = {"width": 768, "num_layers": 12, "num_decoder_layers": None, "num_heads": 12}
    large = {"width": 1024, "num_layers": 12, "num_decoder_layers": None, "num_heads": 16}
    for cfg, sizes, expected in (
        (t5, small, 60_506_624),
        (t5, base, 222_903_552),
        (v1_1, small | {"num_layers": 8, "num_heads": 6, "mlp_width": 1024}, 76_961_152),
        (bart, large, 406_291_456),
    ):
        assert params_lib.count(seq2seq.declare(dataclasses.replace(cfg, **sizes))) == expected
    paper = seq2seq.Config(vocab_size=37000)
    assert round(params_lib.count(seq2seq.declare(paper)) / 1e6) == 63
    assert round(params_lib.count(seq2seq.declare(dataclasses.replace(paper, width=1024, num_heads=16))) / 1e6) == 214


def test_what_initializers_draw():
    """Standard deviations; T5's queries carry the 1/sqrt(H) that its scores lack."""
    cfg = dataclasses.replace(T5, width=64, head_dim=16, mlp_width=256, vocab_size=512)

    def draw(cfg, leaf):
        p = params_lib.flatten(seq2seq.declare(cfg))[leaf]
        return np.asarray(p.init(jax.random.key(0), p.shape[-2:]))  # of one layer

    kernels = {"encoder/blocks/attention/query": 64 * 16, "encoder/blocks/attention/key": 64}
    kernels |= {"decoder/blocks/cross/query": 64 * 16, "decoder/blocks/mlp/down": 256}
    for leaf, fan_in in kernels.items():
        np.testing.assert_allclose(draw(cfg, f"{leaf}/kernel").std(), fan_in**-0.5, rtol=0.05)
    np.testing.assert_allclose(draw(cfg, "embed/token/embedding").std(), 1.0, rtol=0.05)
    cfg = dataclasses.replace(cfg, initializer="xavier")
    up = draw(cfg, "decoder/blocks/mlp/up/kernel")
    np.testing.assert_allclose([up.std(), np.abs(up).max()], [(2 / 320) ** 0.5, (6 / 320) ** 0.5], rtol=0.02)
    np.testing.assert_allclose(draw(cfg, "embed/token/embedding").std(), 64**-0.5, rtol=0.05)


def test_a_config_finds_its_family():
    assert models.family(VASWANI) is seq2seq and hash(T5) == hash(dataclasses.replace(T5))
