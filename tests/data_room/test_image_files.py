"""Pixels of files: equal to Transformers' image processors, and what is refused."""

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transformer_jax.data import image_files
from transformer_jax.data.preprocess import Preprocess

FIXTURES = Path(__file__).resolve().parents[1] / "data" / "images"
FILES = sorted(path.name for path in FIXTURES.iterdir() if path.suffix != ".npz")
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SETTINGS = {  # those of tools/fixtures/make_images.py
    "vit": Preprocess(size=16, resize=16),
    "deit": Preprocess(size=12, resize=16, resample="bicubic", **IMAGENET),
    "shortest": Preprocess(size=12, resize=16, fit="shortest", resample="bicubic"),
}
PLAIN = Preprocess(size=16, resize=16)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("setting", SETTINGS)
def test_pixels_are_those_of_transformers(setting):
    preprocess = SETTINGS[setting]
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    with np.load(FIXTURES / "expected.npz") as expected:
        assert len(FILES) >= 10 and {f"{setting}/{name}" for name in FILES} <= set(expected)
        for name in FILES:
            ours = image_files.pixels((FIXTURES / name).read_bytes(), preprocess)
            assert ours.dtype == np.uint8 and ours.shape == (preprocess.size, preprocess.size, 3)
            theirs = expected[f"{setting}/{name}"].transpose(1, 2, 0) * std + mean
            np.testing.assert_allclose(ours / 255.0, theirs, atol=1e-5, err_msg=name)


def test_grey_models_get_grey():
    image = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    grey = Preprocess(size=16, resize=16, mean=(0.5,), std=(0.5,))
    for stored in (encoded(image), encoded(np.stack([image] * 3, -1)), image):
        np.testing.assert_array_equal(image_files.pixels(stored, grey), image[..., None])


def test_sixteen_bits_become_eight():
    image = (np.arange(16 * 16).reshape(16, 16) * 257).astype(np.uint16)
    np.testing.assert_array_equal(image_files.pixels(encoded(image), PLAIN)[..., 0], image // 257)


def test_inception_boxes():
    rng = np.random.default_rng(0)
    boxes = np.array([image_files.inception_box(300, 200, (0.2, 0.8), rng) for _ in range(500)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 300).all() and (bottom <= 200).all()
    share, aspect = (right - left) * (bottom - top) / 60000, (right - left) / (bottom - top)
    assert 0.19 < share.min() < 0.25 and 0.7 < share.max() < 0.81 and 0.73 < aspect.min() < aspect.max() < 1.36
    assert image_files.inception_box(1000, 2, (1.0, 1.0), rng) == (0, 0, 1000, 2), "nothing fits: all of it"


def test_the_crop_is_that_of_its_box():
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    made = image_files.pixels(encoded(image), PLAIN, crop=(0.1, 0.5), rng=np.random.default_rng(7))
    left, top, right, bottom = image_files.inception_box(60, 40, (0.1, 0.5), np.random.default_rng(7))
    cut = Image.fromarray(image[int(top) : int(bottom), int(left) : int(right)])
    wanted = np.asarray(cut.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(made - wanted).max() <= 1
    again = image_files.pixels(encoded(image), PLAIN, crop=(0.1, 0.5), rng=np.random.default_rng(7))
    np.testing.assert_array_equal(made, again)


def test_a_photograph_of_108_million_pixels_is_decoded_small():
    data = encoded(Image.new("L", (12_000, 9_000), 77), "JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's of decompression bombs
        made = image_files.pixels(data, PLAIN)
    assert made.shape == (16, 16, 3) and np.abs(made.astype(int) - 77).max() <= 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"GIF89a", "neither JPEG, PNG nor WebP"),
        (encoded(NOISE, "JPEG")[:-1000], "truncated"),
        (encoded(NOISE)[:-3000], "truncated"),
        (encoded(NOISE, "WEBP")[:-1000], "."),
        (b"\x89PNG\r\n\x1a\n" + 40 * b"x", "."),
        (b"RIFF\0\0\0\0WEBPVP8 ", "."),
    ],
)
def test_what_is_no_image_is_broken(data, reason):
    with pytest.raises(image_files.Broken, match=reason) as broken:
        image_files.pixels(data, PLAIN)
    assert "\n" not in str(broken.value)


def test_bombs_are_refused_by_their_header(monkeypatch):
    narrow = Preprocess(size=16, resize=16, fit="shortest")
    monkeypatch.setattr(image_files, "MAX_RESIZED", 10_000)
    with pytest.raises(image_files.Broken, match=r"1 x 5000 pixels, too narrow"):
        image_files.pixels(encoded(Image.new("L", (1, 5000))), narrow)
    monkeypatch.setattr(image_files, "MOST_BYTES", 10_000 * 5)
    image_files.pixels(encoded(Image.new("L", (100, 100))), PLAIN)
    with pytest.raises(image_files.Broken, match=r"101 x 100 pixels, which take 50,500 bytes of memory"):
        image_files.pixels(encoded(Image.new("L", (101, 100))), PLAIN)


def test_an_image_that_is_nothing_but_long_is_refused(monkeypatch):
    """Its pixels are few, and resizing it would take many times their memory."""
    monkeypatch.setattr(image_files, "MAX_SIDE", 100)
    file = io.BytesIO()
    Image.new("L", (1, 101)).save(file, "PNG")
    with pytest.raises(image_files.Broken, match="1 x 101 pixels, a side of more than 100: make it smaller"):
        image_files.pixels(file.getvalue(), Preprocess(size=8, resize=8))


MEASURE = """
import sys
from pathlib import Path
from transformer_jax.data import image_files, preprocess

def peak():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

image_files.MOST_BYTES = 0
for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    image = image_files._open(data)
    needed = image_files._bytes_needed(image, image.width * image.height, "RGB")
    image_files.MOST_BYTES = needed  # and not more
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = peak()
    image_files.pixels(data, preprocess.Preprocess(size=16, resize=16))
    print(needed, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of a process's memory")
def test_an_image_takes_no_more_memory_than_its_header_says(tmp_path):
    """2,048 x 2,048 pixels of each kind, in a process of their own."""
    turned, noise = Image.Exif(), np.tile(NOISE, (32, 32, 1))
    turned[image_files.ORIENTATION] = 6
    written: dict[str, bytes] = {
        "tiny": encoded(NOISE, "WEBP"),  # imports what is imported
        "rgb": encoded(noise, compress_level=1),
        "sixteen bits": encoded(noise[..., 0].astype(np.uint16) * 257, compress_level=1),
        "turned": encoded(noise, exif=turned, compress_level=1),
        "progressive": encoded(noise, "JPEG", progressive=True),
        "webp": encoded(noise, "WEBP", method=0),
    }
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    words = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in written)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    lines = dict(zip(written, done.stdout.splitlines(), strict=True))
    for name in list(written)[1:]:
        needed, taken = map(int, lines[name].split())
        assert taken < needed + 2 * 2**20, name
        assert name != "rgb" or taken > 0.8 * needed, "what was let go of serves those that follow"
