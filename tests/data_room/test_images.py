"""Image sets: what a folder, TFDS and scikit-learn give, in memory and on demand, and what is refused."""

import collections
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformer_jax.data import image_files, images
from transformer_jax.data.image_sources import Digits, Folder, TfdsImages
from transformer_jax.data.images import ImageSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError

PREPROCESS = Preprocess(size=8, resize=9)
NAMES = ("ant", "bee", "cow")


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(root: Path, sides: tuple[str, ...] = ("train", "val", "test"), each: int = 4) -> Path:
    for i, (side, name, number) in enumerate(itertools.product(sides, NAMES, range(each))):
        path = root / side / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    return root


def prepare(folder: Path | str, **changes) -> images.Prepared:
    return images.prepare(ImageSet(Folder(str(folder)), **changes), PREPROCESS, NAMES, seed=3)


# ---- Folders -------------------------------------------------------------------------------------------------------


def test_an_example_is_the_pixels_of_its_file(tmp_path):
    made = prepare(write(tmp_path))
    assert made.facts.pop("share_of_each_picture_that_is_seen") == 0.79  # 8 of 9 pixels
    assert made.facts == {"classes": 3, "train_images": 12, "validation_images": 12, "test_images": 12}
    example = made.validation[5]  # the second of the bees: classes and files by name
    assert example["labels"] == 1 and example["weights"] == 1
    wanted = image_files.pixels((tmp_path / "val/bee/1.png").read_bytes(), PREPROCESS)
    np.testing.assert_array_equal(example["images"], wanted)


def test_an_epoch_has_each_image_once(tmp_path):
    train = prepare(write(tmp_path)).train
    seen = collections.Counter(train[i]["images"].tobytes() for i in range(24))
    assert len(seen) == 12 and set(seen.values()) == {2}


def test_stacked_is_the_stack(tmp_path):
    for train_crop in ("centre", "inception"):
        train = prepare(write(tmp_path), train_crop=train_crop).train
        batch = train.stacked(range(10, 20))
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.stack([train[i][name] for i in range(10, 20)]))
            assert batch[name].dtype == {"images": np.uint8, "labels": np.int32, "weights": np.float32}[name]


