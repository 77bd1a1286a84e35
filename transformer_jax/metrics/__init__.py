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
"""

from transformer_jax.metrics.labels import (
    Calibration,
    by_example,
    calibration,
    classification,
    entities,
    entity_spans,
    regression,
    top,
    wilson,
)
from transformer_jax.metrics.texts import (
    SAMPLES,
    SEED,
    bleu,
    chrf,
    edit_distance,
    error_rates,
    exact_match,
    need,
    rouge,
    sacrebleu_metric,
    squad,
)

__all__ = [
    "SAMPLES",
    "SEED",
    "Calibration",
    "bleu",
    "by_example",
    "calibration",
    "chrf",
    "classification",
    "edit_distance",
    "entities",
    "entity_spans",
    "error_rates",
    "exact_match",
    "need",
    "regression",
    "rouge",
    "sacrebleu_metric",
    "squad",
    "top",
    "wilson",
]
