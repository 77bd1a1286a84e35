"""Files are read within limits and never through links out of their folder, and replaced whole."""

import ast
import os
from pathlib import Path

import pytest

import transformer_jax
from transformer_jax import config_json, contracts, files, observe
from transformer_jax.data import corpus
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.models import gpt


def refused(path, **options) -> str:
    with pytest.raises(InputError) as error:
        files.read(path, 100, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_regular_files_of_a_folder_are_read(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "good").write_bytes(b"data")
    assert files.read(folder / "good", 100, inside=folder) == b"data"
    with pytest.raises(FileNotFoundError):
        files.read(folder / "none", 100, inside=folder)

    os.mkfifo(folder / "pipe")
    assert "is a pipe" in refused(folder / "pipe", inside=folder), "and nothing waits for it"
    assert "is a folder" in refused(folder, inside=tmp_path)
    (folder / "device").symlink_to("/dev/zero")
    assert "is a link to /dev/zero" in refused(folder / "device", inside=folder)
    assert "is a device" in refused(folder / "device")
    with (folder / "sparse").open("wb") as file:
        file.truncate(3 * 2**30)
    assert "3,221,225,472 bytes" in refused(folder / "sparse", inside=folder)

    (tmp_path / "secret").write_text("secret")
    (folder / "out").symlink_to("../secret")
    assert "is a link to" in refused(folder / "out", inside=folder)
    assert files.read(folder / "out", 100) == b"secret", "a user's own data may be anywhere"
    (folder / "deep").symlink_to(tmp_path)
    assert "is a link to" in refused(folder / "deep" / "secret", inside=folder)
    (folder / "within").symlink_to("good")
    assert files.read(folder / "within", 100, inside=folder) == b"data"
    (folder / "loop").symlink_to("loop")
    assert "cannot be read" in refused(folder / "loop", inside=folder)
    (tmp_path / "link").symlink_to(folder)
    assert files.read(tmp_path / "link" / "good", 100, inside=tmp_path / "link") == b"data"


def test_the_hubs_cache_is_made_of_links(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b/blobs", tmp_path / "models--a--b/snapshots/5f0c"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    (blobs / "1").write_bytes(b"{}")
    (tmp_path / "models--a--b/refs").write_bytes(b"x")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "other.json").symlink_to("../../refs")
    assert files.read_json(snapshot / "config.json", inside=snapshot) == {}
    assert "is a link to" in refused(snapshot / "other.json", inside=snapshot)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"1" * 5000, "cannot be read as JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"[" + b"{}," * files.JSON_VALUES + b"{}]", "more than 8,388,608 values"),
    ],
)
def test_json_is_read_within_limits(data, message):
    with pytest.raises(InputError, match=f"^x.json .*{message}"):
        files.parse_json(data, "x.json")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    assert files.write(path, "one")
    before = path.stat()
    assert not files.write(path, "one"), "what is there already is left alone"
    assert (before.st_ino, before.st_mtime_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)
    (tmp_path / "a.json.part").symlink_to(tmp_path / "elsewhere")  # nothing is written through it
    with path.open() as reader:
        assert files.write(path, "two")
        assert (reader.read(), path.read_text()) == ("one", "two"), "who has the old file open reads it to its end"
    with pytest.raises(KeyError), files.replacing(path) as part:
        part.write_text("half")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "two"


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "other").write_text("theirs")
    (tmp_path / "link").symlink_to("other")
    with pytest.raises(InputError, match="is a link"):
        files.write(tmp_path / "link", "mine")
    with pytest.raises(InputError, match="is no file"):
        files.write(tmp_path, "mine")
    assert (tmp_path / "other").read_text() == "theirs"


def test_rows_of_a_run_are_read_from_its_own_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "rows").write_text('{"step": 1}\n')
    (tmp_path / "run/metrics.jsonl").symlink_to("../rows")
    with pytest.raises(InputError, match="is a link to"):
        observe.read_rows(tmp_path / "run/metrics.jsonl")


def test_no_writer_follows_a_link(tmp_path):
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    (outside / "file").write_text("theirs")
    model = gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2)
    job = Experiment(model=model, data=corpus.TextCorpus(length=16))
    facts = contracts.RunFacts(run, str(run), "", {}, first_step=0, steps=1, metric="loss")
    writes = {
        "config.json": lambda: config_json.save(job, run / "config.json"),
        "loss.png": lambda: observe.plot_loss([], run / "loss.png"),
        "metrics.jsonl": lambda: observe.JsonLines().start(facts),
        "copy": lambda: files.copy(outside / "file", run / "copy", 100, inside=outside),
    }
    for name, write in writes.items():
        for target in ("file", "new"):  # there, and not yet there
            (run / name).symlink_to(outside / target)
            with pytest.raises(InputError, match="is a link"):
                write()
            (run / name).unlink()
    (run / "code").symlink_to(outside)
    with pytest.raises(InputError, match=r"code is a link to .*outside, outside of"):
        files.write(run / "code/file", "ours", inside=run)
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"file": "theirs"} and len(
        list(run.iterdir())
    ) == 1


# Where the package writes by other means than `files`, and why that is not a rewrite in place.
NEW_FOLDERS = {
    "files.py": "this is how",
    "cli/look.py": "the path that `files.replacing` gives",
    "cli/sweep/running.py": "appends to a log",
    "data/waves.py": "a buffer in memory",
    "data/tokenizers/letters.py": "`save`, into a new folder",
    "data/tokenizers/specs.py": "a temporary folder that is read and removed",
    "data/tokenizers/marian.py": "`save`, into a new folder",
    "data/tokenizers/special.py": "`save`, into a new folder",
    "data/tokenizers/subwords.py": "`save`, into a new folder",
    "data/image_records.py": "a temporary folder, renamed when it is whole",
    "data/token_store.py": "temporary folders, of which a shard is renamed when it is whole",
    "data/tokens.py": "a temporary folder, renamed when it is whole",
    "hub/modules.py": "part of the temporary folder of hub/writing.py",
    "hub/peft.py": "a temporary folder, renamed when it is whole",
    "hub/weights.py": "a temporary folder, renamed when it is whole",
    "hub/writing.py": "a temporary folder, renamed when it is whole",
    "models/gpt/imagegpt.py": "part of the temporary folder of hub/writing.py",
    "observe/json_lines.py": "the path that `files.replacing` gives",
    "runs/mirror.py": "the local copy of an object, in a temporary folder",
    "tasks/contrastive/__init__.py": "the path that `files.replacing` gives",
}


def test_what_the_package_writes_is_written_by_files():
    package = Path(transformer_jax.__file__).parent
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if _writes(path)}
    assert found == NEW_FOLDERS.keys()


def _writes(path: Path) -> bool:
    """Whether a file calls something that writes a file at a path."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name, owner = getattr(node.func, "attr", getattr(node.func, "id", "")), getattr(node.func, "value", None)
            modes = [x.value for x in [*node.args, *(k.value for k in node.keywords)] if isinstance(x, ast.Constant)]
            opened = name == "open" and any(isinstance(m, str) and 0 < len(m) < 4 and m[0] in "wax" for m in modes)
            copied = getattr(owner, "id", "") == "shutil" and name.startswith(("copy", "move"))
            if opened or copied or name in ("write_text", "write_bytes"):
                return True
    return False
