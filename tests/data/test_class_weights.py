"""The values of --class_weights: how they are written, what they fit, and what they amount to."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from peftlib.data.class_weights import canonical, class_weights, refuse_misfits
from peftlib.data.tasks import MULTI_LABEL, TASKS
from peftlib.errors import UserError

TASK = replace(TASKS["mnli"], name="mails", labels=("ham", "news", "spam"))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=50))
def test_balanced_is_scikit_learn_s_and_a_class_without_examples_divides_nothing(labels: list[int]) -> None:
    found = class_weights("balanced", TASK, np.array(labels))
    assert list(found) == list(TASK.labels)
    there = np.unique(labels)
    expected = compute_class_weight("balanced", classes=there, y=labels)
    assert [found[TASK.labels[index]] for index in there] == pytest.approx(expected.tolist())
    assert all(found[TASK.labels[index]] == 0.0 for index in {0, 1, 2} - set(labels))
    json.dumps(found, allow_nan=False)  # NumPy's numbers are no JSON


@given(st.lists(st.integers(0, 2), min_size=1, max_size=50))
def test_balanced_classes_weigh_alike_in_all(labels: list[int]) -> None:
    found = np.array(list(class_weights("balanced", TASK, np.array(labels)).values()))
    sums = np.bincount(labels, weights=found[labels])
    assert sums[sums > 0] == pytest.approx(sums.max())


def test_named_weights_are_as_given_and_1_for_the_others() -> None:
    labels = np.array([0, 0, 2])
    value = canonical('{"spam": 9, "ham": 0.5}')
    assert class_weights(value, TASK, labels) == {"ham": 0.5, "news": 1.0, "spam": 9.0}
    assert list(class_weights(value, TASK, labels)) == ["ham", "news", "spam"]
    assert class_weights("none", TASK, labels) == {}


def test_equal_weights_have_one_spelling() -> None:
    spellings = ('{"spam": 9, "ham": 1}', ' {"ham":1.0,"spam":9e0} ', "{'ham': 1, 'spam': 9}")
    assert {canonical(text) for text in spellings} == {'{"ham": 1.0, "spam": 9.0}'}
    assert [canonical(word) for word in ("none", "balanced")] == ["none", "balanced"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("balance", "--class_weights balance: must be none, balanced, or weights .*; did you mean balanced"),
        ("", "--class_weights : must be none, balanced, or weights by class name, such as '{\"spam\": 9}'$"),
        ("[1, 9]", r"--class_weights \[1, 9\]: must be none, balanced, or "),
        ("ham=1,spam=9", "--class_weights ham=1,spam=9: must be none, balanced, or "),
        ("{spam: 9}", "--class_weights {spam: 9}: not valid JSON: "),
        ("{9, 1}", "--class_weights {9, 1}: not valid JSON: "),
        ('{"spam": 9, "spam": 1}', "--class_weights .*: spam is given twice; leave one out"),
        ('{"spam": 0}', "--class_weights: the weight of spam is 0, and must be a number from 1e-6 to 1e6"),
        ('{"spam": -1}', "--class_weights: the weight of spam is -1, "),
        ('{"spam": 1e999}', "--class_weights: the weight of spam is Infinity, "),
        ('{"spam": NaN}', "--class_weights: the weight of spam is NaN, "),
        ('{"spam": true}', "--class_weights: the weight of spam is true, "),
        ('{"spam": "9"}', '--class_weights: the weight of spam is "9", '),
        ('{"spam": null}', "--class_weights: the weight of spam is null, "),
    ],
)
def test_a_wrong_value_is_one_line(value: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        canonical(value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_task_is_one_line() -> None:
    several, scores = replace(TASK, problem_type=MULTI_LABEL), TASKS["stsb"]
    for value in ("balanced", '{"spam": 9.0}'):
        with pytest.raises(UserError, match=r"^--class_weights .*: stsb is a regression, without classes; leave it"):
            refuse_misfits(value, scores)
        with pytest.raises(UserError, match=r"^--class_weights .*, and a text of mails may have several; leave it out"):
            refuse_misfits(value, several)
        refuse_misfits(value, TASK)
    with pytest.raises(UserError, match=r"mails has no class sapm; did you mean spam\? \(known: ham, news, spam\)$"):
        refuse_misfits('{"ham": 1.0, "sapm": 9.0}', TASK)
    for task in (TASK, several, scores):
        refuse_misfits("none", task)
