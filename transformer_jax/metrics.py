"""Numbers and pictures of how good predictions are: NumPy in, plain floats out.

    classification   accuracy with its interval, precision, recall, F1, Matthews, ROC-AUC
    top              is the right class among the first k?
    calibration      are probabilities what they say?
    regression       Pearson, Spearman, mean squared error
    entities         precision, recall and F1 of whole entities, as conlleval counts them
    squad            exact match and F1 of answers, as the official SQuAD v1.1 script counts them
    bleu, chrf       of translations, by sacreBLEU, with its signature
    rouge            of summaries, by rouge-score
    exact_match      of any text
    plot_confusion, plot_roc, plot_by_length

scikit-learn and SciPy compute what they have. A number that does not exist for a set is never reported as nan: ROC-AUC
is left out where a class has no example, a correlation with a constant is 0. Outputs that are not finite, of a model
that has diverged, end no run: they have no ROC-AUC, a correlation of 0 and an infinite error.

Letters: E examples, C classes.
"""

import collections
import importlib.metadata
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax import extras, files, words

# The measures of texts that an optional package computes.
OF_PACKAGES = {"bleu": ("sacrebleu", "BLEU"), "chrf": ("sacrebleu", "chrF"), "rouge": ("rouge_score", "ROUGE")}
Z_95 = 1.959964  # the standard normal distribution has 95 % of its mass within this


def need(measures: Sequence[str]) -> None:
    """Returns where these functions of this file can compute their numbers.

    Raises:
      extras.Missing: where the package of one is not installed.
    """
    for name in measures:
        if name in OF_PACKAGES:
            extras.need(*OF_PACKAGES[name])


# ---- Classification and regression


