"""Scores of runs on examples that are drawn anew, many draws at a time."""

from __future__ import annotations

import numpy as np

#: The metrics that can be computed on resampled examples.
RESAMPLED = ("accuracy", "f1", "macro_f1", "matthews_correlation")
_CHUNK = 500  # resamples at a time: 500 x 10,000 examples take 40 MB


def resampled_scores(
    predictions: np.ndarray, labels: np.ndarray, metric: str, resamples: int = 5000, seed: int = 0
) -> np.ndarray:
    """Scores of some runs on bootstrap samples of the examples.

    Calls with the same labels, number of resamples and `seed` draw the same examples, so that methods stay paired.

    Args:
        predictions: class indices, shape (runs, examples).
        labels: class indices, shape (examples,).
        metric: one of `RESAMPLED`.

    Returns:
        Scores, shape (resamples, runs).
    """
    generator = np.random.default_rng(streams(seed)[0])
    examples = len(labels)
    counts = _counts(predictions, labels, metric)
    scores = []
    for start in range(0, resamples, _CHUNK):
        drawn = generator.integers(0, examples, (min(_CHUNK, resamples - start), examples))
        # How often each example was drawn; the rows' offsets keep them apart in one bincount.
        rows = np.arange(len(drawn))[:, None] * examples
        weights = np.bincount((drawn + rows).ravel(), minlength=len(drawn) * examples).reshape(len(drawn), examples)
        scores.append(_score(weights.astype(np.float32) @ counts.transpose(0, 2, 1), metric))
    return np.concatenate(scores)


def score_of(predictions: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """Scores of some runs on all examples, shape (runs,)."""
    return _score(_counts(predictions, labels, metric).sum(axis=2), metric)


def streams(seed: int) -> list[np.random.SeedSequence]:
    """One for drawing examples, one for drawing seeds: from the same stream, one draw would follow from the other."""
    return np.random.SeedSequence(seed).spawn(2)


def _counts(predictions: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """What a metric adds up, per run and example: fp32, shape (parts, runs, examples).

    Right answers and answers, for Matthews' correlation with how often each class was predicted behind the first and
    how often it is there behind the second; or for each class first its hits, then, behind those of all, its errors.
    """
    right = predictions == labels
    if metric == "accuracy":
        counts = [right, np.ones_like(right)]
    elif metric == "matthews_correlation":
        classes = np.union1d(predictions, labels).tolist()
        there = np.broadcast_to(labels, right.shape)
        counts = [right, *(predictions == name for name in classes)]
        counts += [np.ones_like(right), *(there == name for name in classes)]
    elif metric in RESAMPLED:
        classes = [1] if metric == "f1" else np.union1d(predictions, labels).tolist()
        counts = [right & (labels == name) for name in classes]
        counts += [~right & ((predictions == name) | (labels == name)) for name in classes]
    else:
        raise ValueError(f"no metric {metric}")
    return np.stack(counts).astype(np.float32)


def _score(sums: np.ndarray, metric: str) -> np.ndarray:
    """Scores from the sums over examples of `_counts`, whose first axis is still there."""
    first, second = np.split(sums.astype(np.float64), 2)
    if metric == "accuracy":
        return (first / second)[0]
    if metric == "matthews_correlation":
        # R_K of Gorodkin, 2004 (https://doi.org/10.1016/j.compbiolchem.2004.09.006): Matthews' own for two classes.
        (right, *predicted), (answers, *there) = first, second
        together = right * answers - sum(p * t for p, t in zip(predicted, there, strict=True))
        alone = [np.sqrt(answers**2 - sum(count**2 for count in counts)) for counts in (predicted, there)]
        spread = alone[0] * alone[1]
        return np.divide(together, spread, out=np.zeros_like(together), where=spread > 0)
    total = 2 * first + second  # F1 = 2 TP / (2 TP + FP + FN), of classes that are there or predicted
    each = np.divide(2 * first, total, out=np.zeros_like(total), where=total > 0)
    return each.sum(axis=0) / np.maximum((total > 0).sum(axis=0), 1)
