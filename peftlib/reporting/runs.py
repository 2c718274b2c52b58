"""Find runs on disk, read their records, and decide which have a result."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from peftlib.data.own_data import task_in_table
from peftlib.data.tasks import REGRESSION, problem_type_of
from peftlib.errors import UserError, in_one_line, nearest
from peftlib.evaluation.by_class import ClassScore, scores_by_class
from peftlib.evaluation.predictions import PREDICTIONS, answers_of, load_predictions
from peftlib.run_files import RECORD, last_words, logged_in, read_record

#: Dotted paths that a record must have for the run to be grouped.
_NEEDED = (
    "arguments.task_name", "arguments.method", "arguments.seed", "model.name", "parameters.trainable",
    "parameters.total", "parameters.trainable_ratio", "learning_rate", "effective_batch_size", "precision.name",
    "data.train.fingerprint", "data.train.examples", "data.validation.fingerprint", "data.validation.examples",
)  # fmt: skip
#: Dotted paths to finite numbers that a finished run must have, besides its scores.
_MEASURED = ("results.train_runtime", "results.train_samples_per_second", "peak_memory_bytes")


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        record: the content of `run.json`; empty if it is missing or unusable.
        problem: why the run has no result, in words; None for a finished run.
    """

    folder: Path
    record: dict[str, Any]
    problem: str | None

    @property
    def name(self) -> str:
        """Display name: sweep id and trial number, else the folder's name, with the sweep's folder if it is in one."""
        if sweep := self.record.get("sweep"):
            return f"{sweep['id']}/{sweep['trial']}"
        sweeps_folder = self.folder.absolute().parent.parent
        if not self.record and (sweeps_folder / "sweep.json").exists():  # it failed before it could write a record
            return f"{sweeps_folder.name}/{self.folder.name}"
        return self.folder.name

    @property
    def arguments(self) -> dict[str, Any]:
        """The run's arguments, as flag -> value."""
        return dict(self.record.get("arguments", {}))

    @property
    def task(self) -> str:
        return str(self.arguments.get("task_name", "unknown task"))

    @property
    def method(self) -> str:
        return str(self.arguments.get("method", "unknown method"))

    @property
    def seed(self) -> int:
        return int(self.arguments["seed"])

    @property
    def results(self) -> dict[str, Any]:
        """The results, as in `all_results.json`."""
        return dict(self.record["results"])

    def score(self, metric: str) -> float:
        """Return the saved state's score on the validation split."""
        return float(self.results[f"best_eval_{metric}"])

    @cached_property
    def answers(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Its answers on the validation split, as `answers_of` returns them, and the labels; None if none were saved.

        Raises:
            UserError: the file of predictions is damaged, or not of this run.
        """
        loaded = load_predictions(self.folder)
        if loaded is None:
            return None
        logits, labels = loaded
        classes = 1 if problem_type_of(self.record) == REGRESSION else len(self.record.get("labels", ()))
        highest = labels.max(initial=0) if labels.ndim == 1 and labels.dtype.kind == "i" else 0
        if not len(logits) == len(labels) > 0 or (classes and max(logits.shape[1], highest + 1) > classes):
            raise UserError(f"{self.folder / PREDICTIONS}: does not fit run.json; train it again, or remove the file")
        return answers_of(logits, labels), labels

    @cached_property
    def class_scores(self) -> list[ClassScore]:
        """The scores of its classes on the validation split; empty in regression, and without predictions."""
        if self.answers is None or problem_type_of(self.record) == REGRESSION:
            return []
        return scores_by_class(*self.answers, [str(name) for name in self.record["labels"]])

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The evaluations in `metrics.jsonl`, in order, each with its `step`."""
        return list(logged_in(self.folder, containing='"eval/'))  # most lines hold only training metrics


def find_runs(words: Iterable[str]) -> list[Run]:
    """Find and read the runs that the user names: folders of runs or sweeps, their parents, or globs of these.

    Returns:
        Each run once, in the order of `words`, then by folder name.

    Raises:
        UserError: a word matches no folder, or a folder without runs.
    """
    found: dict[Path, Run] = {}
    for word in words:
        below = sorted((run for place in _folders(word) for run in _runs_below(place)), key=lambda run: run.folder)
        if not below:
            raise UserError(f"{word}: contains no run (no run.json in it or below it); name a run's or sweep's folder")
        for run in below:
            found.setdefault(run.folder.resolve(), run)
    return list(found.values())


def _folders(word: str) -> list[Path]:
    path = Path(word)
    if path.is_dir():
        return [path]
    if path.exists():
        raise UserError(f"{word}: is a file; name the run's folder")
    # Path.glob refuses absolute patterns.
    matches = [Path(match) for match in sorted(glob.glob(word, recursive=True)) if Path(match).is_dir()]  # noqa: PTH207
    if not matches:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{word}: no such folder{nearest(path.name, siblings)}")
    return matches


def _runs_below(folder: Path) -> Iterator[Run]:
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        if here.resolve() in seen:  # reached again through a symlink, which may be a cycle
            folders.clear()
            continue
        seen.add(here.resolve())
        folders.sort()
        if RECORD in files:
            folders.clear()  # its checkpoints are not runs
            yield _with_answers(read_run(here))
        elif here.name == "runs" and (here.parent / "sweep.json").exists():
            yield from (
                Run(here / log.removesuffix(".log"), {}, f"failed at start-up: {_last_line(here / log)}")
                for log in sorted(files)
                if log.endswith(".log") and not (here / log.removesuffix(".log") / RECORD).exists()
            )


def _with_answers(run: Run) -> Run:
    """Read the run's answers now: damaged ones become the run's `problem` and do not end the report."""
    try:
        run.answers  # noqa: B018 - a cached property
    except UserError as error:
        return Run(run.folder, run.record, run.problem or str(error))
    return run


def read_run(folder: Path) -> Run:
    """Read one run's record; what is wrong with it goes into `problem` and is never raised."""
    try:
        record = read_record(folder)
    except (OSError, ValueError) as error:
        return Run(folder, {}, f"run.json cannot be read: {in_one_line(error)}")
    missing = [path for path in _NEEDED if _at(record, path) is None]
    if missing:
        return Run(folder, {}, f"run.json is not a training run's record: it lacks {missing[0]}")
    return Run(folder, record, _problem(record))


def _at(record: Any, path: str) -> Any:
    """The value at a dotted path such as "results.train_runtime"; None if there is none."""
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _problem(record: dict[str, Any]) -> str | None:
    status = record.get("status")
    if status == "running":
        # Do not try the folder's lock to tell: a run that is just starting would be refused its own folder.
        return "unfinished: still running, or killed"
    if status != "finished":
        return f"{status}: {record.get('error', 'no reason recorded')}"
    results, task = record.get("results"), task_in_table(_at(record, "arguments"))
    scores = [name for name in results if name.startswith("best_eval_")] if isinstance(results, dict) else []
    if odd := [name for name in scores if not re.fullmatch(r"\w+", name)]:  # file names contain them
        return f"finished with a score whose name is invalid ({odd[0]!r})"
    # The task's first metric, and any other score in the results: an earlier version may have had fewer metrics.
    scores = [*(f"best_eval_{name}" for name in (() if task is None else task.metrics[:1])), *scores]
    for path in (*(f"results.{name}" for name in scores), *_MEASURED):
        value = _at(record, path)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"finished without a finite {path.removeprefix('results.').removeprefix('best_eval_')}"
    return None if scores else "finished without a finite score"


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return (last_words(lines) or (lines or ["it printed nothing"])[-1].strip())[:300]
