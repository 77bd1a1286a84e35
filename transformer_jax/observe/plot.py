"""The loss curves as a figure."""

from pathlib import Path
from typing import Any

from transformer_jax import extras, files


def plot_loss(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws the training and validation losses as a PNG.

    The validation loss is the first number of the validation rows whose name begins with "loss"; the rest of the name
    is the unit.

    Args:
      rows: of metrics.jsonl.
      path: the file to write.
    """
    extras.need("matplotlib", "a picture of the loss curve")
    from matplotlib.figure import Figure

    names = [name for row in rows for name in row if name.startswith("validation/loss")]
    validation = names[0] if names else "validation/loss"
    unit = validation.removeprefix("validation/loss").strip("_").replace("_", " ")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss", "training batch", "-"), (validation, "validation set", "o-")):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=3)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"loss ({unit})" if unit else "loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with files.replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")
