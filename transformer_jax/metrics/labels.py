"""Scores of classes, numbers and entities. Letters: E examples, C classes."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax import extras

Z_95 = 1.959964  # 95 % of the standard normal distribution is within plus or minus this


# ---- Classification and regression


def classification(logits_EC: np.ndarray, labels_E: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The scores of a classifier that chooses the class of the largest logit.

    Args:
      logits_EC: logits or log-probabilities, of any float dtype.
      labels_E: the right classes, integers in [0, C).
      names: the names of the C classes.

    Returns:
      All in [0, 1] but Matthews' correlation, in [-1, 1]: accuracy and its 95 % interval (`wilson`); precision, recall
      and F1, as means over the classes that occur in labels or predictions (macro), and over all decisions (micro; with
      one label per example all three equal the accuracy); Matthews' correlation (Gorodkin 2004 for C > 2; 0 where
      labels or predictions are constant); with two classes also precision, recall and F1 of the second class; and the
      area under the ROC curve, for C > 2 as the mean of one class against the rest. A precision or recall without a
      case is 0.

    Raises:
      ValueError: there are no examples, shapes do not match, or a label is not in [0, C).
    """
    extras.need("sklearn", "scores of a classifier")
    from sklearn import metrics

    labels_E, logits_EC = _labels(labels_E, len(names), names), np.asarray(logits_EC, np.float64)
    if logits_EC.shape != (len(labels_E), len(names)):
        raise ValueError(f"logits {logits_EC.shape} for {len(labels_E)} labels of {len(names)} classes")
    predicted_E = logits_EC.argmax(-1)
    right = int((predicted_E == labels_E).sum())
    low, high = wilson(right, len(labels_E))
    scores = {"accuracy": right / len(labels_E), "accuracy_low": low, "accuracy_high": high}
    for average in ("macro", "micro"):
        of_classes = metrics.precision_recall_fscore_support(labels_E, predicted_E, average=average, zero_division=0)
        scores |= {f"{name}_{average}": float(of_classes[i]) for i, name in enumerate(("precision", "recall", "f1"))}
    if len(names) == 2:
        of_second = metrics.precision_recall_fscore_support(labels_E, predicted_E, average="binary", zero_division=0)
        scores |= {name: float(of_second[i]) for i, name in enumerate(("precision", "recall", "f1"))}
    constant = len(np.unique([labels_E, predicted_E])) == 1  # scikit-learn gives 0 as well, and warns
    scores["matthews"] = 0.0 if constant else float(metrics.matthews_corrcoef(labels_E, predicted_E))
    if len(np.unique(labels_E)) == len(names) > 1 and np.isfinite(logits_EC).all():
        if len(names) == 2:
            scores["roc_auc"] = float(metrics.roc_auc_score(labels_E, logits_EC[:, 1] - logits_EC[:, 0]))
        else:
            odds_EC = np.exp(logits_EC - logits_EC.max(-1, keepdims=True))
            shares_EC = odds_EC / odds_EC.sum(-1, keepdims=True)
            scores["roc_auc"] = float(metrics.roc_auc_score(labels_E, shares_EC, multi_class="ovr", average="macro"))
    return scores


def top(scores_EC: np.ndarray, labels_E: np.ndarray, k: int) -> np.ndarray:
    """bool [E]: whether the right class is among the k highest scores; of equal scores the lower class counts first.

    Args:
      scores_EC: any monotone function of the logits.
      labels_E: the right classes, integers in [0, C).
      k: at least 1.
    """
    own_E1 = np.take_along_axis(scores_EC, labels_E[:, None], axis=1)
    earlier_EC = np.arange(scores_EC.shape[1]) < labels_E[:, None]
    return ((scores_EC > own_E1) | ((scores_EC == own_E1) & earlier_EC)).sum(-1) < k


class Calibration(NamedTuple):
    """A reliability diagram: bins of the confidence, equally wide in [0, 1]. Empty bins are 0.

    Attributes:
      examples: float64 [bins], the number of examples.
      confidence: float64 [bins], their mean confidence.
      accuracy: float64 [bins], the share of them that is right.
    """

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |confidence - accuracy| over bins, weighted by examples (Guo et
        al. 2017, equation 3)."""
        return float((self.examples * np.abs(self.confidence - self.accuracy)).sum() / max(self.examples.sum(), 1))


def calibration(confidence_E: np.ndarray, right_E: np.ndarray, *, bins: int = 15) -> Calibration:
    """The share of right predictions by their confidence.

    Args:
      confidence_E: the probability, in [0, 1], that the model gives to its prediction.
      right_E: bool, whether the prediction is right.
      bins: how many.
    """
    bin_E = np.clip(np.ceil(np.asarray(confidence_E, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count, confidence, right = (
        np.bincount(bin_E, weights, bins) for weights in (np.ones(len(bin_E)), confidence_E, right_E)
    )
    return Calibration(count, confidence / np.maximum(count, 1), right / np.maximum(count, 1))


def by_example(logits_EC: np.ndarray, labels_E: np.ndarray, names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Of each example the loss in nats, whether the answer is right, the label and the answer (`Task.records`).

    Args:
      logits_EC: logits or log-probabilities.
      labels_E: the right classes, integers in [0, C).
      names: the names of the C classes.
    """
    logits_EC = np.asarray(logits_EC, np.float64)
    predicted_E, top_E1 = logits_EC.argmax(-1), logits_EC.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a diverged model's outputs are NaN
        log_z_E = top_E1[:, 0] + np.log(np.exp(logits_EC - top_E1).sum(-1))
        nats_E = log_z_E - logits_EC[np.arange(len(labels_E)), labels_E]
    return {
        "loss": nats_E,
        "accuracy": predicted_E == labels_E,
        "label": [names[label] for label in labels_E],
        "predicted": [names[label] for label in predicted_E],
    }


