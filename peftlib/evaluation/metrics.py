"""The metrics, as `evaluate.Metric` modules of our own: `evaluate.load("glue")` would fetch a script from the Hub.

Importing `evaluate` takes about a second, so this module is imported where the first score is computed.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

_CLASSES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})


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
    """The mean of the F1 scores of all classes that are there or predicted, each of the same weight, 0..1."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0.0))}


class MatthewsCorrelation(_Metric):
    """Matthews' correlation of predictions and classes, -1..1; 0 for chance, and where either is always the same.

    The score that GLUE reports for CoLA.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.matthews_corrcoef.html")

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


METRICS: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "macro_f1": MacroF1,
    "matthews_correlation": MatthewsCorrelation,
}


def score(names: tuple[str, ...], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Compute some metrics.

    Args:
        names: keys of `METRICS`.
        predictions: class indices, shape (examples,).
        references: class indices, shape (examples,).
    """
    values: dict[str, float] = {}
    for name in names:
        # In memory: every process holds all predictions, there is nothing to share through files.
        metric = METRICS[name](keep_in_memory=True)
        values |= metric.compute(predictions=predictions, references=references)
    return values


def _info(metric: Any, url: str) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=metric.__doc__,
        citation="",
        inputs_description="class indices",
        features=_CLASSES,
        reference_urls=[url],
    )
