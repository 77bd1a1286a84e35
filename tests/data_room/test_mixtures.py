"""Mixtures: shares as T5 states them, and an order that is a pure function of the seed and the row."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax import sharding
from transformer_jax.contracts import Evaluation
from transformer_jax.data import mixtures
from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.errors import InputError
from transformer_jax.models import seq2seq
from transformer_jax.tasks import Translation
from transformer_jax.tasks.translation import bitext, parallel
from transformer_jax.tasks.translation.mixture import Mixture


def test_rates_of_t5():
    """Raffel et al. 2020, section 3.5.2, by hand: min(e, K) / sum, and its T-th root."""
    assert mixtures.rates((900, 100)) == (0.9, 0.1)
    assert mixtures.rates((900, 100), limit=300) == (0.75, 0.25)
    assert mixtures.rates((900, 100), temperature=2.0) == pytest.approx((30 / 40, 10 / 40))
    assert mixtures.rates((900, 100), limit=400, temperature=2.0) == pytest.approx((20 / 30, 10 / 30))


def test_the_order_is_a_function_of_the_seed_and_the_row():
    sizes, rates = (50, 7, 3), (0.7, 0.29, 0.01)
    order = mixtures.Order(sizes, rates, seed=3)
    source = np.array([order.source(n)[0] for n in range(2000)])
    assert np.bincount(source[:1000]).tolist() == np.bincount(source[1000:]).tolist() == [700, 290, 10]
    rows = np.array([order[n] for n in range(200)])
    again = mixtures.Order(sizes, rates, seed=3)
    assert [again[n] for n in (199, 0, 77)] == rows[[199, 0, 77]].tolist()  # in any order, from anywhere
    assert [mixtures.Order(sizes, rates, seed=4)[n] for n in range(100)] != rows[:100].tolist()
    np.testing.assert_array_equal(np.searchsorted(np.cumsum(sizes), rows, side="right"), source[:200])
    for number, size in enumerate(sizes[:2]):  # within a source each row comes once in an epoch
        mine = rows[source[:200] == number] - sum(sizes[:number])
        for first in range(0, len(mine) - size + 1, size):
            assert sorted(mine[first : first + size]) == list(range(size))
    assert np.abs(np.diff(np.flatnonzero(source == 2))).max() < 1900  # spread over the block, not at its end
    with pytest.raises(InputError, match="each source needs both"):
        mixtures.Order((1, 0), (0.5, 0.5), seed=0)


def test_a_mixture_of_pairs(tmp_path):
    files = []
    for name in ("de", "fr"):
        path = tmp_path / f"{name}.jsonl"
        lines = [{"source": f"a {i}", "target": f"{name} {i}"} for i in range(40 if name == "de" else 20)]
        path.write_text(
            "\n".join(json.dumps(line) for line in lines[:9])
            + "\n\n"
            + "".join(json.dumps(line) + "\n" for line in lines[9:])
        )
        files.append(bitext.Columns((str(path),), (str(path),), test=(str(path),)))
    source = Mixture(tuple(files), ("de", "fr"), ("to German: ", "to French: "), limit=30)
    pairs = source.pairs("train")
    assert pairs.rates == (0.6, 0.4) and source.has_test
    for stated in (source, dataclasses.replace(source, rates=(0.6, 0.4))):
        counted = stated.pairs("train")
        for _ in range(2):
            assert len(list(counted)) == 60 and dict(counted.skipped) == {"blank lines": 2}
    (first, *_, last) = pairs
    assert (first.source, first.target, first.part) == ("to German: a 0", "de 0", 0)
    assert (last.source, last.target, last.part) == ("to French: a 19", "fr 19", 1)
    cfg = seq2seq.Config(vocab_size=300, pad_id=0, eos_id=1, decoder_start_id=0)
    data = parallel.ParallelText(source, TrainBPE(280, special=("<pad>", "</s>")), 40, 40)
    made = parallel.prepare(data, cfg, seed=0)
    order: Any = made.train.order
    assert np.bincount([order.source(n)[0] for n in range(1000)]).tolist() == [600, 400]
    for n in range(30):  # a row has pairs of one source
        row = made.train.packing[order[n]]
        assert set((row >= 40).tolist()) == {bool(order.source(n)[0])}
    text = made.tokenizer.decode(made.train.example(0)["source"])
    assert ("to German" in text) != ("to French" in text)
    assert made.test is not None and made.test.names == ("de", "fr") and made.test.parts == [0] * 40 + [1] * 20
    for wrong, message in (
        (dict(names=("de",)), "names"),
        (dict(rates=(0.5,)), "rates has 1 entries"),
        (dict(rates=(0.5, 0.0)), "must be positive"),
        (dict(temperature=0.0), "temperature"),
    ):
        with pytest.raises(InputError, match=message):
            Mixture(**{"sources": tuple(files), "names": ("de", "fr"), **wrong})


def test_each_part_has_scores_of_its_own(tmp_path, monkeypatch):
    held = parallel.Held(None, ["a", "b", "c"], ["a", "x", "c"], ("de", "fr"), [0, 0, 1])  # type: ignore[arg-type]
    task = Translation(metrics=("exact_match",))
    monkeypatch.setattr(Translation, "_encode", lambda self, tokenizer, cfg, texts: (list(texts), []))
    monkeypatch.setattr(
        Translation, "_search", lambda self, params, cfg, tokenizer, lines, *rest: [[(t, 0.0)] for t in lines]
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    scores = task.score(None, None, None, Evaluation(None, held), tmp_path, "test", mesh=mesh, log=lambda line: None)
    assert (scores["exact_match_de"], scores["exact_match_fr"]) == (0.5, 1.0)
    assert scores["exact_match"] == pytest.approx(2 / 3)
