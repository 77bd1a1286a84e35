"""Tokenizers of encoders: what Transformers and SentencePiece make of the same files, special tokens, words, offsets.

The files of tests/data/tokenizers come from `python tools/fixtures/make_tokenizers.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data import sources, tokenizers
from transformer_jax.data.tokenizers import Special, TokenizerFile, TrainBPE, TrainUnigram, TrainWordPiece
from transformer_jax.errors import InputError

FIXTURES = Path(__file__).parents[1] / "data" / "tokenizers"
TRANSFORMERS = ["bert_uncased", "bert_cased", "bert_accents", "roberta", "albert"]
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
DOCUMENTS = [
    (f"{i}", f"The player is replaying {i} plays of it; unplayed, déjà vu (naïve).\n世界 x_{i} = [MASK] <pad>\n")
    for i in range(30)
]
SPECS = [TrainBPE(400, special=ROBERTA), TrainWordPiece(160), TrainWordPiece(160, lowercase=False), TrainUnigram(90)]
TEXT = "The player replays it, déjà vu: unplayed naïve players (3)"


def trained_name(spec):
    return type(spec).__name__ + ("" if getattr(spec, "lowercase", True) else "-cased")


@pytest.fixture(scope="module", params=SPECS, ids=trained_name)
def trained(request):
    return tokenizers.build(request.param, DOCUMENTS)


def fixture(name):
    """What Transformers makes of texts with `split_special_tokens=True`, and the tokenizer that reads them so."""
    spec = TokenizerFile(str(FIXTURES / name), special_tokens="text")
    return tokenizers.build(spec, []), json.loads((FIXTURES / name / "expected.json").read_text("utf-8"))


# ---- Against the reference implementations -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TRANSFORMERS, "sentencepiece"])
def test_ids_are_the_references(name):
    tokenizer, expected = fixture(name)
    for text, ids in zip(expected["texts"], expected["ids"], strict=True):
        if name == "albert" and "<pad>" in text:
            continue  # Transformers takes <pad> in a text for the token; below
        assert tokenizer.encode(text).tolist() == ids, text


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_special_tokens_and_prompts_are_transformers(name):
    tokenizer, expected = fixture(name)
    assert tokenizer.special == Special(**expected["special"])
    for prompt, ids in zip(expected["prompts"], expected["prompts_ids"], strict=True):
        assert tokenizer.encode_prompt(prompt).tolist() == ids, prompt
    assert tokenizer.special.mask in tokenizer.encode_prompt(expected["prompts"][0])
    as_text = set(tokenizer.encode(expected["prompts"][0]).tolist()) - {tokenizer.special.unk}
    assert not set(tokenizer.special.present().values()) & as_text


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_offsets_are_transformers(name):
    tokenizer, expected = fixture(name)
    for text, offsets in zip(expected["texts"], expected["offsets"], strict=True):
        if name == "albert" and "<pad>" in text:
            continue
        ids, got = tokenizer.encode_with_offsets(text)
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert (got.dtype, got.shape) == (np.int32, (len(ids), 2))
        assert got.tolist() == offsets, text


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_words_are_transformers(name):
    tokenizer, expected = fixture(name)
    for words, ids, of in zip(expected["words"], expected["words_ids"], expected["words_of"], strict=True):
        got, word = tokenizer.encode_words(words)
        assert got.dtype == word.dtype == np.int32
        if name == "roberta" and words:  # Transformers gives the first word a space too
            first = of.count(0)
            assert got[word == 0].tolist() == tokenizer.encode(words[0]).tolist()
            got, word, ids, of = got[word > 0], word[word > 0], ids[first:], of[first:]
        assert (got.tolist(), word.tolist()) == (ids, of), words


@pytest.mark.parametrize("name", [*TRANSFORMERS, "sentencepiece"])
def test_saved_folder_is_the_same_tokenizer(name, tmp_path):
    tokenizer, expected = fixture(name)
    tokenizer.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert (again.fingerprint, again.special, again.eos_id) == (
        tokenizer.fingerprint, tokenizer.special, tokenizer.eos_id,
    )  # fmt: skip
    np.testing.assert_array_equal(again.continues, tokenizer.continues)
    for text in expected["texts"]:
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
    for prompt in expected.get("prompts", []):
        np.testing.assert_array_equal(again.encode_prompt(prompt), tokenizer.encode_prompt(prompt))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_examples_are_put_together_as_by_transformers(name):
    """The post-processor, applied by the library itself."""
    tokenizer, expected = fixture(name)
    assert tokenizer._inner.encode("the fox", "the dog").ids == expected["pair"]


# ---- Special tokens ------------------------------------------------------------------------------------------------


def test_trained_specials_come_first(trained):
    order = {"bpe": (0, 2, 1, 4, 3), "other": (2, 3, 0, 4, 1)}  # cls, sep, pad, mask, unk
    special = trained.special
    assert special == Special(*order["bpe" if trained.eos_id is not None else "other"])
    mask = trained.decode([special.mask]).strip()
    assert trained.encode_prompt(f"play {mask} it").tolist().count(special.mask) == 1
    for spelled in ("[CLS]", "[SEP]", "[PAD]", "[MASK]", *ROBERTA):  # text is data
        ids = set(trained.encode(f"x {spelled} y{spelled}").tolist()) | set(trained.encode_with_offsets(spelled)[0])
        assert not ids & (set(special.present().values()) - {special.unk}), spelled


def test_a_pad_in_an_albert_text_is_text():
    tokenizer, _ = fixture("albert")
    ids, offsets = tokenizer.encode_with_offsets("a <pad> x")
    assert tokenizer.special.pad not in ids
    assert len(ids) > 4 and offsets[-1].tolist() == [8, 9]
    assert tokenizer.special.pad in tokenizer.encode_prompt("a <pad> x")
    assert tokenizer.encode_batch(["plain", "a <pad> x"])[1].tolist() == ids.tolist()


def test_folders_name_their_own(tmp_path):
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(FIXTURES / "roberta" / file, tmp_path / file)
    named = {"mask_token": {"content": "!", "lstrip": True}, "pad_token": None, "cls_token": "<s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named | {"sep_token": "#"}))
    (tmp_path / "tokenizer_config.json").write_text('{"sep_token": "$"}')
    tokenizer = tokenizers.load(tmp_path)
    plain = tokenizers.load(FIXTURES / "roberta")
    # As in Transformers, the map counts where tokenizer_config.json lists no added tokens.
    assert tokenizer.special == Special(cls=0, sep=plain.id_of("#"), pad=None, mask=plain.id_of("!"), unk=3)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"sep_token": "[none]"}')
    assert tokenizers.load(tmp_path).special.sep == plain.vocab_size  # it is added, as there
    (tmp_path / "tokenizer_config.json").write_text('{"sep_token": 3}')
    with pytest.raises(InputError, match="sep_token is 3, not a token"):
        tokenizers.load(tmp_path)


def test_roles_do_not_change_the_fingerprint(trained, tmp_path):
    """Which token is the mask decides nothing of how a text is encoded: a token file stays valid."""
    trained.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"mask_token": settings["pad_token"]}))
    again = tokenizers.load(tmp_path)
    assert again.special.mask == trained.special.pad
    assert again.fingerprint == trained.fingerprint


def test_bytes_and_characters_have_none():
    for spec in (tokenizers.Bytes(), tokenizers.Characters()):
        tokenizer = tokenizers.build(spec, DOCUMENTS)
        assert tokenizer.special == Special()
        text = "The naïve 世界"
        ids, offsets = tokenizer.encode_with_offsets(text)
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert [text[start:end] for start, end in np.unique(offsets, axis=0)] == list(text)
        ids, word = tokenizer.encode_words(["The", "naïve"])
        assert tokenizer.decode(ids) == "The naïve"
        assert tokenizer.decode(ids[word == 1]) == " naïve"
        begins = [i for i, id in enumerate(tokenizer.encode("a pl\nd")) if not tokenizer.continues[id]]
        assert begins == [1, 4]  # whitespace begins a word, all else goes on
        assert tokenizer.continues.shape == (tokenizer.vocab_size,)
        assert tokenizer.encode_words([])[0].shape == (0,)
    prompt = tokenizers.build(tokenizers.Bytes(), []).encode_prompt("a<|endoftext|>b<|endoftext|>")
    assert prompt.tolist() == [97, 256, 98, 256]


# ---- Words ---------------------------------------------------------------------------------------------------------


def test_continuing_tokens_make_words(trained):
    """Grouping tokens by `continues` gives the words of the text, by each kind's own idea of a word."""
    ids, offsets = trained.encode_with_offsets("The player replays it")
    starts = np.flatnonzero(~trained.continues[ids])
    if trained.eos_id is not None:  # byte-level: the first word of a text has no space before it
        assert starts[0] > 0
        starts = np.insert(starts, 0, 0)
    groups = np.split(offsets, starts[1:])
    assert ["The player replays it"[g[0, 0] : g[-1, 1]] for g in groups] == ["The", "player", "replays", "it"]
    assert not trained.continues[list(trained.special.present().values())].any()
    assert trained.continues.any() and trained.continues.dtype == bool
    assert trained.continues.shape == (trained.vocab_size,)


