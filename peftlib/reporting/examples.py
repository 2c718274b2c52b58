"""Two runs, example by example: what one gets right and the other wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftlib.data.sources import Examples
from peftlib.errors import UserError
from peftlib.evaluation.finished import Finished
from peftlib.reporting.console import CompareConsole
from peftlib.reporting.runs import Run
from peftlib.reporting.sheets import Sheet


def show_disagreements(runs: Sequence[Run], console: CompareConsole, most: int) -> None:
    """Print both sides: right in the first run and wrong in the second, then the other way round.

    Args:
        most: examples per side.

    Raises:
        UserError: these are not two finished runs with predictions on the same validation split, or its texts cannot
            be had.
    """
    a, b = _two(runs)
    examples = Finished(a.folder, a.record).examples("validation")  # read anew from where the run had it
    (answers_a, labels), (answers_b, _) = (_answers(run) for run in (a, b))
    right_a, right_b = answers_a == labels, answers_b == labels
    both = int((right_a & right_b).sum())
    neither = int((~right_a & ~right_b).sum())
    console.note(f"{a.task}: both right {both:,}, both wrong {neither:,} of {len(labels):,}")
    for better, worse, places in (
        (a, b, np.flatnonzero(right_a & ~right_b)),
        (b, a, np.flatnonzero(right_b & ~right_a)),
    ):
        shown = places[:most]
        limit = f", the first {len(shown)}" if len(shown) < len(places) else ""
        console.note()
        console.note(f"{better.name} right, {worse.name} wrong: {len(places):,}{limit}")
        if len(shown):
            wrong = (answers_b if better is a else answers_a)[shown]
            console.sheet(_sheet(examples, shown, wrong, a.record["labels"], worse.name))


def _two(runs: Sequence[Run]) -> tuple[Run, Run]:
    if len(runs) != 2:
        raise UserError(f"--examples: compares two runs, {len(runs)} were given; name two runs' folders")
    a, b = runs
    for run in runs:
        if run.problem is not None:
            raise UserError(f"--examples: {run.name} has no result ({run.problem}); name a finished run")
    prints = [run.record["data"]["validation"]["fingerprint"] for run in runs]
    if a.task != b.task or prints[0] != prints[1]:
        raise UserError(f"--examples: {a.name} ({a.task}) and {b.name} ({b.task}) were not scored on the same examples")
    return a, b


def _answers(run: Run) -> tuple[np.ndarray, np.ndarray]:
    if run.answers is None:
        raise UserError(f"--examples: {run.folder} holds no predictions; train it again")
    return run.answers


def _sheet(examples: Examples, places: np.ndarray, wrong: np.ndarray, labels: Sequence[str], loser: str) -> Sheet:
    lines = [
        [str(place), " ‖ ".join(examples.texts[place]), labels[examples.labels[place]], labels[answer]]
        for place, answer in zip(places.tolist(), wrong.tolist(), strict=True)
    ]
    return Sheet(["example", "text", "true, and said by the other", f"said by {loser}"], lines, numeric=1)
