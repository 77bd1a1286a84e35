"""Tagged words: what is read, which token carries a word's tag, what is cut, and what is refused."""

import sys

import numpy as np
import pytest

from transformer_jax.data import tfds_store
from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.errors import InputError
from transformer_jax.tasks.tagging import tagged
from transformer_jax.tasks.tagging.tagged import Conll, TaggedWords, TfdsTags

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] jim hen ##son was in new york . ,".split(" ")  # noqa: SIM905

SHARED_TASK = """\
-DOCSTART- -X- -X- O

Jim NNP I-NP B-PER
Henson NNP I-NP I-PER
was VBD I-VP O

in IN I-PP O
New NNP I-NP B-LOC
York NNP I-NP I-LOC
. . O O


"""


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return TokenizerFile(str(folder))


def write(path, text):
    path.write_text(text)
    return str(path)


def data(tmp_path, tokenizer, text=SHARED_TASK, length=12, **columns):
    path = write(tmp_path / "a.txt", text)
    return TaggedWords(Conll(path, path, **columns), tokenizer, length)


def test_conll_files(tmp_path):
    path = write(tmp_path / "a.txt", SHARED_TASK)
    first, second = Conll(path, path).sentences("train")
    assert first == (("Jim", "Henson", "was"), ("B-PER", "I-PER", "O"), f"{path}:3")
    assert second == (("in", "New", "York", "."), ("O", "B-LOC", "I-LOC", "O"), f"{path}:7")
    assert Conll(path, path).sentences("test") is None
    assert Conll(path, path, tag_column=2).sentences("train")[0].tags == ("I-NP", "I-NP", "I-VP")
    tabs = write(tmp_path / "tabs.txt", "B-PER\tJim\r\n\r\nO\ta\u00a0b\r\n")  # DOS line ends; no empty line at the end
    words = [s.words for s in Conll(tabs, tabs, token_column=1, tag_column=0).sentences("train")]
    assert words == [("Jim",), ("a\u00a0b",)]  # a no-break space separates nothing


