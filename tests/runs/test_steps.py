"""A step's folder is not its name, what viewers leave is no damage, and readers beside a trainer read a step whole."""

import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import contracts, files
from transformer_jax.errors import InputError
from transformer_jax.runs import checkpoint, identity, manifest, saved, versions, writer

GOLDEN = Path(__file__).resolve().parents[1] / "data/golden"


def state(step: int) -> contracts.TrainState:
    """Parameters that say which step they are of."""
    return contracts.TrainState(
        step=jnp.int32(step),
        params={"a": jnp.full((64,), float(step))},
        opt_state=(),
        ema=None,
        skipped=jnp.int32(0),
        recent=None,
    )


def save(workdir: Path, *steps: int, metric: float | None = None, **options) -> list[str]:
    """Saves these steps of the run in `workdir`; returns what was said."""
    workdir.mkdir(exist_ok=True)
    said: list[str] = []
    run, folder = identity.run_id(workdir), workdir / "checkpoints"
    with writer.Writer(folder, family="gpt", config={}, run=run, say=said.append, **{"keep": 9, **options}) as w:
        for step in steps:
            w.save(state(step), rows=step, metric=metric)
    return said


def value(step_folder: Path) -> float:
    """The step that the parameters in this folder are of."""
    target = {"a": jax.ShapeDtypeStruct((64,), jnp.float32, sharding=jnp.zeros(1).sharding)}
    params, _ = checkpoint.restore_params(step_folder, target, verify=False)
    (found,) = set(np.asarray(params["a"]).tolist())
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A run of steps 30 and 40; tests that spoil it work on a copy."""
    workdir = tmp_path_factory.mktemp("kept") / "run"
    save(workdir, 30, 40)
    return workdir


@pytest.fixture
def run(kept, tmp_path) -> Path:
    return shutil.copytree(kept, tmp_path / "run")


def newest(run: Path, **options) -> tuple[int | None, list[str]]:
    said: list[str] = []
    return saved.newest(run / "checkpoints", said.append, **options), said


@pytest.mark.parametrize("verify", [True, False])
def test_folders_that_were_renamed_copied_or_exchanged_are_not_used(run, verify):
    folder = run / "checkpoints"
    shutil.copytree(folder / "30", folder / "50")
    step, said = newest(run, verify=verify)
    assert step == 40 and saved.steps(folder) == [30, 40]
    assert said == [
        f"step 50 is not used: {folder}/50 holds step 30: it was renamed, copied or exchanged; take it away"
    ]
    (folder / "40").rename(folder / "999")
    assert newest(run, verify=verify)[0] == 30
    (folder / "30").rename(folder / "40")
    with pytest.raises(InputError, match=r"none of the steps in .* \(40, 50, 999\)"):
        newest(run, verify=verify)
    assert "holds step 30" in saved.damage_of(folder / "40")
    assert saved.damage_of(shutil.copytree(folder / "40", run / "export")) == "", "any other name is a copy's"


def test_a_step_of_another_run_is_not_used(run, tmp_path):
    save(tmp_path / "other", 45)
    shutil.copytree(tmp_path / "other/checkpoints/45", run / "checkpoints/45")
    step, said = newest(run)
    assert step == 40 and f"45 is of run {identity.stored(tmp_path / 'other')[:8]}..., and this is run" in said[0]
    (run / "run.json").unlink()
    assert newest(run)[0] == 45, "nothing says that it is another's"


@pytest.mark.parametrize("form", ["format-1", "format-2"])
def test_steps_of_earlier_formats_have_names_too(form, tmp_path):
    workdir = Path(shutil.copytree(next((GOLDEN / form).iterdir()), tmp_path / "run"))
    (step,) = saved.steps(workdir / "checkpoints")
    (workdir / f"checkpoints/{step}").rename(workdir / "checkpoints/999")
    assert saved.steps(workdir / "checkpoints") == []
    with pytest.raises(InputError, match="none of the steps"):
        newest(workdir)


def test_what_viewers_leave_is_no_damage(run):
    step = run / "checkpoints/40"
    for name in ("Thumbs.db", "params/desktop.ini", "meta/.DS_Store", "params/.ipynb_checkpoints/x-checkpoint.json"):
        (step / name).parent.mkdir(exist_ok=True)
        (step / name).write_bytes(b"x")
    assert newest(run) == (40, [])
    (step / "params/extra").touch()
    assert newest(run)[0] == 30


def test_a_damaged_old_step_is_deleted_with_a_line(run):
    name = next(p for p in sorted((run / "checkpoints/30/params").rglob("*")) if p.is_file() and p.stat().st_size > 9)
    data = bytearray(name.read_bytes())
    data[5] ^= 1
    name.write_bytes(data)
    said = save(run, 50, keep=2)
    assert len(said) == 1 and said[0].startswith("step 30, which is deleted as an old one, was damaged: ")
    assert str(name) in said[0] and saved.steps(run / "checkpoints") == [40, 50]


def test_a_step_on_another_disk_is_pruned(run, tmp_path):
    folder = run / "checkpoints"
    (tmp_path / "disk").mkdir()
    shutil.move(folder / "30", tmp_path / "disk/30")
    (folder / "30").symlink_to(tmp_path / "disk/30")
    assert newest(run) == (40, []) and saved.steps(folder) == [30, 40]
    said = save(run, 50, keep=2)
    assert len(said) == 1 and "30.deleting is a link to" in said[0]
    assert sorted(p.name for p in folder.iterdir()) == ["40", "50"] and (tmp_path / "disk/30").is_dir()
    (folder / "40.deleting").symlink_to(tmp_path / "disk/30")  # of a trainer that was killed as it deleted
    (folder / "60").symlink_to(tmp_path / "nowhere")
    said = save(run, 60, keep=2)
    assert "40.deleting is a link to" in said[1] and saved.steps(folder) == [50, 60]


def test_readers_beside_a_trainer_read_a_step_whole(tmp_path, monkeypatch):
    """One step is kept, a new one comes all the time."""
    monkeypatch.setattr(files, "sync", lambda path: None)
    run, ended = tmp_path / "run", threading.Event()
    save(run, 1)

    def train() -> None:
        step = 1
        with writer.Writer(run / "checkpoints", family="gpt", config={}, run=identity.run_id(run), keep=1) as w:
            while not ended.is_set():
                step += 1
                w.save(state(step), rows=step)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for _ in range(30):
            try:
                found = saved.of_newest(run / "checkpoints", lambda folder: (int(folder.name), value(folder)))
                assert found[0] == found[1]
            except InputError as error:
                assert "a trainer deleted the steps" in str(error)
    finally:
        ended.set()
        trainer.join()


def test_a_step_that_goes_while_it_is_read_is_said(run):
    def read(folder: Path) -> str:
        shutil.rmtree(folder)
        raise OSError("something three libraries down")

    with pytest.raises(saved.Deleted, match="is gone: a trainer deletes old steps"):
        saved.undeleted(run / "checkpoints/40", read)
    with pytest.raises(OSError, match="of its own"):
        saved.undeleted(run / "checkpoints/30", lambda folder: (_ for _ in ()).throw(OSError("of its own")))


def test_other_versions_are_named(run):
    meta = saved.read_meta(run / "checkpoints/40")
    assert versions.changed(meta) == "" and {"python", "jax", "transformer_jax"} <= meta["versions"].keys()
    meta["versions"] |= {"python": "3.9.0", "jax": ["0.1"]}
    assert versions.changed(meta).startswith("python 3.9.0 -> 3.")
    assert "jax ['0.1'] -> 0." in versions.changed(meta) and versions.changed({"versions": 3}) == ""


@pytest.mark.parametrize("kind", ["pipe", "sparse", "link"])
def test_files_that_are_none_are_refused(run, tmp_path, kind):
    for name in ("manifest.json", "meta/metadata"):
        path = run / "checkpoints/40" / name
        data = path.read_bytes()
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "sparse":
            with path.open("wb") as file:
                file.truncate(2**33)
        else:
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
        assert newest(run)[0] == 30
        path.unlink()
        path.write_bytes(data)
    assert newest(run)[0] == 40 and manifest.read(run / "checkpoints/40/manifest.json").step == 40
