"""The alignment of utterances: what the model writes at each moment, over the spectrogram."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import extras, files, sound
from transformer_jax.data import waves

SHOWN = 3  # utterances


def plot(paths: Mapping[int, np.ndarray], known: Any, path: Path) -> None:
    """Draws the first utterances of a set: spectrogram, and each label at the step that first says it.

    Args:
      paths: utterance -> int [T], the most probable symbol of each step.
      known: the set, an `utterances.Reference`.
      path: the PNG file that is written.
    """
    extras.need("matplotlib", "pictures")
    from matplotlib.figure import Figure

    chosen = sorted(paths)[:SHOWN]
    figure = Figure(figsize=(11, 2.4 * len(chosen)))
    step = known.rows.step / waves.RATE
    for axes, p in zip(figure.subplots(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True):
        samples_W = known.rows.samples_of(p)
        padded_W = sound.fitted(samples_W[None], max(len(samples_W), 400))
        mel_TM = sound.log_mel(padded_W)[0]
        seconds = len(mel_TM) / 100
        axes.imshow(mel_TM.T, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, mel_TM.shape[1]))
        before = known.blank
        for t, symbol in enumerate(paths[p]):
            if symbol not in (before, known.blank):
                letter = known.tokenizer.decode([int(symbol)])
                axes.axvline((t + 0.5) * step, color="white", linewidth=0.4, alpha=0.5)
                axes.text((t + 0.5) * step, 72, letter.replace(" ", "\u2423"), color="cyan", fontsize=8, ha="center")
            before = symbol
        axes.set_title(known.texts[p], fontsize=9)
        axes.set_yticks([])
        axes.set_ylabel("mel bins")
    axes.set_xlabel("seconds")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # its font lacks letters
        figure.tight_layout()
        with files.replacing(path) as part:
            figure.savefig(part, dpi=110, format="png")
