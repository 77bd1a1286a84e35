"""Tokenizers: round trips, determinism, what they refuse."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from transformer_jax import contracts
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.data.tokenizers import Bytes, Characters, TokenizerFile, TrainBPE, training
from transformer_jax.errors import InputError

HARD = "def f(x):\n\treturn x  # Grüße, 世界 🙂👩‍👩‍👧 \u0000\r\n   <|endoftext|> naïve\u2028é"
DOCUMENTS = [(f"{i}", f"def f{i}(self, x):\n    return self.value_{i % 7} + x * {i}\n" * 3 + HARD) for i in range(40)]
SPECS = [Bytes(), Characters(), TrainBPE(vocab_size=400)]


@pytest.fixture(scope="module", params=SPECS, ids=lambda spec: type(spec).__name__)
def tokenizer(request):
    return tokenizers.build(request.param, DOCUMENTS)


def test_round_trip(tokenizer, tmp_path):
    ids = tokenizer.encode(HARD)
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == HARD
    assert tokenizer.decode(tokenizer.encode("")) == ""
    for one, many in zip(map(tokenizer.encode, [HARD, "def"]), tokenizer.encode_batch([HARD, "def"]), strict=True):
        np.testing.assert_array_equal(one, many)
    # Text is data: the end of text written out is thirteen characters, not the token.
    assert tokenizer.eos_id is None or tokenizer.eos_id not in ids


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    loaded = tokenizers.load(tmp_path / "t")
    assert (loaded.fingerprint, loaded.vocab_size, loaded.eos_id) == (
        tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos_id,
    )  # fmt: skip
    np.testing.assert_array_equal(loaded.encode(HARD), tokenizer.encode(HARD))
    assert loaded.decode(loaded.encode(HARD)) == HARD
    again = tokenizers.build(TokenizerFile(str(tmp_path / "t")), [])
    assert again.fingerprint == tokenizer.fingerprint


def test_stream_never_prints_half_a_character(tokenizer):
    ids = tokenizer.encode(HARD)
    pieces = list(tokenizers.stream_decode(tokenizer, iter(ids)))
    assert "".join(pieces) == HARD
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 10  # it does stream
    # Nothing is held back longer than the character needs.
    assert next(iter(tokenizers.stream_decode(tokenizer, tokenizer.encode("def")))) in ("d", "de", "def")


@pytest.mark.parametrize("spec", [Bytes(), TrainBPE(vocab_size=400)], ids=["Bytes", "TrainBPE"])
def test_stream_of_any_ids_is_their_decoding(spec):
    """What an untrained model emits is mostly not UTF-8."""
    tokenizer = tokenizers.build(spec, DOCUMENTS)
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 5000)
    assert "".join(tokenizers.stream_decode(tokenizer, ids)) == tokenizer.decode(ids)


def test_bytes_are_the_bytes():
    tokenizer = tokenizers.build(Bytes(), [])
    assert tokenizer.encode("é").tolist() == [0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)
    assert tokenizer.decode([104, 105, 256]) == "hi<|endoftext|>"


def test_characters_are_numbered_in_order_and_strangers_named():
    tokenizer = tokenizers.build(Characters(), [("a", "cab"), ("b", "é")])
    assert tokenizer.encode("abcé").tolist() == [0, 1, 2, 3]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (4, None)
    for stranger, code in {"d": "U\\+0064", "🙂": "U\\+1F642", "\x00": "U\\+0000"}.items():
        with pytest.raises(InputError, match=rf"{code}, at 2\) is not among the 4 characters"):
            tokenizer.encode("ab" + stranger)


def test_shakespeare_has_nanogpts_65_characters(shared_data):
    source = sources.TextFiles(str(shared_data / "text" / "tiny_shakespeare.txt"))
    assert tokenizers.build(Characters(), source.documents("train")).vocab_size == 65


def test_bpe_merges_the_most_frequent_pair_first():
    """Sennrich et al. 2016, figure 1, on text whose counts are plain: "ab" occurs 30 times, "abc" 20."""
    tokenizer = tokenizers.build(TrainBPE(vocab_size=259), [("a", "abc " * 20 + "abd " * 10)])
    assert tokenizer.vocab_size == 259
    merged = {tokenizer.decode([id]) for id in (257, 258)}
    assert merged == {"ab", "abc"} or merged == {"ab", " ab"}
    assert tokenizer.eos_id is not None
    assert tokenizer.decode([tokenizer.eos_id]) == "<|endoftext|>"


TRAIN = """
import sys
from transformer_jax.data import tokenizers, sources
documents = [pair for pair in sources.Embedded().documents("validation")][:30]
tokenizer = tokenizers.build(tokenizers.TrainBPE(vocab_size=600), documents)
tokenizer.save(sys.argv[1])
"""


def test_bpe_training_is_deterministic_across_processes_and_threads(tmp_path):
    saved = []
    for i, parallel in enumerate(["true", "false"]):
        environment = os.environ | {"TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": str(i + 1)}
        subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path / str(i))], env=environment, check=True)
        saved.append((tmp_path / str(i) / "tokenizer.json").read_bytes())
    assert saved[0] == saved[1]
    assert len(json.loads(saved[0])["model"]["vocab"]) == 600


def test_trained_bpe_is_kept_for_the_same_text_and_spec(tmp_path, capfd):
    documents = sources.in_memory(DOCUMENTS)
    first = tokenizers.build(TrainBPE(vocab_size=300), documents, tmp_path)
    assert "training a" in capfd.readouterr().err
    again = tokenizers.build(TrainBPE(vocab_size=300), documents, tmp_path)
    assert "training a" not in capfd.readouterr().err
    assert first.fingerprint == again.fingerprint == tokenizers.build(TrainBPE(vocab_size=300), DOCUMENTS).fingerprint
    other = tokenizers.build(TrainBPE(vocab_size=300), sources.in_memory([("a", "other text " * 99)]), tmp_path)
    assert other.fingerprint != first.fingerprint


def test_bpe_learns_from_no_more_than_so_much(monkeypatch):
    monkeypatch.setattr(training, "TRAIN_BYTES", 1000)

    def endless():
        while True:
            yield "a", "some text\n" * 10

    assert tokenizers.build(TrainBPE(vocab_size=270), endless()).vocab_size > 257


def test_gpt2s_two_files(tmp_path):
    """vocab.json and merges.txt, as in a Hugging Face snapshot of GPT-2."""
    trained = tokenizers.build(TrainBPE(vocab_size=400), DOCUMENTS)
    trained.save(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    loaded = tokenizers.build(TokenizerFile(str(tmp_path), special_tokens="text"), [])
    np.testing.assert_array_equal(loaded.encode(HARD), trained.encode(HARD))
    assert loaded.eos_id == trained.eos_id
    assert loaded.decode(loaded.encode(HARD)) == HARD


def test_a_file_that_pads_truncates_and_adds_tokens_does_not_here(tmp_path):
    """A BERT-like tokenizer.json: WordPiece, [CLS] and [SEP] from the post-processor, truncation to 4."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "play": 3, "##ing": 4, "the": 5, "game": 6}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    inner.enable_truncation(4)
    inner.enable_padding(length=4)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizers.load(tmp_path / "tokenizer.json")
    assert tokenizer.encode("playing the game game").tolist() == [3, 4, 5, 6, 6]
    assert tokenizer.encode("the").tolist() == [5]
    assert tokenizer.eos_id is None
    assert "".join(tokenizers.stream_decode(tokenizer, [3, 4, 5, 6])) == tokenizer.decode([3, 4, 5, 6])