def wilson(right: int, examples: int) -> tuple[float, float]:
    """The 95 % interval of the share `right` / `examples` (Wilson 1927); in [0, 1] even for few examples."""
    share, z2 = right / examples, Z_95**2
    middle = (share + z2 / (2 * examples)) / (1 + z2 / examples)
    half = Z_95 / (1 + z2 / examples) * math.sqrt(share * (1 - share) / examples + z2 / (4 * examples**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def regression(predicted_E: np.ndarray, wanted_E: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation in [-1, 1], and the mean squared error in squared units of the labels.

    A correlation is not defined where either side is constant; it is reported as 0, so that it can still choose a
    checkpoint.

    Args:
      predicted_E: float.
      wanted_E: float, the labels.

    Raises:
      ValueError: there are no examples, or the numbers of predictions and labels differ.
    """
    extras.need("sklearn", "scores of a regression")
    from scipy import stats
    from sklearn import metrics

    predicted_E, wanted_E = np.asarray(predicted_E, np.float64), np.asarray(wanted_E, np.float64)
    if predicted_E.shape != wanted_E.shape or wanted_E.ndim != 1 or not len(wanted_E):
        raise ValueError(f"{predicted_E.shape} predictions for {wanted_E.shape} values: one for each is needed")
    if not np.isfinite(predicted_E).all():
        return {"pearson": 0.0, "spearman": 0.0, "mean_squared_error": math.inf}
    constant = np.ptp(predicted_E) == 0 or np.ptp(wanted_E) == 0
    return {
        "pearson": 0.0 if constant else float(stats.pearsonr(predicted_E, wanted_E).statistic),
        "spearman": 0.0 if constant else float(stats.spearmanr(predicted_E, wanted_E).statistic),
        "mean_squared_error": float(metrics.mean_squared_error(wanted_E, predicted_E)),
    }


def _labels(labels_E: np.ndarray, classes: int, names: Sequence[str]) -> np.ndarray:
    labels_E = np.asarray(labels_E)
    if labels_E.ndim != 1 or not len(labels_E) or labels_E.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels_E.dtype}{labels_E.shape}: a vector of integers with an example is needed")
    if labels_E.min() < 0 or labels_E.max() >= classes:
        example = int(np.argmax((labels_E < 0) | (labels_E >= classes)))
        raise ValueError(f"label {labels_E[example]} of example {example} is none of {classes} ({', '.join(names)})")
    return labels_E


# ---- Entities


def entity_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of one sentence as (type, first word, one past the last), in order.

    As in conlleval (Tjong Kim Sang and Buchholz 2000), an "I-" after "O" or another type begins an entity, as a "B-"
    does; so both IOB2 and the older IOB1 are read.

    Args:
      tags: "O", "B-TYPE" and "I-TYPE". "E-TYPE" ends an entity and "S-TYPE" is a whole one (BIOES), or "L-" and "U-"
        (BILOU).
    """
    spans: list[tuple[str, int, int]] = []
    before = "O"
    for at, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if mark != "O":
            if mark in "IEL" and before in "BI" and spans[-1][0] == kind:
                spans[-1] = (kind, spans[-1][1], at + 1)
            else:
                spans.append((kind, at, at + 1))
        before = mark
    return spans


def entities(tags: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 over all entities of all sentences, in [0, 1], as conlleval and seqeval count them.

    An entity is right if its type, its first and its last word are right. A score without any entity is 0.

    Args:
      tags: the predicted tags of each sentence.
      wanted: the right tags of each sentence.

    Raises:
      ValueError: the numbers of sentences differ, or those of tags in a sentence.
    """
    found = expected = right = 0
    for number, (got, want) in enumerate(zip(tags, wanted, strict=True)):
        if len(got) != len(want):
            raise ValueError(f"sentence {number}: {len(got)} predicted tags for {len(want)} words")
        got_spans, want_spans = set(entity_spans(got)), set(entity_spans(want))
        found, expected, right = found + len(got_spans), expected + len(want_spans), right + len(got_spans & want_spans)
    precision, recall = right / max(found, 1), right / max(expected, 1)
    f1 = 2 * right / max(found + expected, 1)
    return {"entity_precision": precision, "entity_recall": recall, "entity_f1": f1}
