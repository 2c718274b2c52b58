"""Scores on resampled examples against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from peftlib.evaluation.metrics import METRICS
from peftlib.evaluation.resampling import RESAMPLED, resampled_scores, score_of

SCORERS = {
    "accuracy": accuracy_score,
    "f1": lambda y, p: f1_score(y, p, zero_division=0.0),
    "macro_f1": lambda y, p: f1_score(y, p, average="macro", zero_division=0.0),
    "matthews_correlation": matthews_corrcoef,
}


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


def test_every_metric_can_be_resampled():
    assert set(RESAMPLED) == set(SCORERS) == set(METRICS)


def test_more_resamples_than_fit_at_a_time():
    labels = np.array([0, 1, 1, 0])
    assert resampled_scores(labels[None], labels, "accuracy", resamples=1203).shape == (1203, 1)
