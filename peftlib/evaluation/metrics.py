"""The metrics as local `evaluate.Metric` modules: `evaluate.load("glue")` would download a script from the Hub.

Importing `evaluate` takes about a second, so this module is imported only when the first score is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, r2_score

_CLASSES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
_MULTI_LABEL = datasets.Features({name: datasets.Sequence(datasets.Value("int64")) for name in _CLASSES})
_SCORES = datasets.Features({"predictions": datasets.Value("float32"), "references": datasets.Value("float32")})
_SKLEARN = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics."
_SCIPY = "https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats."


def _macro_f1(references: np.ndarray, predictions: np.ndarray) -> float:
    # A class that neither occurs nor is predicted gets NaN, which sklearn leaves out of the mean.
    value = float(f1_score(references, predictions, average="macro", zero_division=np.nan))
    return 0.0 if math.isnan(value) else value


def _r2(references: np.ndarray, predictions: np.ndarray) -> float:
    true, said = (np.asarray(values, dtype=np.float64) for values in (references, predictions))
    if true.min() == true.max():
        return 0.0
    # NaN for a diverged model, where sklearn would raise.
    return float(r2_score(true, said)) if np.isfinite(said).all() else math.nan


def _correlation(function: Any, references: np.ndarray, predictions: np.ndarray) -> float:
    # In fp64: scipy uses the precision of its input.
    pair = [np.asarray(values, dtype=np.float64) for values in (predictions, references)]
    if any(values.min() == values.max() for values in pair):
        return 0.0  # undefined, NaN in scipy; a constant answer is as uninformative as a random one
    return float(function(*pair).statistic)


class _Definition(NamedTuple):
    """A metric: its function of references and predictions, the type of both, where it is documented, what it is."""

    function: Callable[[np.ndarray, np.ndarray], float]
    features: Any
    url: str
    description: str


_DEFINITIONS = {
    "accuracy": _Definition(
        accuracy_score, _CLASSES, f"{_SKLEARN}accuracy_score.html", "Share of correct predictions, 0..1."
    ),
    # GLUE reports it for MRPC (Wang et al., 2019, https://arxiv.org/abs/1804.07461, table 1).
    "f1": _Definition(
        partial(f1_score, zero_division=0.0), _CLASSES, f"{_SKLEARN}f1_score.html",
        "F1 score of class 1 in a binary task, 0..1; 0 if class 1 neither occurs nor is predicted.",
    ),
    "macro_f1": _Definition(
        _macro_f1, [_CLASSES, _MULTI_LABEL], f"{_SKLEARN}f1_score.html",
        "Unweighted mean of the F1 scores of all classes that occur or are predicted, 0..1; 0 if there is none.",
    ),
    "micro_f1": _Definition(
        partial(f1_score, average="micro", zero_division=0.0), _MULTI_LABEL, f"{_SKLEARN}f1_score.html",
        "F1 score over all pairs of example and class, 0..1; 0 if no class occurs or is predicted.",
    ),
    "subset_accuracy": _Definition(
        accuracy_score, _MULTI_LABEL, f"{_SKLEARN}accuracy_score.html",
        "Share of examples with exactly the right set of classes, 0..1.",
    ),
    # GLUE reports it for CoLA.
    "matthews_correlation": _Definition(
        matthews_corrcoef, _CLASSES, f"{_SKLEARN}matthews_corrcoef.html",
        "Matthews' correlation of predictions and labels, -1..1; 0 for chance, and if either is constant.",
    ),
    "r2": _Definition(
        _r2, _SCORES, f"{_SKLEARN}r2_score.html",
        "Coefficient of determination, at most 1: 1 minus the mean squared error over the true scores' variance; 0 for "
        "always predicting their mean, and if they are constant.",
    ),
    # GLUE reports both correlations for STS-B, in this order.
    "pearson": _Definition(
        partial(_correlation, pearsonr), _SCORES, f"{_SCIPY}pearsonr.html",
        "Pearson's correlation of predicted and true scores, -1..1; 0 if either are constant.",
    ),
    "spearmanr": _Definition(
        partial(_correlation, spearmanr), _SCORES, f"{_SCIPY}spearmanr.html",
        "Spearman's rank correlation of predicted and true scores, -1..1; 0 if either are constant.",
    ),
}  # fmt: skip


def _module(name: str, definition: _Definition) -> type[evaluate.Metric]:
    class Module(evaluate.Metric):
        __doc__ = definition.description

        def _build_data_dir(self) -> str:
            """A metric kept in memory needs no folder; it would be in Hugging Face's cache, which may be read-only."""
            return "" if self.keep_in_memory else str(super()._build_data_dir())

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=definition.description,
                citation="",
                inputs_description="what is predicted, and what is true",
                features=definition.features,
                reference_urls=[definition.url],
            )

        def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
            return {name: float(definition.function(references, predictions))}

    Module.__name__ = name  # `evaluate` names the module after its class
    return Module


METRICS: dict[str, type[evaluate.Metric]] = {name: _module(name, each) for name, each in _DEFINITIONS.items()}


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
