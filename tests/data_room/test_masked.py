"""Rows of masked LM against the corpus written out: what is in a row, what is masked, and what every epoch covers."""

import dataclasses
import itertools

import numpy as np
import pytest

from transformer_jax.data import corpus, pipeline, sources, token_shards, token_store, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.models import seq2seq
from transformer_jax.objectives import masking, spans
from transformer_jax.objectives.masking import Masking
from transformer_jax.tasks.denoising import corrupted
from transformer_jax.tasks.masked_lm import masked

ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LAYOUTS = ("full", "packed", "next_sentence", "sentence_order")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "box")
BPE = tokenizers.TrainBPE(400, special=ROBERTA)
MASKING = Masking()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty documents of sentences, from three words to some hundred."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for i in range(60):
        sentences = [" ".join(rng.choice(WORDS, rng.integers(3, 9))) + "." for _ in range(rng.integers(1, 25))]
        (folder / f"{i:02d}.txt").write_text(" ".join(sentences) + "\n")
    return folder


def prepared(folder, layout="full", how=MASKING, length=32, seed=0, spec=BPE):
    source = sources.TextFiles((str(folder),))
    return masked.prepare(corpus.TextCorpus(source, spec, length=length), how, layout, seed=seed)


@pytest.fixture(scope="module", params=["bpe", "wordpiece"])
def full(request, folder):
    """With an end-of-text token before each document in the token file, and without."""
    spec = tokenizers.TrainWordPiece(400) if request.param == "wordpiece" else BPE
    return prepared(folder, spec=spec)


def restored(example) -> np.ndarray:
    """The tokens before they were masked."""
    tokens_T, used = example["tokens"].copy(), example["weights"] == 1
    tokens_T[example["positions"][used]] = example["labels"][used]
    return tokens_T


def texts(made, side="train") -> list[np.ndarray]:
    """Each document's tokens."""
    file = made.train_tokens if side == "train" else made.validation_tokens
    parts = np.split(np.asarray(file.tokens, np.int32), file.starts[1:])
    return [part[1:] if made.tokenizer.eos_id is not None else part for part in parts]


def rows_of_an_epoch(made) -> list[dict[str, np.ndarray]]:
    return [made.train[i] for i in range(len(made.train.rows))]


# ---- Full sentences


def test_full_sentences_are_the_corpus(full):
    """A [SEP] between documents, windows of T - 2, each once an epoch; validation reaches to the very end."""
    known = full.vocabulary
    for side, examples in (("train", rows_of_an_epoch(full)), ("validation", full.validation)):
        joined = list(itertools.chain.from_iterable([known.sep, *text] for text in texts(full, side)))[1:]
        rows = [restored(example) for example in examples]
        assert all(row[0] == known.cls and row[-1] == known.sep for row in rows)
        windows = {tuple(joined[i : i + 30]) for i in range(0, len(joined) - 29, 30)}
        if side == "validation":
            windows.add(tuple(joined[-30:]))
        assert {tuple(row[1:-1].tolist()) for row in rows} == windows and len(rows) == len(windows)


def test_validation_asks_for_a_token_once(folder):
    """With everything masked, each ordinary token of the text is one prediction."""
    made = prepared(folder, how=Masking(rate=1.0))
    labels = np.concatenate([example["labels"][example["weights"] == 1] for example in made.validation])
    assert sorted(labels) == sorted(np.concatenate(texts(made, "validation")))


# ---- Packed


def test_packed_rows_hold_every_document(folder):
    made = prepared(folder, "packed")
    pieces = []
    for example in rows_of_an_epoch(made):
        tokens_T, segments_T = restored(example), example["segments"]
        last = segments_T.max()
        assert (np.diff(segments_T[segments_T > 0]) >= 0).all() and not tokens_T[segments_T == 0].any()
        assert set(segments_T.tolist()) - {0} == set(range(1, last + 1))
        for segment in range(1, last + 1):
            piece = tokens_T[segments_T == segment]
            assert piece[0] == made.vocabulary.cls and piece[-1] == made.vocabulary.sep and len(piece) > 2
            pieces.append(tuple(piece[1:-1].tolist()))
    wanted = [tuple(text[i : i + 30].tolist()) for text in texts(made) for i in range(0, len(text), 30)]
    assert sorted(pieces) == sorted(wanted)


# ---- Pairs


