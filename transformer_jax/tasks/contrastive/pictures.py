"""A sheet of what a search finds: each row a text, its nearest pictures, the right one framed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from transformer_jax import extras, files
from transformer_jax.tasks.contrastive import paired, retrieval

QUERIES, ANSWERS = 5, 8


def plot(
    left_EF: np.ndarray,
    right_EF: np.ndarray,
    known: paired.Reference,
    picture: Callable[[int], np.ndarray],
    path: Path,
) -> None:
    """Draws the nearest pictures of five texts of a set, evenly spaced in it.

    Args:
      left_EF: embeddings of E pictures.
      right_EF: the embeddings of their texts.
      known: which pair each belongs to.
      picture: pair -> pixels uint8 [Y, X, C].
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "pictures")
    from matplotlib.figure import Figure

    _, first = np.unique(known.left_E, return_index=True)
    queries = np.linspace(0, len(right_EF) - 1, min(QUERIES, len(right_EF))).astype(int)
    best, _ = retrieval.nearest(np.nan_to_num(right_EF[queries]), np.nan_to_num(left_EF[first]), ANSWERS)
    figure = Figure(figsize=(2.2 + best.shape[1], 1.15 * len(queries)))
    grid = figure.subplots(len(queries), best.shape[1] + 1, squeeze=False)
    for row, query in enumerate(queries):
        grid[row][0].text(1.0, 0.5, known.texts[query], ha="right", va="center", fontsize=10, wrap=True)
        grid[row][0].axis("off")
        for axes, number in zip(grid[row][1:], first[best[row]], strict=True):
            pixels, belongs = picture(number), known.right_E[number] == known.right_E[query]
            axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            for edge in axes.spines.values():
                edge.set(color="tab:green" if belongs else "lightgrey", linewidth=3 if belongs else 1)
    figure.tight_layout()
    with files.replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")
