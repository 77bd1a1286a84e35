"""Scores of predictions: NumPy arrays in, plain floats out.

    classification   accuracy with its interval, precision, recall, F1, Matthews, ROC-AUC
    top              whether the right class is among the k most probable
    calibration      whether probabilities match the share of right predictions
    regression       Pearson, Spearman, mean squared error
    entities         precision, recall and F1 of whole entities, as conlleval counts them
    squad            exact match and F1 of answers, as the official SQuAD v1.1 script counts them
    bleu, chrf       of translations, by sacreBLEU, with its signature
    rouge            of summaries, by rouge-score
    exact_match      of any text
    error_rates      of transcripts: word and character error rate with their intervals

scikit-learn and SciPy compute the scores that they have. No score is ever nan: ROC-AUC is not reported where a class
has no example, and a correlation with a constant is 0. Outputs that are not finite, of a model that has diverged, raise
no error: they have no ROC-AUC, a correlation of 0 and an infinite error.

Letters: E examples, C classes.
"""

import collections
import importlib.metadata
import math
import re
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax import extras, words

# Function of this module -> (package, name of the metric), for metrics that an optional package computes.
OF_PACKAGES = {"bleu": ("sacrebleu", "BLEU"), "chrf": ("sacrebleu", "chrF"), "rouge": ("rouge_score", "ROUGE")}
Z_95 = 1.959964  # 95 % of the standard normal distribution is within plus or minus this


def need(measures: Sequence[str]) -> None:
    """Raises `extras.Missing` if one of `measures`, names of functions in this module, needs a missing package."""
    for name in measures:
        if name in OF_PACKAGES:
            extras.need(*OF_PACKAGES[name])


# ---- Classification and regression


