"""Figures of predictions, drawn by matplotlib into a PNG.

Letters: E examples, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from transformer_jax import extras, files


def by_length(
    measure: Callable[[Sequence[str], Sequence[str]], Mapping[str, float | str]],
    lengths_E: np.ndarray,
    hypotheses: Sequence[str],
    references: Sequence[str],
    path: Path,
) -> None:
    """Draws a score by the length of the source, with 95 % intervals, as a PNG.

    The texts are divided into six groups of about equal size, or fewer where many have the same length.

    Args:
      measure: `bleu`, `rouge` or another function of hypotheses and references.
      lengths_E: the lengths of the sources, in words.
      hypotheses: texts.
      references: texts, one per hypothesis.
      path: the file to write.
    """
    extras.need("matplotlib", "a picture of scores by length")
    from matplotlib.figure import Figure

    borders = np.unique(np.quantile(lengths_E, np.linspace(0, 1, 7)[1:], method="higher"))
    group_E = np.searchsorted(borders, lengths_E)
    groups = [np.flatnonzero(group_E == group).tolist() for group in range(len(borders))]
    scores = [measure([hypotheses[i] for i in group], [references[i] for i in group]) for group in groups]
    name = next(iter(scores[0]))
    values, lows, highs = (np.array([float(s[key]) for s in scores]) for key in (name, f"{name}_low", f"{name}_high"))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    whiskers = (np.maximum(values - lows, 0), np.maximum(highs - values, 0))
    axes.bar(range(len(groups)), values, yerr=whiskers, capsize=4, color="C0", alpha=0.8)
    names = [f"{lengths_E[group].min()} to {lengths_E[group].max()}\n{len(group):,} texts" for group in groups]
    axes.set_xticks(range(len(groups)), names, fontsize=8)
    axes.set_xlabel("words of the source")
    axes.set_ylabel(name.replace("_", " "))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3, axis="y")
    with files.replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")


def confusion(labels_E: np.ndarray, predicted_E: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draws the confusion matrix as a PNG: rows are the right classes; cells are counts, shaded by share of the row.

    Args:
      labels_E: the right classes, integers.
      predicted_E: the predicted classes, integers.
      names: the names of the classes.
      path: the file to write.
    """
    extras.need("matplotlib", "a picture of the confusion matrix")
    extras.need("sklearn", "a picture of the confusion matrix")
    from matplotlib.figure import Figure
    from sklearn import metrics

    counts_CC = metrics.confusion_matrix(labels_E, predicted_E, labels=range(len(names)))
    shares_CC = counts_CC / np.maximum(counts_CC.sum(-1, keepdims=True), 1)
    side = 2.5 + 0.5 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)  # otherwise "$" in a name begins a formula
    for (row, column), count in np.ndenumerate(counts_CC):
        if count:
            shade = "white" if shares_CC[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", color=shade, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right")
    figure.colorbar(image, label="share of the right class", shrink=0.8)
    with files.replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")


def roc(scores_E: np.ndarray, labels_E: np.ndarray, path: Path) -> None:
    """Draws the ROC curve as a PNG, with the area under it in the legend.

    Args:
      scores_E: higher for class 1; every monotone function of a score, such as the difference of two logits, gives the
        same curve.
      labels_E: 0 or 1.
      path: the file to write.

    Raises:
      ValueError: all labels are of one class.
    """
    extras.need("matplotlib", "a picture of the ROC curve")
    extras.need("sklearn", "a picture of the ROC curve")
    from matplotlib.figure import Figure
    from sklearn import metrics

    if len(np.unique(labels_E)) != 2:
        raise ValueError("a ROC curve needs examples of two classes")
    false_positives, true_positives, _ = metrics.roc_curve(labels_E, scores_E)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    area = metrics.auc(false_positives, true_positives)
    axes.plot(false_positives, true_positives, label=f"area under the curve {area:.4f}")
    axes.plot((0, 1), (0, 1), "--", color="grey", linewidth=1, label="chance 0.5")
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    with files.replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")
