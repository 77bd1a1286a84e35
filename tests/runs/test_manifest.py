"""The manifest of a step: every kind of damage is named, also what Orbax cannot see; the step before is used."""

import gc
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import transformer_jax
from tests.test_restore import init, write_workdir
from tools.drills import damage as drills_damage
from transformer_jax.__main__ import main
from transformer_jax.errors import InputError
from transformer_jax.runs import checkpoint, manifest, saved
from transformer_jax.runs.writer import Writer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with steps 3 and 9, and an average. Tests that spoil it repair it, or work on a copy."""
    return write_workdir(tmp_path_factory.mktemp("run") / "run", 3, 9, ema=True)


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def damage_of(step: Path, **options) -> str:
    with pytest.raises(manifest.Damaged) as error:
        saved.check_files(step, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_manifest_lists_every_file(run):
    step = run / "checkpoints" / "9"
    files = manifest.read(step / manifest.NAME).files
    found = {p.relative_to(step).as_posix(): p.stat().st_size for p in step.rglob("*") if p.is_file()}
    found.pop(manifest.NAME)
    assert {name: file.bytes for name, file in files.items()} == found
    assert {"params", "optimizer", "ema", "meta"} <= {name.partition("/")[0] for name in files}
    assert saved.check_files(step) == (len(found), sum(found.values()))
    weights, nbytes = saved.check_files(step, items=["ema"])
    assert weights < len(found) and nbytes < 0.8 * sum(found.values()), "only the average is read"
    halves = [saved.check_files(step, part=(i, 2)) for i in range(2)]
    assert [sum(part) for part in zip(*halves, strict=True)] == [len(found), sum(found.values())]


def test_a_manifest_is_written_back_to_the_byte(tmp_path):
    files = {name: manifest.File(n, f"{n:064x}") for n, name in enumerate(["a/b", "%s", 'quote"', "ünïcode", "z"])}
    manifest.write(tmp_path / manifest.NAME, files, step=3, run="5f0c")
    assert manifest.read(tmp_path / manifest.NAME) == manifest.Manifest(files, 3, "5f0c")
    manifest.write(tmp_path / manifest.NAME, files)
    assert manifest.read(tmp_path / manifest.NAME) == manifest.Manifest(files)
    written = (tmp_path / manifest.NAME).read_bytes()
    assert set(json.loads(written)) == {"manifest", "sha256", "files"}
    for at in range(len(written)):  # each single byte, and each length
        spoilt = bytearray(written)
        spoilt[at] ^= 1 << (at % 8)
        for data in (bytes(spoilt), written[:at]):
            (tmp_path / manifest.NAME).write_bytes(data)
            with pytest.raises(manifest.Damaged):
                manifest.read(tmp_path / manifest.NAME)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_stays_in_its_folder(tmp_path, name):
    manifest.write(tmp_path / manifest.NAME, {name: manifest.File(1, "0" * 64)})
    with pytest.raises(manifest.Damaged, match="which is not a file in this folder"):
        manifest.read(tmp_path / manifest.NAME)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"files": 3}', '{"files": {"a": {"bytes": 1e999, "sha256": 0}}}', "[" * 9999]
)
def test_what_is_no_manifest_is_damage(tmp_path, text):
    (tmp_path / manifest.NAME).write_text(text)
    with pytest.raises(manifest.Damaged):
        manifest.read(tmp_path / manifest.NAME)


def test_damage_is_named_never_loaded_and_the_step_before_is_used(run):
    """What tools/drills does a thousand times: 60 random flips, truncations, extensions, deletions and swaps."""
    newest = drills_damage.Files(run / "checkpoints" / str(saved.latest_step(run / "checkpoints")))
    found = list(drills_damage.spoil(run, newest, 60))
    assert {problem for _, problem in found} == {None}, found
    assert {kind for kind, _ in found} == set(drills_damage.KINDS)


def test_what_orbax_restores_wrongly_is_refused(copy):
    """Half of all flips in array data give other numbers without any error; this test fails without the digests."""
    step, rng, wrong = copy / "checkpoints" / "9", random.Random(0), 0
    shutil.rmtree(copy / "checkpoints" / "3")
    data = max((step / "ema").rglob("d/*"), key=lambda path: path.stat().st_size)
    whole = data.read_bytes()
    for _ in range(4):
        spoilt = bytearray(whole)
        spoilt[rng.randrange(len(whole))] ^= 64
        data.write_bytes(spoilt)
        with pytest.raises(InputError, match="none of the steps in"), pytest.warns(UserWarning, match="is not used"):
            transformer_jax.load(copy)
        with pytest.raises(manifest.Damaged, match="is not as it was written: its SHA-256 is"):
            transformer_jax.load(step)
        try:
            params = transformer_jax.load(copy, verify=False).params
        except InputError:
            continue
        wrong += any(
            (np.asarray(a) != b).any() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(init(109)), strict=True)
        )
    assert wrong > 0


def test_reads_that_are_given_up_say_nothing(monkeypatch):
    """What Orbax's coroutines raise when they are collected, after another read of the same restore has failed."""
    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(str(unraisable.exc_value)))
    checkpoint.quieten()
    checkpoint.quieten()

    def read(complaint):
        try:
            yield
        except BaseException as error:
            raise complaint from (error if complaint.args == ("given up",) else None)

    for complaint in (Exception("given up"), RuntimeError("Event loop is closed"), ValueError("of others")):
        reading = read(complaint)
        next(reading)
        del reading
    gc.collect()
    assert heard == ["of others"]


