"""Scores of single classes in a comparison: a table of F1 by class and method, and all of them as CSV."""

from __future__ import annotations

import math

from peftlib.evaluation.by_class import ClassScore, worst
from peftlib.evaluation.statistics import mean_interval
from peftlib.files import to_csv
from peftlib.reporting.grouping import Comparison
from peftlib.reporting.sheets import Sheet
from peftlib.reporting.table import plus_minus
from peftlib.reporting.variants import Variant

#: Most classes in the table; of more, it has those that the leading method recognises worst.
MOST_CLASSES = 30


def leading(comparison: Comparison) -> Variant | None:
    """Return the best of the contenders whose runs have scores of classes; None in regression, say."""
    scored = [variant for variant in comparison.contenders() if _scores(variant)]
    return max(scored, key=comparison.standing, default=None)


def class_sheet(comparison: Comparison) -> Sheet | None:
    """Format the F1 of each class with each contender; None if there are no classes to score."""
    lead = leading(comparison)
    if lead is None:
        return None
    scored = {variant.label: runs for variant in comparison.contenders() if (runs := _scores(variant))}
    first = scored[lead.label][0]
    shown = {one.name for one in worst(first, MOST_CLASSES)}
    lines = []
    for index, one in enumerate(first):
        if one.name in shown:
            f1 = (_mean([run[index].f1 for run in runs]) for runs in scored.values())
            lines.append([one.name, f"{one.examples:,}", *f1])
    return Sheet(["class", "examples", *scored], lines, 2 + len(scored))


def classes_left_out(comparison: Comparison) -> str | None:
    """Return a sentence about the classes that the table leaves out; None if it has all."""
    lead = leading(comparison)
    count = 0 if lead is None else len(_scores(lead)[0])
    if lead is None or count <= MOST_CLASSES:
        return None
    return f"Of {count:,} classes, those {MOST_CLASSES} that {lead.label} recognises worst, with its first seed."


def _scores(variant: Variant) -> list[list[ClassScore]]:
    """The scores of the classes in each run that has them."""
    return [run.class_scores for run in variant.runs if run.class_scores]


def _mean(values: list[float]) -> str:
    """The mean over seeds, of those in which it is defined."""
    defined = [value for value in values if not math.isnan(value)]
    return plus_minus(mean_interval(defined)) if defined else "–"


def classes_csv(comparison: Comparison) -> str:
    """Format the scores of every class in every run as CSV."""
    header = ["method", "seed", "class", "examples", "predicted", "precision", "recall", "f1"]
    lines = [
        [variant.label, run.seed, one.name, one.examples, one.predicted, *one.in_csv]
        for variant in comparison.variants
        for run in variant.runs
        for one in run.class_scores
    ]
    return to_csv([header, *lines])
