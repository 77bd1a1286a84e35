"""Packed documents of a causal model: each target once, little padding, and that no document sees another."""

import itertools
import sysconfig
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer_jax.data import corpus, packed, source_files, sources, tokenizers, tokens
from transformer_jax.errors import InputError
from transformer_jax.models import gpt

TEXTS = ["short", "a longer document than a row can hold: " * 3, "x", "four words of text", "", "the last one"]
LENGTH = 24


def made(tmp_path, texts=TEXTS, tokenizer=None) -> packed.Packed:
    tokenizer = tokenizer or tokenizers.ByteTokenizer()
    file = tokens.prepare(sources.in_memory((str(i), text) for i, text in enumerate(texts)), tokenizer, tmp_path)
    return packed.rows(file, tokenizer, LENGTH, "the text")


def test_every_token_is_predicted_once_from_its_own_document(tmp_path):
    rows = made(tmp_path)
    batch = rows.stacked(range(len(rows.rows)))
    stream = [t for text in TEXTS if text for t in [256, *text.encode()]]
    pairs = Counter(itertools.pairwise(stream))
    scored = batch["weights"] > 0
    assert Counter(zip(batch["inputs"][scored].tolist(), batch["targets"][scored].tolist(), strict=True)) == pairs
    assert np.array_equal(scored, batch["segments"] > 0)
    for inputs_T, segments_T in zip(batch["inputs"], batch["segments"], strict=True):
        for segment in range(1, segments_T.max() + 1):  # a document begins with its end of text, or goes on
            ids = inputs_T[segments_T == segment]
            assert 256 not in ids[1:] and any(bytes(i for i in ids.tolist() if i < 256) in t.encode() for t in TEXTS)
    whole = [text for text in TEXTS if text and len(text) < LENGTH]
    assert rows.padding == pytest.approx(1 - scored.mean())
    assert sum(int(row.max()) for row in batch["segments"]) >= len(whole)


def test_perturbing_a_document_changes_no_other(tmp_path):
    """To the bit, of learned and of rotary positions; a document alone has the same hidden states."""
    rows = made(tmp_path)
    batch = rows.stacked(range(len(rows.rows)))
    row = int(np.argmax(batch["segments"].max(1)))
    inputs_T, segments_T = batch["inputs"][row], batch["segments"][row]
    assert segments_T.max() > 1
    for position in ("learned", "rotary"):
        cfg = gpt.Config(vocab_size=257, max_length=LENGTH, width=16, num_layers=2, num_heads=2, position=position)
        params = gpt.init(jax.random.key(0), cfg)
        apply = jax.jit(gpt.apply, static_argnums=1)
        plain = np.asarray(apply(params, cfg, inputs_T[None], segments=segments_T[None]))[0]
        for segment in range(1, segments_T.max() + 1):
            own = segments_T == segment
            other = np.where(own, (inputs_T + 5) % 257, inputs_T)
            changed = np.asarray(apply(params, cfg, other[None], segments=segments_T[None]))[0]
            assert np.array_equal(plain[~own], changed[~own]) and not np.array_equal(plain[own], changed[own])
            alone = np.zeros(LENGTH, np.int32)
            alone[: own.sum()] = inputs_T[own]
            first = np.asarray(apply(params, cfg, alone[None], segments=segments_T[None] * 0))[0]
            np.testing.assert_allclose(first[: own.sum()], plain[own], rtol=1e-5, atol=1e-5)


def test_one_percent_of_the_standard_library_is_padding(tmp_path):
    """Of rows of 512 bytes: long files are split into rows that are full."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = [path.read_text() for path in sorted(root.glob("*.py")) if source_files.is_utf8(path)][:60]
    documents = sources.in_memory((str(i), text) for i, text in enumerate(texts))
    file = tokens.prepare(documents, tokenizers.ByteTokenizer(), tmp_path)
    assert packed.rows(file, tokenizers.ByteTokenizer(), 512, "the text").padding < 0.01


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="packed needs a tokenizer with a beginning-of-text or end-of-text token"):
        made(tmp_path, tokenizer=tokenizers.CharacterTokenizer("".join(sorted(set("".join(TEXTS))))))
    with pytest.raises(InputError, match="packed has no random positions"):
        corpus.TextCorpus(documents="packed", sampling="random")