def classification(logits_EC: np.ndarray, labels_E: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The scores of a classifier that chooses the class of the largest logit.

    Args:
      logits_EC: logits or log-probabilities, of any float dtype.
      labels_E: the right classes, integers in [0, C).
      names: of the C classes.

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
      names: of the C classes.
    """
    logits_EC = np.asarray(logits_EC, np.float64)
    predicted_E, top_E1 = logits_EC.argmax(-1), logits_EC.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # of a model that has diverged
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


# ---- Answers


def squad(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and token F1 in percent, as the official SQuAD v1.1 script computes them.

    Each answer is scored against its best reference (Rajpurkar et al. 2016, section 6.1), after lower-casing and
    dropping punctuation, articles and extra white space. The script knows only ASCII punctuation and words between
    spaces; if a reference has letters that are not Latin, both are compared by `words.spoken` instead: words of any
    script, single characters of Chinese, Japanese or Thai, and no punctuation.

    Args:
      predicted: one answer per question.
      references: the right answers of each question, at least one.

    Raises:
      ValueError: there are no questions, their numbers differ, or a question has no reference.
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

SAMPLES, SEED = 1000, 12345  # of the bootstrap; sacreBLEU's defaults, which its signature states


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus BLEU (Papineni et al. 2002) as sacreBLEU computes it, in [0, 100]: cased, with its tokenizer 13a.

    Where most letters of the references belong to a script without spaces between words, for which 13a would make one
    word of a sentence, the tokenizer is "zh" for Chinese and Japanese, and "char" for Thai, Lao, Khmer and others.

    Args:
      hypotheses: detokenised texts.
      references: detokenised texts, one per hypothesis.

    Returns:
      "bleu", its 95 % interval "bleu_low" to "bleu_high", and "bleu_signature", which states every choice (Post 2018).
      The interval is sacreBLEU's, from 1,000 bootstrap resamples of the lines (Koehn 2004); the signature states the
      seed, $SACREBLEU_SEED or 12345.

    Raises:
      ValueError: there are no texts, or another number of references.
    """
    return _sacrebleu("bleu", hypotheses, references)


def sacrebleu_metric(name: str, references: Sequence[str]) -> Any:
    """sacreBLEU's metric for texts of these `references`; `name` is "bleu" or "chrf".

    Raises:
      InputError: sacreBLEU is not installed.
    """
    extras.need("sacrebleu", OF_PACKAGES[name][1])
    from sacrebleu.metrics import BLEU, CHRF

    class Chrf(CHRF):
        # A resample's score is a Python float if it is 0 and otherwise NumPy's; sacreBLEU 2.6.0 fails on the mean of
        # both.
        def _compute_score_from_stats(self, statistics: Any) -> Any:
            found = super()._compute_score_from_stats(statistics)
            found.score = float(found.score)
            return found

    return BLEU(tokenize=_bleu_words(references)) if name == "bleu" else Chrf()


def _bleu_words(references: Sequence[str]) -> str:
    """The name of sacreBLEU's tokenizer for the language of these texts."""
    text = " ".join(references)
    if words.unspaced_share(text) <= 0.5:
        return "13a"
    wide = sum(letter > "\u2e7f" for letter in text if letter.isalpha())
    return "zh" if 2 * wide > sum(map(str.isalpha, text)) else "char"


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus chrF2 (Popovic 2015: character 6-grams, no words, beta 2) by sacreBLEU, in [0, 100].

    Args:
      hypotheses: as for `bleu`.
      references: as for `bleu`.

    Returns:
      "chrf", "chrf_low", "chrf_high" and "chrf_signature", as from `bleu`.
    """
    return _sacrebleu("chrf", hypotheses, references)


def _sacrebleu(name: str, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    metric = sacrebleu_metric(name, references)
    _check_texts(hypotheses, references)
    found = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=SAMPLES)
    middle, half = float(found._mean), float(found._ci)
    scores = {name: float(found.score), f"{name}_low": middle - half, f"{name}_high": middle + half}
    return scores | {f"{name}_signature": str(metric.get_signature())}


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by rouge-score: F1 with Porter's stemmer, mean of the texts, in [0, 100].

    rouge-score knows only words of the letters a-z. Where more than one letter in 200 of the references is another, the
    words are those of `words.spoken` without stemming, and the signature states it ("tok:words|stem:none").

    Args:
      hypotheses: texts.
      references: texts, one per hypothesis.

    Returns:
      "rouge1", "rouge1_low", "rouge1_high" and so on, and "rouge_signature". The 95 % interval is that of the mean over
      1,000 bootstrap resamples of the texts.

    Raises:
      InputError: rouge-score is not installed.
      ValueError: as `bleu`.
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
    """A tokenizer for rouge-score with words of any script."""

    def tokenize(self, text: str) -> list[str]:
        return words.spoken(text)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of texts that equal their reference, ignoring white space at both ends, and its 95 % interval.

    Args:
      hypotheses: texts.
      references: texts, one per hypothesis.

    Raises:
      ValueError: as `bleu`.
    """
    _check_texts(hypotheses, references)
    right = sum(text.strip() == reference.strip() for text, reference in zip(hypotheses, references, strict=True))
    low, high = wilson(right, len(hypotheses))
    return {"exact_match": right / len(hypotheses), "exact_match_low": low, "exact_match_high": high}


# ---- Transcripts


def error_rates(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Word and character error rates over a whole set: {"wer", "wer_low", "wer_high", "cer"}.

    Substitutions, deletions and insertions, over the words (characters) of the references. Words are separated by white
    space, which counts once and not at the ends. The interval is the central 95 % of 1,000 bootstrap resamples of the
    utterances (Bisani and Ney 2004). Above 1 where more is inserted than was spoken.

    Args:
      hypotheses: texts.
      references: texts, one per hypothesis.

    Raises:
      ValueError: as `bleu`.
    """
    _check_texts(hypotheses, references)
    pairs = [(made.split(), wanted.split()) for made, wanted in zip(hypotheses, references, strict=True)]
    wrong_E = np.array([edit_distance(made, wanted) for made, wanted in pairs], np.float64)
    spoken_E = np.array([len(wanted) for _, wanted in pairs], np.float64)
    spelled = [(" ".join(made), " ".join(wanted)) for made, wanted in pairs]
    wrong_letters = sum(edit_distance(made, wanted) for made, wanted in spelled)
    drawn = np.random.default_rng(0).integers(len(pairs), size=(1000, len(pairs)))
    rates = wrong_E[drawn].sum(1) / np.maximum(spoken_E[drawn].sum(1), 1)
    low, high = np.quantile(rates, (0.025, 0.975))
    return {
        "wer": float(wrong_E.sum() / max(spoken_E.sum(), 1)),
        "wer_low": float(low),
        "wer_high": float(high),
        "cer": wrong_letters / max(sum(len(wanted) for _, wanted in spelled), 1),
    }


def edit_distance(made: Sequence[Any], wanted: Sequence[Any]) -> int:
    """The fewest substitutions, deletions and insertions from one sequence to another (Levenshtein).

    Args:
      made: letters of a text, or words.
      wanted: likewise.
    """
    numbers: dict[Any, int] = {}
    made_M, wanted_N = (np.array([numbers.setdefault(x, len(numbers)) for x in side]) for side in (made, wanted))
    steps = np.arange(len(wanted) + 1)
    row = steps
    for i, symbol in enumerate(made_M):
        best = np.minimum(row[1:] + 1, row[:-1] + (wanted_N != symbol))  # inserted, or substituted
        row = steps + np.minimum.accumulate(np.append(i + 1, best) - steps)  # deleted: 1 for each step to the right
    return int(row[-1])


def _check_texts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} texts to score for {len(references)} references")
