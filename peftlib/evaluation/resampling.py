"""Scores of runs on bootstrap samples of the examples, vectorised over samples and runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

#: The metrics that can be computed on resampled examples.
RESAMPLED = (
    "accuracy", "f1", "macro_f1", "micro_f1", "subset_accuracy", "matthews_correlation", "r2", "pearson", "spearmanr",
)  # fmt: skip
#: A variance below this share of the mean square is rounding error: all values drawn are equal.
_NO_VARIANCE = 1e-12
_CHUNK = 500  # resamples at a time: 500 x 10,000 examples take 40 MB


def resampled_scores(
    predictions: np.ndarray, labels: np.ndarray, metric: str, resamples: int = 5000, seed: int = 0
) -> np.ndarray:
    """Score runs on bootstrap samples of the examples.

    Calls with the same labels, number of resamples and `seed` draw the same examples, so that methods stay paired.

    Args:
        predictions: class indices, or scores for the last three metrics, shape (runs, examples); for multi-label 1 or
            0 for each class, shape (runs, examples, classes).
        labels: likewise, without the first axis.
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
        # Count how often each example was drawn; offsets keep the rows apart in a single bincount.
        rows = np.arange(len(drawn))[:, None] * examples
        weights = np.bincount((drawn + rows).ravel(), minlength=len(drawn) * examples).reshape(len(drawn), examples)
        scores.append(scorer(weights))
    return np.concatenate(scores)


