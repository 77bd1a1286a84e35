"""Files of drawn pictures: a plain grid, and a sheet with captions.

N pictures, Y and X pixels, C channels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transformer_jax import extras, files

EDGE = 2  # pixels between the pictures of a grid
SMALLEST = 64  # the fewest pixels of a picture's side in a grid: smaller ones are enlarged by a whole number


def save_grid(pictures_NYXC: np.ndarray, columns: int, path: Path) -> None:
    """Writes pictures row by row into one PNG.

    Args:
      pictures_NYXC: uint8.
      columns: pictures in a row.
      path: the PNG file that is written.
    """
    extras.need("PIL", "writing pictures")
    from PIL import Image

    N, Y, X, C = pictures_NYXC.shape
    times, rows = max(1, -(-SMALLEST // Y)), -(-N // columns)
    step_y, step_x = Y * times + EDGE, X * times + EDGE
    canvas = np.full((rows * step_y - EDGE, columns * step_x - EDGE, C), 128, np.uint8)
    for number, picture_YXC in enumerate(pictures_NYXC):
        top, left = number // columns * step_y, number % columns * step_x
        canvas[top : top + Y * times, left : left + X * times] = picture_YXC.repeat(times, 0).repeat(times, 1)
    with files.replacing(path) as part:
        Image.fromarray(canvas[..., 0] if C == 1 else canvas).save(part, format="PNG")


def save_sheet(pictures_NYXC: np.ndarray, captions: Sequence[str], path: Path, columns: int = 8) -> None:
    """Draws pictures with the caption of each below it.

    Args:
      pictures_NYXC: uint8.
      captions: N of them.
      path: the PNG file that is written.
      columns: pictures in a row.
    """
    extras.need("matplotlib", "a sheet of pictures")
    from matplotlib.figure import Figure

    rows = -(-len(captions) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture, caption in zip(grid.flat, pictures_NYXC, captions, strict=False):
        axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        axes.text(0.5, -0.04, caption, ha="center", va="top", fontsize=6, wrap=True, transform=axes.transAxes)
    with files.replacing(path) as part:
        figure.savefig(part, dpi=120, format="png")