def test_bad_tokenizers_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        tokenizers.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor"):
        tokenizers.load(tmp_path)
    for content in ("", "{", "{}", "[1]", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(
            InputError,
            match=r"tokenizer\.json: (not a JSON object|not a tokenizer)|tokenizer\.json cannot be read as JSON",
        ):
            tokenizers.load(tmp_path)
    for added in (True, "a", ["a"], [{"content": "a"}], [{"id": "1", "content": "a"}]):
        model = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": added}
        (tmp_path / "tokenizer.json").write_text(json.dumps(model))
        with pytest.raises(InputError, match=r"tokenizer\.json: added_tokens has .*, not a token with its id"):
            tokenizers.load(tmp_path)
    (tmp_path / "characters.json").write_text('{"characters": "aa"}')
    with pytest.raises(InputError, match="distinct"):
        tokenizers.load(tmp_path)
    with pytest.raises(InputError, match="vocab_size = 256"):
        TrainBPE(vocab_size=256)
    for spec in (Characters(), TrainBPE(vocab_size=300)):
        with pytest.raises(InputError, match="no text"):
            tokenizers.build(spec, [])
    trained = tokenizers.build(TrainBPE(vocab_size=300), DOCUMENTS)
    trained.save(tmp_path / "eos")
    (tmp_path / "eos" / "tokenizer_config.json").write_text('{"eos_token": "<nope>"}')
    assert tokenizers.load(tmp_path / "eos").eos_id == trained.vocab_size  # added, as in Transformers


def test_split_digits_makes_a_token_of_each():
    spec = TrainBPE(vocab_size=300, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>"), split_digits=True)
    tokenizer = tokenizers.build(spec, [("a", "am 7. Mai 2026, 2026 Meter " * 50)])
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(" Meter 2026")]
    assert pieces == [" Meter", " ", "2", "0", "2", "6"]


@pytest.mark.parametrize(
    "tokenizer", [tokenizers.ByteTokenizer(), tokenizers.CharacterTokenizer("abc")], ids=["bytes", "characters"]
)
def test_an_id_that_is_no_token_is_decoded_as_nothing(tokenizer):
    """A model whose vocabulary is padded to a multiple of 64 can sample such an id."""
    ids = [*tokenizer.encode("ab").tolist(), 300, -1, *tokenizer.encode("c").tolist(), 10**6]
    assert tokenizer.decode(ids) == "".join(tokenizer.pieces(ids)) == "abc"


@dataclasses.dataclass(frozen=True)
class Words:
    """A spec of one's own: every word of the training text is a token."""

    lower: bool = True

    def build(self, documents, cache=None):
        return WordTokenizer(tuple(sorted({word for _, text in documents for word in self.cut(text)})), self)

    def read(self, folder):
        return WordTokenizer(tuple((folder / "words.txt").read_text().split("\n")), self)

    def cut(self, text):
        return (text.lower() if self.lower else text).split()


@dataclasses.dataclass(frozen=True)
class WordTokenizer(contracts.Tokenizer):
    words: tuple[str, ...]
    spec: Words

    vocab_size = property(lambda self: len(self.words))
    fingerprint = property(lambda self: repr(self))

    def encode(self, text):
        return np.array([self.words.index(word) for word in self.spec.cut(text)], np.int32)

    def decode(self, ids):
        return " ".join(self.words[id] for id in ids if 0 <= id < len(self.words))

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "words.txt").write_text("\n".join(self.words))


def test_a_tokenizer_of_ones_own_needs_no_entry_anywhere(tmp_path):
    """`build` and `read` of the spec, four methods of the tokenizer: the rest has defaults."""
    for side in ("train", "val"):
        (tmp_path / f"{side}.txt").write_text("The cat sat on the mat . " * 20)
    source = sources.TextFiles(str(tmp_path / "train.txt"), validation=str(tmp_path / "val.txt"))
    data = corpus.TextCorpus(source=source, tokenizer=Words(), length=8)
    made = corpus.prepare(data, seed=0, cache=tmp_path / "cache")
    assert made.tokenizer.decode(made.train[0]["inputs"]).split()[0] in made.tokenizer.words
    made.tokenizer.save(tmp_path / "t")
    again = tokenizers.load(tmp_path / "t", Words())
    assert again == made.tokenizer
    ids = tokenizers.prompt_ids(again, "the cat")
    assert "".join(tokenizers.stream_decode(again, [again.words.index("mat")], after=ids)) == " mat"
    with pytest.raises(InputError, match="is not a tokenizer: it has no build"):
        tokenizers.build("words", [])
