"""Scores of runs on examples that are drawn anew, many draws at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

#: The metrics that can be computed on resampled examples.
RESAMPLED = (
    "accuracy", "f1", "macro_f1", "micro_f1", "subset_accuracy", "matthews_correlation", "r2", "pearson", "spearmanr",
)  # fmt: skip
#: Below this share of the mean square of what was drawn, a variance is the rounding of sums: all that was is the same.
_NO_VARIANCE = 1e-12
_CHUNK = 500  # resamples at a time: 500 x 10,000 examples take 40 MB


def resampled_scores(
    predictions: np.ndarray, labels: np.ndarray, metric: str, resamples: int = 5000, seed: int = 0
) -> np.ndarray:
    """Scores of some runs on bootstrap samples of the examples.

    Calls with the same labels, number of resamples and `seed` draw the same examples, so that methods stay paired.

    Args:
        predictions: class indices, or scores for the last three, shape (runs, examples); or for each class whether it
            is one of the example's, shape (runs, examples, classes).
        labels: the same of what is true, without the first axis.
        metric: one of `RESAMPLED`.

    Returns:
        Scores, shape (resamples, runs).
    """
    generator = np.random.default_rng(streams(seed)[0])
    examples = len(labels)
    scorer = _scorer(predictions, labels, metric)
    scores = []
    for start in range(0, resamples, _CHUNK):
        drawn = generator.integers(0, examples, (min(_CHUNK, resamples - start), examples))
        # How often each example was drawn; the rows' offsets keep them apart in one bincount.
        rows = np.arange(len(drawn))[:, None] * examples
        weights = np.bincount((drawn + rows).ravel(), minlength=len(drawn) * examples).reshape(len(drawn), examples)
        scores.append(scorer(weights))
    return np.concatenate(scores)


def score_of(predictions: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """Scores of some runs on all examples, shape (runs,)."""
    return _scorer(predictions, labels, metric)(np.ones((1, len(labels)), dtype=np.int64))[0]


def streams(seed: int) -> list[np.random.SeedSequence]:
    """One for drawing examples, one for drawing seeds: from the same stream, one draw would follow from the other."""
    return np.random.SeedSequence(seed).spawn(2)


def _scorer(predictions: np.ndarray, labels: np.ndarray, metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """Takes how often each example counts, shape (resamples, examples), and gives scores, shape (resamples, runs)."""
    if metric == "spearmanr":
        there, *said = (_Ranks(values) for values in (labels, *predictions))
        return lambda weights: _spearman(there, said, weights)
    if metric in ("pearson", "r2"):
        add, score = (_products, _pearson) if metric == "pearson" else (_squares, _r2)
        parts = add(predictions.astype(np.float64), labels.astype(np.float64))
        return lambda weights: score(weights.astype(np.float64) @ parts.transpose(0, 2, 1))
    counts = _counts(predictions, labels, metric)
    return lambda weights: _score(weights.astype(np.float32) @ counts.transpose(0, 2, 1), metric)


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What Pearson's correlation adds up, per run and example: fp64, shape (6, runs, examples)."""
    # Around their means, or the differences of sums in `_pearson` would lose digits.
    x, y = (values - values.mean(axis=-1, keepdims=True) for values in (x, y))
    y = np.broadcast_to(y, x.shape)
    return np.stack([np.ones_like(x), x, x * x, y, y * y, x * y])


def _pearson(sums: np.ndarray) -> np.ndarray:
    """From the sums over examples of `_products`, whose first axis is still there; 0 where either is all the same."""
    count, x, xx, y, yy, xy = sums
    of_x, of_y = xx - x * x / count, yy - y * y / count
    varied = (of_x > _NO_VARIANCE * xx) & (of_y > _NO_VARIANCE * yy)
    return np.where(varied, (xy - x * y / count) / np.sqrt(np.where(varied, of_x * of_y, 1.0)), 0.0)


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the coefficient of determination adds up, per run and example: fp64, shape (4, runs, examples)."""
    error, around = x - y, np.broadcast_to(y - y.mean(), x.shape)
    return np.stack([np.ones_like(x), around, around * around, error * error])


def _r2(sums: np.ndarray) -> np.ndarray:
    """From the sums over examples of `_squares`, whose first axis is still there; 0 where labels are all the same."""
    count, y, yy, errors = sums
    of_y = yy - y * y / count
    varied = of_y > _NO_VARIANCE * yy
    return np.where(varied, 1 - errors / np.where(varied, of_y, 1.0), 0.0)


class _Ranks:
    """Ranks of values among those that are drawn, equal ones at the mean of their places.

    Args:
        values: shape (examples,).
    """

    def __init__(self, values: np.ndarray) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        is_new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self._starts = np.flatnonzero(is_new)
        self._group = np.empty(len(values), dtype=np.int64)
        self._group[self._order] = np.cumsum(is_new) - 1

    def __call__(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rank of every example, less the mean of ranks, and the sum of the squares of all that are drawn.

        Args:
            drawn: how often each example is, fp64, shape (examples, resamples).

        Returns:
            fp64, shapes (examples, resamples) and (resamples,). Halves, and exact.
        """
        alike = np.add.reduceat(drawn[self._order], self._starts, axis=0)
        # Behind all that are less, in the middle of those alike; (n + 1) / 2 is the mean of n ranks.
        ranks = alike.cumsum(axis=0) - (alike - 1) / 2 - (drawn.sum(axis=0) + 1) / 2
        return ranks[self._group], np.einsum("gr,gr,gr->r", ranks, ranks, alike)


def _spearman(there: _Ranks, said: Sequence[_Ranks], weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks of drawn examples, shape (resamples, runs); 0 where either are all the same.

    Source: Spearman, 1904 (https://doi.org/10.2307/1412159); ties as scipy ranks them.
    """
    drawn = np.ascontiguousarray(weights.T, dtype=np.float64)  # rows are faster to reorder than columns
    ranks_there, square_there = there(drawn)
    weighted, scores = ranks_there * drawn, []
    for ranks in said:
        mine, square = ranks(drawn)
        scale = np.sqrt(square * square_there)
        shared = np.einsum("er,er->r", mine, weighted)
        scores.append(np.divide(shared, scale, out=np.zeros_like(scale), where=scale > 0))
    return np.stack(scores, axis=1)


def _counts(predictions: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """What a metric adds up, per run and example: fp32, shape (parts, runs, examples).

    Right answers and answers, for Matthews' correlation with how often each class was predicted behind the first and
    how often it is there behind the second; or for each class first its hits, then, behind those of all, its errors.
    """
    if predictions.ndim == 3:
        return _counts_of_several(predictions, labels, metric)
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


def _counts_of_several(predictions: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """The same where an example may have any number of classes; of a class, or of all of them, hits and errors."""
    right, there = predictions == labels, labels > 0
    if metric == "subset_accuracy":
        whole = right.all(axis=-1)
        return np.stack([whole, np.ones_like(whole)]).astype(np.float32)
    hits, errors = (np.moveaxis(each, -1, 0).astype(np.float32) for each in (right & there, ~right))
    if metric == "micro_f1":
        return np.stack([hits.sum(axis=0), errors.sum(axis=0)])
    if metric == "macro_f1":
        return np.concatenate([hits, errors])
    raise ValueError(f"no metric {metric}")


def _score(sums: np.ndarray, metric: str) -> np.ndarray:
    """Scores from the sums over examples of `_counts`, whose first axis is still there."""
    first, second = np.split(sums.astype(np.float64), 2)
    if metric in ("accuracy", "subset_accuracy"):
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
