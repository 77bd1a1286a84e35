"""Pictures of a classifier of images: its calibration, its worst mistakes, its attention.

Letters: E examples, Y and X pixels, C channels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transformer_jax import extras, files, metrics


def plot_reliability(found: metrics.Calibration, path: Path) -> None:
    """Draws accuracy over confidence (Niculescu-Mizil and Caruana 2005) and a histogram of confidence as a PNG.

    Args:
      found: the calibration.
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "a picture of the calibration")
    from matplotlib.figure import Figure

    bins = len(found.examples)
    middle, some = (np.arange(bins) + 0.5) / bins, found.examples > 0
    figure = Figure(figsize=(5, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), "--", color="grey", linewidth=1, label="calibrated")
    above.plot(found.confidence[some], found.accuracy[some], "o-", label=f"expected error {found.error:.4f}")
    above.set_ylabel("accuracy")
    above.grid(alpha=0.3)
    above.legend(loc="lower right")
    below.bar(middle, found.examples, width=0.9 / bins)
    below.set_xlabel("confidence")
    below.set_ylabel("images")
    with files.replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")


def plot_mistakes(images: Sequence[np.ndarray], titles: Sequence[str], path: Path) -> None:
    """Draws images under their titles, eight in a row, as a PNG.

    Args:
      images: uint8 [Y, X, C] each.
      titles: one for each image.
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "a picture of the mistakes")
    from matplotlib.figure import Figure

    columns, rows = 8, max(-(-len(images) // 8), 1)
    figure = Figure(figsize=(1.6 * columns, 2.0 * rows))  # a fixed layout; matplotlib's automatic one takes seconds
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1 - 0.4 / (2.0 * rows), wspace=0.05, hspace=0.4)
    for cell in cells:
        cell.set_axis_off()
    for cell, image, title in zip(cells, images, titles, strict=False):
        _show(cell, image)
        cell.set_title(title, fontsize=7, parse_math=False)
    with files.replacing(path) as part:
        figure.savefig(part, dpi=100, format="png")


def plot_attention(image: np.ndarray, flow: np.ndarray, title: str, path: Path) -> None:
    """Draws an image, and beside it the image under its attention, as a PNG.

    Args:
      image: uint8 [Y, X, C], as the model reads it.
      flow: float [rows, columns], the attention to each patch (`vit.rollout`), in any unit.
      title: above the picture.
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "a picture of the attention")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
    for cell in (left, right):
        cell.set_axis_off()
        _show(cell, image)
    right.imshow(flow, cmap="inferno", alpha=0.55, extent=extent, interpolation="bilinear")
    figure.suptitle(title, fontsize=10)
    for text in figure.texts:
        text.set_parse_math(False)
    with files.replacing(path) as part:
        figure.savefig(part, dpi=100, format="png")


def _show(cell, image: np.ndarray) -> None:
    grey = image.shape[-1] == 1
    cell.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
