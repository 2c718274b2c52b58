"""Scores of single classes: precision, recall, F1, and which classes are taken for which.

scikit-learn is imported where it is used: it takes a second, and the answer to a single text needs no scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peftlib.files import to_csv


@dataclass(frozen=True)
class ClassScore:
    """How well one class is recognised.

    Attributes:
        examples: how many have the class.
        predicted: for how many it is predicted.
        precision: the share of predictions of it that are right, 0..1; NaN if it is never predicted.
        recall: the share of its examples for which it is predicted, 0..1; NaN if it has none.
        f1: harmonic mean of both; NaN if it neither occurs nor is predicted.
    """

    name: str
    examples: int
    predicted: int
    precision: float
    recall: float
    f1: float

    @property
    def in_csv(self) -> list[float | None]:
        """Precision, recall and F1, None where they are undefined."""
        return [None if math.isnan(share) else share for share in (self.precision, self.recall, self.f1)]


def scores_by_class(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[ClassScore]:
    """Score each class, as scikit-learn's `precision_recall_fscore_support`.

    Args:
        answers, labels: class indices, shape (examples,); for multi-label tasks 0 or 1, shape (examples, classes).
        names: of the classes, in the order of their indices.
    """
    from sklearn.metrics import precision_recall_fscore_support

    def count(classes: np.ndarray) -> np.ndarray:
        return classes.sum(axis=0) if classes.ndim == 2 else np.bincount(classes, minlength=len(names))

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, answers, labels=range(len(names)), average=None, zero_division=np.nan
    )
    columns = (column.tolist() for column in (count(labels), count(answers), precision, recall, f1))
    return [ClassScore(*row) for row in zip(names, *columns, strict=True)]


def worst(scores: Sequence[ClassScore], most: int) -> list[ClassScore]:
    """Return at most so many classes in their order: those that have examples, with the lowest F1."""
    if len(scores) <= most:
        return list(scores)
    order = sorted(range(len(scores)), key=lambda index: (scores[index].examples == 0, scores[index].f1))
    return [scores[index] for index in sorted(order[:most])]


def lines_of(scores: Sequence[ClassScore]) -> tuple[list[str], list[list[str]]]:
    """Format for people: the header, and a line per class; what is undefined is a dash."""
    header = ["class", "examples", "predicted", "precision", "recall", "F1"]
    lines = []
    for one in scores:
        shares = ["–" if share is None else f"{share:.4f}" for share in one.in_csv]
        lines.append([" ".join(one.name.split()), f"{one.examples:,}", f"{one.predicted:,}", *shares])
    return header, lines


def scores_csv(scores: Sequence[ClassScore]) -> str:
    """Format as CSV in full precision; what is undefined is empty."""
    header = ["class", "examples", "predicted", "precision", "recall", "f1"]
    return to_csv([header, *([one.name, one.examples, one.predicted, *one.in_csv] for one in scores)])


def confusion_csv(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> str:
    """Format the confusion matrix as CSV: numbers of examples, a row per label and a column per prediction.

    Args:
        answers, labels: class indices, shape (examples,).
    """
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(labels, answers, labels=range(len(names)))
    return to_csv([["label", *names], *([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))])
