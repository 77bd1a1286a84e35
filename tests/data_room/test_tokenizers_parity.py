"""The tokenizer of a folder is what Transformers makes of it: 36 folders, 302 texts in 32 scripts.

tests/data/tokenizers_parity comes from `python tools/fixtures/make_tokenizer_parity.py`. Where a folder holds nothing
but SentencePiece's file of a Unigram model, SentencePiece's own pieces count: Transformers approximates its normaliser.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data import tokenizers
from transformer_jax.errors import InputError

FOLDER = Path(__file__).parents[1] / "data" / "tokenizers_parity"
EXPECTED = json.loads(gzip.decompress((FOLDER / "expected.json.gz").read_bytes()))
TEXTS, FOLDERS = EXPECTED["texts"], EXPECTED["folders"]
# How many of the 302 texts SentencePiece and Transformers encode differently, by folder.
SENTENCEPIECE = {
    **{"albert_model": 4, "camembert_model": 20, "mbart50_model": 61, "mbart_model": 22, "t5_model": 13},
    **{"t5_user": 21, "xlm_roberta_model": 13, "deberta_model": 13},
}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request):
    return request.param, tokenizers.load(FOLDER / request.param), FOLDERS[request.param]


def test_ids_are_transformers(folder):
    name, tokenizer, expected = folder
    ids = [one.tolist() for one in tokenizer.encode_batch(TEXTS)]
    other = [i for i, (ours, theirs) in enumerate(zip(ids, expected["ids"], strict=True)) if ours != theirs]
    assert len(other) == SENTENCEPIECE.get(name, 0), [TEXTS[i] for i in other]
    for i in other:
        if name != "albert_model" and not any(token in TEXTS[i] for token in tokenizer.special_spellings):
            unknown = "[UNK]" if name.startswith("deberta") else "<unk>"
            known = [piece if tokenizer.id_of(piece) is not None else unknown for piece in expected["pieces"][i]]
            assert [tokenizer._inner.id_to_token(id) for id in ids[i]] == known, TEXTS[i]
    for i in range(0, len(TEXTS), 17):
        assert tokenizer.encode(TEXTS[i]).tolist() == ids[i]


def test_text_is_transformers_whole_and_as_it_comes(folder):
    _, tokenizer, expected = folder
    for ids, text in zip(expected["ids"], expected["decoded"], strict=True):
        assert tokenizer.decode(ids) == text
        assert "".join(tokenizer.pieces(ids)) == text


def test_special_tokens_are_transformers(folder):
    name, tokenizer, expected = folder
    roles = {role: id for role, id in expected["roles"].items() if role in ("cls", "sep", "pad", "mask", "unk")}
    roles |= {"sep": expected["roles"]["eos"]} if name == "esm" else {}
    assert {role: getattr(tokenizer.special, role) for role in roles} == roles
    assert tokenizer.vocab_size == expected["length"]
    framed, plain = expected["framed"][0], expected["ids"][0]
    begun = framed[: len(framed) - len(plain)] if framed[len(framed) - len(plain) :] == plain else []
    assert tokenizer.bos_id == (begun[0] if len(begun) == 1 else None)


def test_a_batch_is_what_transformers_gives_a_model(folder):
    _, tokenizer, expected = folder
    texts = TEXTS[: len(expected["framed"])]
    made = tokenizers.batch(tokenizer, texts)
    lengths = [len(ids) for ids in expected["framed"]]
    assert made["lengths"].tolist() == lengths and made["tokens"].shape == (len(texts), max(lengths))
    for row, ids in zip(made["tokens"], expected["framed"], strict=True):
        assert row[: len(ids)].tolist() == ids and set(row[len(ids) :].tolist()) <= {tokenizer.special.pad or 0}
    for spelled in tokenizer.special_spellings[:1]:
        tokens = tokenizers.batch(tokenizer, [spelled], literal=True)["tokens"][0]
        assert len(tokens) > len(tokenizers.batch(tokenizer, [spelled])["tokens"][0]), "as text it is several tokens"


def test_a_batch_is_refused_where_a_text_does_not_fit():
    tokenizer = tokenizers.Bytes().build([])
    assert tokenizers.batch(tokenizer, ["abc", "é"], length=4)["tokens"].tolist()[1][:2] == [0xC3, 0xA9]
    with pytest.raises(InputError, match=r"text 1 has 3 tokens, and length is 2"):
        tokenizers.batch(tokenizer, ["a", "abc"], length=2)
    for texts in ("abc", []):
        with pytest.raises(InputError, match="needs a list of one or more texts"):
            tokenizers.batch(tokenizer, texts)


def test_a_saved_folder_is_the_same(folder, tmp_path):
    """Byte for byte, so that Transformers makes of it what it made of the original."""
    name, tokenizer, _ = folder
    tokenizer.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.special == tokenizer.special
    for file in (FOLDER / name).iterdir():
        kept = tmp_path / file.name
        if file.name == "tokenizer_config.json":  # which class it is must be said where no config.json says it
            said, settings = (json.loads(path.read_text("utf-8")) for path in (file, kept))
            assert settings | {"tokenizer_class": said.get("tokenizer_class")} == {"tokenizer_class": None} | said
        elif file.name != "config.json" and name != "marian":
            assert kept.read_bytes() == file.read_bytes()


def test_a_stream_of_any_ids_is_their_decoding(folder):
    """Ids that are no token among them, as a model with a padded vocabulary may give."""
    _, tokenizer, _ = folder
    rng = np.random.default_rng(0)
    for _ in range(40):
        ids = rng.integers(-2, tokenizer.vocab_size + 70, rng.integers(1, 30)).tolist()
        assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids), ids


def test_a_stream_goes_on_from_a_prompt(folder):
    """The space between a prompt and the first new word is neither lost nor doubled."""
    _, tokenizer, _ = folder
    ids = tokenizer.encode("the capital of France jumps over").tolist()
    for cut in range(1, len(ids)):
        made = "".join(tokenizers.stream_decode(tokenizer, ids[cut:], after=ids[:cut]))
        assert tokenizer.decode(ids[:cut]) + made == tokenizer.decode(ids)