def test_on_demand_is_as_in_memory(tmp_path):
    held, asked = prepare(write(tmp_path)), prepare(tmp_path, memory=0)
    assert isinstance(held.train, images.Held) and isinstance(asked.train, images.OnDemand)
    for a, b in ((held.train, asked.train), (held.test, asked.test)):
        for one, other in zip(a.stacked(range(12)).values(), b.stacked(range(12)).values(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_crops_are_a_function_of_seed_and_example(tmp_path):
    data = ImageSet(Folder(str(write(tmp_path))), train_crop="inception", crop_area=(0.2, 0.5))
    one, again, other = (images.prepare(data, PREPROCESS, NAMES, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.train[7]["images"], again.train.stacked([2, 7])["images"][1])
    crops = {one.train[i]["images"].tobytes() for i in range(24)}
    assert len(crops) == 24, "the second epoch cuts elsewhere"
    assert len(crops & {other.train[i]["images"].tobytes() for i in range(24)}) < 3, "small images: few boxes"
    np.testing.assert_array_equal(one.validation[3]["images"], prepare(tmp_path).validation[3]["images"])


def test_a_part_is_held_out_by_name(tmp_path):
    folder = write(tmp_path, sides=("",), each=30)
    made = prepare(folder)
    sizes = made.facts["train_images"], made.facts["validation_images"]
    assert sum(sizes) == 90 and 2 <= sizes[1] <= 20 and made.test is None
    held = {made.validation[i]["images"].tobytes() for i in range(sizes[1])}
    assert held.isdisjoint(made.train[i]["images"].tobytes() for i in range(sizes[0]))
    (folder / "ant/another.png").write_bytes(png(1000))
    more = prepare(folder).validation
    assert held <= {more[i]["images"].tobytes() for i in range(len(more))}, "a new file moves no other"


def one_class(root: Path) -> None:
    for side in ("train", "val", "test"):
        for name in ("bee", "cow"):
            (root / side / name).rename(root / f"{side}-{name}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_class, r"train has one class folder, 'ant'; a classifier needs two or more"),
        (lambda root: [(root / "train" / n).rename(root / n) for n in NAMES], r"train has no class folders"),
        (
            lambda root: [p.unlink() for p in (root / "train/bee").iterdir()],
            r"train/bee: no images in it; they end in ",
        ),
        (
            lambda root: (root / "val/ant").rename(root / "val/gnu"),
            r"val/gnu: the training set has no class .gnu.; .* ant, bee, cow",
        ),
        (
            lambda root: (root / "train/cow/2.png").write_bytes(png(0)[:900]),
            r"train/cow/2.png: cannot be decoded \(image file is truncated\); .* --data.broken skip",
        ),
        (lambda root: (root / "train/cow/2.png").write_bytes(b""), r"train/cow/2.png: an empty file; "),
    ],
)
def test_a_bad_folder_is_one_line(spoil, message, tmp_path):
    spoil(write(tmp_path))
    with pytest.raises(InputError, match=message) as error:
        prepare(tmp_path)
    assert "\n" not in str(error.value)


def test_no_folder_and_other_classes(tmp_path):
    with pytest.raises(InputError, match=r"nowhere is no folder"):
        prepare("nowhere")
    with pytest.raises(InputError, match=r"the class 'cow', which the model does not have; its classes are ant, bee"):
        images.prepare(ImageSet(Folder(str(write(tmp_path)))), PREPROCESS, ("ant", "bee"), seed=0)
    numbered = images.prepare(ImageSet(Folder(str(tmp_path))), PREPROCESS, ("cow", "dog", "bee", "ant"), seed=0)
    assert [numbered.validation[i]["labels"] for i in (0, 4, 8)] == [3, 2, 0], "classes are matched by name"


def test_broken_images_are_skipped_and_named(tmp_path, capsys):
    write(tmp_path)
    for name in ("train/ant/0.png", "val/bee/1.png"):
        (tmp_path / name).write_bytes(png(0)[:900])
    held = prepare(tmp_path, broken="skip")
    assert held.facts["train_images_skipped"].startswith(f"1: {tmp_path}/train/ant/0.png: cannot be decoded")
    assert (
        len(held.validation) == 11 and [held.validation[i]["labels"] for i in range(11)] == [0] * 4 + [1] * 3 + [2] * 4
    )
    assert len({held.train[i]["images"].tobytes() for i in range(22)}) == 11
    asked = prepare(tmp_path, broken="skip", memory=0).validation
    asked.stacked(range(12))
    batch = asked.stacked(range(12))
    assert batch["weights"].tolist() == [1] * 5 + [0] + [1] * 6 and not batch["images"][5].any()
    err = capsys.readouterr().err
    assert err.count("skipped image 1:") == 1 and "val/bee/1.png" in err, "said once"
    with pytest.raises(InputError, match=r"val/bee/1.png: cannot be decoded"):
        prepare(tmp_path, train_crop="inception", memory=0).validation.stacked(range(12))
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of its 12 images can be decoded; the first: .*neither JPEG, PNG nor"):
        prepare(tmp_path, broken="skip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_area": (0.5, 0.2)}, r"data.crop_area = \(0.5, 0.2\)"),
        ({"memory": -1}, r"data.memory = -1"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        ImageSet(Digits(), **changes)


# ---- Digits and TFDS -----------------------------------------------------------------------------------------------


def test_digits():
    grey = Preprocess(size=8, resize=8, mean=(0.3,), std=(0.38,))
    made = images.prepare(ImageSet(Digits()), grey, Digits().classes(), seed=0)
    sides = [(made.train, 1257), (made.validation, 180), (made.test, 360)]
    seen = collections.Counter()
    for side, count in sides:
        batch = side.stacked(range(count))
        assert batch["images"].shape == (count, 8, 8, 1) and batch["images"].max() == 255
        share = np.bincount(batch["labels"], minlength=10) / count
        assert share.min() > 0.08 and share.max() < 0.12
        seen += collections.Counter(image.tobytes() for image in batch["images"])
    assert seen.total() == 1797 and max(seen.values()) == 1


def tfds_store(write_tfds, labels: list[int]) -> str:
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["ant", "bee"])}
    rows = [{"image": png(i), "label": label} for i, label in enumerate(labels)]
    return write_tfds("insects", {"train": rows, "validation": rows[:2]}, features)


