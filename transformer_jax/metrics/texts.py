"""Scores of texts: answers, translations, summaries and transcripts."""

import collections
import importlib.metadata
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_jax import extras, words
from transformer_jax.metrics.labels import wilson

# Function of this module -> (package, name of the metric), for metrics that an optional package computes.
OF_PACKAGES = {"bleu": ("sacrebleu", "BLEU"), "chrf": ("sacrebleu", "chrF"), "rouge": ("rouge_score", "ROUGE")}


def need(measures: Sequence[str]) -> None:
    """Raises `extras.Missing` if one of `measures`, names of functions in this module, needs a missing package."""
    for name in measures:
        if name in OF_PACKAGES:
            extras.need(*OF_PACKAGES[name])


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

SAMPLES, SEED = 1000, 12345  # the bootstrap's; sacreBLEU's defaults, which its signature states


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
      wanted: the letters or words of the reference.
    """
    numbers: dict[Any, int] = {}
    made_M, wanted_N = (np.array([numbers.setdefault(x, len(numbers)) for x in side]) for side in (made, wanted))
    steps = np.arange(len(wanted) + 1)
    row = steps
    for i, symbol in enumerate(made_M):
        best = np.minimum(row[1:] + 1, row[:-1] + (wanted_N != symbol))  # an insertion, or a substitution
        row = steps + np.minimum.accumulate(np.append(i + 1, best) - steps)  # deletions: 1 per step to the right
    return int(row[-1])


def _check_texts(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} texts to score for {len(references)} references")
