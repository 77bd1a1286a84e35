"""A source of the user's own, beside each kind of ours: what a frozen dataclass must have, and nothing else."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from transformer_jax import config_json, contracts, overrides
from transformer_jax.data import image_sources, images, sources, tables, tokenizers
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.models import bert
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.tagging import tagged
from transformer_jax.tasks.translation import bitext, parallel

LETTERS = tokenizers.TrainWordPiece(60)


@dataclass(frozen=True)
class Corpus:
    size: int = 3

    def documents(self, split):
        return sources.in_memory((str(i), f"a text of {split}") for i in range(self.size))


@dataclass(frozen=True)
class Reviews(tables.Source):
    size: int = 3

    def rows(self, side):
        return tables.Rows(side, [tables.Row(f"a fine text {i}", None, "positive", str(i)) for i in range(self.size)])


@dataclass(frozen=True)
class Pairs(bitext.Source):
    size: int = 3

    def pairs(self, side):
        return bitext.in_memory([bitext.Pair("one", "eins", str(i)) for i in range(self.size)], side)


@dataclass(frozen=True)
class Tags:
    size: int = 3

    def sentences(self, side):
        return None if side == "test" else [tagged.Sentence(("Jim", "was"), ("B-PER", "O"), "0")] * self.size


@dataclass(frozen=True)
class Asked:
    size: int = 3

    def questions(self, side):
        return None if side == "test" else [questions.Question("1", "who", "it is me", ("me",), (6,))] * self.size


@dataclass(frozen=True)
class Squares:
    size: int = 3

    def classes(self):
        return ("dark", "light")

    def images(self, side):
        def read(rows):
            return [image_sources.Item(np.full((8, 8), 200 * (i % 2), np.uint8), i % 2, str(i)) for i in rows]

        return None if side == "test" else image_sources.Images(side, self.size, read)


def test_each_task_reads_a_source_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path))
    rows = labelled.prepare(labelled.LabelledText(Reviews(), LETTERS, length=16), ("negative", "positive"), seed=0)
    assert len(rows.validation) == 3 and rows.test is None, "the contract's defaults"
    words = tagged.prepare(tagged.TaggedWords(Tags(), LETTERS, length=16), ("O", "B-PER"), seed=0)
    assert words.facts["training_sentences"] == 3 and words.test is None
    asked = questions.prepare(questions.Questions(Asked(), LETTERS, length=32, stride=8), seed=0)
    assert asked.facts["validation_questions"] == 3
    squares = images.prepare(
        images.ImageSet(Squares()), Preprocess(size=8, resize=8, mean=(0.5,), std=(0.5,)), ("dark", "light"), seed=0
    )
    assert squares.validation[1]["labels"] == 1 and squares.facts["train_images"] == 3
    assert not Pairs().has_test and [p.target for p in Pairs().pairs("train")] == ["eins"] * 3
    assert len(list(TextCorpus(Corpus(), LETTERS).source.documents("train"))) == 3


@dataclass(frozen=True)
class AnyTask(contracts.Task):
    """So that the data of each task fit into an experiment."""

    example = prepare = loss = report = lambda *_, **__: None  # type: ignore[assignment]


DATA = (
    labelled.LabelledText(Reviews(), LETTERS),
    tagged.TaggedWords(Tags(), LETTERS),
    questions.Questions(Asked(), LETTERS),
    images.ImageSet(Squares()),
    TextCorpus(Corpus(), LETTERS),
    parallel.ParallelText(Pairs(), LETTERS),
)


@pytest.mark.parametrize("data", DATA, ids=lambda data: type(data).__name__)
def test_its_fields_are_settings_like_any_other(data):
    whole = Experiment(model=bert.Config(vocab_size=60), data=data, task=AnyTask())
    changed = overrides.override(whole, ["--data.source.size", "5"], description="", program="")
    assert changed.data.source == type(data.source)(5)
    stored = config_json.to_json(changed)
    assert config_json.from_json(stored, types=sys.modules[__name__]) == changed


@pytest.mark.parametrize("data", DATA, ids=lambda data: type(data).__name__)
def test_a_type_that_is_no_source_is_refused(data):
    """A config.json may come from a stranger."""
    stored = config_json.to_json(Experiment(model=bert.Config(vocab_size=60), data=data, task=AnyTask()))
    stored["data"]["source"] = {"type": "preprocess.Preprocess"}
    with pytest.raises(InputError, match=r"data.source: preprocess.Preprocess has no \w+.*, so it is no Source"):
        config_json.from_json(stored, types=sys.modules[__name__])


@pytest.mark.parametrize(
    ("source", "files", "wanted"),
    [
        (sources.Embedded(), ("a.txt", "b"), sources.TextFiles(("a.txt", "b"), ("a.txt", "b"))),
        (
            sources.Records(("a.jsonl",), "body"),
            ("b.jsonl.gz",),
            sources.Records(("b.jsonl.gz",), "body", ("b.jsonl.gz",)),
        ),
        (
            tables.Table(("a.csv",), test=("t.csv",), text="review"),
            ("b.csv",),
            tables.Table(("b.csv",), ("b.csv",), text="review"),
        ),
        (tables.TfdsTable("glue/sst2"), ("b.csv",), tables.Table(("b.csv",), ("b.csv",), text="sentence")),
        (bitext.Lines(("a.en", "a.de")), ("b.en", "b.de"), bitext.Lines(("b.en", "b.de"), ("b.en", "b.de"))),
        (bitext.Lines(("a.en", "a.de")), ("b.tsv",), bitext.Columns(("b.tsv",), ("b.tsv",))),
        (
            bitext.Columns(("a.tsv",), source="en", target="de"),
            ("b.tsv",),
            bitext.Columns(("b.tsv",), ("b.tsv",), (), "en", "de"),
        ),
        (tagged.Conll("a", "a", "t", 1), ("b",), tagged.Conll("b", "b", "", 1)),
        (questions.TfdsSquad(), ("b.json",), questions.SquadJson("b.json", "b.json")),
        (image_sources.Digits(), ("b",), image_sources.Folder("b", "b")),
    ],
)
def test_sources_of_files_given(source, files, wanted):
    assert source.of_files(files) == wanted


def test_sources_that_read_one_file_refuse_several():
    for source in (tagged.Conll("a", "a"), questions.TfdsSquad(), image_sources.Folder("a")):
        with pytest.raises(InputError, match=r"b, c: 2 files, where one is read"):
            source.of_files(("b", "c"))
    with pytest.raises(InputError, match=r"must name two files, the source and the target"):
        bitext.Lines(("a.en", "a.de")).of_files(("b",))