def classification(logits_EC: np.ndarray, labels_E: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The scores of a classifier that chooses the class of the largest logit. All lie in [0, 1], Matthews in [-1, 1].

    Arguments:
      logits_EC: one row an example, of any float dtype; log-probabilities serve as well.
      labels_E: the right classes, integers in [0, C).
      names: of the C classes.
    Returns accuracy and its 95 % interval (`wilson`); precision, recall and F1 as means over the classes that occur in
    labels or predictions (macro) and over all decisions (micro; with one label an example all three are the accuracy);
    Matthews' correlation (Gorodkin 2004 for C > 2; 0 where labels or predictions are constant); with two classes also
    precision, recall and F1 of the second, with more the area under the ROC curve as the mean of one against the rest.
    A precision or recall without a case is 0.
    Errors: ValueError for no examples, shapes that do not fit, and a label outside its set.
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
    """bool [E]: whether the right class is among the k with the highest scores, the lower number first among equals."""
    own_E1 = np.take_along_axis(scores_EC, labels_E[:, None], axis=1)
    earlier_EC = np.arange(scores_EC.shape[1]) < labels_E[:, None]
    return ((scores_EC > own_E1) | ((scores_EC == own_E1) & earlier_EC)).sum(-1) < k


class Calibration(NamedTuple):
    """Bins of the confidence, equally wide in [0, 1], float64 [bins] each: examples, means. Empty bins are 0."""

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of confidence and accuracy, bins weighted by examples (Guo
        et al. 2017, equation 3)."""
        return float((self.examples * np.abs(self.confidence - self.accuracy)).sum() / max(self.examples.sum(), 1))


def calibration(confidence_E: np.ndarray, right_E: np.ndarray, *, bins: int = 15) -> Calibration:
    """How often predictions are right that are this sure.

    Arguments:
      confidence_E: the probability, in [0, 1], that the model gives to what it predicts.
      right_E: bool, whether it is right.
    """
    bin_E = np.clip(np.ceil(np.asarray(confidence_E, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count, confidence, right = (
        np.bincount(bin_E, weights, bins) for weights in (np.ones(len(bin_E)), confidence_E, right_E)
    )
    return Calibration(count, confidence / np.maximum(count, 1), right / np.maximum(count, 1))


def wilson(right: int, examples: int) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `examples` (Wilson 1927): inside [0, 1] however few the examples."""
    share, z2 = right / examples, Z_95**2
    middle = (share + z2 / (2 * examples)) / (1 + z2 / examples)
    half = Z_95 / (1 + z2 / examples) * math.sqrt(share * (1 - share) / examples + z2 / (4 * examples**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def regression(predicted_E: np.ndarray, wanted_E: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation in [-1, 1], and the mean squared error in squared units of the labels.

    A correlation is not defined where either side is constant (a model that has collapsed, one example); it is reported
    as 0, as Matthews' is, so that a checkpoint can be chosen by it.
    Errors: ValueError for no examples or unequal numbers of them.
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

    Tags are "O", "B-TYPE" and "I-TYPE"; "E-TYPE" ends an entity and "S-TYPE" is a whole one (BIOES), or "L-" and "U-"
    (BILOU). As in conlleval (Tjong Kim Sang and Buchholz 2000), an "I-" that follows "O" or another type begins an
    entity as a "B-" does; so both IOB2 and the older IOB1 are read.
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

    An entity is right when its type, its first and its last word are. Without any entity to count a score is 0.

    Arguments:
      tags: the predicted tags, a sequence for each sentence.
      wanted: the right tags.
    Errors: ValueError for another number of sentences, or of tags in one.
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


# ---- Answers


def squad(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and token F1 in percent, as published and as the official SQuAD v1.1 script computes them.

    Each answer counts by its best reference (Rajpurkar et al. 2016, section 6.1), after lower-casing and dropping
    punctuation, articles and extra white space. That script knows ASCII punctuation and words between spaces; beside a
    reference with letters that are not Latin, answers are compared by `words.spoken`: words of any script, each
    character of Chinese, Japanese or Thai, without punctuation of any kind.

    Arguments:
      predicted: one answer a question.
      references: the right answers of each question, at least one.
    Errors: ValueError for no questions, another number of them, or one without a reference.
    """
    if not predicted or not all(references):
        raise ValueError("no questions to score" if not predicted else "a question without a right answer")
    pairs = list(zip(predicted, references, strict=True))
    exact = sum(max(_exact(answer, right) for right in rights) for answer, rights in pairs)
    overlap = sum(max(_token_f1(answer, right) for right in rights) for answer, rights in pairs)
    return {"exact_match_percent": 100 * exact / len(pairs), "f1_percent": 100 * overlap / len(pairs)}


def _normal(answer: str, latin: bool) -> str:
    if not latin:
        return " ".join(words.spoken(answer))
    bare = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _is_latin(text: str) -> bool:
    return not any(letter.isalpha() and letter > "\u024f" for letter in text)


def _exact(answer: str, right: str) -> bool:
    latin = _is_latin(right)
    return _normal(answer, latin) == _normal(right, latin)


def _token_f1(answer: str, right: str) -> float:
    latin = _is_latin(right)
    got, want = _normal(answer, latin).split(), _normal(right, latin).split()
    same = sum((collections.Counter(got) & collections.Counter(want)).values())
    return 2 * same / (len(got) + len(want)) if same else 0.0


# ---- Text

SAMPLES, SEED = 1000, 12345  # of the bootstrap: sacreBLEU's own numbers, which its signature names


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus BLEU (Papineni et al. 2002) as sacreBLEU computes it, in [0, 100]: cased, by its tokenizer 13a.

    Where most letters of the references belong to a script without spaces between words, 13a would take a sentence for
    a word: sacreBLEU's tokenizer is then "zh" for Chinese and Japanese, and "char" for Thai, Lao, Khmer and the like.

    Arguments:
      hypotheses: detokenised texts.
      references: as many, one for each hypothesis.
    Returns "bleu", its 95 % interval "bleu_low" to "bleu_high" and "bleu_signature", which names every choice (Post
    2018). The interval is sacreBLEU's: 1,000 bootstrap resamples of the lines, their mean and half the width of 95 % of
    them (Koehn 2004); the seed is in the signature, $SACREBLEU_SEED or 12345.
    Errors: ValueError for no texts, or another number of references.
    """
    extras.need("sacrebleu", "BLEU")
    from sacrebleu.metrics import BLEU

    return _sacrebleu("bleu", BLEU(tokenize=_bleu_words(references)), hypotheses, references)


def _bleu_words(references: Sequence[str]) -> str:
    """The name of sacreBLEU's tokenizer for a language with such texts."""
    text = " ".join(references)
    if words.unspaced_share(text) <= 0.5:
        return "13a"
    wide = sum(letter > "\u2e7f" for letter in text if letter.isalpha())
    return "zh" if 2 * wide > sum(map(str.isalpha, text)) else "char"


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus chrF2 (Popovic 2015: 6-grams of characters, no words, beta 2) by sacreBLEU, in [0, 100]; as `bleu`."""
    extras.need("sacrebleu", "chrF")
    from sacrebleu.metrics import CHRF

    class Chrf(CHRF):
        def _compute_score_from_stats(self, statistics: Any) -> Any:  # resamples of 0 are floats, others NumPy's:
            found = super()._compute_score_from_stats(statistics)  # version 2.6.0 cannot take the mean of such a mix
            found.score = float(found.score)
            return found

    return _sacrebleu("chrf", Chrf(), hypotheses, references)


def _sacrebleu(name: str, metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    _check_texts(hypotheses, references)
    found = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=SAMPLES)
    middle, half = float(found._mean), float(found._ci)
    scores = {name: float(found.score), f"{name}_low": middle - half, f"{name}_high": middle + half}
    return scores | {f"{name}_signature": str(metric.get_signature())}


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by rouge-score: F1 with Porter's stems, means over the texts, in
    [0, 100].

    rouge-score knows the words of a-z alone. Where more than one letter in 200 of the references is another, words are
    those of `words.spoken`, without stems, and the signature says so ("tok:words|stem:none").

    Returns "rouge1", "rouge1_low", "rouge1_high" and so on, and "rouge_signature". The 95 % interval is that of the
    mean over 1,000 bootstrap resamples of the texts.
    Errors: `InputError` where rouge-score is not installed; ValueError as `bleu`.
    """
    extras.need("rouge_score", "ROUGE")
    from rouge_score import rouge_scorer

    _check_texts(hypotheses, references)
    kinds = ("rouge1", "rouge2", "rougeL")
    letters = [letter for reference in references for letter in reference if letter.isalpha()]
    english = sum(map(str.isascii, letters)) >= 0.995 * len(letters)
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True, tokenizer=None if english else _AnyWords())
    found = [scorer.score(reference, text) for text, reference in zip(hypotheses, references, strict=True)]
    rows = np.random.default_rng(SEED).integers(len(found), size=(SAMPLES, len(found)))
    scores: dict[str, float | str] = {}
    for kind in kinds:
        f1_E = 100 * np.array([score[kind].fmeasure for score in found])
        low, high = np.percentile(f1_E[rows].mean(-1), (2.5, 97.5))
        scores |= {kind: float(f1_E.mean()), f"{kind}_low": float(low), f"{kind}_high": float(high)}
    version = importlib.metadata.version("rouge-score")
    how = "stem:porter" if english else "tok:words|stem:none"
    signature = f"nrefs:1|bs:{SAMPLES}|seed:{SEED}|case:lower|{how}|score:f1|version:rouge-score-{version}"
    return scores | {"rouge_signature": signature}


class _AnyWords:
    """A tokenizer of rouge-score's."""

    def tokenize(self, text: str) -> list[str]:
        return words.spoken(text)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of texts that equal their reference, white space around them aside, and its 95 % interval (`wilson`).

    Errors: ValueError as `bleu`.
    """
    _check_texts(hypotheses, references)
    right = sum(text.strip() == reference.strip() for text, reference in zip(hypotheses, references, strict=True))
    low, high = wilson(right, len(hypotheses))
    return {"exact_match": right / len(hypotheses), "exact_match_low": low, "exact_match_high": high}


def _check_texts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} texts to score for {len(references)} references")


# ---- Pictures


def plot_by_length(
    measure: Callable[[Sequence[str], Sequence[str]], Mapping[str, float | str]],
    lengths_E: np.ndarray,
    hypotheses: Sequence[str],
    references: Sequence[str],
    path: Path,
) -> None:
    """What `measure` (`bleu`, `rouge`, ...) says of the shortest texts, the next longer, and so on, as a PNG.

    Six groups of about as many texts, fewer where many are of one length; bars have their 95 % intervals.
    Arguments:
      lengths_E: of the sources, in words.
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


def plot_confusion(labels_E: np.ndarray, predicted_E: np.ndarray, names: Sequence[str], path: Path) -> None:
    """The confusion matrix as a PNG: rows are the right classes, cells hold counts and are shaded by row share."""
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
    axes.set_yticks(range(len(names)), names, parse_math=False)  # "$" in a name is a dollar
    for (row, column), count in np.ndenumerate(counts_CC):
        if count:
            shade = "white" if shares_CC[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", color=shade, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("right")
    figure.colorbar(image, label="share of the right class", shrink=0.8)
    with files.replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")


def plot_roc(scores_E: np.ndarray, labels_E: np.ndarray, path: Path) -> None:
    """The ROC curve as a PNG, with the area under it in the legend.

    Arguments:
      scores_E: higher means class 1 rather than 0; any monotone score (the difference of two logits) gives one curve.
      labels_E: 0 or 1.
    Errors: ValueError where the labels are all of one class, for which there is no curve.
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
