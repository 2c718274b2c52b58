"""Two runs, example by example: what one gets right and the other wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftlib.data.files import files_of
from peftlib.data.sources import Examples, find_task, load_examples
from peftlib.errors import UserError
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
    examples = _texts(a)
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
            console.table(_sheet(examples, shown, wrong, a.record["labels"], worse.name))


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


def _texts(run: Run) -> Examples:
    """The run's validation split, read anew from where the run had it."""
    folder, limit = run.arguments["data_dir"], run.arguments["max_eval_samples"]
    own = ("train_file", "validation_file", "text_column_names", "label_column_name")
    given = {name: run.arguments[name] for name in own if run.arguments.get(name) is not None}
    task = find_task(run.task, files_of(**given))
    examples = load_examples(task, "validation", Path(folder) if folder else None).first(limit)
    if examples.fingerprint() != run.record["data"]["validation"]["fingerprint"]:
        raise UserError(
            f"--examples: the validation split in {examples.source} has changed since {run.name} was scored on it; "
            "put back the data that it was trained with"
        )
    return examples


def _sheet(examples: Examples, places: np.ndarray, wrong: np.ndarray, labels: Sequence[str], loser: str) -> Sheet:
    lines = [
        [str(place), " ‖ ".join(examples.texts[place]), labels[examples.labels[place]], labels[answer]]
        for place, answer in zip(places.tolist(), wrong.tolist(), strict=True)
    ]
    return Sheet(["example", "text", "true, and said by the other", f"said by {loser}"], lines, numeric=1)
