"""The bytes of an image file as the pixels that a model gets: decoded, upright, in the model's colours, resized, cut.

JPEG, PNG and WebP, by Pillow. Everything else is refused, and so is what would fill the memory. What comes out equals,
to the value, what Transformers' image processors of ViT and DeiT resize and cut, after its `load_image`:

    EXIF           an image is turned as its orientation tag says
    grey           grey, palette and CMYK images become RGB; 16 bits become 8
    transparency   is dropped: the colours stored below it show

Letters: Y and X pixels, C channels.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.preprocess import Preprocess

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
MOST_BYTES = 400_000_000  # of memory for one image, `_bytes_needed`
MAX_RESIZED = 2**25  # pixels of an image when it has been resized, before its centre is cut out
ORIENTATION = 274  # the tag of EXIF
MAX_SIDE = 2**16  # pixels; resizing an image that is nothing but long takes many times its memory
DRAFT_PIXELS = 2**24  # a JPEG with more is decoded at a half, a quarter or an eighth of its size, where that suffices


def below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The image files anywhere below a folder, by name, and how many files there are of each other kind. Hidden files
    are neither."""
    seen = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    images = [path for path in seen if path.suffix.lower() in SUFFIXES]
    others = Counter(f"{path.suffix.lower() or 'other'} files" for path in seen)
    for path in images:
        others[f"{path.suffix.lower()} files"] -= 1
    return images, +others


class Broken(Exception):
    """Why bytes are no image, in a few words."""


def pixels(
    data: bytes | np.ndarray,
    preprocess: Preprocess,
    *,
    crop: tuple[float, float] | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """uint8 [size, size, C] of an encoded image, or of one as uint8 [Y, X] or [Y, X, C].

    Arguments:
      preprocess: its channels are one (grey) or three (RGB); it resizes and cuts out the centre.
      crop, rng: in place of this, a part of the image of a random place, shape and share of its area in `crop`,
        resized (`inception_box`).
    Errors: `Broken`, with the reason.
    """
    try:
        image = _upright(data, channels=len(preprocess.mean), side=preprocess.resize)
        if crop is None or rng is None:
            return _centre(image, preprocess)
        box = inception_box(image.width, image.height, crop, rng)
        return _array(image.crop(box).resize((preprocess.size, preprocess.size), _filter(preprocess)))
    except Broken:
        raise
    except Exception as error:  # whatever a decoder makes of damaged bytes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Broken(f"cannot be decoded ({reason})") from None


def _upright(data: bytes | np.ndarray, *, channels: int, side: int) -> Any:
    """A Pillow image of mode L or RGB."""
    from PIL import Image, ImageOps

    if isinstance(data, np.ndarray):
        return Image.fromarray(data).convert("RGB" if channels == 3 else "L")
    image, mode = _open(data), "RGB" if channels == 3 else "L"
    size = f"{image.width} x {image.height} pixels"
    if max(image.size) > MAX_SIDE:
        raise Broken(f"{size}, a side of more than {MAX_SIDE:,}: make it smaller")
    whole = image.width * image.height
    if image.format in ("JPEG", "MPO") and whole > DRAFT_PIXELS:
        image.draft(None, (2 * side, 2 * side))
    if (needed := _bytes_needed(image, whole, mode)) > MOST_BYTES:
        raise Broken(f"{size}, which take {needed:,} bytes of memory, more than {MOST_BYTES:,}: make it smaller")
    ImageOps.exif_transpose(image, in_place=True)  # else a copy is made of any image
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = _eight_bits(image)
    image.info.pop("transparency", None)
    return image if image.mode == mode else image.convert(mode)


def _bytes_needed(image: Any, whole: int, mode: str) -> int:
    """The most memory that reading an image takes, from its header.

    Args:
      whole: pixels of the file; a JPEG may be decoded at a part of its size, which is then the image's own.
      mode: what it is converted to.
    """
    pixels, held = image.width * image.height, {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(image.mode, 4)
    held += image.mode.startswith("I")  # and 8 of the 16 bits
    turned = held if image.getexif().get(ORIENTATION, 1) != 1 else 0
    converted = 0 if image.mode == mode else {"L": 1, "RGB": 4}[mode]
    needed = pixels * (held + max(turned, converted))
    if image.format == "WEBP":  # the decoder has canvases of its own
        needed += 13 * pixels
    if image.info.get("progressive"):  # and this one the coefficients of the whole image
        needed += 2 * len(image.getbands()) * whole
    return needed


def _eight_bits(image: Any) -> Any:
    """A grey image of 16 bits as one of 8, a strip at a time."""
    from PIL import Image

    grey = np.empty((image.height, image.width), np.uint8)
    rows = max(1, 2**18 // image.width)
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        grey[top : top + rows] = strip // 257
    return Image.fromarray(grey)


def _open(data: bytes) -> Any:
    """The file's header read, by its first bytes. `Image.open` would also try formats that nobody asked for, and warn
    of large images, which are looked after here."""
    import io

    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    if not data:
        raise Broken("an empty file")
    file = io.BytesIO(data)
    if data.startswith(b"\xff\xd8"):
        return JpegImagePlugin.JpegImageFile(file)
    if data.startswith(b"\x89PNG"):
        return PngImagePlugin.PngImageFile(file)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(file)
    raise Broken("neither JPEG, PNG nor WebP")


def _centre(image: Any, preprocess: Preprocess) -> np.ndarray:
    size = preprocess.size
    wanted: tuple[int, ...] = (preprocess.resize, preprocess.resize)
    if preprocess.fit == "shortest":
        short = min(image.size)
        wanted = tuple(preprocess.resize if n == short else int(preprocess.resize * n / short) for n in image.size)
    if math.prod(wanted) > MAX_RESIZED:
        raise Broken(f"{image.width} x {image.height} pixels, too narrow to resize its shorter side to {min(wanted)}")
    resized = _array(image.resize(wanted, _filter(preprocess)))
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]


def inception_box(
    width: int, height: int, area: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part of an image (Szegedy et al. 2015, section 6): its share of the area
    is uniform in `area`, its aspect ratio log-uniform in [3/4, 4/3], its place uniform. The whole image where ten draws
    gave none that fits."""
    for _ in range(10):
        pixels, aspect = width * height * rng.uniform(*area), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 1 <= w <= width and 1 <= h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def _filter(preprocess: Preprocess) -> Any:
    from PIL import Image

    return Image.Resampling[preprocess.resample.upper()]


def _array(image: Any) -> np.ndarray:
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]
