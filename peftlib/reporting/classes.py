"""Scores of single classes in a comparison: a table of F1 by class and method, and all of them as CSV."""

from __future__ import annotations

import math
from typing import Any

from peftlib.data.tasks import REGRESSION, problem_type_of
from peftlib.evaluation.by_class import ClassScore, scores_by_class, worst
from peftlib.evaluation.statistics import mean_interval
from peftlib.files import to_csv
from peftlib.reporting.grouping import Comparison
from peftlib.reporting.sheets import Sheet
from peftlib.reporting.table import plus_minus
from peftlib.reporting.variants import Variant

#: Most classes in the table; of more, it has those that the best method recognises worst.
MOST_CLASSES = 30


def class_names(comparison: Comparison) -> list[str]:
    """Return the names of the classes; empty in regression, and where no run has predictions with labels."""
    record = comparison.runs[0].record
    if problem_type_of(record) == REGRESSION or all(run.answers is None for run in comparison.runs):
        return []
    return [str(name) for name in record["labels"]]


def class_sheet(comparison: Comparison) -> Sheet | None:
    """Format the F1 of each class with each contender; None if there are no classes to score."""
    names = class_names(comparison)
    if not names:
        return None
    scored = {variant.label: _scores(variant, names) for variant in comparison.contenders()}
    scored = {label: runs for label, runs in scored.items() if runs}
    if not scored:
        return None
    leading = scored.get(comparison.best[0].label) or next(iter(scored.values()))
    shown = {one.name for one in worst(leading[0], MOST_CLASSES)}
    lines = []
    for index, name in enumerate(names):
        if name in shown:
            f1 = (_mean([run[index].f1 for run in runs]) for runs in scored.values())
            lines.append([name, f"{leading[0][index].examples:,}", *f1])
    return Sheet(["class", "examples", *scored], lines, 2 + len(scored))


def _scores(variant: Variant, names: list[str]) -> list[list[ClassScore]]:
    """The scores of the classes in each run that has predictions."""
    return [scores_by_class(*run.answers, names) for run in variant.runs if run.answers is not None]


def _mean(values: list[float]) -> str:
    """The mean over seeds, of those in which it is defined."""
    defined = [value for value in values if not math.isnan(value)]
    return plus_minus(mean_interval(defined)) if defined else "–"


def classes_csv(comparison: Comparison) -> str:
    """Format the scores of every class in every run as CSV."""
    header = ["method", "seed", "class", "examples", "predicted", "precision", "recall", "f1"]
    names, lines = class_names(comparison), list[list[Any]]()
    for variant in comparison.variants:
        for run in variant.runs:
            if run.answers is not None:
                for one in scores_by_class(*run.answers, names):
                    lines.append([variant.label, run.seed, one.name, one.examples, one.predicted, *one.in_csv])
    return to_csv([header, *lines])
