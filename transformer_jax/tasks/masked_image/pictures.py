"""A sheet with rows of images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transformer_jax import extras, files


def save_rows(rows: Sequence[np.ndarray], names: Sequence[str], path: Path) -> None:
    """Draws rows of images, each with its name, as a PNG.

    Args:
      rows: uint8 [B, Y, X, C] each.
      names: one for each row.
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "a sheet of images")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + len(rows[0]), 1.05 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for line, images_BYXC, name in zip(grid, rows, names, strict=True):
        for axes, image in zip(line, images_BYXC, strict=True):
            axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, fontsize=8)
    with files.replacing(path) as part:
        figure.savefig(part, dpi=100, format="png")