def test_the_first_token_of_a_word_carries_its_tag(tmp_path, tokenizer):
    made = tagged.prepare(data(tmp_path, tokenizer), LABELS, seed=0)
    example = made.validation[0]
    assert [PIECES[i] for i in example["tokens"][: example["lengths"]]] == "[CLS] jim hen ##son was [SEP]".split()  # noqa: SIM905
    np.testing.assert_array_equal(example["weights"], [0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(example["labels"], [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert made.facts["validation_words"] == 7 and made.facts["validation_sentences_truncated"] == 0


def test_long_sentences_are_cut_and_counted(tmp_path, tokenizer):
    made = tagged.prepare(data(tmp_path, tokenizer, length=5), LABELS, seed=0)  # room for three tokens
    assert made.facts["training_sentences_truncated"] == 2
    assert made.facts["training_words_without_token"] == 2  # "was" of 4 tokens, "." of 4
    assert all(example["lengths"] == 5 for example in (made.validation[0], made.validation[1]))
    np.testing.assert_array_equal(made.validation[1]["labels"], [0, 0, 3, 4, 0])
    np.testing.assert_array_equal(made.validation.sentences[1].first, [1, 2, 3, -1])


def test_training_is_each_sentence_once_an_epoch(tmp_path, tokenizer):
    text = "".join("jim O\n" * n + "\n" for n in range(1, 8))
    made = tagged.prepare(data(tmp_path, tokenizer, text), LABELS, seed=3)
    lengths = [int(made.train[i]["lengths"]) for i in range(21)]
    assert len(made.train) == sys.maxsize
    assert all(sorted(lengths[at : at + 7]) == list(range(3, 10)) for at in (0, 7, 14))
    assert len({tuple(lengths[at : at + 7]) for at in (0, 7, 14)}) > 1
    again = tagged.prepare(data(tmp_path, tokenizer, text), LABELS, seed=3).train
    assert [int(again[i]["lengths"]) for i in range(21)] == lengths


@pytest.mark.parametrize(
    ("iob1", "iob2"),
    [
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER"),
        ("I-PER I-LOC I-LOC", "B-PER B-LOC I-LOC"),
        ("B-PER I-PER O B-LOC B-LOC", "B-PER I-PER O B-LOC B-LOC"),
        ("O", "O"),
    ],
)
def test_iob1_becomes_iob2(iob1, iob2):
    assert " ".join(tagged.in_scheme_of(LABELS, iob1.split())) == iob2


BIOES = ("O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC")
BILOU = tuple(label.replace("E-", "L-").replace("S-", "U-") for label in BIOES)
SCHEMES = [
    (LABELS, "B-PER I-PER I-PER O B-LOC B-LOC I-LOC"),
    (BIOES, "B-PER I-PER E-PER O S-LOC B-LOC E-LOC"),
    (BILOU, "B-PER I-PER L-PER O U-LOC B-LOC L-LOC"),
]


@pytest.mark.parametrize(("labels", "wanted"), SCHEMES)
@pytest.mark.parametrize(("_", "given"), SCHEMES)
def test_tags_are_converted_to_the_scheme_of_the_labels(labels, wanted, _, given):
    tagged.check_labels(labels)
    assert " ".join(tagged.in_scheme_of(labels, given.split())) == wanted


def test_converted_tags_are_counted(tmp_path, tokenizer):
    text = SHARED_TASK.replace("B-", "I-")
    made = tagged.prepare(data(tmp_path, tokenizer, text), LABELS, seed=0)
    assert made.facts["validation_tags_converted"] == 2
    np.testing.assert_array_equal(made.validation[0]["labels"][:5], [0, 1, 2, 0, 0])


# ---- TFDS


def test_tfds_sequences_of_class_labels(tmp_path, tokenizer, write_tfds):
    from tensorflow_datasets import features as tfds

    rows = [
        {"tokens": ["Jim", "Henson", "was"], "ner": ["B-PER", "I-PER", "O"], "pos": ["O", "O", "O"]},
        {"tokens": [], "ner": [], "pos": []},  # TFDS's conll2003 ends so
    ]
    features = {
        "tokens": tfds.Sequence(tfds.Text()),
        "ner": tfds.Sequence(tfds.ClassLabel(names=LABELS)),
        "pos": tfds.Sequence(tfds.Text()),
    }
    store = write_tfds("conll2003", {"train": rows, "dev": rows, "test": rows[:1]}, features)
    source = TfdsTags(data_dir=store)
    for side in ("train", "validation", "test"):
        (sentence,) = source.sentences(side)
        assert sentence[:2] == (("Jim", "Henson", "was"), ("B-PER", "I-PER", "O"))
    assert "tensorflow" not in sys.modules
    assert TfdsTags(data_dir=store, tags="pos").sentences("train")[0].tags == ("O", "O", "O")
    assert TfdsTags(data_dir=store, test="").sentences("test") is None
    unlabelled = {"tokens": ["Jim"], "ner": [-1], "pos": ["O"]}
    store = write_tfds("unlabelled", {"train": [unlabelled]}, features | {"ner": tfds.Sequence(np.int64)})
    with pytest.raises(InputError, match=r"unlabelled/1.0.0:train:0: a word or tag is int64, not text"):
        TfdsTags("unlabelled", data_dir=store).sentences("train")
    with pytest.raises(InputError, match=r"train:0: label -1 is not one of the set's 5"):
        tfds_store.class_name(LABELS, -1, "train:0")
    with pytest.raises(InputError, match=r"no feature 'tags'; it has .*ner.*; choose with --data.source.tags"):
        TfdsTags(data_dir=store, tags="tags").sentences("train")


# ---- What is refused


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("Jim B-PER\nHenson\n", {}, r"a\.txt:2: 1 columns where the first line has 2: 'Henson'"),
        ("Jim NNP O\n\n\nwas O\n", {}, r"a\.txt:4: 2 columns where the first line has 3"),
        ("Jim B-PER\n", {"tag_column": 2}, r"a\.txt:1: no column 2 of 2; say which with tag_column"),
        ("Jim B-PER\n", {"token_column": -3}, r"a\.txt:1: no column -3 of 2; say which with token_column"),
        ("was O\nJim B-MISC\n", {}, r"a\.txt:1: tag 'B-MISC' of 'Jim' is not in task.labels \(O, B-PER"),
        ("Jim S-MISC\n", {}, r"a\.txt:1: tag 'B-MISC' of 'Jim' is not in task.labels"),
        ("Jim PER\n", {}, r"a\.txt:1: tag 'PER' of 'Jim' is not in task.labels"),
        ("\n-DOCSTART- O\n\n", {}, r"data.source.train of .*a\.txt.* has no sentences"),
    ],
)
def test_bad_files(tmp_path, tokenizer, text, columns, message):
    with pytest.raises(InputError, match=message):
        tagged.prepare(data(tmp_path, tokenizer, text, **columns), LABELS, seed=0)


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 O\n")
    with pytest.raises(InputError, match=r"latin\.txt:1: not UTF-8 at byte 3"):
        Conll(str(tmp_path / "latin.txt"), "").sentences("train")
    with pytest.raises(InputError, match=r"nowhere cannot be read \(No such file"):
        Conll(f"{tmp_path}/nowhere", "").sentences("train")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("O", "PER"), "'PER' is not one of O, B-TYPE and I-TYPE"),
        (("O", "X-PER"), "'X-PER' is not one of O"),
        (("B-PER",), "no 'O'"),
        (("O", "B-PER", "B-PER"), "'B-PER' is there twice"),
    ],
)
def test_labels(labels, message):
    with pytest.raises(InputError, match=message):
        tagged.check_labels(labels)


def test_a_type_may_lack_its_beginning(tmp_path, tokenizer):
    """Such a model can be asked; data whose tags begin so are refused, with what to add."""
    labels = ("O", "I-PER", "B-LOC", "I-LOC")
    tagged.check_labels(labels)
    with pytest.raises(InputError, match=r"tag 'B-PER' of 'Jim' is not in task.labels \(O, I-PER, .*add the tag"):
        tagged.prepare(data(tmp_path, tokenizer), labels, seed=0)
