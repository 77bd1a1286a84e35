"""A TFDS store from a stranger: nothing is imported because a file in it says so."""

import json
import os
import sys

import pytest

from transformer_jax.data import tfds_store
from transformer_jax.errors import InputError
from transformer_jax.tasks.span_qa import questions


@pytest.fixture
def store(write_tfds):
    import tensorflow_datasets as tfds

    return write_tfds("letters", {"train": [{"text": "abc"}]}, {"text": tfds.features.Text()})


def features(store):
    from pathlib import Path

    return next(Path(store).rglob("features.json"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_module_that_a_store_names_is_not_imported(store, tmp_path, monkeypatch, legacy):
    (tmp_path / "attacker.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = {"type": "attacker.Feature", "content": {}} if legacy else json.loads(features(store).read_text())
    if not legacy:
        given["featuresDict"]["features"]["text"]["pythonClassName"] = "attacker.Feature"
    features(store).write_text(json.dumps(given))
    with pytest.raises(InputError, match=r"features\.json names the class 'attacker\.Feature', which is not"):
        tfds_store.open_split("letters", "train", store)
    assert not (tmp_path / "ran").exists() and "attacker" not in sys.modules


def test_a_set_is_prepared_without_tensorflow(tmp_path, monkeypatch):
    """By TFDS's own builder of SQuAD, whose download is a file that is here; and read by the task's source."""
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core.download.download_manager import DownloadManager

    asked = {"id": "1", "question": "What?", "answers": [{"text": "a pen", "answer_start": 6}]}
    paragraph = {"context": "It is a pen.", "qas": [asked]}
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    monkeypatch.setattr(DownloadManager, "download_and_extract", lambda _, urls: dict.fromkeys(urls, epath.Path(file)))
    builder = tfds.builder("squad", data_dir=str(tmp_path / "store"))
    builder.download_and_prepare(file_format="array_record")
    (question,) = questions.TfdsSquad("squad", data_dir=str(tmp_path / "store")).questions("validation")
    assert (question.id, question.answers) == ("1", ("a pen",)) and "tensorflow" not in sys.modules


def test_files_of_a_store_are_files(store):
    assert len(tfds_store.open_split("letters", "train", store)[0]) == 1
    path = features(store)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a pipe"):
        tfds_store.open_split("letters", "train", store)
    with pytest.raises(InputError, match="is not in"):
        tfds_store.open_split("../letters", "train", store)
