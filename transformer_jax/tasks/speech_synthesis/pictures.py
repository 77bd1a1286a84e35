"""Which token is spoken at which moment, as a matrix: the diagonal of an alignment."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transformer_jax import extras, files

SHOWN = 2  # utterances


def plot(durations_ES: np.ndarray, own_ES: np.ndarray, texts: Sequence[str], path: Path) -> None:
    """Draws the tokens of a few utterances against steps: as recorded, and as the model speaks them.

    Args:
      durations_ES: int, steps of each token in the recordings.
      own_ES: steps of each token, as the model speaks them.
      texts: the transcripts.
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "pictures")
    from matplotlib.figure import Figure

    shown = min(SHOWN, len(texts))
    figure = Figure(figsize=(10, 3.2 * shown))
    for axes, durations_S, own_S, text in zip(
        figure.subplots(shown, 2, squeeze=False), durations_ES, own_ES, texts, strict=False
    ):
        for side, lasts_S, name in zip(axes, (durations_S, own_S), ("recorded", "spoken"), strict=True):
            count = max(1, int(np.count_nonzero(lasts_S)))
            token_T = np.repeat(np.arange(count), lasts_S[:count])
            side.imshow(token_T == np.arange(count)[:, None], origin="lower", aspect="auto", cmap="magma")
            side.set_xlabel(f"steps ({name})")
            side.set_title(text, fontsize=8)
        axes[0].set_ylabel("tokens")
    figure.tight_layout()
    with files.replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")
