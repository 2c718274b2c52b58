"""The metrics are scikit-learn's, without a network."""

from __future__ import annotations

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score

from peftlib.data.tasks import METRICS_OF_OWN_DATA, TASKS
from peftlib.evaluation.metrics import METRICS, score

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)


@settings(max_examples=60)
@given(pairs)
def test_equal_to_scikit_learn(answers: list[tuple[int, int]]) -> None:
    predictions, references = np.asarray(answers).T
    found = score(("accuracy", "f1"), predictions, references)
    assert found == {
        "accuracy": accuracy_score(references, predictions),
        "f1": f1_score(references, predictions, zero_division=0),
    }
    # And by hand: F1 is not symmetric in the classes, accuracy is.
    hits = int((predictions & references).sum())
    marked = int(predictions.sum() + references.sum())
    assert found["accuracy"] == pytest.approx((predictions == references).mean())
    assert found["f1"] == pytest.approx(2 * hits / marked if marked else 0.0)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_any_number_of_classes(answers: list[tuple[int, int]]) -> None:
    predictions, references = np.asarray(answers).T
    found = score(("accuracy", "macro_f1"), predictions, references)
    assert found["accuracy"] == accuracy_score(references, predictions)
    # Each class that occurs against all others.
    each = [
        score(("f1",), (predictions == name).astype(int), (references == name).astype(int))["f1"]
        for name in {*predictions.tolist(), *references.tolist()}
    ]
    assert found["macro_f1"] == pytest.approx(sum(each) / len(each))


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=40)
@given(pairs)
def test_matthews_correlation_is_that_of_two_variables_of_0_and_1(answers: list[tuple[int, int]]) -> None:
    predictions, references = np.asarray(answers).T
    constant = np.ptp(predictions) == 0 or np.ptp(references) == 0
    expected = 0.0 if constant else np.corrcoef(predictions, references)[0, 1]
    assert score(("matthews_correlation",), predictions, references) == {
        "matthews_correlation": pytest.approx(expected, abs=1e-12)
    }


@pytest.mark.parametrize(
    ("predictions", "references", "f1"),
    [
        ([0, 0], [0, 0], 0.0),
        ([0, 0], [1, 1], 0.0),
        ([1, 1], [0, 0], 0.0),
        ([1, 1], [1, 1], 1.0),
        ([1, 0], [1, 1], 2 / 3),
    ],
)
def test_f1_where_a_class_is_missing(
    recwarn: pytest.WarningsRecorder, predictions: list[int], references: list[int], f1: float
) -> None:
    assert score(("f1",), np.asarray(predictions), np.asarray(references)) == {"f1": pytest.approx(f1)}
    assert not [warning for warning in recwarn if "UndefinedMetric" in warning.category.__name__]


scores = st.floats(0, 5, width=32).map(lambda value: round(value, 1))


@settings(max_examples=40)
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=40))
def test_correlations_are_scipy_s(answers: list[tuple[float, float]]) -> None:
    predictions, references = np.asarray(answers, dtype=np.float32).T
    found = score(("pearson", "spearmanr"), predictions, references)
    if min(np.ptp(predictions), np.ptp(references)) > 0:
        pair = predictions.astype(float), references.astype(float)
        expected = {"pearson": pearsonr(*pair).statistic, "spearmanr": spearmanr(*pair).statistic}
    else:
        expected = {"pearson": 0.0, "spearmanr": 0.0}
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references"), [([2.7, 2.7], [1, 4]), ([1, 4], [3, 3]), ([2.7] * 3, [2.7] * 3), ([1], [5])]
)
def test_without_any_spread_a_correlation_is_0_and_says_nothing(
    recwarn: pytest.WarningsRecorder, predictions: list[float], references: list[float]
) -> None:
    pair = np.asarray(predictions, dtype=np.float32), np.asarray(references, dtype=np.float32)
    assert score(("pearson", "spearmanr"), *pair) == {"pearson": 0.0, "spearmanr": 0.0}
    assert not recwarn.list


def test_scores_of_a_model_that_diverged_are_no_numbers() -> None:
    found = score(("pearson", "spearmanr"), np.array([np.nan, 1.0, 2.0], np.float32), np.array([0, 1, 2], np.float32))
    assert all(np.isnan(value) for value in found.values())


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose file system is read-only: a folder cannot be made below a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "file" / "metrics")
    assert score(("accuracy",), np.array([1, 0]), np.array([1, 1])) == {"accuracy": 0.5}


def test_only_what_is_asked_for_is_computed() -> None:
    assert score(("f1",), np.array([1]), np.array([1])) == {"f1": 1.0}


@pytest.mark.parametrize("name", METRICS)
def test_they_are_modules_of_evaluate(name: str) -> None:
    metric = METRICS[name]()
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=[1, 0], references=[1, 1])
    metric.add_batch(predictions=[1], references=[1])
    assert list(metric.compute()) == [name]


def test_every_task_names_metrics_that_exist() -> None:
    assert {*METRICS_OF_OWN_DATA, *(name for task in TASKS.values() for name in task.metrics)} <= METRICS.keys()
    assert TASKS["mrpc"].metrics == ("accuracy", "f1")
