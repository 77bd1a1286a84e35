"""Golden fixtures of image preprocessing for `transformer_jax.data.image_files`, made by Transformers.

Runs where torch, Transformers and Pillow are installed (the library needs the last alone), from the project root:

    python tools/make_image_fixtures.py                        # rewrites tests/data/images/

Writes odd images in every colour mode and orientation, and `expected.npz`: what Transformers' `load_image` and its
image processors of ViT and DeiT make of each of them, float32 [C, Y, X], under the settings of `SETTINGS`.
"""

import io
import pathlib
import shutil
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers.image_utils import load_image

FIXTURES = pathlib.Path("tests/data/images")
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
SIDE = dict(height=16, width=16)
CUT = dict(do_center_crop=True, crop_size=dict(height=12, width=12))

# name: the processor, and what it is told
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vit": (transformers.ViTImageProcessorPil, dict(size=SIDE)),
    "deit": (transformers.DeiTImageProcessorPil, dict(size=SIDE, **CUT, **IMAGENET)),
    "shortest": (transformers.DeiTImageProcessorPil, dict(size=dict(shortest_edge=16), **CUT)),
}


def scene(width: int, height: int, channels: int) -> np.ndarray:
    """Smooth waves and some noise, uint8 [height, width, channels]: another frequency in each direction and channel."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    waves = 128 + 100 * np.sin(0.31 * x * (1 + 0.3 * c)) * np.cos(0.23 * y + c)
    return np.clip(waves + np.random.default_rng(0).normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images() -> dict[str, bytes]:
    """Name -> the bytes of a file."""
    rgb, grey = Image.fromarray(scene(61, 43, 3)), Image.fromarray(scene(61, 43, 1)[..., 0])
    rgba, grey_alpha = (
        Image.fromarray(scene(40, 50, 4)),
        Image.merge("LA", (grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT))),
    )
    palette = rgb.quantize(17)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = Image.Exif()
    turned[0x0112] = 5  # and mirrored
    return {
        "rgb.jpg": encoded(rgb, "JPEG", quality=90),
        "grey.jpg": encoded(grey, "JPEG"),
        "grey.png": encoded(grey, "PNG"),
        "grey_alpha.png": encoded(grey_alpha, "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette_transparent.png": encoded(palette, "PNG", transparency=bytes(range(0, 255, 15))),
        "rgba.png": encoded(rgba, "PNG"),
        "rgba.webp": encoded(rgba, "WEBP", lossless=True),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "rotated.jpg": encoded(rgb, "JPEG", exif=exif),
        "mirrored.png": encoded(rgb, "PNG", exif=turned),
        "bits.png": encoded(rgb.convert("1"), "PNG"),
        "one_by_one.png": encoded(rgb.crop((0, 0, 1, 1)), "PNG"),
        "tall.jpg": encoded(Image.fromarray(scene(7, 90, 3)), "JPEG"),
        "wide.webp": encoded(Image.fromarray(scene(97, 9, 3)), "WEBP"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
    }


def main() -> None:
    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir(parents=True)
    expected = {}
    for name, data in images().items():
        path = FIXTURES / name
        path.write_bytes(data)
        for setting, (processor, options) in SETTINGS.items():
            made = processor(**options)(load_image(str(path)), return_tensors="np")
            expected[f"{setting}/{name}"] = np.asarray(made["pixel_values"], np.float32)[0]
    np.savez_compressed(FIXTURES / "expected.npz", **expected)
    print(f"{FIXTURES}: {len(expected)} results, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