@pytest.mark.parametrize("layout", ["next_sentence", "sentence_order"])
def test_pairs(folder, layout):
    """[CLS] A [SEP] B [SEP]; in order, A and B are one piece of a document; swapped likewise; else of two documents."""
    made = prepared(folder, layout)
    whole = [text.tolist() for text in texts(made)]

    def homes(piece):
        return {d for d, text in enumerate(whole) for i in range(len(text)) if text[i : i + len(piece)] == piece}

    labels, shorter = [], 0
    for example in rows_of_an_epoch(made):
        tokens_T, n = restored(example), int(example["lengths"])
        assert not tokens_T[n:].any() and not example["types"][n:].any() and example["pair_weights"] == 1
        (a_end, b_end) = np.flatnonzero(tokens_T == made.vocabulary.sep)
        assert tokens_T[0] == made.vocabulary.cls and b_end == n - 1
        assert (example["types"][:n] == (np.arange(n) > a_end)).all()
        a, b = tokens_T[1:a_end].tolist(), tokens_T[a_end + 1 : b_end].tolist()
        label = int(example["pair"])
        if label == 0:
            assert homes(a + b)
        elif layout == "sentence_order":
            assert homes(b + a)
        else:
            assert homes(a) and homes(b)
        labels.append(label)
        shorter += n < 12
    assert 0.3 < np.mean(labels) < 0.7
    assert shorter < 0.3 * len(labels)


def test_a_passage_ends_with_a_sentence(folder):
    made = prepared(folder, "sentence_order", length=64)
    stop = made.vocabulary.ends_sentence
    ends = []
    for example in rows_of_an_epoch(made):
        tokens_T = restored(example)
        a_end, b_end = np.flatnonzero(tokens_T == made.vocabulary.sep)
        ends.append(stop[tokens_T[(a_end if example["pair"] == 0 else b_end) - 1]])
    assert np.mean(ends) > 0.85  # a stretch without a full stop is cut at a word
    assert {made.tokenizer.decode([i]).strip()[-1:] for i in np.flatnonzero(stop)} <= {".", "!", "?", ""}


# ---- Every layout


