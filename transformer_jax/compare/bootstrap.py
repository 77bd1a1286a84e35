"""Whether the difference of two runs on the same examples is more than chance: a paired bootstrap.

Examples are drawn with replacement, the same ones for both runs, and the difference is computed again (Efron and
Tibshirani 1993, chapters 13 and 16; for translations Koehn 2004). The interval is that of the middle 95 % of the
differences. The p-value is how often a difference, moved so that its centre is 0, is at least as far from 0 as the one
that was seen: 1 for two runs that answer alike.

Letters: E examples, S resamples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax import extras, metrics

LEAST = 20  # examples, or batches of them; a bootstrap of fewer finds differences where there are none
AT_ONCE = 2**22  # indices of resamples that exist at once


class Difference(NamedTuple):
    """A number of two runs.

    Attributes:
      a: the number of the first run.
      b: the same of the second run.
      low: the lower end of the 95 % interval of b - a.
      high: its upper end.
      p: the p-value of b - a.
      examples: on which both were evaluated.
      unit: what `examples` counts: "examples", or "batches" of them.
    """

    a: float
    b: float
    low: float
    high: float
    p: float
    examples: int
    unit: str = "examples"

    @property
    def claimed(self) -> bool:
        """Whether it is called a difference: p is below 0.05, over enough examples for a bootstrap."""
        return self.p < 0.05 and self.examples >= LEAST


def ratio(
    a_E2: np.ndarray, b_E2: np.ndarray, *, samples: int = metrics.SAMPLES, seed: int = metrics.SEED
) -> Difference:
    """The difference of a number that is a sum over a weight, such as a loss, an accuracy or an F1.

    Args:
      a_E2: (sum, weight) of each example, float64, of the first run.
      b_E2: the same of the second run, for the same examples.
      samples: S.
      seed: the seed of the resamples.

    Raises:
      ValueError: the numbers of examples differ, there are none, or a value is not finite.
    """
    a_E2, b_E2 = np.asarray(a_E2, np.float64), np.asarray(b_E2, np.float64)
    if a_E2.shape != b_E2.shape or a_E2.ndim != 2 or not len(a_E2):
        raise ValueError(f"{len(a_E2):,} examples of one run and {len(b_E2):,} of the other")
    if not (np.isfinite(a_E2).all() and np.isfinite(b_E2).all()):
        raise ValueError("a number that is not finite")
    both_E4, means = (
        np.concatenate([a_E2, b_E2], 1),
        lambda x: (_share(x[..., 0], x[..., 1]), _share(x[..., 2], x[..., 3])),
    )
    a, b = (float(x) for x in means(both_E4.sum(0)))
    rng, size = np.random.default_rng(seed), max(AT_ONCE // len(both_E4), 1)
    differences = []
    for done in range(0, samples, size):
        rows_SE = rng.integers(len(both_E4), size=(min(size, samples - done), len(both_E4)))
        of_a_S, of_b_S = means(both_E4[rows_SE].sum(1))
        differences.append(of_b_S - of_a_S)
    return _difference(a, b, np.concatenate(differences), len(both_E4))


def _share(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """total / weight; 0 where there is no weight, as an F1 without an entity is."""
    return np.where(weight == 0, 0.0, total / np.where(weight == 0, 1.0, weight))


def _difference(a: float, b: float, of_samples_S: np.ndarray, examples: int) -> Difference:
    low, high = np.percentile(of_samples_S, (2.5, 97.5))
    # Equal runs differ by rounding at most, in the resamples too: what is below it is not counted as nearer to 0.
    slack = 1e-12 * max(abs(a), abs(b), 1e-300)
    further = np.count_nonzero(np.abs(of_samples_S - (b - a)) >= abs(b - a) - slack)
    return Difference(a, b, float(low), float(high), (further + 1) / (len(of_samples_S) + 1), examples)


def texts(name: str, a: Sequence[str], b: Sequence[str], references: Sequence[str]) -> Difference:
    """The difference of corpus BLEU or chrF, with the p-value of sacreBLEU's own paired bootstrap test.

    Args:
      name: "bleu" or "chrf".
      a: the texts of the first run.
      b: the same of the second run.
      references: one for each text.

    Raises:
      InputError: sacreBLEU is not installed.
      ValueError: the numbers of texts differ, or there are none.
    """
    extras.need("sacrebleu", "a paired test of texts")
    from sacrebleu.significance import PairedTest

    if not references or not len(a) == len(b) == len(references):
        raise ValueError(f"{len(a):,} and {len(b):,} texts for {len(references):,} references")
    metric, refs = metrics.sacrebleu_metric(name, references), [list(references)]
    statistics = [metric._extract_corpus_statistics(list(side), refs) for side in (a, b)]
    score_a, score_b = (float(metric._aggregate_and_compute(found).score) for found in statistics)
    rows_SE = np.random.default_rng(metrics.SEED).integers(len(a), size=(metrics.SAMPLES, len(a)))
    of_a_S, of_b_S = (_scores(metric._compute_score_from_stats, np.asarray(x, np.float64), rows_SE) for x in statistics)
    found = _difference(score_a, score_b, of_b_S - of_a_S, len(a))
    if list(a) == list(b):  # sacreBLEU counts resamples that differ by more than 0, of which there are none
        return found
    _, scores = PairedTest([("a", list(a)), ("b", list(b))], {name: metric}, refs, test_type="bs")()
    result: Any = next(values[1] for key, values in scores.items() if key != "System")
    return found._replace(p=float(result.p_value))


def _scores(of: Callable[[Any], Any], statistics_EN: np.ndarray, rows_SE: np.ndarray) -> np.ndarray:
    """The score of each resample."""
    return np.array([float(of(statistics_EN[rows].sum(0)).score) for rows in rows_SE])


def furthest(a_E2: np.ndarray, b_E2: np.ndarray, count: int) -> list[int]:
    """The examples on which two runs differ most, the largest difference first; those that agree are left out.

    Args:
      a_E2: (sum, weight) of each example of the first run.
      b_E2: the same of the second run.
      count: at most so many.
    """
    apart_E = np.abs(_share(b_E2[:, 0], b_E2[:, 1]) - _share(a_E2[:, 0], a_E2[:, 1]))
    order = np.argsort(-np.where(np.isfinite(apart_E), apart_E, math.inf), kind="stable")[:count]
    return [int(at) for at in order if apart_E[at] > 0]


def sentences(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(chrF, 1) of each text, float64 [E, 2].

    Args:
      hypotheses: the hypotheses of a run.
      references: one for each.
    """
    metric = metrics.sacrebleu_metric("chrf", references)
    scores = [float(metric.sentence_score(one, [ref]).score) for one, ref in zip(hypotheses, references, strict=True)]
    return np.stack([np.array(scores), np.ones(len(scores))], 1)