def test_each_damage_has_its_words(copy):
    step = copy / "checkpoints" / "9"
    meta = step / "meta" / "metadata"
    text = meta.read_text()
    meta.write_text(text + " ")
    assert damage_of(step) == f"{meta} has {len(text) + 1:,} bytes, and {len(text):,} were written"
    meta.unlink()
    assert damage_of(step) == f"{meta} is in the manifest of its step, but: No such file or directory"
    meta.write_text(text)
    (step / "ema" / "extra").touch()
    assert damage_of(step).startswith(f"{step / 'ema' / 'extra'} is not in the manifest of its step")
    (step / "ema" / "extra").unlink()
    (step / ".DS_Store").touch()
    saved.check_files(step)
    (step / manifest.NAME).unlink()
    assert damage_of(step).startswith(f"{step / manifest.NAME} cannot be read (No such file or directory)")
    assert saved.steps(copy / "checkpoints") == [3]


def test_a_step_without_its_average_is_not_taken_for_one_that_had_none(copy):
    shutil.rmtree(copy / "checkpoints" / "9" / "ema")
    with pytest.warns(UserWarning, match=r"step 9 is not used: .*/9/ema/"):
        loaded = transformer_jax.load(copy)
    assert loaded.step == 3
    with pytest.raises(InputError, match=r"/9/ema does not exist, so"):
        transformer_jax.load(copy, verify=False)


def test_inspect_verify(copy, capsys):
    assert main(["inspect", str(copy), "--verify"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in out] == ["step 3", "step 9"] and "as they were written" in out[1]
    (copy / "checkpoints" / "9" / "params" / "_METADATA").write_text("{")
    (copy / "checkpoints" / "12.part").mkdir()
    assert main(["inspect", str(copy), "--verify"]) == 1
    out = capsys.readouterr().out
    assert f"step 9: DAMAGED: {copy / 'checkpoints' / '9' / 'params' / '_METADATA'} has 1 bytes" in out
    assert "12.part: not a step" in out
    assert main(["inspect", str(copy / "checkpoints" / "3"), "--verify"]) == 0
    assert main(["inspect", str(copy.parent), "--verify"]) == 2


def test_damaged_steps_are_set_aside_by_a_run_that_goes_on(copy):
    folder, said = copy / "checkpoints", []
    (folder / "9" / "meta" / "metadata").unlink()
    (folder / "9.damaged").mkdir()
    assert saved.newest(folder, said.append) == 3
    with Writer(folder, family="gpt", config={}, resumed=3, say=said.append):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["3", "9.damaged", "9.damaged-2"]
    assert said[0].startswith("step 9 is not used: ") and "is set aside as 9.damaged-2" in said[1]