def test_a_token_store_gives_the_rows_of_its_text(folder, tmp_path, monkeypatch):
    """A store of several shards, read for masked language modelling in every layout, and for denoising."""
    monkeypatch.setattr(token_shards, "SHARD", 4000)
    special = tuple(dict.fromkeys((*ROBERTA, *tokenizers.t5_special(8))))
    text = corpus.TextCorpus(sources.TextFiles((str(folder),)), tokenizers.TrainBPE(400, special=special), length=32)
    documents = {side: text.source.documents(side) for side in token_store.SIDES}
    tokenizer = corpus.encoded(text).tokenizer
    work = token_shards.begin(str(tmp_path / "store"), tokenizer, documents)
    for at in work.numbers():
        token_shards.write_shard(work, *at)
    token_shards.finish(work)
    stored = corpus.TextCorpus(length=32, store=(str(tmp_path / "store"),))
    assert len(work.shards["train"]) > 2
    pad, eos, start = tokenizer.special.pad, tokenizer.eos_id, tokenizer.special.pad
    cfg = seq2seq.Config(vocab_size=600, pad_id=pad, eos_id=eos, decoder_start_id=start, max_length=64)
    for layout in (*LAYOUTS, "denoising"):
        if layout == "denoising":
            made = [corrupted.prepare(data, spans.SpanCorruption(), cfg, seed=1) for data in (text, stored)]
        else:
            made = [masked.prepare(data, MASKING, layout, seed=1) for data in (text, stored)]
        for i in (0, 3, 11):
            one, other = (of.train[i] for of in made)
            assert all(np.array_equal(one[name], other[name]) for name in one), layout
    with pytest.raises(InputError, match="reads stores by their sizes"):
        masked.prepare(dataclasses.replace(stored, rates=(1.0,)), MASKING, "full", seed=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deterministic_in_seed_and_row(folder, layout):
    one, other, third = (prepared(folder, layout, seed=seed) for seed in (0, 0, 1))
    rows = [5, 200, 3, 10**9]
    for name in one.train[0]:
        for row in rows:
            assert (one.train[row][name] == other.train[row][name]).all()
        for row in range(len(one.validation)):  # masks of validation are of no seed
            assert (one.validation[row][name] == third.validation[row][name]).all()
    assert any((one.train[row]["tokens"] != third.train[row]["tokens"]).any() for row in rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_new_in_every_epoch(folder, layout):
    """Dynamic masking: the same row, other positions."""
    made = prepared(folder, layout)
    count = len(made.train.rows)
    row_of = [made.train.order[i] for i in range(2 * count)]
    assert sorted(row_of[:count]) == sorted(row_of[count:]) == list(range(count)) and row_of[:count] != row_of[count:]
    again = row_of.index(row_of[0], count)
    assert (made.train[0]["positions"] != made.train[again]["positions"]).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("unit", ["token", "word"])
def test_special_tokens_and_padding_are_never_asked_for(folder, layout, unit):
    made = prepared(folder, layout, Masking(rate=0.3, unit=unit))
    special = list(made.tokenizer.special.present().values())
    for i in range(100):
        example = made.train[i]
        used = example["weights"] == 1
        at = example["positions"][used]
        assert len(at) and not np.isin(example["labels"][used], special).any()
        changed = np.setdiff1d(example["tokens"][at], [made.vocabulary.mask])
        assert not np.isin(changed, special).any()
        if layout == "packed":
            assert (example["segments"][at] > 0).all()
        if "lengths" in example:
            assert (at < example["lengths"]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches(folder, layout):
    """Through the pipeline: stacked, endless, and the last of validation filled with zeros."""
    made = prepared(folder, layout)
    batch = next(pipeline.batches(made.train, 1000, 4, prefetch=0))
    assert batch["tokens"].shape == (4, 32) and batch["positions"].shape == (4, 5)
    assert (batch["tokens"][2] == made.train[1002]["tokens"]).all()
    n = len(made.validation)
    last = next(pipeline.batches(made.validation, n - 1, 4, prefetch=0))
    assert all(not array[1:].any() for array in last.values()) and last["weights"][0].any()


# ---- What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": tokenizers.Bytes()}, r"no token for \[CLS\], \[SEP\], \[MASK\].*TrainWordPiece"),
        ({"sampling": "random"}, r"data.sampling = 'random'"),
        ({"length": 4}, r"data.length = 4 must be at least 8"),
        ({"length": 4096}, r"one row needs 4094; give more text or lower data.length = 4096"),
    ],
)
def test_refused(folder, changes, message):
    data = corpus.TextCorpus(sources.TextFiles((str(folder),)), BPE, length=16)
    with pytest.raises(InputError, match=message):
        masked.prepare(dataclasses.replace(data, **changes), Masking(), "full", seed=0)


def test_next_sentence_needs_another_document(tmp_path):
    (tmp_path / "one.txt").write_text("All there is. " * 200)
    spec = tokenizers.TrainBPE(300, special=ROBERTA)
    data = corpus.TextCorpus(sources.TextFiles((str(tmp_path),)), spec, length=16)
    with pytest.raises(InputError, match=r"in one document, but next_sentence needs another; use sentence_order"):
        masked.prepare(data, Masking(), "next_sentence", seed=0)


@pytest.mark.parametrize("spec", ["bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize("unit", ["word", "span"])
def test_whole_words_of_a_script_without_spaces(spec, unit):
    """Each Chinese character begins a word, as in BERT, so that no row is left without a prediction."""
    letters = [chr(0x4E00 + 7 * i) for i in range(60)]
    rng = np.random.default_rng(0)
    text = ["".join(rng.choice(letters, 200)) for _ in range(40)]
    specs = {
        "bpe": tokenizers.TrainBPE(400, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
        "unigram": tokenizers.TrainUnigram(120),
        "wordpiece": tokenizers.TrainWordPiece(200),
    }
    source = sources.in_memory([(str(i), one) for i, one in enumerate(text)])
    tokenizer = tokenizers.build(specs[spec], source)
    known = masked.vocabulary(tokenizer)
    how = Masking(unit=unit)
    for number, one in enumerate(text):
        ids = tokenizer.encode(one)[:64]
        made = masking.mask(
            ids,
            np.ones(len(ids), bool),
            how,
            np.random.default_rng(number),
            mask_id=known.mask,
            random_ids=known.ordinary_ids,
            count=how.count(64),
            continues=known.continues,
        )
        assert made.weights_P.sum() >= 5, (number, made.weights_P)
