"""Translators on the command line: as many lines out as in, in order; bad input in one line; a snapshot at work."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from transformer_jax import hub, restore
from transformer_jax.__main__ import main
from transformer_jax.data import tokenizers
from transformer_jax.decoding.beam import Beam
from transformer_jax.models import seq2seq
from transformer_jax.tasks import Translation

TEXT = [("words", "the theory of the thing is nothing in the other list of strings " * 9)]
TOKENIZER = tokenizers.build(tokenizers.TrainBPE(290, special=("<pad>", "</s>", "<unk>")), TEXT)
CFG = seq2seq.Config(  # T5's
    vocab_size=290,
    max_length=24,
    width=16,
    num_layers=1,
    num_heads=2,
    head_dim=8,
    norm="rms",
    norm_eps=1e-6,
    norm_order="pre",
    bias=False,
    position="relative",
    scale_embedding=False,
    scale_scores=False,
    scale_head=True,
    initializer="t5",
    pad_id=0,
    eos_id=1,
    decoder_start_id=0,
)
SILENT = tuple(
    i for i in range(2, 290) if not (TOKENIZER.decode([i]).strip().isalpha() and TOKENIZER.decode([i]).isascii())
)
BEAM = Beam(3, max_new_tokens=8, stop_ids=(1,), length_penalty=0.6, suppress_ids=SILENT)  # letters, to tell texts apart
PARAMS = seq2seq.init(jax.random.key(0), dataclasses.replace(CFG, initializer="normal", init_std=0.6))
LINES = ["the list", "", "nothing in the other thing", "of", "the theory of strings is", " ", "the list"]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Path:
    """A Hugging Face folder of random weights."""
    folder = tmp_path_factory.mktemp("t5") / "hf"
    hub.export(folder, CFG, PARAMS, TOKENIZER, beam=BEAM)
    return folder


@pytest.fixture(scope="module")
def workdir(snapshot, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "t5"
    assert main(["convert", "hf", str(snapshot), str(folder)]) == 0
    return folder


@pytest.fixture
def predict(capsys, monkeypatch):
    """predict(path, *arguments, stdin=bytes) -> (exit code, stdout, stderr)"""

    def run(path, *arguments, stdin=b""):
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["predict", str(path), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_a_line_for_each_line_in_order(workdir, predict, tmp_path):
    stdin = "\r\n".join(LINES).encode() + b"\n"
    code, out, err = predict(workdir, stdin=b"\xef\xbb\xbf" + stdin)
    lines = out.split("\n")
    assert code == 0 and lines[-1] == ""
    assert err.startswith("2 of 7 inputs have no answer; the first: stdin:2: ") and err.count("\n") == 1
    assert len(lines) == len(LINES) + 1
    assert [bool(line) for line in lines[:-1]] == [bool(line.strip()) for line in LINES]
    assert lines[0] == lines[6] and len({*lines}) >= 4, "they differ by their sources"
    turned = predict(workdir, stdin="\n".join(LINES[::-1]).encode())[1]  # without an end of the last line
    assert turned.split("\n")[:-1] == lines[:-1][::-1]
    (tmp_path / "in.txt").write_bytes(stdin)
    assert predict(workdir, "--file", tmp_path / "in.txt")[1] == out
    assert predict(workdir, *LINES)[1] == out


def test_json_and_nbest_have_scores(workdir, predict):
    stdin = "\n".join(LINES[:3]).encode()
    answers = [json.loads(line) for line in predict(workdir, "--json", "--nbest", "2", stdin=stdin)[1].splitlines()]
    assert [answer.get("source") for answer in answers] == [LINES[0], None, LINES[2]]
    assert "error" in answers[1] and [len(answers[i]["hypotheses"]) for i in (0, 2)] == [2, 2]
    lines = predict(workdir, "--nbest", "2", stdin=stdin)[1].split("\n")
    assert [bool(line) for line in lines] == [True, True, False, False, True, True, False, False], "a group ends empty"
    score, text = lines[0].split("\t")
    assert text == answers[0]["hypotheses"][0]
    assert float(score) == pytest.approx(answers[0]["scores"][0], abs=1e-4)


def test_the_search_can_be_changed(workdir, predict):
    def answer(*arguments):
        return json.loads(predict(workdir, LINES[2], "--json", *arguments)[1])

    usual = answer()
    short = answer("--max-new-tokens", "2")
    assert len(TOKENIZER.encode(short["hypotheses"][0])) <= 2 < len(TOKENIZER.encode(usual["hypotheses"][0]))
    assert answer("--length-penalty", "0")["scores"] != usual["scores"]
    assert answer("--beam", "1")["scores"][0] <= usual["scores"][0] + 1e-6


def test_bad_input_is_one_line(workdir, predict, tmp_path):
    def refused(*arguments, stdin=b""):
        code, out, err = predict(workdir, *arguments, stdin=stdin)
        assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    assert "stdin:3: not UTF-8 at byte 6 (invalid start byte); convert" in refused(stdin=b"a\nb\nc \xff\n")
    assert "no input: give a text, --file, or lines on stdin" in refused()
    assert "nowhere.txt cannot be read (No such file or directory)" in refused("--file", tmp_path / "nowhere.txt")
    assert "both --file x and an INPUT are given" in refused("a", "--file", "x")
    assert "--nbest 9 of --beam 3: give at most as many as there are beams" in refused("a", "--nbest", "9")
    assert "unknown override --beams; the nearest is --beam" in refused("a", "--beams", "9")


def test_a_line_of_ten_thousand_words_is_cut_and_said(workdir, predict):
    code, out, err = predict(workdir, stdin=b"the list\n" + b"the " * 9_999 + b"the\nthe list\n")
    lines = out.split("\n")
    assert code == 0 and len(lines) == 4 and lines[0] == lines[2] and lines[1]
    assert err == "1 of 3 sources exceed the model's 24 tokens, the longest with 10,001: they are truncated\n"


def test_a_snapshot_translates_as_its_workdir_does(snapshot, workdir, predict):
    loaded = restore.load(snapshot)
    assert loaded.task == Translation(beam=BEAM, extra_tokens=24) == restore.load(workdir).task
    assert predict(snapshot, *LINES[:3])[1] == predict(workdir, *LINES[:3])[1]


def test_evaluate_scores_other_text_with_another_search(workdir, tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text(
        "source\ttarget\n" + "".join(f"{line}\t{line}\n" for line in LINES if line.strip())
    )
    files = [f"--data.source.{side}={tmp_path / 'pairs.tsv'}" for side in ("train", "validation", "test")]
    search = ["--task.beam.width", "1", "--task.metrics", "exact_match", "chrf", "--evaluate.batch-size", "8"]
    assert main(["evaluate", str(workdir), *files, *search]) == 0
    printed, stored = capsys.readouterr().out, json.loads((workdir / "evaluation.json").read_text())
    for side in ("report", "test"):
        assert {"loss_nats_per_token", "exact_match", "chrf", "chrf_signature"} <= stored[side].keys()
        assert "bleu" not in stored[side]
    assert stored["report"]["chrf_signature"] in printed
    for side in ("validation", "test"):
        assert len((workdir / f"{side}.hypotheses.txt").read_text(encoding="utf-8").split("\n")) == 5 + 1
    again = shutil.copytree(workdir, tmp_path / "again")
    assert main(["compare", str(workdir), str(again)]) == 0, "what evaluate stores is what compare reads"
    printed = capsys.readouterr().out
    assert (
        printed.count("chrf ") == printed.count("bleu ") == 2
        and "1 batches  fewer than 20" in printed
        and " differs" not in printed
    )


def test_a_reader_that_has_seen_enough_and_a_locale_without_umlauts(workdir, tmp_path):
    """In a process: `head` closes the pipe, and Python's own encoding of stdout is ASCII."""
    (tmp_path / "in.txt").write_text("ä\n" + "the list\n" * 500, encoding="utf-8")
    command = [sys.executable, "-m", "transformer_jax", "predict", str(workdir), "--json", "--beam", "1"]
    command += ["--file", str(tmp_path / "in.txt")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    root = Path(__file__).resolve().parents[1]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=err)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline().decode())["source"] == "ä"
        process.stdout.close()
        assert process.wait(60) == 1
    assert (tmp_path / "err").read_text() == ""