def test_tfds(write_tfds):
    source = TfdsImages("insects", data_dir=tfds_store(write_tfds, [0, 1, 1]))
    made = images.prepare(ImageSet(source), PREPROCESS, source.classes(), seed=0)
    assert source.classes() == ("ant", "bee") and made.test is None and made.facts["train_images"] == 3
    np.testing.assert_array_equal(made.validation[1]["images"], image_files.pixels(png(1), PREPROCESS))
    assert [made.validation[i]["labels"] for i in range(2)] == [0, 1]
    with pytest.raises(InputError, match=r"no feature 'picture'; it has image, label"):
        TfdsImages("insects", data_dir=source.data_dir, image="picture").classes()


def test_labels_out_of_range(write_tfds):
    source = TfdsImages("insects", data_dir=tfds_store(write_tfds, [0, 1, -1]))
    with pytest.raises(InputError, match=r"insects/1.0.0:train:2: label -1 is not one of the set.s 2"):
        images.prepare(ImageSet(source), PREPROCESS, source.classes(), seed=0)


def test_cifar10(shared_data):
    store = shared_data / "tfds"
    if not (store / "cifar10").is_dir():
        pytest.skip("needs cifar10 in ../shared/data/tfds")
    import tensorflow_datasets as tfds

    source = TfdsImages("cifar10", train="train[:20]", validation="train[98%:]", test="test[:20]", data_dir=str(store))
    plain = Preprocess(size=32, resize=32)
    made = images.prepare(ImageSet(source), plain, source.classes(), seed=0)
    assert len(made.validation) == 1000
    theirs = tfds.builder("cifar10", data_dir=str(store)).as_data_source("test")
    for i in range(20):
        np.testing.assert_array_equal(made.test[i]["images"], theirs[i]["image"])
        assert made.test[i]["labels"] == theirs[i]["label"]


def test_files_that_are_no_images_are_counted(tmp_path):
    """Also in upper case; JPEG under its other names is read."""
    write(tmp_path, each=2)
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("a.bmp", "b.BMP", "c.gif", "d.tif", ".hidden.gif", "README"):
        (tmp_path / "train/ant" / name).write_bytes(b"")
    for name in ("e.jfif", "f.JPG", "g.PNG"):
        image.save(tmp_path / "train/bee" / name, "PNG" if name.endswith("PNG") else "JPEG")
    made = prepare(tmp_path)
    assert made.facts["train_images"] == 3 * 2 + 3 and made.facts["validation_images"] == 6
    assert made.facts["train_files_skipped"] == "2 .bmp files, 1 .gif files, 1 .tif files, 1 other files"
    assert "validation_files_skipped" not in made.facts
    for path in (tmp_path / "train/cow").iterdir():
        path.rename(path.with_suffix(".tiff"))
    with pytest.raises(InputError, match=r"cow: no images in it \(2 .tiff files\); they end in .jpg, .jpeg"):
        prepare(tmp_path)


def test_broken_images_that_are_found_late_are_counted(tmp_path):
    """A set that does not fit into the memory is decoded as it is asked for; results.json holds these facts."""
    write(tmp_path)
    (tmp_path / "train/ant/0.png").write_bytes(b"no image")
    made = prepare(tmp_path, memory=0, broken="skip")
    assert "train_images_skipped" not in made.facts
    for _ in range(2):
        made.train.stacked(range(12))
    assert made.facts["train_images_skipped"] == f"1: {tmp_path}/train/ant/0.png: neither JPEG, PNG nor WebP"


def test_a_size_without_its_resize_is_refused(tmp_path):
    data = ImageSet(Folder(str(write(tmp_path))))
    published = Preprocess(size=224, resize=256, fit="shortest")
    with pytest.raises(InputError, match=r"the model sees 1.6% of each; give --task.preprocess.resize 37"):
        images.prepare(data, Preprocess(size=32, resize=256, fit="shortest"), NAMES, seed=0)
    scaled = published.scaled(32)
    assert scaled == Preprocess(size=32, resize=37, fit="shortest") and scaled.seen == pytest.approx(
        published.seen, 0.03
    )
    assert images.prepare(data, scaled, NAMES, seed=0).facts["share_of_each_picture_that_is_seen"] == 0.748
