"""A run's folder: its id, and small files that strangers may have written."""

import json

import pytest

from transformer_jax.errors import InputError
from transformer_jax.runs import identity, workdir


def test_a_run_has_one_id(tmp_path):
    assert identity.stored(tmp_path) is None
    made = workdir.run_id(tmp_path)
    assert workdir.run_id(tmp_path) == identity.stored(tmp_path) == made and len(made) == 32
    (tmp_path / "other").mkdir()
    assert workdir.run_id(tmp_path / "other") != made


@pytest.mark.parametrize("text", ["", "[]", '{"run": 3}', '{"run": "../.."}', "[" * 100_000])
def test_an_id_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        workdir.run_id(tmp_path)


@pytest.mark.parametrize(
    "results",
    [
        [],
        {"step": "1", "report": {}},
        {"step": 1.5},
        {"step": True},
        {"step": 1, "report": []},
        {"step": 1, "test": {"loss": {"a": 1}}},
        {"best_step": "../../other", "test": {"loss": 1.0}},
    ],
    ids=str,
)
def test_results_of_other_types_are_refused(tmp_path, results):
    (tmp_path / "other").mkdir()
    run = tmp_path / "runs/a"
    (run / "checkpoints").mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"results\.json"):
        workdir.chosen(run)


def test_the_best_step_is_chosen(tmp_path):
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    assert workdir.chosen(tmp_path) == tmp_path
    workdir.write_json(tmp_path / "results.json", {"step": 9, "best_step": 4, "test": {"loss": 1.0}})
    assert workdir.chosen(tmp_path) == tmp_path / "checkpoints/4"


def test_what_another_run_writes_before_the_lock_is_seen(tmp_path):
    before = workdir.seen(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").touch()
    workdir.refuse_changed(tmp_path / "run", before)
    workdir.write_json(tmp_path / "run/config.json", {})
    workdir.run_id(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"another run has written config\.json, run\.json in .*give the command again"
    ):
        workdir.refuse_changed(tmp_path / "run", before)
    before = workdir.seen(tmp_path / "run")
    (tmp_path / "run/checkpoints/30").mkdir(parents=True)
    with pytest.raises(InputError, match="has written checkpoints"):
        workdir.refuse_changed(tmp_path / "run", before)
