"""The loss curves as a figure."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import extras, files


def plot_loss(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draws the training and validation losses as a PNG.

    The validation loss is the first number of the validation rows whose name begins with "loss"; the rest of the name
    is the unit.

    Args:
      rows: the rows of metrics.jsonl.
      path: the file to write.
    """
    extras.need("matplotlib", "a picture of the loss curve")
    from matplotlib.figure import Figure

    validation, curves = "", dict[str, list[tuple[float, float]]]()
    for row in rows:
        validation = validation or next((name for name in row if name.startswith("validation/loss")), "")
        for name in {"loss", validation} & row.keys():
            if row[name] is not None:
                curves.setdefault(name, []).append((row["step"], row[name]))
    unit = validation.removeprefix("validation/loss").strip("_").replace("_", " ")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss", "training batch", "-"), (validation, "validation set", "o-")):
        if points := curves.get(name):
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=3)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"loss ({unit})" if unit else "loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with files.replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")
