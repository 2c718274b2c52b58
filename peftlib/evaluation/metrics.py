"""The metrics as local `evaluate.Metric` modules: `evaluate.load("glue")` would download a script from the Hub.

Importing `evaluate` takes about a second, so this module is imported only when the first score is computed.
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, r2_score

_CLASSES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
_MULTI_LABEL = datasets.Features({name: datasets.Sequence(datasets.Value("int64")) for name in _CLASSES})
_SCORES = datasets.Features({"predictions": datasets.Value("float32"), "references": datasets.Value("float32")})


class _Metric(evaluate.Metric):
    def _build_data_dir(self) -> str:
        """A metric kept in memory needs no folder; it would be in Hugging Face's cache, which may be read-only."""
        return "" if self.keep_in_memory else str(super()._build_data_dir())


class Accuracy(_Metric):
    """Share of correct predictions, 0..1."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(_Metric):
    """F1 score of class 1 in a binary task, 0..1; 0 if class 1 neither occurs nor is predicted.

    GLUE reports it for MRPC (Wang et al., 2019, https://arxiv.org/abs/1804.07461, table 1).
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, zero_division=0.0))}


class MacroF1(_Metric):
    """Unweighted mean of the F1 scores of all classes that occur or are predicted, 0..1; 0 if there is no such class.

    For single-label and multi-label tasks.
    """

    def _info(self) -> evaluate.MetricInfo:
        url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"
        return _info(self, url, features=[_CLASSES, _MULTI_LABEL])

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        # A class that neither occurs nor is predicted gets NaN, which sklearn leaves out of the mean.
        value = float(f1_score(references, predictions, average="macro", zero_division=np.nan))
        return {"macro_f1": 0.0 if math.isnan(value) else value}


class MicroF1(_Metric):
    """F1 score over all pairs of example and class, 0..1; 0 if no class occurs or is predicted."""

    def _info(self) -> evaluate.MetricInfo:
        url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"
        return _info(self, url, features=_MULTI_LABEL)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"micro_f1": float(f1_score(references, predictions, average="micro", zero_division=0.0))}


class SubsetAccuracy(_Metric):
    """Share of examples with exactly the right set of classes, 0..1."""

    def _info(self) -> evaluate.MetricInfo:
        url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"
        return _info(self, url, features=_MULTI_LABEL)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"subset_accuracy": float(accuracy_score(references, predictions))}


class MatthewsCorrelation(_Metric):
    """Matthews' correlation of predictions and labels, -1..1; 0 for chance, and if either is constant.

    GLUE reports it for CoLA.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.matthews_corrcoef.html")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


class R2(_Metric):
    """Coefficient of determination, at most 1: 1 minus the mean squared error over the true scores' variance.

    0 for always predicting their mean, and if they are constant.
    """

    def _info(self) -> evaluate.MetricInfo:
        url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.r2_score.html"
        return _info(self, url, features=_SCORES)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        said, true = (np.asarray(values, dtype=np.float64) for values in (predictions, references))
        if true.min() == true.max():
            return {"r2": 0.0}
        # NaN for a diverged model, where sklearn would raise.
        return {"r2": float(r2_score(true, said)) if np.isfinite(said).all() else math.nan}


class Pearson(_Metric):
    """Pearson's correlation of predicted and true scores, -1..1; 0 if either are constant.

    There it is undefined, NaN in scipy; a constant answer is as uninformative as a random one. GLUE reports it for
    STS-B, first.
    """

    def _info(self) -> evaluate.MetricInfo:
        url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"
        return _info(self, url, features=_SCORES)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"pearson": _correlation(pearsonr, predictions, references)}


class SpearmanR(_Metric):
    """Spearman's rank correlation of predicted and true scores, -1..1; 0 if either are constant, as for Pearson's.

    GLUE reports it for STS-B, second.
    """

    def _info(self) -> evaluate.MetricInfo:
        url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.spearmanr.html"
        return _info(self, url, features=_SCORES)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"spearmanr": _correlation(spearmanr, predictions, references)}


def _correlation(function: Any, predictions: np.ndarray, references: np.ndarray) -> float:
    """Compute in fp64: scipy uses the precision of its input."""
    pair = [np.asarray(values, dtype=np.float64) for values in (predictions, references)]
    if any(values.min() == values.max() for values in pair):
        return 0.0
    return float(function(*pair).statistic)


METRICS: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "macro_f1": MacroF1,
    "micro_f1": MicroF1,
    "subset_accuracy": SubsetAccuracy,
    "matthews_correlation": MatthewsCorrelation,
    "r2": R2,
    "pearson": Pearson,
    "spearmanr": SpearmanR,
}


def score(names: tuple[str, ...], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Compute the named metrics.

    Args:
        names: keys of `METRICS`.
        predictions: as returned by `answers_of`.
        references: the true values, in the same format.
    """
    values: dict[str, float] = {}
    for name in names:
        # In memory: every process holds all predictions, so there is nothing to share through files.
        metric = METRICS[name](keep_in_memory=True)
        values |= metric.compute(predictions=predictions, references=references)
    return values


def _info(metric: Any, url: str, features: Any = _CLASSES) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=metric.__doc__,
        citation="",
        inputs_description="what is predicted, and what is true",
        features=features,
        reference_urls=[url],
    )
