"""tools/bench/generate.py runs, counts tokens right, and refuses in one line what it cannot do."""

import json

import numpy as np
import pytest

from tools.bench import generate as bench_generate


def test_numbers_of_a_short_run(tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = ["gpt-4x128", "--batch-sizes", "2", "--prompt-tokens", "3", "--new-tokens", "5", "--rounds", "2"]
    assert bench_generate.main([*arguments, "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["batches"]
    assert len(row["seconds"]) == 2
    assert row["tokens_per_second"] == pytest.approx(2 * 5 / np.median(row["seconds"]))
    assert "batch   2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-9x9"], "no shape 'gpt-9x9'"),
        (["gpt-4x128", "--rounds", "0"], "are 1 or more"),
        (["gpt-4x128", "--new-tokens", "500"], "32 + 500 tokens are more than the 257"),
        (["gpt-4x128", "--json", "nowhere/out.json"], "no such folder"),
        (["gpt-4x128", "--against", "transformers", "--torch-python", "nowhere/python"], "nowhere/python"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert bench_generate.main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
