"""Pictures of detections: boxes with their classes over an image.

Letters: Y and X pixels, C channels, N boxes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import extras, files
from transformer_jax.tasks.detection.coco import Found

COLUMNS = 8  # images in a row of a sheet


def plot_sheet(
    images: Sequence[np.ndarray], found: Sequence[Found], truth: Sequence[Found], labels: Sequence[str], path: Path
) -> None:
    """Draws images with their detections, and the true boxes as white dashes, as a PNG.

    Args:
      images: uint8 [Y, X, C] each.
      found: the detections to draw in each, in its pixels.
      truth: the true boxes of each.
      labels: the names of the classes.
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "a picture of the detections")
    from matplotlib.figure import Figure

    rows = max(-(-len(images) // COLUMNS), 1)
    figure = Figure(figsize=(1.7 * COLUMNS, 1.7 * rows))
    cells = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.995, wspace=0.04, hspace=0.04)
    for cell in cells:
        cell.set_axis_off()
    for cell, image, one, true in zip(cells, images, found, truth, strict=False):
        show(cell, image)
        for box in true.boxes:
            _draw(cell, box, "white", linestyle=":")
        draw(cell, one, labels)
    with files.replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")


def plot_image(image: np.ndarray, found: Found, labels: Sequence[str], path: Path) -> None:
    """Draws one image with its detections, at its own size, as a PNG.

    Args:
      image: uint8 [Y, X, C].
      found: the detections, in its pixels.
      labels: the names of the classes.
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "a picture of the detections")
    from matplotlib.figure import Figure

    Y, X = image.shape[:2]
    scale = max(1.0, 400 / max(Y, X))
    figure = Figure(figsize=(X * scale / 100, Y * scale / 100))
    cell = figure.add_axes((0, 0, 1, 1))
    cell.set_axis_off()
    show(cell, image)
    draw(cell, found, labels)
    with files.replacing(path) as part:
        figure.savefig(part, dpi=100, format="png")


def draw(cell: Any, found: Found, labels: Sequence[str]) -> None:
    """Draws boxes with the name and the score of each.

    Args:
      cell: matplotlib's axes.
      found: the detections.
      labels: the names of the classes.
    """
    for box, k, score in zip(*found, strict=True):
        colour = f"C{int(k) % 10}"
        _draw(cell, box, colour)
        text = f"{labels[int(k)]} {score:.2f}"
        cell.text(box[0], box[1], text, color="white", backgroundcolor=colour, fontsize=6, parse_math=False)


def show(cell: Any, image: np.ndarray) -> None:
    """Shows an image, uint8 [Y, X, C].

    Args:
      cell: matplotlib's axes.
      image: an image [Y, X, C] with one channel or three.
    """
    grey = image.shape[-1] == 1
    cell.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)


def _draw(cell: Any, box: np.ndarray, colour: str, linestyle: str = "-") -> None:
    extras.need("matplotlib", "a picture of the detections")
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box - 0.5  # the first pixel is centred at 0
    cell.add_patch(
        Rectangle((left, top), right - left, bottom - top, edgecolor=colour, fill=False, lw=1.2, linestyle=linestyle)
    )
