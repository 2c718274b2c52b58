"""The metrics equal scikit-learn's, and need no network."""

from __future__ import annotations

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score

from peftlib.data.tasks import METRICS_OF_OWN_DATA, MULTI_LABEL, REGRESSION, TASKS
from peftlib.evaluation.metrics import METRICS, score

OF_SEVERAL = METRICS_OF_OWN_DATA[MULTI_LABEL]
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
    # One-vs-rest for each class that occurs.
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
    names = METRICS_OF_OWN_DATA[REGRESSION]
    found = score(names, np.array([np.nan, 1.0, 2.0], np.float32), np.array([0, 1, 2], np.float32))
    assert all(np.isnan(value) for value in found.values())


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a read-only file system: a folder cannot be created below a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "file" / "metrics")
    assert score(("accuracy",), np.array([1, 0]), np.array([1, 1])) == {"accuracy": 0.5}


def test_only_what_is_asked_for_is_computed() -> None:
    assert score(("f1",), np.array([1]), np.array([1])) == {"f1": 1.0}


@pytest.mark.parametrize(
    ("name", "several"),
    [*((name, False) for name in METRICS if name not in ("micro_f1", "subset_accuracy")),
     *((name, True) for name in OF_SEVERAL)],
)  # fmt: skip
def test_they_are_modules_of_evaluate(name: str, several: bool) -> None:
    metric = METRICS[name]()
    assert isinstance(metric, evaluate.Metric)
    first, second = ([[1, 0], [0, 1]], [[1, 1]]) if several else ([1, 0], [1])
    metric.add_batch(predictions=first, references=first[::-1])
    metric.add_batch(predictions=second, references=second)
    assert list(metric.compute()) == [name]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=30))
def test_r2_is_the_share_of_variance_that_is_explained(answers: list[tuple[int, int]]) -> None:
    predictions, references = np.asarray(answers, dtype=np.float32).T
    found = score(("r2",), predictions, references)["r2"]
    spread = ((references - references.mean(dtype=float)) ** 2).sum()
    expected = 1 - ((predictions - references) ** 2).sum() / spread if np.ptp(references) else 0.0
    assert found == pytest.approx(expected)


#: (predictions, references) of examples that may have any number of three classes.
decisions = st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=1, max_size=30).map(
    lambda rows: np.asarray(rows).reshape(-1, 2, 3).transpose(1, 0, 2)
)


@settings(max_examples=60)
@given(decisions)
def test_any_number_of_classes_for_an_example(answers: np.ndarray) -> None:
    predictions, references = answers
    found = score(OF_SEVERAL, predictions, references)
    hits, marked = predictions & references, predictions + references
    each = [2 * hits[:, name].sum() / marked[:, name].sum() for name in range(3) if marked[:, name].any()]
    assert found == {
        "micro_f1": pytest.approx(2 * hits.sum() / marked.sum() if marked.any() else 0.0),
        "macro_f1": pytest.approx(np.mean(each) if each else 0.0),
        "subset_accuracy": pytest.approx((predictions == references).all(axis=1).mean()),
    }
    assert found["micro_f1"] == f1_score(references, predictions, average="micro", zero_division=0)


def test_every_task_names_metrics_that_exist() -> None:
    own = {name for names in METRICS_OF_OWN_DATA.values() for name in names}
    assert {*own, *(name for task in TASKS.values() for name in task.metrics)} == METRICS.keys()
    assert TASKS["mrpc"].metrics == ("accuracy", "f1")
