"""Images on the command line: train on a folder, go on, evaluate, predict, export, fine-tune at another resolution."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformer_jax import hub
from transformer_jax.__main__ import main

RECIPE = """
from transformer_jax.augment import Flip
from transformer_jax.data.image_sources import Folder
from transformer_jax.data.images import ImageSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Predict, Train
from transformer_jax.models import vit
from transformer_jax.optim import Optim
from transformer_jax.tasks import ImageClassification


def experiment() -> Experiment:
    return Experiment(
        model=vit.Config(image_size=8, patch_size=4, num_classes=2, width=8, num_layers=1, num_heads=2),
        data=ImageSet(Folder("images")),
        task=ImageClassification(preprocess=Preprocess(size=8, resize=8), augment=(Flip(),)),
        optim=Optim(peak_lr=1e-2),
        train=Train(steps=20, batch_size=8),
        checkpoint=Checkpoint(best_metric="accuracy", best="highest"),
        sample=Predict(top=1),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A recipe, images of two classes, dark and light, and a run of it."""
    root = tmp_path_factory.mktemp("vision")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 120)):
        for number in range(40):
            path = root / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(low, low + 130, (10, 12, 3), np.uint8)).save(path)
    (root / "recipe.py").write_text(RECIPE)
    assert main(["train", *train(root), "--workdir", str(root / "run")]) == 0
    return root


def train(root: Path) -> list[str]:
    return [str(root / "recipe.py"), "--data.source.path", str(root / "images")]


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    return code, *capsys.readouterr()


def predict(capsys, path: Path, *arguments: str) -> list[dict]:
    code, out, err = outcome(capsys, "predict", str(path), *arguments, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_the_run_explains_itself(folder):
    config = json.loads((folder / "run/config.json").read_text())
    assert config["task"]["labels"] == ["dark", "light"], "the classes of the data"
    results = json.loads((folder / "run/results.json").read_text())
    assert results["report"]["accuracy"] == 1.0
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["images_per_second"] > 0 and "tokens_per_second" not in rows[0]
    for name in ("confusion", "reliability", "mistakes"):
        assert (folder / f"run/validation_{name}.png").exists()


def test_the_same_command_again(folder, capsys):
    code, out, _ = outcome(capsys, "train", *train(folder), "--workdir", str(folder / "run"))
    assert code == 0 and "already complete at step 20" in out


def test_evaluate(folder, capsys):
    code, out, _ = outcome(capsys, "evaluate", str(folder / "run"))
    assert code == 0 and "accuracy" in out and "run/validation_confusion.png" in out
    assert json.loads((folder / "run/evaluation.json").read_text())["report"]["accuracy"] == 1.0


def test_predictions_survive_the_journey_to_hugging_face_and_back(folder, capsys, tmp_path):
    files = [str(folder / f"images/{name}/0.png") for name in ("dark", "light")]
    wanted = predict(capsys, folder / "run", *files)
    assert [answer["label"] for answer in wanted] == ["dark", "light"]
    assert main(["convert", "hf", str(folder / "run"), str(tmp_path / "hf")]) == 0
    assert hub.preprocessing(tmp_path / "hf").size == 8
    assert main(["convert", "hf", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    for path in ("hf", "back"):
        code, out, err = outcome(capsys, "evaluate", str(tmp_path / path), "--data", str(folder / "images"))
        assert code == 0 and f"{folder}/images, 80 examples" in out and "accuracy             1.0000" in out, err
        assert [a["label"] for a in predict(capsys, tmp_path / path, *files)] == ["dark", "light"]
    code, out, _ = outcome(
        capsys,
        "evaluate",
        str(tmp_path / "back"),
        "--data.source.path",
        str(folder / "images"),
        "--train.batch-size",
        "8",
    )
    assert code == 0 and "accuracy             1.0000" in out


def test_attention(folder, capsys, tmp_path):
    (answer,) = predict(
        capsys, folder / "run", str(folder / "images/light/3.png"), "--attention", "--folder", str(tmp_path)
    )
    assert answer["attention"] == str(tmp_path / "3_attention.png") and Path(answer["attention"]).exists()


def test_fine_tuning_at_another_resolution(folder, capsys, tmp_path):
    larger = ["--model.image-size", "16", "--task.preprocess.size", "16", "--task.preprocess.resize", "16"]
    normal = ["--task.preprocess.mean", "0.1", "0.1", "0.1"]
    start = ["--init-from", str(folder / "run"), "--train.steps", "2", "--workdir", str(tmp_path / "more")]
    code, out, err = outcome(capsys, "train", *train(folder), *larger, *normal, *start, "--fresh", "head")
    assert code == 0, err
    assert "from images of 8 pixels to 16" in out and "images are normalised by mean (0.5, 0.5, 0.5)" in out
    assert "head 'head': initialised from scratch (asked for with --fresh)" in out
    config = json.loads((tmp_path / "more/config.json").read_text())
    assert config["task"]["preprocess"]["mean"] == [0.5, 0.5, 0.5] and config["model"]["image_size"] == 16
    code, out, err = outcome(capsys, "train", *train(folder), *larger, *normal, *start, "--fresh", "head")
    assert code == 0 and "already complete" in out, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.num-classes", "3"], "model.num_classes is 3, but there are 2 classes (dark, light); give --model"),
        (["--model.patch-size", "3"], "model.patch_size 3 does not divide model.image_size 8"),
        (["--data.source.path", "nowhere"], "nowhere is no folder"),
        (["--task.augment.0.probability", "2"], "Flip.probability is 2.0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, arguments, message, capsys, tmp_path):
    code, _, err = outcome(capsys, "train", *train(folder), "--workdir", str(tmp_path / "run"), *arguments)
    assert code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_a_broken_image_ended_goes_on_as_its_message_says(folder, capsys, tmp_path):
    """Before its first checkpoint. results.json counts the image."""
    shutil.copytree(folder / "images", tmp_path / "images")
    (tmp_path / "images/dark/7.png").write_bytes(b"no image")
    (tmp_path / "images/light/moving.gif").write_bytes(b"GIF89a")
    (tmp_path / "recipe.py").write_text(RECIPE)
    small = ["--data.memory", "0", "--train.steps", "12"]  # decoded when it is read
    command = ["train", *train(tmp_path), *small, "--workdir", str(tmp_path / "run")]
    code, _, err = outcome(capsys, *command)
    assert code == 2 and "dark/7.png: neither JPEG" in err and err.endswith(", give --data.broken skip\n"), err
    hint = err.split(", give ")[1].split()
    code, out, err = outcome(capsys, *command, *hint)
    assert code == 0 and "from scratch" in out, err
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["facts"]["train_images_skipped"].startswith("1: "), results["facts"]
    assert results["facts"]["train_files_skipped"] == "1 .gif files"


def test_bad_files_to_predict(folder, capsys, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    for arguments, message in (
        ([str(tmp_path / "cut.jpg")], f"{tmp_path}/cut.jpg: cannot be decoded ("),
        ([str(tmp_path / "none.png")], f"{tmp_path}/none.png: the file cannot be read (No such file or directory)"),
        (["a.png", "--attention", "--folder", "nowhere"], "--folder nowhere is not a folder"),
    ):
        code, _, err = outcome(capsys, "predict", str(folder / "run"), *arguments)
        assert code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1
