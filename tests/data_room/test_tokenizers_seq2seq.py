"""Tokenizers of encoder-decoders: Marian's folder of two SentencePiece models, mBART's ids and codes of languages.

The files of tests/data/tokenizers come from `python tools/fixtures/make_tokenizers.py`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data import tokenizers
from transformer_jax.data.tokenizers import Languages, Special, TokenizerFile
from transformer_jax.errors import InputError

FIXTURES = Path(__file__).parents[1] / "data" / "tokenizers"
MBARTS = {"mbart": False, "mbart50": True}


def fixture(name):
    """What Transformers makes of texts with `split_special_tokens=True`, and the tokenizer that reads them so."""
    return tokenizers.build(TokenizerFile(str(FIXTURES / name), special_tokens="text"), []), json.loads(
        (FIXTURES / name / "expected.json").read_text("utf-8")
    )


# ---- Marian --------------------------------------------------------------------------------------------------------


def test_marian_ids_of_both_sides_are_transformers():
    tokenizer, expected = fixture("marian")
    assert [tokenizer.eos_id, tokenizer.special.pad, tokenizer.special.unk] == expected["special"]
    assert tokenizer.target.target is tokenizer.target and tokenizer.target is tokenizer.target
    sides = ((tokenizer, "ids"), (tokenizer.target, "target_ids"))
    for text, *ids in zip(expected["texts"], *(expected[key] for _, key in sides), strict=True):
        for (side, key), wanted in zip(sides, ids, strict=True):
            if key == "target_ids" and text.startswith(">>"):
                continue  # a code is a source's; below
            assert side.encode(text).tolist() == wanted, (key, text)
    for batch, (side, key) in zip((tokenizer.encode_batch, tokenizer.target.encode_batch), sides, strict=True):
        got = [ids.tolist() for ids, text in zip(batch(expected["texts"]), expected["texts"], strict=True)]
        assert got == [side.encode(text).tolist() for text in expected["texts"]], key
    for prompt, wanted in zip(expected["prompts"], expected["prompts_ids"], strict=True):
        assert tokenizer.encode_prompt(prompt).tolist() == wanted, prompt


def test_marian_decodes_as_transformers():
    tokenizer, expected = fixture("marian")
    for ids, text in zip(expected["ids"], expected["decoded"], strict=True):
        assert tokenizer.decode(ids) == "".join(tokenizer.pieces(ids)) == text
    assert tokenizer.target.decode([*tokenizer.target.encode("Der Hund springt"), 0]) == "Der Hund springt</s>"


def test_a_code_of_a_language_leads_a_source():
    tokenizer, _ = fixture("marian")
    code, fox = 2, tokenizer.encode("The fox").tolist()
    assert tokenizer.encode(">>deu<< The fox").tolist() == [code, *fox]
    ids, offsets = tokenizer.encode_with_offsets(">>deu<< The fox")
    assert ids.tolist() == [code, *fox]
    assert offsets[0].tolist() == [0, 7] and offsets[1, 0] == 8 and offsets[-1, 1] == 15
    assert code not in tokenizer.encode(">>fra<< The fox") and code not in tokenizer.encode("The >>deu<< fox")
    assert code not in tokenizer.target.encode(">>deu<< Der Fuchs")
    assert not tokenizer.continues[[0, 1, code]].any() and not tokenizer.continues[fox[0]]


def test_what_one_side_does_not_know_the_other_may():
    """A letter that the source's model lacks stands in vocab.json as a piece of the target's."""
    tokenizer, _ = fixture("marian")
    vocabulary = json.loads((FIXTURES / "marian" / "vocab.json").read_text("utf-8"))
    model = (FIXTURES / "marian" / "source.spm").read_bytes()
    letters = [piece for piece in vocabulary if len(piece) == 1 and piece.encode() not in model]
    assert "ü" in letters
    for letter in letters:
        assert vocabulary[letter] in tokenizer.encode(f"a{letter}").tolist()
    assert tokenizer.encode("\u05d0").tolist()[-1] == tokenizer.special.unk


def test_special_tokens_in_a_marian_text_are_text():
    tokenizer, _ = fixture("marian")
    for text in ("a </s> b", "<pad>", "x<s>y"):
        assert not {tokenizer.eos_id, tokenizer.special.pad} & set(tokenizer.encode(text).tolist())
    assert tokenizer.encode_prompt("a </s> b").tolist().count(tokenizer.eos_id) == 1


def test_a_saved_marian_is_the_same(tmp_path):
    tokenizer, expected = fixture("marian")
    tokenizer.save(tmp_path / "kept")
    again = tokenizers.load(tmp_path / "kept")
    assert again.fingerprint == tokenizer.fingerprint != tokenizer.target.fingerprint == again.target.fingerprint
    assert (again.special, again.eos_id, again.vocab_size) == (tokenizer.special, 0, tokenizer.vocab_size)
    for text in expected["texts"]:
        np.testing.assert_array_equal(again.target.encode(text), tokenizer.target.encode(text))
    assert (tmp_path / "kept" / "target.spm").read_bytes() == (FIXTURES / "marian" / "target.spm").read_bytes()


def marian_copy(folder, **vocabulary):
    shutil.copytree(FIXTURES / "marian", folder)
    if vocabulary:
        read = json.loads((folder / "vocab.json").read_text("utf-8")) | vocabulary
        (folder / "vocab.json").write_text(json.dumps({k: v for k, v in read.items() if v is not None}))
    return folder


def test_broken_marian_folders(tmp_path):
    own = marian_copy(tmp_path / "own")
    (own / "target_vocab.json").write_text("{}")
    with pytest.raises(InputError, match="separate vocabularies"):
        tokenizers.load(own)
    half = marian_copy(tmp_path / "half")
    (half / "target.spm").unlink()
    with pytest.raises(InputError, match=r"holds source.spm but not target.spm"):
        tokenizers.load(half)
    with pytest.raises(InputError, match="lacks <unk>"):
        tokenizers.load(marian_copy(tmp_path / "unk", **{"<unk>": None}))
    with pytest.raises(InputError, match="one id to two pieces"):
        tokenizers.load(marian_copy(tmp_path / "two", zwei=0))
    with pytest.raises(InputError, match="pieces and their ids"):
        tokenizers.load(marian_copy(tmp_path / "ids", zwei="2"))
    bad = marian_copy(tmp_path / "bad")
    (bad / "target.spm").write_bytes(b"\xff\xff\xff")
    with pytest.raises(InputError, match=r"target.spm: not a SentencePiece model"):
        tokenizers.load(bad)


# ---- mBART ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MBARTS)
def test_mbart_ids_are_fairseqs(name):
    tokenizer, expected = fixture(name)
    assert {token: tokenizer.id_of(token) for token in expected["vocabulary"]} == expected["vocabulary"]
    assert tokenizer.vocab_size == len(expected["vocabulary"]) and tokenizer.target is tokenizer
    assert (tokenizer.eos_id, tokenizer.special) == (2, Special(0, 2, 1, tokenizer.vocab_size - 1, 3))
    for text, ids in zip(expected["texts"], expected["ids"], strict=True):
        if "<pad>" not in text:  # cut otherwise, so that it stays text: below
            assert tokenizer.encode(text).tolist() == ids, text
    codes = {tokenizer.id_of(code) for code in ("en_XX", "de_DE", "ar_AR")}
    assert not (codes | {0, 1, 2}) & set(tokenizer.encode("en_XX de_DE <s> </s> ar_AR<pad>").tolist())


@pytest.mark.parametrize(("name", "leading"), MBARTS.items())
def test_where_the_codes_stand_is_transformers(name, leading):
    tokenizer, expected = fixture(name)
    english, german = tokenizer.id_of("en_XX"), tokenizer.id_of("de_DE")
    assert tokenizer.languages == Languages(english, german, leading)
    fox = tokenizer.encode("the fox").tolist()
    for code, ids in ((english, expected["source"]), (german, expected["target"])):
        assert ids == ([code, *fox, 2] if leading else [*fox, 2, code])


@pytest.mark.parametrize("name", MBARTS)
def test_a_saved_mbart_is_the_same(name, tmp_path):
    tokenizer, expected = fixture(name)
    tokenizer.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert (again.fingerprint, again.special, again.languages, again.eos_id) == (
        tokenizer.fingerprint, tokenizer.special, tokenizer.languages, 2,
    )  # fmt: skip
    for text in expected["texts"]:
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == ("MBart50Tokenizer" if name == "mbart50" else "MBartTokenizer")


def test_an_experiment_chooses_the_languages():
    folder = str(FIXTURES / "mbart50")
    tokenizer = tokenizers.build(TokenizerFile(folder, target_language="fr_XX"), [])
    assert tokenizer.languages == Languages(tokenizer.id_of("en_XX"), tokenizer.id_of("fr_XX"), True)
    assert tokenizers.load(folder).languages.target == tokenizer.id_of("de_DE")
    with pytest.raises(InputError, match="source_language is 'english'; the languages that this tokenizer knows are"):
        tokenizers.build(TokenizerFile(folder, source_language="english"), [])
    with pytest.raises(InputError, match="target_language is 'pl_PL'"):  # mBART-50's only
        tokenizers.build(TokenizerFile(str(FIXTURES / "mbart"), target_language="pl_PL"), [])
    with pytest.raises(InputError, match="no language codes"):
        tokenizers.build(TokenizerFile(str(FIXTURES / "marian"), "en_XX", "de_DE"), [])


def test_whose_file_it_is_must_be_said(tmp_path):
    shutil.copy(FIXTURES / "mbart" / "sentencepiece.bpe.model", tmp_path)
    with pytest.raises(InputError, match=r"no file names its tokenizer_class; set it"):
        tokenizers.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mbart"}')
    assert tokenizers.load(tmp_path).languages == Languages(None, None, False)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MBart50TokenizerFast", "src_lang": "xx"}')
    with pytest.raises(InputError, match="src_lang is 'xx'; the languages that this tokenizer knows are ar_AR"):
        tokenizers.load(tmp_path)


# ---- Every other ---------------------------------------------------------------------------------------------------


def test_both_sides_share_the_other_tokenizers():
    for spec in (tokenizers.Bytes(), tokenizers.Characters(), tokenizers.TrainBPE(260)):
        tokenizer = tokenizers.build(spec, [("a", "some text")])
        assert tokenizer.target is tokenizer and tokenizer.languages is None