def test_offsets_spell_the_text(trained):
    """Put together again the slices are the text without its spaces (but for what stands alone as a "▁")."""
    _, offsets = trained.encode_with_offsets(TEXT)
    covered = np.zeros(len(TEXT), bool)
    for start, end in offsets:
        assert not TEXT[start:end].startswith(" ")
        covered[start:end] = True
    assert "".join(letter for letter, seen in zip(TEXT, covered, strict=True) if seen) == TEXT.replace(" ", "")
    assert (np.diff(offsets[:, 0]) >= 0).all()


def test_words_are_encoded_as_in_a_sentence(trained):
    ids, word = trained.encode_words(TEXT.split())
    np.testing.assert_array_equal(ids, trained.encode(TEXT))
    assert sorted(set(word.tolist())) == list(range(len(TEXT.split())))
    assert (np.diff(word) >= 0).all()


def test_a_tokenizer_without_word_marks_says_so(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="BPE tokenizer does not mark"):
        _ = tokenizers.load(tmp_path).continues
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))  # each token is a word
    words.save(str(tmp_path / "tokenizer.json"))
    assert not tokenizers.load(tmp_path).continues.any()


# ---- Training ------------------------------------------------------------------------------------------------------

TRAIN = """
import sys
from transformer_jax.data import tokenizers, sources
documents = [pair for pair in sources.Embedded().documents("validation")][:15]
for spec in (tokenizers.TrainWordPiece(700), tokenizers.TrainUnigram(500)):
    tokenizers.build(spec, documents).save(sys.argv[1] + "/" + type(spec).__name__)
"""


