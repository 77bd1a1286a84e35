"""tools/targets/fit.py: which arrangements are tried, in which order, and what is printed; slow: every experiment, two
layers deep, by the compilers of TPUs and GPUs."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tools import preflight, targets
from tools.targets import compiled, fit
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, Train
from transformer_jax.models import gpt

V5E = targets.parse("tpu:v5e:2x4")


def experiment(batch_size: int = 64, accumulate: int = 1) -> Experiment:
    model = gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=2, num_heads=2)
    return Experiment(model, TextCorpus(length=32), train=Train(batch_size=batch_size, accumulate=accumulate))


def compiler(*totals):
    """In place of a target's compiler: a step of these bytes, one after the other; None: it refuses."""
    left = itertools.chain(totals, itertools.repeat(totals[-1]))

    def compile_step(other, chips):
        total = next(left)
        if total is None:
            raise compiled.TooLarge("too large")
        return SimpleNamespace(total=total, seconds=1.0)

    return compile_step


def test_accumulation_grows_only_as_far_as_the_experiments_own():
    tried = list(itertools.islice(fit.arrangements(experiment(64, accumulate=4), V5E), 3))
    assert [other.train.accumulate for other, _ in tried] == [1, 2, 4]
    assert {chips.name for _, chips in tried} == {"tpu:v5e:2x4"}


@pytest.mark.parametrize(("rows", "name"), [(8, "tpu:v5e:2x4"), (12, "tpu:v5e:2x2"), (3, "tpu:v5e:1x1")])
def test_a_batch_that_does_not_divide_takes_fewer_chips(rows, name):
    assert next(iter(fit.arrangements(experiment(rows), V5E)))[1].name == name


def test_the_compilers_word_counts(monkeypatch):
    monkeypatch.setattr(compiled, "compile_step", compiler(None, preflight.capacity(V5E) + 1, 5_000_000))
    found = fit.fit(experiment(64, accumulate=8), V5E)
    assert (found.total, found.changes) == (5_000_000, "--train.accumulate 4")  # after 1, refused, and 2, too large
    monkeypatch.setattr(compiled, "compile_step", compiler(None))
    with pytest.raises(InputError, match="nothing that was tried fits tpu:v5e:2x4 .*3 of them compiled"):
        fit.fit(experiment(64, accumulate=8), V5E)


def test_variants_with_the_same_step_share_a_row():
    path = next(path for path in fit.files() if path.stem == "shakespeare_char")
    names = [step.names for step in fit.steps([path])]
    assert ("causal_lm/shakespeare_char:experiment", "causal_lm/shakespeare_char:tfds") in names
    assert ("causal_lm/shakespeare_char:gpu",) in names


def test_rows_are_kept_and_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compiled, "compile_step", compiler(2_000_000_000))
    monkeypatch.setattr(targets.Target, "compiles", lambda target: True)
    path = next(path for path in fit.files() if path.parts[-2:] == ("vit", "digits.py"))
    file = tmp_path / "fit.json"
    for kind in ("tpu", "cuda"):
        assert fit.main([str(path), "--target", kind, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert set(row["fits"]) == {"tpu", "cuda"} and row["batch_size"] == 64
    printed = capsys.readouterr().out.splitlines()[-1]
    assert "`tpu:v5e:2x4`: 2.00 of 17 GB" in printed and "`cuda:h100:1x8`: 2.00 of 80 GB" in printed


def test_without_a_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(targets.Target, "compiles", lambda target: False)
    assert fit.main([]) == 2
    assert "tools/install target-tpu" in capsys.readouterr().err


def test_bad_input_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(targets.Target, "compiles", lambda target: True)
    (tmp_path / "a.json").write_text('[{"names": []}]')
    assert fit.main(["nothing.py"]) == 2
    assert fit.main(["--json", str(tmp_path / "a.json")]) == 2
    assert fit.main(["--layers", "0"]) == 2
    assert fit.main(["--layers", "2", "--json", str(tmp_path / "b.json")]) == 2
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert "no such experiment file" in first and "delete it, or give another name" in second
    assert third == "fit: --layers 0: give 1 or more" and "give only one of them" in fourth


@pytest.mark.parametrize(("name", "depths"), [("vit/digits", (2, None)), ("translation/cldr", (2, 2))])
def test_a_model_may_be_made_shallow(name, depths):
    (path,) = [path for path in fit.files() if str(path).endswith(f"{name}.py")]
    model = fit.with_layers(fit.steps([path])[0].experiment, 2).model
    assert (model.num_layers, getattr(model, "num_decoder_layers", None)) == depths


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(fit.KINDS))
@pytest.mark.parametrize("path", fit.files(), ids=lambda path: path.stem)
def test_every_experiment_compiles_two_layers_deep(path, kind):
    target = targets.parse(fit.KINDS[kind])
    if not target.compiles():
        pytest.skip(f"no compiler for {target.name}: tools/install {targets.COMPILERS[kind][0]}")
    # A process of its own: the compilers are loaded with settings of their own, and without those of the tests.
    command = [sys.executable, "-m", "tools.targets.fit", str(path), "--target", kind, "--layers", "2"]
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    ended = subprocess.run(command, env=settings, cwd=fit.ROOT, capture_output=True, text=True, timeout=1800)
    assert ended.returncode == 0, ended.stderr[-2000:]
