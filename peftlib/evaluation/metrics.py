"""The metrics, as `evaluate.Metric` modules of our own: `evaluate.load("glue")` would fetch a script from the Hub.

Importing `evaluate` takes about a second, so this module is imported where the first score is computed.
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
_SEVERAL = datasets.Features({name: datasets.Sequence(datasets.Value("int64")) for name in _CLASSES})
_SCORES = datasets.Features({"predictions": datasets.Value("float32"), "references": datasets.Value("float32")})


class _Metric(evaluate.Metric):
    def _build_data_dir(self) -> str:
        """No folder for one in memory: Hugging Face's cache, where it would be, may be one that cannot be written."""
        return "" if self.keep_in_memory else str(super()._build_data_dir())


class Accuracy(_Metric):
    """The share of right predictions, 0..1."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(_Metric):
    """The F1 score of class 1 in a binary task, 0..1; 0 when class 1 is neither there nor predicted.

    The score that GLUE reports for MRPC (Wang et al., 2019, https://arxiv.org/abs/1804.07461, table 1).
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, zero_division=0.0))}


class MacroF1(_Metric):
    """The mean of the F1 scores of all classes that are there or predicted, each of the same weight, 0..1.

    An example may have one of the classes, or any number of them; 0 where none is there or predicted.
    """

    def _info(self) -> evaluate.MetricInfo:
        url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"
        return _info(self, url, features=[_CLASSES, _SEVERAL])

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        # Of a class that is neither there nor predicted it is NaN, which sklearn leaves out of the mean.
        value = float(f1_score(references, predictions, average="macro", zero_division=np.nan))
        return {"macro_f1": 0.0 if math.isnan(value) else value}


class MicroF1(_Metric):
    """F1 over all decisions, one for each example and class, 0..1; 0 where no class is there or predicted."""

    def _info(self) -> evaluate.MetricInfo:
        url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"
        return _info(self, url, features=_SEVERAL)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"micro_f1": float(f1_score(references, predictions, average="micro", zero_division=0.0))}


class SubsetAccuracy(_Metric):
    """The share of examples of which every class is predicted, and no other, 0..1."""

    def _info(self) -> evaluate.MetricInfo:
        url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"
        return _info(self, url, features=_SEVERAL)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"subset_accuracy": float(accuracy_score(references, predictions))}


class MatthewsCorrelation(_Metric):
    """Matthews' correlation of predictions and classes, -1..1; 0 for chance, and where either is always the same.

    The score that GLUE reports for CoLA.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.matthews_corrcoef.html")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


class R2(_Metric):
    """The coefficient of determination: 1 less the share of the true scores' variance that is left as error, up to 1.

    0 for always answering their mean, and where they are all the same.
    """

    def _info(self) -> evaluate.MetricInfo:
        url = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.r2_score.html"
        return _info(self, url, features=_SCORES)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        said, true = (np.asarray(values, dtype=np.float64) for values in (predictions, references))
        if true.min() == true.max():
            return {"r2": 0.0}
        # Of a model that diverged it is no number; sklearn would raise.
        return {"r2": float(r2_score(true, said)) if np.isfinite(said).all() else math.nan}


class Pearson(_Metric):
    """Pearson's correlation of predicted and true scores, -1..1; 0 where either are all the same.

    There it is not defined, and scipy says NaN: an answer that never changes tells nothing, like one by chance. The
    first score that GLUE reports for STS-B.
    """

    def _info(self) -> evaluate.MetricInfo:
        url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"
        return _info(self, url, features=_SCORES)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"pearson": _correlation(pearsonr, predictions, references)}


class SpearmanR(_Metric):
    """Spearman's correlation of predicted and true scores, by ranks, -1..1; 0 where either are all the same, as above.

    The second score that GLUE reports for STS-B.
    """

    def _info(self) -> evaluate.MetricInfo:
        url = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.spearmanr.html"
        return _info(self, url, features=_SCORES)

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"spearmanr": _correlation(spearmanr, predictions, references)}


def _correlation(function: Any, predictions: np.ndarray, references: np.ndarray) -> float:
    """In fp64: scipy computes in the precision that it is given."""
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
    """Compute some metrics.

    Args:
        names: keys of `METRICS`.
        predictions: as `answers_of` gives them.
        references: the same of what is true.
    """
    values: dict[str, float] = {}
    for name in names:
        # In memory: every process holds all predictions, there is nothing to share through files.
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
