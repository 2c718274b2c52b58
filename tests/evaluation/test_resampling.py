"""Scores on resampled examples against scikit-learn's and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, r2_score

from peftlib.data.tasks import METRICS_OF_OWN_DATA, MULTI_LABEL
from peftlib.evaluation.metrics import METRICS, score
from peftlib.evaluation.resampling import RESAMPLED, resampled_scores, score_of, streams

SCORERS = {
    "accuracy": accuracy_score,
    "f1": lambda y, p: f1_score(y, p, zero_division=0.0),
    "macro_f1": lambda y, p: f1_score(y, p, average="macro", zero_division=0.0),
    "matthews_correlation": matthews_corrcoef,
}
OF_SEVERAL = METRICS_OF_OWN_DATA[MULTI_LABEL]
CORRELATIONS = {"pearson": pearsonr, "spearmanr": spearmanr}
#: Whose value is not bounded below: compared relative to their size.
OF_SCORES = {**CORRELATIONS, "r2": r2_score}


def drawn_scores(seed, examples, runs):
    """Draw labels in fifths, as in STS-B, so that some are equal, and fp32 predictions that follow them loosely."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 26, examples).astype(np.float32) / 5
    noise = generator.normal(size=(runs, examples)) * generator.choice([0.1, 1, 10])
    predictions = (labels + noise).astype(np.float32)
    return predictions.round(1) if seed % 2 else predictions, labels


def scipys(function, labels, predictions):
    if np.ptp(labels) == 0 or (function is not r2_score and np.ptp(predictions) == 0):
        return 0.0
    found = function(labels.astype(float), predictions.astype(float))
    return getattr(found, "statistic", found)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from(list(OF_SCORES)))
def test_scores_of_scores_are_scipys_and_scikit_learns(examples, runs, seed, metric):
    predictions, labels = drawn_scores(seed, examples, runs)
    expected = [scipys(OF_SCORES[metric], labels, row) for row in predictions]
    assert score_of(predictions, labels, metric) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(0, 1000), st.sampled_from(list(OF_SCORES)))
def test_a_resampled_score_of_scores_is_that_of_the_drawn_examples(examples, seed, metric):
    predictions, labels = drawn_scores(seed, examples, 2)
    found = resampled_scores(predictions, labels, metric, resamples=5, seed=seed)
    drawn = np.random.default_rng(streams(seed)[0]).integers(0, examples, (5, examples))
    expected = [[scipys(OF_SCORES[metric], labels[row], run[row]) for run in predictions] for row in drawn]
    assert found == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("metric", CORRELATIONS)
def test_draws_of_one_example_alone_correlate_with_nothing(metric):
    """Computed by sums, their variance is only rounding error, which would correlate with anything."""
    for seed in range(20):
        predictions, labels = drawn_scores(seed, 3, 2)
        drawn = np.random.default_rng(streams(seed)[0]).integers(0, 3, (200, 3))
        alone = np.ptp(drawn, axis=1) == 0
        assert alone.any() and not resampled_scores(predictions, labels, metric, resamples=200, seed=seed)[alone].any()


@pytest.mark.parametrize("metric", CORRELATIONS)
def test_an_answer_that_never_changes_correlates_with_nothing(metric):
    labels = drawn_scores(0, 50, 1)[1]
    always = np.full((1, 50), labels.mean())
    assert score_of(always, labels, metric) == [0.0]
    assert not resampled_scores(always, labels, metric, resamples=20).any()


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from(list(SCORERS)))
def test_scores_are_scikit_learns(examples, runs, seed, metric):
    generator = np.random.default_rng(seed)
    classes = 2 if metric == "f1" else 4
    labels, predictions = generator.integers(0, classes, examples), generator.integers(0, classes, (runs, examples))
    expected = [SCORERS[metric](labels, row) for row in predictions]
    assert score_of(predictions, labels, metric) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=15)
@given(st.integers(2, 30), st.integers(0, 1000), st.sampled_from(list(SCORERS)))
def test_a_resample_is_the_score_of_the_drawn_examples(examples, seed, metric):
    generator = np.random.default_rng(seed)
    classes = 2 if metric == "f1" else 4
    labels, predictions = generator.integers(0, classes, examples), generator.integers(0, classes, (2, examples))
    found = resampled_scores(predictions, labels, metric, resamples=5, seed=seed)
    drawn = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0]).integers(0, examples, (5, examples))
    expected = [[SCORERS[metric](labels[row], run[row]) for run in predictions] for row in drawn]
    assert found == pytest.approx(np.array(expected))


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from(OF_SEVERAL))
def test_scores_of_any_number_of_classes_are_the_metrics(examples, runs, seed, metric):
    generator = np.random.default_rng(seed)
    labels, predictions = (generator.integers(0, 2, (*first, examples, 3)) for first in ((), (runs,)))
    expected = [score((metric,), row, labels)[metric] for row in predictions]
    assert score_of(predictions, labels, metric) == pytest.approx(expected)
    found = resampled_scores(predictions, labels, metric, resamples=3, seed=1)
    drawn = np.random.default_rng(streams(1)[0]).integers(0, examples, (3, examples))
    expected = [[score((metric,), run[row], labels[row])[metric] for run in predictions] for row in drawn]
    assert found == pytest.approx(np.array(expected))


def test_every_metric_can_be_resampled():
    assert set(RESAMPLED) == {*SCORERS, *OF_SCORES, *OF_SEVERAL} == set(METRICS)


def test_more_resamples_than_fit_at_a_time():
    labels = np.array([0, 1, 1, 0])
    assert resampled_scores(labels[None], labels, "accuracy", resamples=1203).shape == (1203, 1)


def test_a_metric_without_a_resampled_form_is_refused(monkeypatch):
    """A name alone in `RESAMPLED` must not pass for F1."""
    monkeypatch.setattr("peftlib.evaluation.resampling.RESAMPLED", (*RESAMPLED, "balanced_accuracy"))
    for answers, metric in ((np.eye(3, dtype=int), "balanced_accuracy"), (np.ones((2, 3, 4)), "balanced_accuracy")):
        with pytest.raises(ValueError, match="no metric balanced_accuracy"):
            score_of(answers, answers[0], metric)
    with pytest.raises(ValueError, match="no metric micro_f1"):
        score_of(np.eye(3, dtype=int), np.eye(3, dtype=int)[0], "micro_f1")