def test_wordpiece_training_is_deterministic_across_processes_and_threads(tmp_path):
    for i, parallel in enumerate(["true", "false"]):
        environment = os.environ | {"TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": str(i + 1)}
        subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path / str(i))], env=environment, check=True)
    saved = [(tmp_path / str(i) / "TrainWordPiece" / "tokenizer.json").read_bytes() for i in range(2)]
    assert saved[0] == saved[1]
    assert len(json.loads(saved[0])["model"]["vocab"]) == 700
    saved = [(tmp_path / str(i) / "TrainUnigram" / "tokenizer.json").read_bytes() for i in range(2)]
    first, second = ({piece for piece, _ in json.loads(file)["model"]["vocab"]} for file in saved)
    assert len(first) == 500
    assert len(first & second) > 490  # Unigram: nearly, see training.py


@pytest.mark.parametrize("spec", SPECS[1:3], ids=trained_name)
def test_wordpiece_is_berts(spec):
    trained = tokenizers.build(spec, DOCUMENTS)
    spelled = [trained.decode([id]) for id in range(5)]
    assert spelled == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert trained.decode(trained.encode("The déjà 世界")) == ("the deja 世 界" if spec.lowercase else "The déjà 世 界")
    assert trained.encode("☃").tolist() == [trained.special.unk]
    # Every letter of the text that stands inside a word can do so; one that never does has no token for it.
    assert trained.id_of("##a") is not None
    assert trained.id_of("##世") is None and trained.id_of("##(") is None


def test_trained_ones_are_kept_for_the_same_text_and_spec(tmp_path, capfd):
    documents = sources.in_memory(DOCUMENTS)
    for spec in SPECS:
        first = tokenizers.build(spec, documents, tmp_path)
        assert "training a" in capfd.readouterr().err
        again = tokenizers.build(spec, documents, tmp_path)
        assert "training a" not in capfd.readouterr().err
        assert (first.fingerprint, first.special) == (again.fingerprint, again.special)
    assert len(list((tmp_path / "tokenizers").iterdir())) == len(SPECS)


def test_bad_specs_are_named():
    with pytest.raises(InputError, match="vocab_size = 260 must be at least 261: bytes and <s> <pad>"):
        TrainBPE(260, special=ROBERTA)
    with pytest.raises(InputError, match="must be distinct tokens"):
        TrainBPE(300, special=("<s>", "<s>"))
    for spec in (TrainWordPiece, TrainUnigram):
        with pytest.raises(InputError, match=rf"{spec.__name__}\.vocab_size = 5"):
            spec(5)
        with pytest.raises(InputError, match="no text"):
            tokenizers.build(spec(100), [])
        with pytest.raises(InputError, match="vocab_size = 20 (is less than|for the documents given: The vocabulary)"):
            tokenizers.build(spec(20), DOCUMENTS)


# ---- Bad files -----------------------------------------------------------------------------------------------------


def test_bad_vocab_txt_is_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"vocab\.txt: \[UNK\] is not among its 2 lines"):
        tokenizers.load(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(InputError, match=r"vocab\.txt: not UTF-8"):
        tokenizers.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": "no"}')
    with pytest.raises(InputError, match="do_lower_case is 'no', not true or false"):
        tokenizers.load(tmp_path)


def test_bad_sentencepiece_files_are_named(tmp_path):
    good = (FIXTURES / "sentencepiece" / "tokenizer.model").read_bytes()
    file = tmp_path / "spiece.model"

    def piece(spelled: bytes, kind: int) -> bytes:
        inside = b"\x0a" + bytes([len(spelled)]) + spelled + b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(inside)]) + inside

    for content, reason in {
        b"": "it has no pieces",
        b"not a model": "not a SentencePiece model",
        good[:100]: "not a SentencePiece model",
        good + b"\x12\x02\x18\x03": "neither a Unigram model nor a BPE",
        good + piece(b"z", 7): r"pieces of the types \[7\]",
        good + piece(b"the", 1): "the same spelling",
        good + b"\x12\x03\xc0\x01\x01": "instead of beginning",
    }.items():
        file.write_bytes(content)
        with pytest.raises(InputError, match=reason) as raised:
            tokenizers.load(tmp_path)
        assert "spiece.model" in str(raised.value) and "\n" not in str(raised.value)