def score_of(predictions: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """Score runs on all examples; returns shape (runs,)."""
    return _scorer(predictions, labels, metric)(np.ones((1, len(labels)), dtype=np.int64))[0]


def streams(seed: int) -> list[np.random.SeedSequence]:
    """Return two independent random streams, for drawing examples and seeds: from one stream the draws would depend."""
    return np.random.SeedSequence(seed).spawn(2)


def _scorer(predictions: np.ndarray, labels: np.ndarray, metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the examples' weights, shape (resamples, examples), to scores, shape (resamples, runs)."""
    if metric == "spearmanr":
        true_ranks, *run_ranks = (_Ranks(values) for values in (labels, *predictions))
        return lambda weights: _spearman(true_ranks, run_ranks, weights)
    if metric in ("pearson", "r2"):
        terms, score = (_products, _pearson) if metric == "pearson" else (_squares, _r2)
        parts = terms(predictions.astype(np.float64), labels.astype(np.float64))
        return lambda weights: score(weights.astype(np.float64) @ parts.transpose(0, 2, 1))
    counts = _counts(predictions, labels, metric)
    return lambda weights: _score(weights.astype(np.float32) @ counts.transpose(0, 2, 1), metric)


def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The terms that Pearson's correlation sums, per run and example: fp64, shape (6, runs, examples)."""
    # Centred, since the differences of sums in `_pearson` would otherwise cancel digits.
    x, y = (values - values.mean(axis=-1, keepdims=True) for values in (x, y))
    y = np.broadcast_to(y, x.shape)
    return np.stack([np.ones_like(x), x, x * x, y, y * y, x * y])


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Correlations from the sums of `_products` over examples, shape (6, ...); 0 where either side is constant."""
    count, x, xx, y, yy, xy = sums
    ss_x, ss_y = xx - x * x / count, yy - y * y / count
    varied = (ss_x > _NO_VARIANCE * xx) & (ss_y > _NO_VARIANCE * yy)
    return np.where(varied, (xy - x * y / count) / np.sqrt(np.where(varied, ss_x * ss_y, 1.0)), 0.0)


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The terms that the coefficient of determination sums, per run and example: fp64, shape (4, runs, examples)."""
    error, centred = x - y, np.broadcast_to(y - y.mean(), x.shape)
    return np.stack([np.ones_like(x), centred, centred * centred, error * error])


def _r2(sums: np.ndarray) -> np.ndarray:
    """Coefficients from the sums of `_squares` over examples, shape (4, ...); 0 where the labels are constant."""
    count, y, yy, errors = sums
    ss_y = yy - y * y / count
    varied = ss_y > _NO_VARIANCE * yy
    return np.where(varied, 1 - errors / np.where(varied, ss_y, 1.0), 0.0)


class _Ranks:
    """Ranks of values within a bootstrap sample; ties get their mean rank.

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
        """Return every example's rank, minus the mean rank, and the sum of squares over the examples drawn.

        Args:
            drawn: how often each example was drawn, fp64, shape (examples, resamples).

        Returns:
            fp64, shapes (examples, resamples) and (resamples,). Ranks are multiples of 1/2, so they are exact.
        """
        ties = np.add.reduceat(drawn[self._order], self._starts, axis=0)
        # The mean rank of each group of ties, minus (n + 1) / 2, the mean of n ranks.
        ranks = ties.cumsum(axis=0) - (ties - 1) / 2 - (drawn.sum(axis=0) + 1) / 2
        return ranks[self._group], np.einsum("gr,gr,gr->r", ranks, ranks, ties)


def _spearman(labels: _Ranks, runs: Sequence[_Ranks], weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the drawn examples' ranks, shape (resamples, runs); 0 where either side is constant.

    Source: Spearman, 1904 (https://doi.org/10.2307/1412159); ties as scipy ranks them.
    """
    drawn = np.ascontiguousarray(weights.T, dtype=np.float64)  # rows are faster to reorder than columns
    true_ranks, true_square = labels(drawn)
    weighted, scores = true_ranks * drawn, []
    for run in runs:
        ranks, square = run(drawn)
        scale = np.sqrt(square * true_square)
        covariance = np.einsum("er,er->r", ranks, weighted)
        scores.append(np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0))
    return np.stack(scores, axis=1)


def _counts(predictions: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """The counts that a metric sums, per run and example: fp32, shape (parts, runs, examples).

    Parts of the first half | of the second half:
        accuracy: correct | all
        Matthews' correlation: correct, predictions of each class | all, labels of each class
        F1: true positives of each class | false positives and false negatives of each class
    """
    if predictions.ndim == 3:
        return _multi_label_counts(predictions, labels, metric)
    right = predictions == labels
    if metric == "accuracy":
        counts = [right, np.ones_like(right)]
    elif metric == "matthews_correlation":
        classes = np.union1d(predictions, labels).tolist()
        true = np.broadcast_to(labels, right.shape)
        counts = [right, *(predictions == index for index in classes)]
        counts += [np.ones_like(right), *(true == index for index in classes)]
    elif metric in ("f1", "macro_f1"):
        classes = [1] if metric == "f1" else np.union1d(predictions, labels).tolist()
        counts = [right & (labels == index) for index in classes]
        counts += [~right & ((predictions == index) | (labels == index)) for index in classes]
    else:
        raise ValueError(f"no metric {metric}")
    return np.stack(counts).astype(np.float32)


def _multi_label_counts(predictions: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """As `_counts`, for multi-label tasks; for micro F1 the counts are those of all classes together."""
    right, true = predictions == labels, labels > 0
    if metric == "subset_accuracy":
        whole = right.all(axis=-1)
        return np.stack([whole, np.ones_like(whole)]).astype(np.float32)
    hits, errors = (np.moveaxis(each, -1, 0).astype(np.float32) for each in (right & true, ~right))
    if metric == "micro_f1":
        return np.stack([hits.sum(axis=0), errors.sum(axis=0)])
    if metric == "macro_f1":
        return np.concatenate([hits, errors])
    raise ValueError(f"no metric {metric}")


def _score(sums: np.ndarray, metric: str) -> np.ndarray:
    """Scores from the sums of `_counts` over examples, shape (parts, ...)."""
    first, second = np.split(sums.astype(np.float64), 2)
    if metric in ("accuracy", "subset_accuracy"):
        return (first / second)[0]
    if metric == "matthews_correlation":
        # R_K of Gorodkin, 2004 (https://doi.org/10.1016/j.compbiolchem.2004.09.006), Matthews' for two classes.
        (right, *predicted), (answers, *true) = first, second
        covariance = right * answers - sum(p * t for p, t in zip(predicted, true, strict=True))
        deviations = [np.sqrt(answers**2 - sum(count**2 for count in counts)) for counts in (predicted, true)]
        spread = deviations[0] * deviations[1]
        return np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)
    total = 2 * first + second  # F1 = 2 TP / (2 TP + FP + FN), for classes that occur or are predicted
    each = np.divide(2 * first, total, out=np.zeros_like(total), where=total > 0)
    return each.sum(axis=0) / np.maximum((total > 0).sum(axis=0), 1)
