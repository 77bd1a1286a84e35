"""What embeddings are good for, as numbers: retrieval, zero-shot classification, a linear probe, similarity of texts.

    retrieval(left_EF, right_EF, left_ids, right_ids)       # recall at 1, 5 and 10, and the mean reciprocal rank
    nearest(queries_QF, items_NF, 5)                        # a search
    class_embeddings(embed_texts, names, templates)         # zero-shot: nearest(images, classes, 1)
    linear_probe(train_EF, labels, test_EF, labels)         # accuracy of logistic regression
    similarity(left_EF, right_EF, scores)                   # Pearson and Spearman with people's scores

E pairs, F width of the embeddings, N items, Q queries.
"""

from collections.abc import Callable, Sequence

import numpy as np

from transformer_jax import extras, metrics

CHUNK = 1024  # rows of the similarities that exist at once
AT = (1, 5, 10)


def unit(x_EF: np.ndarray) -> np.ndarray:
    """The rows of `x_EF` divided by their length, float32."""
    x_EF = x_EF.astype(np.float32)
    return x_EF / np.maximum(np.linalg.norm(x_EF, axis=-1, keepdims=True), 1e-12)


def ranks(left_EF: np.ndarray, right_EF: np.ndarray, left_ids: np.ndarray, right_ids: np.ndarray) -> np.ndarray:
    """The rank, from 1, of the best right side that belongs to each distinct left side, among all distinct right sides.

    A wrong right side that is equally near counts as nearer: equal embeddings everywhere are the worst result, not the
    best.

    Args:
      left_EF: embeddings of the left sides of E pairs.
      right_EF: embeddings of the pairs' right sides.
      left_ids: int [E]; equal numbers are the same left side.
      right_ids: int [E], likewise.
    """
    _, first_left, left_E = np.unique(left_ids, return_index=True, return_inverse=True)
    _, first_right, right_E = np.unique(right_ids, return_index=True, return_inverse=True)
    left, right = unit(left_EF[first_left]), unit(right_EF[first_right])
    found = np.empty(len(left), np.int64)
    for start in range(0, len(left), CHUNK):
        cosines = left[start : start + CHUNK] @ right.T
        belongs = np.zeros(cosines.shape, bool)
        inside = (left_E >= start) & (left_E < start + CHUNK)
        belongs[left_E[inside] - start, right_E[inside]] = True
        best = np.where(belongs, cosines, -np.inf).max(1, keepdims=True)
        found[start : start + CHUNK] = 1 + (~belongs & ~(cosines < best)).sum(1)
    return found


def retrieval(
    left_EF: np.ndarray, right_EF: np.ndarray, left_ids: np.ndarray, right_ids: np.ndarray
) -> dict[str, float]:
    """Recall at 1, 5 and 10 and the mean reciprocal rank, in both directions, over all distinct sides.

    Args:
      left_EF: embeddings of the left sides of E pairs.
      right_EF: embeddings of the pairs' right sides.
      left_ids: int [E]; equal numbers are the same left side.
      right_ids: int [E], likewise.
    """
    to_right = ranks(left_EF, right_EF, left_ids, right_ids)
    to_left = ranks(right_EF, left_EF, right_ids, left_ids)
    scores: dict[str, float] = {}
    for name, rank in (("left_to_right", to_right), ("right_to_left", to_left)):
        scores |= {f"recall_at_{k}_{name}": float((rank <= k).mean()) for k in AT}
        scores[f"mrr_{name}"] = float((1 / rank).mean())
    return scores | {"chance_at_1": 1 / len(to_left)}


def nearest(queries_QF: np.ndarray, items_NF: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the nearest items int [Q, count], their cosines float32 [Q, count]), nearest first.

    Args:
      queries_QF: embeddings.
      items_NF: embeddings of the N items that are searched.
      count: items for each query, at most N.
    """
    cosines_QN = unit(queries_QF) @ unit(items_NF).T
    best = np.argsort(-cosines_QN, axis=1, kind="stable")[:, :count]
    return best, np.take_along_axis(cosines_QN, best, axis=1)


def class_embeddings(
    embed: Callable[[Sequence[str]], np.ndarray], names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)
) -> np.ndarray:
    """The embedding of each class, float32 [N, F]: the mean over the templates of its unit embeddings (CLIP, 3.1.4).

    Args:
      embed: texts -> their embeddings [texts, F].
      names: the names of the classes.
      templates: each with {} in place of the name.
    """
    texts = [template.replace("{}", name) for name in names for template in templates]
    each = unit(embed(texts)).reshape(len(names), len(templates), -1)
    return unit(each.mean(axis=1))


def linear_probe(train_EF: np.ndarray, train_labels: np.ndarray, test_EF: np.ndarray, test_labels: np.ndarray) -> float:
    """The accuracy of a logistic regression on the embeddings (CLIP, 3.2).

    Args:
      train_EF: embeddings.
      train_labels: int [E].
      test_EF: embeddings.
      test_labels: int [E].
    """
    extras.need("sklearn", "a linear probe")
    from sklearn.linear_model import LogisticRegression

    return float(LogisticRegression(max_iter=1000).fit(train_EF, train_labels).score(test_EF, test_labels))


def similarity(left_EF: np.ndarray, right_EF: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """{"pearson", "spearman"} of the cosines with people's scores, as of the STS benchmark (Cer et al. 2017).

    Args:
      left_EF: embeddings of E texts.
      right_EF: the embeddings of the texts that they are compared with.
      scores: float [E].
    """
    scored = metrics.regression((unit(left_EF) * unit(right_EF)).sum(1), scores)
    return {name: scored[name] for name in ("pearson", "spearman")}
