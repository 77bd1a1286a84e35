"""Draws docs/augment.jpg: what each augmentation makes of two photographs, and every operation of RandAugment.

    tools/run tools.augment_sheet [--out docs/augment.jpg] [--side 72]

The photographs are scikit-learn's sample images (china.jpg, flower.jpg; Creative Commons Attribution, see the README
beside them there).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import augment
from transformer_jax.augment import randaugment

COLUMNS = 8
ROWS: tuple[augment.Augmentation, ...] = (
    augment.Flip(),
    augment.Crop(padding=9),
    augment.ResizedCrop(),
    augment.Affine(degrees=20, shift=0.1, zoom=(0.8, 1.25)),
    augment.RandAugment(count=2, magnitude=10),
    augment.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    augment.Erase(probability=0.5),
)


def photographs(side: int) -> np.ndarray:
    """The two in turns, their middle squares: float32 [COLUMNS, side, side, 3]."""
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_images

    squares = [ImageOps.fit(Image.fromarray(image), (side, side)) for image in load_sample_images().images]
    return np.stack([np.asarray(squares[i % 2], np.float32) / 255 for i in range(COLUMNS)])


def sheet(images_BYXC: jax.Array) -> list[tuple[list[str], np.ndarray]]:
    """Rows of pictures, each with one title, or one for each picture."""
    key, targets_BK = jax.random.key(0), jnp.eye(COLUMNS)
    rows = [(["the photographs"], np.asarray(images_BYXC))]
    for one in ROWS:
        made = jax.jit(augment.apply, static_argnums=2)(key, images_BYXC, (one,))
        rows.append(([str(one)], np.asarray(made)))
    rows.append((["mixup, alpha 0.8"], np.asarray(augment.mixup(key, images_BYXC, targets_BK, 0.8)[0])))
    rows.append((["cutmix, alpha 1.0"], np.asarray(augment.cutmix(key, images_BYXC, targets_BK, 1.0)[0])))

    @jax.jit
    def operated(operation: jax.Array) -> jax.Array:
        return randaugment.operate(jnp.round(255 * images_BYXC[0]), operation, 10.0, 1.0, jnp.array([0.4, 0.6])) / 255

    names = randaugment.OPERATIONS
    pictures = [np.asarray(operated(jnp.int32(number))) for number in range(len(names))]
    for first in range(0, len(names), COLUMNS):
        rows.append((list(names[first : first + COLUMNS]), np.stack(pictures[first : first + COLUMNS])))
    return rows


def draw(rows: list[tuple[list[str], np.ndarray]], path: Path) -> None:
    from PIL import Image, ImageDraw

    side, gap, line = rows[0][1].shape[1], 3, 15
    page = Image.new("RGB", (COLUMNS * (side + gap) - gap, len(rows) * (side + line)), "white")
    pen = ImageDraw.Draw(page)
    for row, (titles, pictures) in enumerate(rows):
        top = row * (side + line)
        for column, title in enumerate(titles):
            pen.text((column * (side + gap), top + 2), title, "black")
        for column, picture in enumerate(pictures):
            page.paste(Image.fromarray(np.uint8(np.round(255 * picture))), (column * (side + gap), top + line))
    page.save(path, quality=85, optimize=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.augment_sheet", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/augment.jpg"), metavar="FILE")
    parser.add_argument("--side", type=int, default=72, metavar="PIXELS", help="of a picture; default 72")
    options = parser.parse_args(arguments)
    draw(sheet(jnp.asarray(photographs(options.side))), options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
