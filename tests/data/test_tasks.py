"""The table of tasks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlib.data.tasks import TASKS, in_a_list, is_better
from peftlib.errors import UserError


def test_the_best_model_is_chosen_by_the_first_metric_or_by_the_one_that_was_asked_for() -> None:
    assert TASKS["mrpc"].best_metric(None) == "accuracy"
    assert TASKS["mrpc"].best_metric("f1") == "f1"
    assert all(task.best_metric("loss") == "loss" for task in TASKS.values())


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [("f2", "; did you mean f1?"), ("eval_loss", "; did you mean loss?"), ("eval_f1", "; did you mean f1?"), ("", "")],
)
def test_a_metric_that_the_task_is_not_scored_by_is_refused(wanted: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        TASKS["mrpc"].best_metric(wanted)
    assert str(caught.value) == f"--metric_for_best_model {wanted}: mrpc is scored by accuracy, f1, loss{hint}"


@given(st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_a_larger_metric_and_a_smaller_loss_are_better_and_nan_never_is(one: float, other: float) -> None:
    assert is_better("accuracy", one, than=other) == (one > other or (math.isnan(other) and not math.isnan(one)))
    assert is_better("loss", one, than=other) == is_better("accuracy", -one, than=-other)


def test_two_classes_where_f1_counts_the_second() -> None:
    """GLUE's F1 is that of class 1."""
    assert {name for name, task in TASKS.items() if "f1" in task.metrics} == {"mrpc", "qqp"}
    assert all(len(TASKS[name].labels) == 2 for name in ("mrpc", "qqp"))


def test_sts_b_alone_is_regression() -> None:
    assert [name for name, task in TASKS.items() if task.regression] == ["stsb"]
    assert [name for name, task in TASKS.items() if not task.labels] == ["stsb"]
    assert TASKS["stsb"].best_metric(None) == "pearson"
    assert (TASKS["stsb"].written(3.799999952316284), TASKS["mrpc"].written(1)) == ("3.8", "equivalent")


@given(st.floats(0, 5))
def test_a_score_is_read_however_it_is_written(score: float) -> None:
    assert [TASKS["stsb"].parse_score(written) for written in (score, repr(score), f" {score!r} ")] == [score] * 3


@pytest.mark.parametrize(
    "written", ["", "alike", "nan", "inf", "5.001", "-0.1", "4,5", True, None, 6, [1], 10**400, "1e999", "1_0"]
)
def test_what_is_no_score_is_none(written: object) -> None:
    assert TASKS["stsb"].parse_score(written) is None


def test_of_classes_there_is_no_score() -> None:
    assert TASKS["mrpc"].parse_score("1") is None


def test_only_mnli_has_splits_of_other_genres() -> None:
    assert [name for name, task in TASKS.items() if len(task.splits) > 3] == ["mnli"]
    assert [TASKS["mnli"].published_split(split) for split in TASKS["mnli"].splits] == [
        "train",
        "validation_matched",
        "test_matched",
        "validation_mismatched",
        "test_mismatched",
        "ax",
    ]
    assert [TASKS["mrpc"].published_split(split) for split in TASKS["mrpc"].splits] == ["train", "validation", "test"]


def test_the_diagnostics_are_mnli_s_and_lie_elsewhere() -> None:
    mnli = TASKS["mnli"]
    assert [name for name, task in TASKS.items() if "ax" in task.splits] == ["mnli"]
    assert (mnli.split_on_hub("ax"), mnli.split_on_hub("test")) == (("ax", "test"), ("mnli", "test_matched"))
    assert mnli.file_in_glue("ax") == "diagnostic/diagnostic.tsv"
    assert mnli.file_in_glue("validation_mismatched") == "MNLI/dev_mismatched.tsv"
    assert (TASKS["stsb"].file_in_glue("validation"), mnli.glue_answers("ax")) == ("STS-B/dev.tsv", "AX.tsv")


def test_a_task_that_is_not_glue_s_has_nothing_to_send_to_its_server() -> None:
    assert TASKS["rotten_tomatoes"].glue_answers("test") is None
    assert TASKS["sst2"].glue_answers("test") == "SST-2.tsv"


@pytest.mark.parametrize(
    ("name", "listed"),
    [("spam", "spam"), ("ja, gut", "'ja, gut'"), ("a\nb", "'a\\nb'"), (" pos", "' pos'"), ("nein ß 😀", "nein ß 😀")],
)
def test_a_class_among_others_cannot_be_taken_for_two(name, listed):
    assert in_a_list(name) == listed
