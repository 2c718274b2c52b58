"""Scores of single classes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlib.evaluation.by_class import ClassScore, confusion_csv, lines_of, scores_by_class, scores_csv, worst

NAMES = ("ham", "spam, or\nworse", "überfluß", "none")
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def check(score: ClassScore, has: Sequence[bool], said: Sequence[bool]) -> None:
    """Against the definitions."""
    right = sum(a and b for a, b in zip(has, said, strict=True))
    assert (score.examples, score.predicted) == (sum(has), sum(said))
    expected = share(right, sum(said)), share(right, sum(has)), share(2 * right, sum(has) + sum(said))
    assert (score.precision, score.recall, score.f1) == pytest.approx(expected, nan_ok=True)


@given(PAIRS)
def test_scores_are_their_definitions(pairs: list[tuple[int, int]]) -> None:
    answers, labels = np.array(pairs).T
    scores = scores_by_class(answers, labels, NAMES)
    assert tuple(score.name for score in scores) == NAMES
    for index, score in enumerate(scores):
        check(score, (labels == index).tolist(), (answers == index).tolist())
    one_hot = [np.eye(4, dtype=np.int64)[each] for each in (answers, labels)]
    assert repr(scores_by_class(*one_hot, NAMES)) == repr(scores), "as a task of several classes that has one each"


@given(st.lists(st.tuples(*[st.tuples(st.booleans(), st.booleans())] * 4), min_size=1, max_size=9))
def test_scores_where_a_text_may_have_several_classes(rows: list[tuple[tuple[bool, bool], ...]]) -> None:
    table = np.array(rows, dtype=np.int64)  # (examples, classes, 2)
    for index, score in enumerate(scores_by_class(table[..., 0], table[..., 1], NAMES)):
        check(score, table[:, index, 1].astype(bool).tolist(), table[:, index, 0].astype(bool).tolist())


@given(PAIRS)
def test_a_confusion_matrix_has_each_example_once(pairs: list[tuple[int, int]]) -> None:
    answers, labels = np.array(pairs).T
    header, *rows = csv.reader(io.StringIO(confusion_csv(answers, labels, NAMES)))
    assert header == ["label", *NAMES] and [row[0] for row in rows] == list(NAMES)
    counts = [[int(count) for count in row[1:]] for row in rows]
    assert counts == [[pairs.count((answer, label)) for answer in range(4)] for label in range(4)]


def test_what_is_undefined_is_a_dash_or_empty() -> None:
    scores = scores_by_class(np.array([0, 0, 1]), np.array([0, 2, 1]), NAMES)
    header, lines = lines_of(scores)
    assert header == ["class", "examples", "predicted", "precision", "recall", "F1"]
    assert lines == [
        ["ham", "1", "2", "0.5000", "1.0000", "0.6667"],
        ["spam, or worse", "1", "1", "1.0000", "1.0000", "1.0000"],
        ["überfluß", "1", "0", "–", "0.0000", "0.0000"],
        ["none", "0", "0", "–", "–", "–"],
    ]
    table = list(csv.reader(io.StringIO(scores_csv(scores))))
    assert table[0] == ["class", "examples", "predicted", "precision", "recall", "f1"]
    assert table[1] == ["ham", "1", "2", "0.5", "1.0", repr(2 / 3)] and table[4] == ["none", "0", "0", "", "", ""]


def test_of_many_classes_the_worst_are_shown_in_their_order() -> None:
    f1 = {"a": 0.9, "b": 0.2, "c": math.nan, "d": 0.5, "e": 0.1}
    scores = [ClassScore(name, 0 if name == "c" else 5, 5, 0.5, 0.5, value) for name, value in f1.items()]
    assert [score.name for score in worst(scores, 3)] == ["b", "d", "e"]
    assert worst(scores, 5) == scores
