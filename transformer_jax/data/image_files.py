"""From the bytes of an image file to the pixels that a model reads: decoded, rotated, converted, resized, cropped.

Pillow decodes JPEG, PNG and WebP. Other formats are refused, and so are images that would fill the memory. The pixels
equal those of Transformers' image processors for ViT and DeiT after its `load_image`, value by value:

    EXIF           the image is rotated or mirrored as its orientation tag says
    colours        grey, palette and CMYK images become RGB; 16 bits become 8
    transparency   is dropped: the stored colours stay

Letters: Y and X pixels, C channels.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import extras
from transformer_jax.data.preprocess import Preprocess, sides
from transformer_jax.errors import InputError, first_line

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
MOST_BYTES = 400_000_000  # the most memory for decoding one image, see `_bytes_needed`
MAX_RESIZED = 2**25  # pixels of a resized image before the centre crop
ORIENTATION = 274  # the number of the EXIF tag
MAX_SIDE = 2**16  # pixels; resizing a very long, narrow image takes many times its memory
DRAFT_PIXELS = 2**24  # a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is large enough


def below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The image files below a folder, sorted by path, and counts of the other files by kind. Hidden files are ignored.

    Args:
      folder: searched with all its subfolders.
    """
    seen = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    images = [path for path in seen if path.suffix.lower() in SUFFIXES]
    others = Counter(f"{path.suffix.lower() or 'other'} files" for path in seen)
    for path in images:
        others[f"{path.suffix.lower()} files"] -= 1
    return images, +others


class Broken(Exception):
    """These bytes cannot be decoded as an image; the message says why."""


def pixels(
    data: bytes | np.ndarray,
    preprocess: Preprocess,
    *,
    crop: tuple[float, float] | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """The pixels uint8 [rows, columns, C] of an image: the resized centre, or a resized random crop.

    Args:
      data: the bytes of an image file, or decoded pixels uint8 [Y, X] or [Y, X, C].
      preprocess: one channel (grey) or three (RGB), the sizes and the filter.
      crop: the range of the random crop's share of the area (`inception_box`); None: the centre crop.
      rng: draws the random crop; None: the centre crop.

    Raises:
      Broken: the image cannot be decoded, or takes too much memory.
    """
    try:
        image = upright(data, channels=len(preprocess.mean), side=max(sides(preprocess.resize)))
        if crop is None or rng is None:
            return _centre(image, preprocess)
        box = inception_box(image.width, image.height, crop, rng)
        return _array(image.crop(box).resize(preprocess.sides[::-1], _filter(preprocess)))
    except Broken:
        raise
    except Exception as error:  # decoders raise many types for damaged bytes
        raise Broken(f"cannot be decoded ({first_line(error)})") from None


def stored_size(data: bytes, where: str) -> tuple[int, int]:
    """Rows and columns of an image, rotated as its EXIF tag says, from its header.

    Args:
      data: the bytes of an image file.
      where: names it in messages.

    Raises:
      InputError: they are no image's.
    """
    try:
        image = _open(data)
        rotated = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if rotated else (image.height, image.width)
    except Exception as error:  # decoders raise many types for damaged bytes
        raise InputError(f"{where} cannot be decoded ({first_line(error)})") from None


def upright(data: bytes | np.ndarray, *, channels: int, side: int) -> Any:
    """A Pillow image of mode L or RGB, rotated as its EXIF tag says.

    Args:
      data: as for `pixels`.
      channels: 1 (L) or 3 (RGB).
      side: pixels of a side that are enough: a much larger JPEG is decoded at a reduced size.

    Raises:
      Broken: it takes too much memory; decoders raise many types for damaged bytes.
    """
    extras.need("PIL", "reading images")
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
    ImageOps.exif_transpose(image, in_place=True)  # not in place, it would copy every image
    if image.mode.startswith("I"):  # 16 bits; Pillow's conversion would clip them at 255
        image = _eight_bits(image)
    image.info.pop("transparency", None)
    return image if image.mode == mode else image.convert(mode)


def _bytes_needed(image: Any, whole: int, mode: str) -> int:
    """An upper bound on the bytes of memory that decoding an image takes, from its header.

    Args:
      image: an opened Pillow image. Its size is smaller than the file's if a JPEG is decoded at a reduced size.
      whole: pixels of the file.
      mode: the mode that the image is converted to.
    """
    pixels, held = image.width * image.height, {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(image.mode, 4)
    held += image.mode.startswith("I")  # the 8-bit copy of 16 bits
    rotated = held if image.getexif().get(ORIENTATION, 1) != 1 else 0
    converted = 0 if image.mode == mode else {"L": 1, "RGB": 4}[mode]
    needed = pixels * (held + max(rotated, converted))
    if image.format == "WEBP":  # the decoder's own canvases
        needed += 13 * pixels
    if image.info.get("progressive"):  # the decoder holds the coefficients of the whole image
        needed += 2 * len(image.getbands()) * whole
    return needed


def _eight_bits(image: Any) -> Any:
    """A grey image of 16 bits as one of 8 bits, converted in strips to save memory."""
    extras.need("PIL", "reading images")
    from PIL import Image

    grey = np.empty((image.height, image.width), np.uint8)
    rows = max(1, 2**18 // image.width)
    for top in range(0, image.height, rows):
        strip = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        grey[top : top + rows] = strip // 257
    return Image.fromarray(grey)


def _open(data: bytes) -> Any:
    """The Pillow image of a file, chosen by its first bytes; only the header is read.

    `Image.open` would also try other formats, and would warn of large images, which `_upright` refuses.
    """
    import io

    extras.need("PIL", "reading images")
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
    rows, columns = preprocess.sides
    wanted: tuple[int, ...] = sides(preprocess.resize)[::-1]
    if preprocess.fit == "shortest":
        shortest, short = wanted[0], min(image.size)
        wanted = tuple(shortest if n == short else int(shortest * n / short) for n in image.size)
    if math.prod(wanted) > MAX_RESIZED:
        raise Broken(f"{image.width} x {image.height} pixels, too narrow to resize its shorter side to {min(wanted)}")
    if preprocess.fit == "inside":
        rows, columns = preprocess.inside(image.height, image.width)
        wanted = (columns, rows)
    resized = _array(image.resize(wanted, _filter(preprocess)))
    top, left = (resized.shape[0] - rows) // 2, (resized.shape[1] - columns) // 2
    return resized[top : top + rows, left : left + columns]


def inception_box(
    width: int, height: int, area: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop, in pixels (Szegedy et al. 2015, section 6).

    Its share of the area is uniform in `area`, its aspect ratio log-uniform in [3/4, 4/3], its position uniform. After
    ten draws that do not fit it is the whole image.

    Args:
      width: the width of the image, in pixels.
      height: the height of the image, in pixels.
      area: the smallest and the largest share of the image's area.
      rng: draws the crop.
    """
    for _ in range(10):
        pixels, aspect = width * height * rng.uniform(*area), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 1 <= w <= width and 1 <= h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def _filter(preprocess: Preprocess) -> Any:
    extras.need("PIL", "reading images")
    from PIL import Image

    return Image.Resampling[preprocess.resample.upper()]


def _array(image: Any) -> np.ndarray:
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]
