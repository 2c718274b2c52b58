"""The table of tasks."""

from __future__ import annotations

import pytest

from peftlib.data.tasks import TASKS
from peftlib.errors import UserError


def test_the_best_model_is_chosen_by_the_first_metric_or_by_the_one_that_was_asked_for() -> None:
    assert TASKS["mrpc"].best_metric(None) == "accuracy"
    assert TASKS["mrpc"].best_metric("f1") == "f1"


@pytest.mark.parametrize("wanted", ["f2", "loss", ""])
def test_a_metric_that_the_task_is_not_scored_by_is_refused(wanted: str) -> None:
    with pytest.raises(UserError, match=f"--metric_for_best_model {wanted}: mrpc is scored by accuracy, f1"):
        TASKS["mrpc"].best_metric(wanted)
