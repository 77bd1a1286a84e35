"""Translation of a set: order, independence of batching and devices, limits, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from transformer_jax import beam, decode, sharding, translate
from transformer_jax.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.models import seq2seq

CFG = seq2seq.Config(
    vocab_size=30, max_length=40, width=16, num_layers=1, num_heads=2, position="learned", scan_layers=False,
    logits_bias=True, eos_id=1, decoder_start_id=2,
)  # fmt: skip
PARAMS = jax.tree.map(lambda x: 6 * x, seq2seq.init(jax.random.key(0), CFG))
BEAM = Beam(3, 40, (1,), length_penalty=0.6)
RNG = np.random.default_rng(0)
SOURCES = [RNG.integers(3, 30, n).tolist() for n in (5, 1, 9, 3, 12, 12, 2, 17, 1, 8, 30, 6)] + [[7, 8, 9]] * 2
ONE = sharding.make_mesh(devices=jax.devices()[:1])


def run(sources=SOURCES, settings=BEAM, **more):
    found = translate.translate(seq2seq, PARAMS, CFG, sources, settings, **{"extra_tokens": 6, "mesh": ONE, **more})
    return [[(tuple(h.tokens.tolist()), h.score) for h in row] for row in found]


def tokens(found):
    return [[tokens for tokens, _ in row] for row in found]


def alone(source, settings, start=(2,), limit=40):
    """One source without padding, by `beam.search` with its limit as max_new_tokens."""
    settings = dataclasses.replace(settings, max_new_tokens=limit)
    search = jax.jit(beam.search, static_argnames=("model", "cfg", "settings"))
    x_BSD = seq2seq.encode(PARAMS, CFG, np.array([source]))
    cache = seq2seq.init_cache(PARAMS, CFG, x_BSD, None, len(start) + limit - 1)
    found = search(seq2seq, PARAMS, CFG, cache, decode.left_pad([start]), settings)
    lengths = found.length_BK[0].tolist()
    return [tuple(t[:n].tolist()) for t, n in zip(np.asarray(found.tokens_BKM[0]), lengths, strict=True) if n]


def test_batching_and_devices_change_nothing():
    """A source a time, 7 at once, and all on eight devices."""
    found = run()
    assert len({row[0][0] for row in found}) > 8 and len({len(row[0][0]) for row in found}) > 4
    for more in ({"batch_tokens": 1}, {"batch_tokens": 7 * 32}, {"mesh": None}):
        other = run(**more)
        assert tokens(other) == tokens(found)
        np.testing.assert_allclose([row[0][1] for row in other], [row[0][1] for row in found], rtol=1e-5)
    assert found[-1] == found[-2], "the same source twice"
    assert tokens(run(SOURCES[::-1])) == tokens(found)[::-1], "in the order of the sources"
