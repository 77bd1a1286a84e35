"""Translation of a set: order, independence of batching and devices, limits, n-best, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from transformer_jax import sharding
from transformer_jax.decoding import beam, decode, translate
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.models import seq2seq

CFG = seq2seq.Config(
    vocab_size=30, max_length=15, width=16, num_layers=1, num_heads=2, position="learned", scan_layers=False,
    eos_id=1, decoder_start_id=2,
)  # fmt: skip
PARAMS = jax.tree.map(lambda x: 6 * x, seq2seq.init(jax.random.key(0), CFG))
BEAM = Beam(3, 40, (1,), length_penalty=0.6, nbest=2, forced_last=1)
RNG = np.random.default_rng(0)
LENGTHS = (5, 1, 9, 3, 12, 12, 2, 1, 8, 11, 6)
SOURCES = [*(RNG.integers(3, 30, n).tolist() for n in LENGTHS), [7, 8, 9], np.array([7, 8, 9])]
ONE = sharding.make_mesh(devices=jax.devices()[:1])


def run(sources=SOURCES, settings=BEAM, **more):
    found = translate.translate(seq2seq, PARAMS, CFG, sources, settings, **{"extra_tokens": 6, "mesh": ONE, **more})
    return [[(tuple(h.tokens.tolist()), h.score) for h in row] for row in found]


def alone(source, limit):
    """One source without padding, by `beam.search` with its limit as max_new_tokens."""

    @jax.jit
    def search(params, source_BS):
        cache = seq2seq.init_cache(params, CFG, seq2seq.encode(params, CFG, source_BS), None, limit)
        settings = dataclasses.replace(BEAM, max_new_tokens=limit)
        return beam.search(seq2seq, params, CFG, cache, decode.left_pad([[2]]), settings)

    found = search(PARAMS, np.array([source]))
    rows = zip(np.array(found.tokens_BKM[0]), found.length_BK[0], found.score_BK[0], strict=True)
    return [(tuple(t[:n].tolist()), float(score)) for t, n, score in rows if n]


def same(found, expected):
    assert [[tokens for tokens, _ in row] for row in found] == [[tokens for tokens, _ in row] for row in expected]
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_allclose([score for _, score in row], [score for _, score in other], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def found():
    return run()


def test_batching_and_devices_change_nothing(found):
    """A source at a time, 7 at once, and all on eight devices, in another order."""
    assert len({row[0][0] for row in found}) > 6 and all(len(row) == 2 for row in found)
    same(run(batch_tokens=1), found)
    same(run(batch_tokens=7 * 12), found)
    same(run(SOURCES[::-1], mesh=None), found[::-1])
    same(found[-1:], found[-2:-1])  # the same source twice


def test_each_is_what_beam_search_finds_of_it_alone(found):
    """With a limit of its own, also where it is at the model's max_length: the last token is made and never read."""
    for b in (1, 4):
        limit = min(len(SOURCES[b]) + 6, CFG.max_length)
        same([found[b]], [alone(SOURCES[b], limit)])
        assert all(len(tokens) <= limit for tokens, _ in found[b])
    assert any(len(tokens) == len(source) + 6 for row, source in zip(found, SOURCES, strict=True) for tokens, _ in row)


def test_the_plan():
    lengths = RNG.integers(1, 70, 300)
    plan = translate.batches(lengths, 256, 4, 64 + 6)
    assert sorted({n for batch in plan for n in batch.numbers.tolist()}) == list(range(300))
    assert len({(len(batch.numbers), batch.length) for batch in plan}) < 10, "few shapes"
    for batch in plan:
        shares = lengths[batch.numbers].reshape(4, -1)
        assert lengths[batch.numbers].max() <= batch.length <= 70 and shares.size * batch.length <= 4 * 256
        assert np.ptp(shares.max(axis=1)) <= 3, "every device has its share of the long ones"
    filled = sum(len(batch.numbers) - len(set(batch.numbers.tolist())) for batch in plan)
    assert filled < len(plan[-1].numbers) / 2 + 4


def test_progress_and_a_second_call_compiles_nothing(found):
    told = []
    before = translate._search._cache_size()
    same(run(progress=lambda *counts: told.append(counts)), found)
    assert translate._search._cache_size() == before
    assert told == sorted(told) and told[-1] == (13, 13)
    assert run([]) == []


def test_what_is_refused_is_refused_at_the_call():
    for sources, message in (
        ([[3], [3] * 16], r"sources\[1\] has 16 tokens; the model reads from 1 to 15"),
        ([[3], []], r"sources\[1\] has 0 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            translate.translate(seq2seq, PARAMS, CFG, sources, BEAM)
    with pytest.raises(InputError, match="has no decoder_start_id"):
        translate.translate(seq2seq, PARAMS, dataclasses.replace(CFG, decoder_start_id=None), SOURCES, BEAM)
    with pytest.raises(InputError, match="prompt of 16 tokens fills"):
        translate.translate(seq2seq, PARAMS, CFG, SOURCES, BEAM, start=[2] * 16)
