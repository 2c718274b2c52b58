"""Two runs, example by example: what one gets right and the other wrong; for regression, where one is closer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftlib.data.sources import Examples
from peftlib.data.tasks import Task
from peftlib.errors import UserError
from peftlib.evaluation.finished import Finished
from peftlib.reporting.console import CompareConsole
from peftlib.reporting.runs import Run
from peftlib.reporting.sheets import Sheet


def show_disagreements(runs: Sequence[Run], console: CompareConsole, most: int) -> None:
    """Print the examples that the first run gets right and the second wrong, then the other way round.

    Regression is never exactly right: print where the first run is closer to the truth, the largest lead first, then
    where the second one is.

    Args:
        most: maximum number of examples per side.

    Raises:
        UserError: these are not two finished runs with predictions on the same validation split, or its texts cannot
            be loaded.
    """
    a, b = _two(runs)
    run = Finished(a.folder, a.record)
    examples = run.examples("validation")  # reloaded from the run's own source
    (answers_a, labels), (answers_b, same) = (_answers(run) for run in (a, b))
    if not np.array_equal(labels, same):
        raise UserError(
            f"--examples: the predictions in {b.folder} are not for the examples in its record; train it again"
        )
    if labels.dtype.kind == "f":
        _show_scores((a, b), (answers_a, answers_b), labels, examples, console, most)
        return
    right_a, right_b = ((answers == labels).reshape(len(labels), -1).all(axis=1) for answers in (answers_a, answers_b))
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
            console.sheet(_sheet(examples, shown, wrong, Finished(worse.folder, worse.record).task, worse.name))


def _show_scores(
    runs: tuple[Run, Run],
    answers: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    examples: Examples,
    console: CompareConsole,
    most: int,
) -> None:
    a, b = runs
    errors = [np.abs(scores - labels) for scores in answers]
    means = " and ".join(f"{error.mean():.4f} ({run.name})" for run, error in zip(runs, errors, strict=True))
    console.note(f"{a.task}: mean absolute error {means}, {len(labels):,} examples")
    ahead = errors[1] - errors[0]
    for better, worse, by in ((a, b, ahead), (b, a, -ahead)):
        places = [place for place in np.argsort(-by, kind="stable").tolist() if by[place] > 0]
        shown = places[:most]
        limit = f", the {len(shown)} with the largest lead" if len(shown) < len(places) else ""
        console.note()
        console.note(f"{better.name} closer than {worse.name}: {len(places):,}{limit}")
        if shown:
            header = ["example", "label", *(f"predicted by {run.name}" for run in runs), "text"]
            numbers = [[f"{column[place]:.2f}" for column in (labels, *answers)] for place in shown]
            texts = [_printable(examples.texts[place]) for place in shown]
            lines = [[str(place), *row, text] for place, row, text in zip(shown, numbers, texts, strict=True)]
            console.sheet(Sheet(header, lines, numeric=4))


def _two(runs: Sequence[Run]) -> tuple[Run, Run]:
    if len(runs) != 2:
        raise UserError(f"--examples: compares two runs, but {len(runs)} were given; name two runs' folders")
    a, b = runs
    for run in runs:
        if run.problem is not None:
            raise UserError(f"--examples: {run.name} has no result ({run.problem}); name a finished run")
    prints = [run.record["data"]["validation"]["fingerprint"] for run in runs]
    if prints[0] != prints[1]:  # the tasks of one's own files may have other names
        raise UserError(f"--examples: {a.name} ({a.task}) and {b.name} ({b.task}) were not scored on the same examples")
    shared = list(zip(*(run.record.get("labels", ()) for run in runs), strict=False))
    if other := next((pair for pair in shared if pair[0] != pair[1]), None):  # the fingerprints hash their indices
        raise UserError(f"--examples: {a.name} and {b.name} have other classes ({other[0]}, {other[1]})")
    return a, b


def _answers(run: Run) -> tuple[np.ndarray, np.ndarray]:
    if run.answers is None:
        raise UserError(f"--examples: {run.folder} has no predictions; train it again")
    return run.answers


def _printable(texts: Sequence[str]) -> str:
    """Join an example's texts, without the line breaks and control characters that would reach the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in " ‖ ".join(texts)).split())


def _sheet(examples: Examples, places: np.ndarray, wrong: np.ndarray, task: Task, loser: str) -> Sheet:
    lines = [
        [
            str(place),
            _printable(examples.texts[place]),
            *(task.written(label) or "–" for label in (examples.labels[place], answer)),
        ]
        for place, answer in zip(places.tolist(), wrong.tolist(), strict=True)
    ]
    return Sheet(["example", "text", "label, and predicted by the other", f"predicted by {loser}"], lines, numeric=1)
